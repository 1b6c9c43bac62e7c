"""What is read from capsules: their lengths, and the one that a decoder reconstructs from."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from purenn.errors import ShapeError


def capsule_lengths(
    poses: Float[Tensor, "*batch capsules dim"],
) -> Float[Tensor, "*batch capsules"]:
    """The lengths of capsules; the derivative at zero length is zero."""
    q = poses.square().sum(-1)
    zero = q == 0
    return torch.where(zero, 0, torch.where(zero, 1, q).sqrt())


def mask_capsules(
    poses: Float[Tensor, "*batch capsules dim"], label: Int[Tensor, "*batch"] | None = None
) -> Float[Tensor, "*batch capsules*dim"]:
    """Zero all capsules but one and flatten: what a decoder reconstructs from.

    Args:
        poses: the class capsules.
        label: the class to keep. Default: the longest capsule's, the predicted class.

    Raises:
        ShapeError: `label` holds no class for each example.
    """
    if label is not None and not (isinstance(label, Tensor) and label.shape == poses.shape[:-2]):
        got = tuple(label.shape) if isinstance(label, Tensor) else repr(label)
        raise ShapeError(
            f"mask_capsules: label must hold one class for every example, a tensor of shape {tuple(poses.shape[:-2])} "
            f"for capsules of shape {tuple(poses.shape)}, got {got}."
        )
    kept = capsule_lengths(poses).argmax(-1) if label is None else label
    mask = kept.unsqueeze(-1) == torch.arange(poses.shape[-2], device=poses.device)
    return (poses * mask.unsqueeze(-1).to(poses.dtype)).flatten(-2)
