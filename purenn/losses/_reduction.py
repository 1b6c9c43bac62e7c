"""What all losses share: the step from a loss per element to one number, and the check that shapes fit."""

from typing import Literal

from torch import Tensor

from purenn.errors import ArgumentError, ShapeError

Reduction = Literal["mean", "sum", "none"]


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """A loss per example or element, reduced over all of them.

    Raises:
        ArgumentError: an unknown reduction.
    """
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    check_reduction(reduction)
    return loss


def check_reduction(reduction: str) -> None:
    """Refuse an unknown reduction before torch does.

    Raises:
        ArgumentError: an unknown reduction.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ArgumentError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")


def check_same_shape(loss: str, **tensors: Tensor) -> None:
    """Refuse tensors of different shapes, which torch would broadcast.

    Args:
        loss: name of the function that was called.
        **tensors: the tensors, by the names that they have there.

    Raises:
        ShapeError: the shapes differ.
    """
    first, *rest = tensors.values()
    if all(tensor.shape == first.shape for tensor in rest):
        return
    shapes = [str(list(tensor.shape)) for tensor in tensors.values()]
    raise ShapeError(
        f"{loss}: {listed(list(tensors))} must have the same shape, got {listed(shapes)}. Reshape them, so that no "
        f"element is compared with those of other examples by broadcasting."
    )


def check_weight(loss: str, name: str, weight: Tensor, like: Tensor) -> None:
    """Refuse a weight that would make the loss larger than the prediction by broadcasting.

    Args:
        loss: name of the function that was called.
        name: name of the weight there.
        weight: the weight.
        like: the prediction.

    Raises:
        ShapeError: the weight does not broadcast to the prediction's shape.
    """
    trailing = like.shape[like.ndim - weight.ndim :]
    if weight.ndim > like.ndim or any(size not in (1, full) for size, full in zip(weight.shape, trailing, strict=True)):
        raise ShapeError(
            f"{loss}: {name} must broadcast to the shape of the prediction, {list(like.shape)}, got "
            f"{list(weight.shape)}. Give one for each class (the last dimension), or one for each element."
        )


def listed(items: list[str]) -> str:
    """Items as text, "a, b and c"."""
    return f"{', '.join(items[:-1])} and {items[-1]}"
