"""Cross entropy of a linear layer's results, without keeping them.

The logits of a language model, ``[batch, classes]`` with very many classes, often take more memory than all else. Here
they can be made a few examples at a time, and once more when the gradient needs them.
"""

import math
from collections.abc import Callable
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from purenn._modes import is_plain
from purenn.errors import ArgumentError, ShapeError
from purenn.layers.linear import Linear
from purenn.losses._cross_entropy import counted_weight, cross_entropy
from purenn.losses._reduction import Reduction, check_reduction, reduced
from purenn.tree import Layer, applies, buffer, container, static


def linear_cross_entropy(
    x: Float[Tensor, "*batch in_features"],
    linear_weight: Float[Tensor, "classes *positions in_features"],
    target: Integer[Tensor, "*indices"] | Float[Tensor, "*logits"],
    *,
    linear_bias: Float[Tensor, "classes *positions"] | None = None,
    weight: Float[Tensor, " classes"] | None = None,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
) -> Float[Tensor, "*reduced"]:
    """`cross_entropy` of the logits ``linear_weight x + linear_bias``.

    Args:
        x: ``[batch, in_features]`` or ``[in_features]``.
        linear_weight: ``[classes, in_features]``, or ``[classes, ..., in_features]`` for several positions with a class
            each, which needs a batch.
        target: class indices ``[batch, ...]`` or ``[]``, or class probabilities ``[batch, classes, ...]``.
        linear_bias: of the shape of `linear_weight` without its last dimension, or None.
        weight: factor of each class.
        reduction: over examples and positions: "mean", "sum" or "none".
        ignore_index: class that is left out; None for -100. It cannot be given with class probabilities.
        label_smoothing: the share of a uniform distribution that is mixed into the target.
        chunk_size: how many examples' logits are in memory at a time, None for all. In plain autograd and under
            `pn.grad` the backward pass computes them again; the result is the same.

    Raises:
        ShapeError: the shapes do not fit.
        ArgumentError: an unknown reduction, `label_smoothing` outside its range, a `chunk_size` below 1, or an
            `ignore_index` with class probabilities.
    """
    check_reduction(reduction)
    _check(x, linear_weight, linear_bias, chunk_size)
    floating = target.is_floating_point()
    if floating and ignore_index is not None:
        raise ArgumentError(
            f"linear_cross_entropy: ignore_index={ignore_index} has no meaning for class probabilities: leave it out, "
            f"and give ignored examples probabilities of 0."
        )
    ignored = -100 if ignore_index is None else ignore_index
    classes, *positions = linear_weight.shape[:-1]

    def each(x: Tensor, target: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, given: Reduction) -> Tensor:
        bias = None if linear_bias is None else linear_bias.flatten()
        logits = F.linear(x, linear_weight.flatten(0, -2), bias).unflatten(-1, (classes, *positions))
        return cross_entropy(
            logits, target, weight=weight, reduction=given, ignore_index=ignored, label_smoothing=label_smoothing
        )

    if x.ndim == 1 or chunk_size is None or chunk_size >= x.shape[0]:
        return each(x, target, linear_weight, linear_bias, reduction)
    if target.shape[:1] != x.shape[:1]:
        raise ShapeError(
            f"linear_cross_entropy: x has {x.shape[0]} examples, the target has shape {list(target.shape)}; its first "
            f"dimension must be their number."
        )
    chunks = zip(x.split(chunk_size), target.split(chunk_size), strict=True)
    loss = torch.cat([_recomputed(each, *chunk, linear_weight, linear_bias, "none") for chunk in chunks])
    if reduction == "mean" and not floating:
        given = None if weight is None else weight.to(loss.dtype)
        return loss.sum() / counted_weight(target.long(), given, ignored)
    return reduced(loss, reduction)


def _recomputed(function: Callable[..., Tensor], *args: Any) -> Tensor:
    # Elsewhere nothing would be saved: torch.func keeps every value, and a compiler decides for itself.
    if not (is_plain() and torch.is_grad_enabled()):
        return function(*args)
    return cast(Tensor, checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False))


def _check(x: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, chunk_size: int | None) -> None:
    if x.ndim not in (1, 2) or linear_weight.ndim < 2 or x.shape[-1] != linear_weight.shape[-1]:
        raise ShapeError(
            f"linear_cross_entropy: expected x of shape [batch, in_features] or [in_features] and linear_weight of "
            f"shape [classes, ..., in_features] with the same in_features, got {list(x.shape)} and "
            f"{list(linear_weight.shape)}."
        )
    if linear_weight.ndim > 2 and x.ndim == 1:
        raise ShapeError(
            f"linear_cross_entropy: linear_weight of shape {list(linear_weight.shape)} has several positions, which "
            f"needs a batch: give x.unsqueeze(0) for x of shape {list(x.shape)}, and the target likewise."
        )
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
        raise ShapeError(
            f"linear_cross_entropy: linear_bias must have the shape of linear_weight without its last dimension, "
            f"{list(linear_weight.shape[:-1])}, got {list(linear_bias.shape)}."
        )
    if chunk_size is not None and chunk_size < 1:
        raise ArgumentError(f"linear_cross_entropy: chunk_size must be at least 1, or None, got {chunk_size}.")


@container
class LinearCrossEntropyLoss(Layer):
    """A linear layer and the cross entropy of its results.

    Attributes:
        weight: factor of each class, or None.
        linear: the layer; its ``classes * positions`` results are read as ``[classes, *out_features]``.
        num_classes: number of classes.
        out_features: sizes of the positions, () for one class an example.
        reduction: "mean", "sum" or "none".
        ignore_index: class that is left out; None for -100.
        label_smoothing: share of the uniform distribution in the target.
        chunk_size: how many examples' logits are in memory at a time, None for all.
    """

    weight: Float[Tensor, " classes"] | None = buffer()
    linear: Linear
    num_classes: int = static()
    out_features: tuple[int, ...] = static(default=())
    reduction: Reduction = static(default="mean")
    ignore_index: int | None = static(default=None)
    label_smoothing: float = static(default=0.0)
    chunk_size: int | None = static(default=None)

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        reduction: Reduction = "mean",
        weight: Float[Tensor, " classes"] | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
    ) -> Self:
        """Draw the linear layer as `Linear.init` does.

        Args:
            key: random key.
            in_features: size of an example.
            num_classes: number of classes.
            out_features: sizes of the positions.
            bias: whether the logits have a bias.
            dtype: of the layer; torch's default dtype if None.
            device: of the layer; the key's device if None.
            reduction: "mean", "sum" or "none".
            weight: factor of each class, or None.
            ignore_index: class that is left out; None for -100.
            label_smoothing: share of the uniform distribution in the target.
            chunk_size: how many examples' logits are in memory at a time, None for all.
        """
        results = math.prod(out_features, start=num_classes)
        linear = Linear.init(key, in_features, results, bias=bias, dtype=dtype, device=device)
        positions = tuple(out_features)
        return cls(weight, linear, num_classes, positions, reduction, ignore_index, label_smoothing, chunk_size)

    def extra_repr(self) -> str:
        """The options as text."""
        names = ("num_classes", "out_features", "reduction", "ignore_index", "label_smoothing", "chunk_size")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


@applies(LinearCrossEntropyLoss)
def _linear_cross_entropy(p: LinearCrossEntropyLoss, x: Tensor, target: Tensor) -> Tensor:
    logical = (p.num_classes, *p.out_features)
    return linear_cross_entropy(
        x,
        p.linear.weight.unflatten(0, logical),
        target,
        linear_bias=None if p.linear.bias is None else p.linear.bias.unflatten(0, logical),
        weight=p.weight,
        reduction=p.reduction,
        ignore_index=p.ignore_index,
        label_smoothing=p.label_smoothing,
        # A torch module has another option in its place, which does not change the result either.
        chunk_size=getattr(p, "chunk_size", None),
    )
