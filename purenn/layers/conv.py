"""Convolutions over one, two and three spatial dimensions, of a batch of inputs or of a single one.

What deep learning calls convolution is cross-correlation: the kernel slides over the input and is not flipped. The
three classes differ in the number of spatial dimensions only, so they share their fields and one body.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn.errors import ArgumentError
from purenn.layers._kernel import Kernel, check_groups
from purenn.layers._parameters import draw_weight_and_bias
from purenn.layers._spatial import check_spatial, per_dimension
from purenn.ops._constant_input import convolution, is_constant_input
from purenn.tree import applies, container, static

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@container
class _Convolution(Kernel):
    padding_mode: PaddingMode = static(default="zeros")

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | Literal["same", "valid"] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw weight and bias from U(-k, k), ``k = 1 / sqrt(in_channels / groups * kernel elements)``, as torch does.

        Args:
            key: random key.
            in_channels: channels of the input.
            out_channels: channels of the result.
            kernel_size: size of the kernel; here and in the next three, one number or one for each spatial dimension.
            stride: how far the kernel moves in each step.
            padding: how much is added on both sides of the input; ``"valid"`` is none, ``"same"`` so much that the
                result has the input's size (it needs stride 1).
            dilation: distance between the kernel's elements.
            groups: number of blocks of channels that do not see each other; divides both numbers of channels.
            bias: whether there is a bias.
            padding_mode: what is added: zeros, the mirrored input, its last element, or its other end.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: the options do not fit each other.
        """
        check_groups(cls, in_channels, out_channels, groups)
        kernel_size, stride, dilation = (
            per_dimension(f"{cls.__name__}.init: {name}", value, cls.dimensions)
            for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
        )
        if padding_mode not in _PADDING_MODES:
            raise ArgumentError(
                f"{cls.__name__}.init: padding_mode must be one of {', '.join(_PADDING_MODES)}, got {padding_mode!r}."
            )
        if not isinstance(padding, str):
            padding = per_dimension(f"{cls.__name__}.init: padding", padding, cls.dimensions)
        elif padding not in ("same", "valid"):
            raise ArgumentError(f"{cls.__name__}.init: padding must be numbers, 'same' or 'valid', got {padding!r}.")
        elif padding == "same" and any(step != 1 for step in stride):
            raise ArgumentError(
                f"{cls.__name__}.init: padding='same' needs stride 1, got {stride}. Give the padding in numbers."
            )
        weight, bias_ = draw_weight_and_bias(
            key, (out_channels, in_channels // groups, *kernel_size), out_channels if bias else None, dtype, device
        )
        return cls(weight, bias_, stride, padding, dilation, groups, padding_mode)


@container
class Conv1d(_Convolution):
    """Convolution over sequences.

    Attributes:
        weight: ``[out_channels, in_channels / groups, kernel_size]``.
        bias: ``[out_channels]`` or None.
        stride, padding, dilation, groups, padding_mode: as in `init`.
    """

    dimensions: ClassVar[int] = 1


@applies(Conv1d)
def conv1d(p: Conv1d, x: Float[Tensor, "*batch in_channels length"]) -> Float[Tensor, "*batch out_channels out_length"]:
    """Convolve `x`, ``[batch, in_channels, length]`` or ``[in_channels, length]``.

    ``out_length = floor((length + 2 * padding - dilation * (kernel_size - 1) - 1) / stride + 1)``.

    Raises:
        ShapeError: `x` has another number of dimensions or channels.
    """
    return _convolve(F.conv1d, p, x, 1)


@container
class Conv2d(_Convolution):
    """Convolution over images.

    Attributes:
        weight: ``[out_channels, in_channels / groups, kernel_height, kernel_width]``.
        bias: ``[out_channels]`` or None.
        stride, padding, dilation, groups, padding_mode: as in `init`.
    """

    dimensions: ClassVar[int] = 2


@applies(Conv2d)
def conv2d(
    p: Conv2d, x: Float[Tensor, "*batch in_channels height width"]
) -> Float[Tensor, "*batch out_channels out_height out_width"]:
    """Convolve `x`, ``[batch, in_channels, height, width]`` or ``[in_channels, height, width]``.

    Sizes and errors are those of `conv1d`, in both spatial dimensions.
    """
    return _convolve(F.conv2d, p, x, 2)


@container
class Conv3d(_Convolution):
    """Convolution over volumes.

    Attributes:
        weight: ``[out_channels, in_channels / groups, kernel_depth, kernel_height, kernel_width]``.
        bias: ``[out_channels]`` or None.
        stride, padding, dilation, groups, padding_mode: as in `init`.
    """

    dimensions: ClassVar[int] = 3


@applies(Conv3d)
def conv3d(
    p: Conv3d, x: Float[Tensor, "*batch in_channels depth height width"]
) -> Float[Tensor, "*batch out_channels out_depth out_height out_width"]:
    """Convolve `x`, ``[batch, in_channels, depth, height, width]`` or ``[in_channels, depth, height, width]``.

    Sizes and errors are those of `conv1d`, in all three spatial dimensions.
    """
    return _convolve(F.conv3d, p, x, 3)


def _convolve(function: Callable[..., Tensor], p: _Convolution, x: Tensor, dimensions: int) -> Tensor:
    check_spatial("conv", x, dimensions, channels=p.weight.size(1) * p.groups)
    x, padding = pad_input(p, x, dimensions)
    options = p.stride, padding, p.dilation, p.groups
    if is_constant_input(x, p.weight, p.bias):
        return convolution(function, x, p.weight, p.bias, *options)
    return function(x, p.weight, p.bias, *options)


def pad_input(p: _Convolution, x: Tensor, dimensions: int) -> tuple[Tensor, int | tuple[int, ...]]:
    """Add to `x` what the convolution cannot add itself; also returns the zeros that it still has to add."""
    if p.padding_mode == "zeros" and not isinstance(p.padding, str):
        return x, p.padding
    sides = _padding_sides(p, dimensions)
    if p.padding_mode != "zeros":
        return F.pad(x, _in_pad_order(sides), mode=p.padding_mode), (0,) * dimensions
    # The convolution adds the same on both sides; a kernel of even size needs one more after the input.
    before = tuple(side[0] for side in sides)
    excess = [(0, after - before) for before, after in sides]
    return (F.pad(x, _in_pad_order(excess)) if any(map(any, excess)) else x), before


def _padding_sides(p: _Convolution, dimensions: int) -> list[tuple[int, int]]:
    if isinstance(p.padding, str):
        if p.padding == "valid":
            return [(0, 0)] * dimensions
        dilation = per_dimension("dilation", p.dilation, dimensions)
        totals = [step * (size - 1) for step, size in zip(dilation, p.weight.shape[2:], strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(size, size) for size in per_dimension("padding", p.padding, dimensions)]


def _in_pad_order(sides: list[tuple[int, int]]) -> list[int]:
    # torch's pad takes the last dimension first.
    return [size for side in reversed(sides) for size in side]
