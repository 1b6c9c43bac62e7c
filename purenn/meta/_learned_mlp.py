"""A learned optimiser: a small network that computes the step of every element from what is known of it."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError
from purenn.optim import GradientTransformation
from purenn.optim._hyperparameters import Values
from purenn.optim._rule import OWN, Rule, like, optimizer
from purenn.tree import container, static

# Numbers of steps that the network can tell apart.
_TIMES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


@container
class MLPOptimizer:
    """Parameters of a learned optimiser, the same small network for every element of every leaf.

    Attributes:
        weights: of the layers, each ``[out, in]``.
        biases: of the layers, each ``[out]``.
        decays: how much of the running means of the gradient is kept.
        square_decay: how much of the running mean of its square is kept.
        step: the scale of the steps.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    decays: tuple[float, ...] = static(default=(0.5, 0.9, 0.99))
    square_decay: float = static(default=0.999)
    step: float = static(default=0.01)

    @classmethod
    def init(
        cls,
        key: Tensor,
        *,
        hidden: int = 32,
        depth: int = 2,
        decays: tuple[float, ...] = (0.5, 0.9, 0.99),
        square_decay: float = 0.999,
        step: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Draw the network.

        Args:
            key: random key.
            hidden: the width of its hidden layers. Default: 32.
            depth: their number. Default: 2.
            decays: how much of the running means of the gradient is kept. Default: (0.5, 0.9, 0.99).
            square_decay: how much of the running mean of its square is kept. Default: 0.999.
            step: the scale of the steps. Default: 0.01.
            dtype: of the network. Default: torch.float32.

        Raises:
            ArgumentError: no width or no hidden layer.
        """
        if hidden < 1 or depth < 1:
            raise ArgumentError(f"MLPOptimizer: hidden and depth must be at least 1, got {hidden} and {depth}.")
        widths = [4 + 2 * len(decays) + len(_TIMES), *[hidden] * depth, 2]
        keys = random.split(key, depth + 1).unbind(0)
        shapes = list(zip(widths[1:], widths[:-1], strict=True))
        return cls(
            tuple(
                [random.normal(k, shape, dtype=dtype) / shape[1] ** 0.5 for k, shape in zip(keys, shapes, strict=True)]
            ),
            tuple([torch.zeros(shape[0], dtype=dtype, device=key.device) for shape in shapes]),
            decays,
            square_decay,
            step,
        )


@container
class MLPOptimizerState:
    """State of `mlp_optimizer`.

    Attributes:
        count: number of steps done, an int64 scalar.
        means: running means of the gradient, a tree like the parameters, each leaf ``[*leaf, number of means]``.
        square: running mean of its square, a tree like the parameters.
    """

    count: Tensor
    means: Any
    square: Any


def mlp_optimizer(p: MLPOptimizer) -> GradientTransformation:
    """The optimiser that a network is: to be used as `pn.optim.adam`, and differentiated with respect to `p`.

    For every element the network sees the gradient, its running means and both divided by the root of its running
    square, that root's inverse and the parameter, each in proportion to its root mean square over the leaf, and the
    number of steps. It returns a direction ``d`` and a size ``s``: the element moves by ``-step d exp(s / 100)``.
    Meta-train it by `pn.grad` through the steps, or by `evolution_gradient` and `persistent_evolution`.

    Source:
        Metz et al.: Practical Tradeoffs Between Memory, Compute, and Performance in Learned Optimizers, 2022, section 3
        (the per-parameter network).

    Example:
        >>> import torch, purenn as pn
        >>> p = pn.meta.MLPOptimizer.init(pn.random.key(0))
        >>> def meta_loss(p):
        ...     optimizer, w = pn.meta.mlp_optimizer(p), torch.ones(3)
        ...     state = optimizer.init(w)
        ...     for _ in range(5):
        ...         w, state = optimizer.step(w, pn.grad(lambda w: w.square().sum())(w), state)
        ...     return w.square().sum()
        >>> pn.grad(meta_loss)(p).biases[0].shape
        torch.Size([32])
    """

    def direction(g: Tensor, w: Tensor, slots: tuple[Tensor, ...], values: Values) -> tuple[Tensor, tuple[Tensor, ...]]:
        decays = torch.tensor(p.decays, dtype=g.dtype, device=g.device)
        means = slots[0] * decays + g.unsqueeze(-1) * (1 - decays)
        square = slots[1] * p.square_decay + g * g * (1 - p.square_decay)
        inverse = (square + 1e-8).rsqrt().unsqueeze(-1)
        first, columns = g.unsqueeze(-1), w.unsqueeze(-1)
        features = torch.cat([first, means, first * inverse, means * inverse, inverse, columns], -1)
        sizes = features.square().mean(tuple(range(w.dim())), keepdim=True) if w.dim() else features.square()
        move, size = _network(p, features * (sizes + 1e-8).rsqrt(), values["number"]).unbind(-1)
        return p.step * move * torch.exp(size / 100), (means, square)

    rule = Rule(
        name="mlp_optimizer",
        state=MLPOptimizerState,
        slots=("means", "square"),
        begin=lambda w, _: (w.new_zeros((*w.shape, len(p.decays))), like(w)),
        direction=direction,
        hyperparameters={"rate": 1.0},
        scalars=lambda step, values: {"number": step},
        elementwise=False,
        takes_complex=False,
        decay=OWN,
    )
    return optimizer(rule)._replace(stepper=None)  # the fast path would not differentiate


def _network(p: MLPOptimizer, features: Tensor, number: Any) -> Tensor:
    times = torch.tensor(_TIMES, dtype=torch.float64, device=features.device)
    passed = torch.tanh(number / times - 1).to(p.weights[0].dtype)
    # What all elements share goes through the first layer once.
    split = features.shape[-1]
    x = features.to(passed.dtype)
    x = F.linear(x, p.weights[0][:, :split]) + F.linear(passed, p.weights[0][:, split:], p.biases[0])
    for weight, bias in zip(p.weights[1:], p.biases[1:], strict=True):
        x = F.linear(torch.relu(x), weight, bias)
    return x
