"""Transposed convolutions over one, two and three spatial dimensions: the convolution's gradient, as a layer.

Each element of the input spreads a multiple of the kernel over the result, in steps of `stride`. With a stride above 1
a convolution maps several sizes to one, so the way back must choose among them: by `output_padding`, or by naming the
`output_size` in the call. There are no padding modes, as in `torch.nn`.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn.errors import ArgumentError
from purenn.layers._kernel import Kernel, check_groups
from purenn.layers._parameters import draw_weight_and_bias
from purenn.layers._spatial import check_output_size, check_spatial, per_dimension
from purenn.tree import applies, container, static


@container
class _TransposedConvolution(Kernel):
    output_padding: int | tuple[int, ...] = static(default=0)

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw weight and bias from U(-k, k), ``k = 1 / sqrt(out_channels / groups * kernel elements)``, as torch does.

        Args:
            key: random key.
            in_channels: channels of the input.
            out_channels: channels of the result.
            kernel_size: size of the kernel; here and in the following, one number or one for each spatial dimension.
            stride: distance in the result between neighbours of the input.
            padding: how much is cut off on both sides of the result.
            output_padding: how much is added after the end of the result; less than `stride` or than `dilation`.
            groups: number of blocks of channels that do not see each other; divides both numbers of channels.
            bias: whether there is a bias.
            dilation: distance between the kernel's elements.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: the options do not fit each other.
        """
        check_groups(cls, in_channels, out_channels, groups)
        options = {
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "output_padding": output_padding,
        }
        kernel_size, stride, padding, dilation, output_padding = (
            per_dimension(f"{cls.__name__}.init: {name}", value, cls.dimensions) for name, value in options.items()
        )
        if any(extra >= max(limits) for extra, *limits in zip(output_padding, stride, dilation, strict=True)):
            raise ArgumentError(
                f"{cls.__name__}.init: output_padding must be less than stride or than dilation, got "
                f"output_padding={output_padding}, stride={stride} and dilation={dilation}."
            )
        weight, bias_ = draw_weight_and_bias(
            key, (in_channels, out_channels // groups, *kernel_size), out_channels if bias else None, dtype, device
        )
        return cls(weight, bias_, stride, padding, dilation, groups, output_padding)

    @property
    def in_channels(self) -> int:
        """Number of the input's channels."""
        return self.weight.shape[-2 - self.dimensions]

    @property
    def out_channels(self) -> int:
        """Number of the result's channels."""
        return self.weight.shape[-1 - self.dimensions] * self.groups


@container
class ConvTranspose1d(_TransposedConvolution):
    """Transposed convolution over sequences.

    Attributes:
        weight: ``[in_channels, out_channels / groups, kernel_size]``.
        bias: ``[out_channels]`` or None.
        stride, padding, dilation, groups, output_padding: as in `init`.
    """

    dimensions: ClassVar[int] = 1


@applies(ConvTranspose1d)
def conv_transpose1d(
    p: ConvTranspose1d, x: Float[Tensor, "*batch in_channels length"], *, output_size: Sequence[int] | None = None
) -> Float[Tensor, "*batch out_channels out_length"]:
    """Spread `x`, ``[batch, in_channels, length]`` or ``[in_channels, length]``, over the result.

    Args:
        p: the container.
        x: the input.
        output_size: size of the result's spatial dimensions (or of all of them), instead of ``p.output_padding``. By
            default ``(length - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1``.

    Raises:
        ShapeError: `x` has another number of dimensions or channels, or `output_size` cannot be reached.
    """
    return _spread(F.conv_transpose1d, p, x, 1, output_size)


@container
class ConvTranspose2d(_TransposedConvolution):
    """Transposed convolution over images.

    Attributes:
        weight: ``[in_channels, out_channels / groups, kernel_height, kernel_width]``.
        bias: ``[out_channels]`` or None.
        stride, padding, dilation, groups, output_padding: as in `init`.
    """

    dimensions: ClassVar[int] = 2


@applies(ConvTranspose2d)
def conv_transpose2d(
    p: ConvTranspose2d, x: Float[Tensor, "*batch in_channels height width"], *, output_size: Sequence[int] | None = None
) -> Float[Tensor, "*batch out_channels out_height out_width"]:
    """Spread `x`, ``[batch, in_channels, height, width]`` or ``[in_channels, height, width]``, over the result.

    Arguments, sizes and errors are those of `conv_transpose1d`, in both spatial dimensions.
    """
    return _spread(F.conv_transpose2d, p, x, 2, output_size)


@container
class ConvTranspose3d(_TransposedConvolution):
    """Transposed convolution over volumes.

    Attributes:
        weight: ``[in_channels, out_channels / groups, kernel_depth, kernel_height, kernel_width]``.
        bias: ``[out_channels]`` or None.
        stride, padding, dilation, groups, output_padding: as in `init`.
    """

    dimensions: ClassVar[int] = 3


@applies(ConvTranspose3d)
def conv_transpose3d(
    p: ConvTranspose3d,
    x: Float[Tensor, "*batch in_channels depth height width"],
    *,
    output_size: Sequence[int] | None = None,
) -> Float[Tensor, "*batch out_channels out_depth out_height out_width"]:
    """Spread `x`, ``[batch, in_channels, depth, height, width]`` or ``[in_channels, depth, height, width]``.

    Arguments, sizes and errors are those of `conv_transpose1d`, in all three spatial dimensions.
    """
    return _spread(F.conv_transpose3d, p, x, 3, output_size)


def _spread(
    function: Callable[..., Tensor],
    p: _TransposedConvolution,
    x: Tensor,
    dimensions: int,
    output_size: Sequence[int] | None,
) -> Tensor:
    check_spatial("conv_transpose", x, dimensions, channels=p.weight.size(0))
    extra = p.output_padding
    if output_size is not None:
        extra = _padding_to_reach(p, x, dimensions, output_size)
    return function(x, p.weight, p.bias, p.stride, p.padding, extra, p.groups, p.dilation)


def _padding_to_reach(
    p: _TransposedConvolution, x: Tensor, dimensions: int, output_size: Sequence[int]
) -> tuple[int, ...]:
    stride, padding, dilation = (
        per_dimension(option, getattr(p, option), dimensions) for option in ("stride", "padding", "dilation")
    )
    smallest = tuple(
        (size - 1) * step - 2 * cut + gap * (width - 1) + 1
        for size, step, cut, gap, width in zip(
            x.shape[-dimensions:], stride, padding, dilation, p.weight.shape[2:], strict=True
        )
    )
    largest = tuple(low + step - 1 for low, step in zip(smallest, stride, strict=True))
    spatial = check_output_size("conv_transpose", x, output_size, smallest, largest)
    return tuple(size - low for low, size in zip(smallest, spatial, strict=True))
