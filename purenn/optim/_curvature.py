"""Estimates of the diagonal of a Hessian, from one gradient's time each."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purenn import random
from purenn.errors import ShapeError
from purenn.transforms import grad, vjp
from purenn.tree import combine, leaves, partition
from purenn.tree import map as tree_map
from purenn.tree._walk import short


def hutchinson_diagonal(loss: Callable[..., Tensor]) -> Callable[..., Any]:
    """An unbiased estimate of the diagonal of a loss's Hessian: ``u * (H u)`` with random signs ``u``.

    It costs about two gradients, and is exact where the Hessian is diagonal.

    Args:
        loss: ``loss(params, *args)``, a scalar with second derivatives.

    Returns:
        ``estimate(key, params, *args)``, a tree like the gradient.

    Source:
        Hutchinson: A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines, 1989.
        Bekas, Kokiopoulou, Saad: An Estimator for the Diagonal of a Matrix, 2007.

    Example:
        >>> import torch, purenn as pn
        >>> pn.optim.hutchinson_diagonal(lambda w: (w**3).sum())(pn.random.key(0), torch.tensor([1.0, 2.0]))
        tensor([ 6., 12.])
    """

    def estimate(key: Tensor, params: Any, *args: Any) -> Any:
        trained, rest = partition(params)
        keys = iter(random.split(key, max(1, len(leaves(trained)))).unbind(0))
        signs = tree_map(lambda w: _signs(next(keys), w), trained)
        _, pull = vjp(grad(lambda trained: loss(combine(trained, rest), *args)), trained)
        return tree_map(lambda sign, product: sign * product, signs, pull(signs))

    return estimate


def gauss_newton_bartlett(model: Callable[..., Tensor]) -> Callable[..., Any]:
    """An estimate of the diagonal of the Gauss-Newton matrix of a mean cross entropy, which is never negative.

    Targets are drawn from the model's own distribution; the estimate is the square of the gradient for them, times the
    number of examples. It costs one gradient.

    Args:
        model: ``model(params, *inputs)``, the logits ``[*batch, classes]``.

    Returns:
        ``estimate(key, params, *inputs)``, a tree like the gradient.

    Raises:
        ShapeError: when called: logits without a batch axis.

    Source:
        Liu, Li, Hall, Liang, Ma: Sophia, a Scalable Stochastic Second-order Optimizer for Language Model Pre-training,
        2023, algorithm 2.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear, linear
        >>> p = Linear.init(pn.random.key(0), 3, 10)
        >>> estimate = pn.optim.gauss_newton_bartlett(linear)(pn.random.key(1), p, torch.ones(8, 3))
        >>> bool((estimate.weight >= 0).all())
        True
    """

    def estimate(key: Tensor, params: Any, *inputs: Any) -> Any:
        def loss(params: Any) -> tuple[Tensor, int]:
            logits = model(params, *inputs)
            if logits.dim() < 2:
                raise ShapeError(
                    f"gauss_newton_bartlett: the logits must have the shape [*batch, classes], got {short(logits)}."
                )
            flat = logits.flatten(0, -2)
            drawn = random.categorical(key, flat.detach())
            return F.cross_entropy(flat, drawn), len(flat)

        grads, count = grad(loss, has_aux=True)(params)
        return tree_map(lambda g: count * g * g, grads)

    return estimate


def _signs(key: Tensor, like: Tensor) -> Tensor:
    return random.bernoulli(key, tuple(like.shape)).to(like.dtype) * 2 - torch.ones_like(like)
