"""The losses that capsule networks are trained with."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError
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
        ArgumentError: `target` holds no integers, or an unknown reduction.

    Source:
        Sabour, Frosst, Hinton: Dynamic Routing Between Capsules, 2017, equation 4.
    """
    present = _present("margin_loss", "lengths", lengths, target)
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
        ShapeError: the shapes differ, or have fewer than `event_dims` axes.
        ArgumentError: an unknown reduction.

    Source:
        Sabour, Frosst, Hinton: Dynamic Routing Between Capsules, 2017, section 4.1.
    """
    if reconstruction.shape != image.shape:
        raise ShapeError(
            f"reconstruction_loss: the reconstruction has shape {tuple(reconstruction.shape)}, the image "
            f"{tuple(image.shape)}; they must be equal."
        )
    if image.dim() < event_dims:
        raise ShapeError(
            f"reconstruction_loss: an image has event_dims={event_dims} axes, got shape {tuple(image.shape)}. For flat "
            f"images write event_dims=1."
        )
    axes = tuple(range(-event_dims, 0))
    return reduced(weight * (reconstruction - image).square().sum(axes), reduction)


def spread_loss(
    activations: Float[Tensor, "*batch classes"],
    target: Int[Tensor, "*batch"],
    *,
    margin: float | Float[Tensor, ""] = 0.9,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*reduced"]:
    """The spread loss: the right class should be more active than every other by at least `margin`.

    ``sum_(i != t) max(0, margin - (a_t - a_i))^2``, summed over the classes.

    Args:
        activations: of the class capsules.
        target: the class of each example.
        margin: see `spread_margin` for its schedule. Default: 0.9.
        reduction: over the batch: "mean", "sum" or "none".

    Raises:
        ShapeError: `target` has not the shape of `activations` without its last axis.
        ArgumentError: `target` holds no integers, or an unknown reduction.

    Source:
        Hinton, Sabour, Frosst: Matrix capsules with EM routing, 2018, equation 3.
    """
    present = _present("spread_loss", "activations", activations, target)
    right = torch.where(present, activations, 0).sum(-1, keepdim=True)
    missing = (margin - (right - activations)).relu().square()
    return reduced(torch.where(present, 0, missing).sum(-1), reduction)


def spread_margin(
    step: int | Int[Tensor, ""], steps: int, *, first: float = 0.2, last: float = 0.9
) -> Float[Tensor, ""]:
    """The margin of `spread_loss` at a training step: it grows linearly from `first` to `last`, and stays there.

    Starting low keeps capsules from dying early.

    Args:
        step: how many steps have been made.
        steps: how many steps the growth takes, at least 1.
        first: the margin at the start. Default: 0.2.
        last: the margin after `steps`. Default: 0.9.

    Raises:
        ArgumentError: fewer than one step.

    Source:
        Hinton, Sabour, Frosst: Matrix capsules with EM routing, 2018, section 4.1.
    """
    if steps < 1:
        raise ArgumentError(f"spread_margin: steps must be at least 1, got {steps}.")
    return first + (last - first) * (torch.as_tensor(step) / steps).clamp(0, 1)


def _present(loss: str, name: str, values: Tensor, target: Tensor) -> Tensor:
    """Where the class of each example is, as booleans of the shape of `values`."""
    if target.is_floating_point():
        raise ArgumentError(f"{loss}: target must hold class numbers, integers, got {target.dtype}.")
    if target.shape != values.shape[:-1]:
        raise ShapeError(
            f"{loss}: target must hold one class for every example, shape {tuple(values.shape[:-1])} for {name} "
            f"of shape {tuple(values.shape)}, got {tuple(target.shape)}."
        )
    return target.unsqueeze(-1) == torch.arange(values.shape[-1], device=values.device)
