"""The losses that capsule networks are trained with."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from purenn.errors import ShapeError
from purenn.losses._reduction import Reduction, reduced


def margin_loss(
    lengths: Float[Tensor, "*batch classes"],
    target: Int[Tensor, "*batch"],
    *,
    positive: float = 0.9,
    negative: float = 0.1,
    weight: float = 0.5,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """The margin loss: every present class should be longer than `positive`, every absent one shorter than `negative`.

    ``sum_k T_k max(0, m+ - |v_k|)^2 + weight (1 - T_k) max(0, |v_k| - m-)^2``, summed over the classes.

    Args:
        lengths: the lengths of the class capsules.
        target: the class of each example.
        positive: the margin m+. Default: 0.9.
        negative: the margin m-. Default: 0.1.
        weight: the factor of absent classes. Default: 0.5.
        reduction: over the batch: "mean", "sum" or "none".

    Raises:
        ShapeError: `target` has not the shape of `lengths` without its last axis.
        ArgumentError: an unknown reduction.

    Source:
        Sabour, Frosst, Hinton: Dynamic Routing Between Capsules, 2017, equation 4.
    """
    if target.shape != lengths.shape[:-1]:
        raise ShapeError(
            f"margin_loss: target must hold one class for every example, shape {tuple(lengths.shape[:-1])} for lengths "
            f"of shape {tuple(lengths.shape)}, got {tuple(target.shape)}."
        )
    present = target.unsqueeze(-1) == torch.arange(lengths.shape[-1], device=lengths.device)
    loss = torch.where(present, (positive - lengths).relu().square(), weight * (lengths - negative).relu().square())
    return reduced(loss.sum(-1), reduction)


def reconstruction_loss(
    reconstruction: Float[Tensor, "*shape"],
    image: Float[Tensor, "*shape"],
    *,
    weight: float = 0.0005,
    event_dims: int = 3,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """``weight`` times the sum of squared differences over each image.

    Args:
        reconstruction: what the decoder made.
        image: what it should have made, of the same shape.
        weight: the factor. Default: 0.0005.
        event_dims: how many trailing axes make one image. Default: 3 (channels, height, width).
        reduction: over the batch: "mean", "sum" or "none".

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: an unknown reduction.

    Source:
        Sabour, Frosst, Hinton: Dynamic Routing Between Capsules, 2017, section 4.1.
    """
    if reconstruction.shape != image.shape:
        raise ShapeError(
            f"reconstruction_loss: the reconstruction has shape {tuple(reconstruction.shape)}, the image "
            f"{tuple(image.shape)}; they must be equal."
        )
    axes = tuple(range(-event_dims, 0))
    return reduced(weight * (reconstruction - image).square().sum(axes), reduction)
