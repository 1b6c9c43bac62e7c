"""Upsampling: sequences, images and volumes at another resolution, by repetition, by interpolation, or by means.

Sizes of the result are given by `size`, or by `scale_factor` as multiples of the input's; each is one number, or one
for each spatial dimension. Inputs have a batch dimension, ``[batch, channels, *spatial]``: with one dimension less, an
image could not be told from a batch of sequences.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn._modes import is_plain
from purenn.errors import ArgumentError, ShapeError
from purenn.layers._spatial import Sizes
from purenn.tree import Layer, applies, container, static

Factors = float | tuple[float, ...]

# The numbers of spatial dimensions that each mode is defined for.
_DIMENSIONS = {
    "nearest": (1, 2, 3),
    "nearest-exact": (1, 2, 3),
    "area": (1, 2, 3),
    "linear": (1,),
    "bilinear": (2,),
    "bicubic": (2,),
    "trilinear": (3,),
}
_INTERPOLATING = ("linear", "bilinear", "bicubic", "trilinear")
_SPATIAL = {1: "length", 2: "height, width", 3: "depth, height, width"}


def _as_floats(factor: Any) -> Factors | None:
    if factor is None:
        return None
    return tuple(map(float, factor)) if isinstance(factor, (tuple, list)) else float(factor)


def _check_one_size(p: Any, *_: Any) -> None:
    if (p.size is None) == (p.scale_factor is None):
        raise ArgumentError(
            f"{type(p).__name__}: exactly one of size and scale_factor must be given, got size={p.size} and "
            f"scale_factor={p.scale_factor}."
        )


@container
class _Resized(Layer):
    size: Sizes | None = static(default=None)
    scale_factor: Factors | None = static(default=None, converter=_as_floats, validator=_check_one_size)

    def extra_repr(self) -> str:
        """The size of the result."""
        return f"size={self.size}" if self.scale_factor is None else f"scale_factor={self.scale_factor}"


@container
class Upsample(_Resized):
    """Another resolution.

    Attributes:
        size: spatial size of the result.
        scale_factor: how many times the input's size it is, rounded down, instead of `size`.
        mode: ``"nearest"`` and ``"nearest-exact"`` repeat elements (the first places the input's grid a little off, for
            compatibility with older programs); ``"linear"``, ``"bilinear"`` and ``"trilinear"`` interpolate in one, two
            and three dimensions, ``"bicubic"`` smoothly in two; ``"area"`` takes means, as `AdaptiveAvgPool2d`.
        align_corners: in the interpolating modes, whether the first and the last element stay at the borders, instead
            of all elements at the middle of equal parts. None is False.
        recompute_scale_factor: whether the rounded size decides at which distance elements are taken from the input,
            instead of `scale_factor` itself. None is False.

    Raises:
        ArgumentError: options do not fit each other.
    """

    mode: str = static(default="nearest")
    align_corners: bool | None = static(default=None)
    recompute_scale_factor: bool | None = static(default=None)

    @recompute_scale_factor.validator  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    def _check_options(self, *_: Any) -> None:
        if self.mode not in _DIMENSIONS:
            raise ArgumentError(f"Upsample: mode must be one of {', '.join(_DIMENSIONS)}, got {self.mode!r}.")
        if self.align_corners is not None and self.mode not in _INTERPOLATING:
            raise ArgumentError(
                f"Upsample: align_corners is an option of the modes {', '.join(_INTERPOLATING)} only, got mode="
                f"{self.mode!r}. Leave it out."
            )
        if self.recompute_scale_factor and self.scale_factor is None:
            raise ArgumentError("Upsample: recompute_scale_factor needs scale_factor; with size there is none.")

    def extra_repr(self) -> str:
        """The size of the result and the mode, as torch writes them."""
        return f"{_Resized.extra_repr(self)}, mode={self.mode!r}"


@applies(Upsample)
def upsample(p: Upsample, x: Float[Tensor, "batch channels *spatial"]) -> Float[Tensor, "batch channels *out_spatial"]:
    """Resize the spatial dimensions of `x`.

    Raises:
        ShapeError: `x` has a number of dimensions for which the mode is not defined, or another one than `size` or
            `scale_factor` is given for.
    """
    return _resize("upsample", p, x, p.mode, p.align_corners, p.recompute_scale_factor)


@container
class UpsamplingNearest2d(_Resized):
    """Images at another resolution, by repetition of pixels; mode ``"nearest"`` of `Upsample`.

    Attributes:
        size: size of the result.
        scale_factor: how many times the input's size it is, rounded down, instead of `size`.
    """


@applies(UpsamplingNearest2d)
def upsampling_nearest2d(
    p: UpsamplingNearest2d, x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels out_height out_width"]:
    """Resize the images `x`.

    Raises:
        ShapeError: `x` has not four dimensions.
    """
    _check_images("upsampling_nearest2d", x)
    return _resize("upsampling_nearest2d", p, x, "nearest")


@container
class UpsamplingBilinear2d(_Resized):
    """Images at another resolution, by interpolation; mode ``"bilinear"`` of `Upsample`, with corners aligned.

    Attributes:
        size: size of the result.
        scale_factor: how many times the input's size it is, rounded down, instead of `size`.
    """


@applies(UpsamplingBilinear2d)
def upsampling_bilinear2d(
    p: UpsamplingBilinear2d, x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels out_height out_width"]:
    """Resize the images `x`.

    Raises:
        ShapeError: `x` has not four dimensions.
    """
    _check_images("upsampling_bilinear2d", x)
    return _resize("upsampling_bilinear2d", p, x, "bilinear", True)


def _check_images(name: str, x: Tensor) -> None:
    if x.ndim != 4:
        raise ShapeError(f"{name}: x must be [batch, channels, height, width], got shape {list(x.shape)}.")


def _resize(
    name: str, p: Any, x: Tensor, mode: str, align_corners: bool | None = None, recompute: bool | None = None
) -> Tensor:
    dimensions = x.ndim - 2
    if dimensions not in _DIMENSIONS[mode]:
        wanted = " or ".join(f"[batch, channels, {_SPATIAL[number]}]" for number in _DIMENSIONS[mode])
        raise ShapeError(
            f"{name}: in mode {mode!r} x must be {wanted}, got shape {list(x.shape)}. An input without a batch "
            f"dimension needs x.unsqueeze(0)."
        )
    asked = p.scale_factor if p.size is None else p.size
    if isinstance(asked, (tuple, list)) and len(asked) != dimensions:
        raise ShapeError(
            f"{name}: {'scale_factor' if p.size is None else 'size'} must be one number, or one for each of the "
            f"{dimensions} spatial dimensions of x of shape {list(x.shape)}, got {tuple(asked)}."
        )
    if mode == "nearest-exact" and not is_plain(x):
        return _repeat_exactly(p, x, recompute)
    return F.interpolate(x, p.size, p.scale_factor, mode, align_corners, recompute)


def _repeat_exactly(p: Any, x: Tensor, recompute: bool | None) -> Tensor:
    # torch's kernel has no batching rule. Applied to the positions, it tells which elements are repeated; computed in
    # the precision of the input (single where that is half), it rounds as the kernel does on the input itself.
    dtype = x.dtype if x.dtype.itemsize >= 4 else torch.float32
    for axis in range(2, x.ndim):
        size, factor = (
            value[axis - 2] if isinstance(value, (tuple, list)) else value for value in (p.size, p.scale_factor)
        )
        positions = torch.arange(x.size(axis), dtype=dtype, device=x.device).reshape(1, 1, -1)
        chosen = F.interpolate(positions, size, factor, "nearest-exact", recompute_scale_factor=recompute)
        x = x.index_select(axis, chosen.flatten().long())
    return x
