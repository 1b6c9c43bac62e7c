"""Padding with zeros, or with another number, around the last one, two or three dimensions.

Sizes are one number for all sides, or two for each dimension, **the last dimension first**, as in torch: ``(left,
right, top, bottom)`` for an image. A negative size cuts elements off.
"""

from typing import ClassVar

from jaxtyping import Shaped
from torch import Tensor

from purenn.layers._padding import Padding, pad
from purenn.tree import applies, container, static


@container
class ZeroPad1d(Padding):
    """Zeros before and after the last dimension.

    Attributes:
        padding: how many, one number or ``(left, right)``; negative numbers cut elements off.
    """

    dimensions: ClassVar[int] = 1


@applies(ZeroPad1d)
def zero_pad1d(p: ZeroPad1d, x: Shaped[Tensor, "*batch length"]) -> Shaped[Tensor, "*batch out_length"]:
    """Pad the last dimension of `x`; ``out_length = length + left + right``.

    Raises:
        ShapeError: `x` has too few dimensions, or more would be cut off than there is.
    """
    return pad("zero_pad", p, x, "constant", 0.0)


@container
class ZeroPad2d(Padding):
    """Zeros around images.

    Attributes:
        padding: how many, one number or ``(left, right, top, bottom)``; negative numbers cut elements off.
    """

    dimensions: ClassVar[int] = 2


@applies(ZeroPad2d)
def zero_pad2d(p: ZeroPad2d, x: Shaped[Tensor, "*batch height width"]) -> Shaped[Tensor, "*batch out_height out_width"]:
    """Pad the last two dimensions of `x`; errors are those of `zero_pad1d`."""
    return pad("zero_pad", p, x, "constant", 0.0)


@container
class ZeroPad3d(Padding):
    """Zeros around volumes.

    Attributes:
        padding: how many, one number or ``(left, right, top, bottom, front, back)``; negative numbers cut elements off.
    """

    dimensions: ClassVar[int] = 3


@applies(ZeroPad3d)
def zero_pad3d(
    p: ZeroPad3d, x: Shaped[Tensor, "*batch depth height width"]
) -> Shaped[Tensor, "*batch out_depth out_height out_width"]:
    """Pad the last three dimensions of `x`; errors are those of `zero_pad1d`."""
    return pad("zero_pad", p, x, "constant", 0.0)


@container
class _ConstantPadding(Padding):
    value: float = static()

    def extra_repr(self) -> str:
        """The sizes and the value."""
        return f"padding={self.padding}, value={self.value}"


@container
class ConstantPad1d(_ConstantPadding):
    """Copies of one number before and after the last dimension.

    Attributes:
        padding: how many, as in `ZeroPad1d`.
        value: the number.
    """

    dimensions: ClassVar[int] = 1


@applies(ConstantPad1d)
def constant_pad1d(p: ConstantPad1d, x: Shaped[Tensor, "*batch length"]) -> Shaped[Tensor, "*batch out_length"]:
    """Pad the last dimension of `x`; sizes and errors are those of `zero_pad1d`."""
    return pad("constant_pad", p, x, "constant", p.value)


@container
class ConstantPad2d(_ConstantPadding):
    """Copies of one number around images.

    Attributes:
        padding: how many, as in `ZeroPad2d`.
        value: the number.
    """

    dimensions: ClassVar[int] = 2


@applies(ConstantPad2d)
def constant_pad2d(
    p: ConstantPad2d, x: Shaped[Tensor, "*batch height width"]
) -> Shaped[Tensor, "*batch out_height out_width"]:
    """Pad the last two dimensions of `x`; errors are those of `zero_pad1d`."""
    return pad("constant_pad", p, x, "constant", p.value)


@container
class ConstantPad3d(_ConstantPadding):
    """Copies of one number around volumes.

    Attributes:
        padding: how many, as in `ZeroPad3d`.
        value: the number.
    """

    dimensions: ClassVar[int] = 3


@applies(ConstantPad3d)
def constant_pad3d(
    p: ConstantPad3d, x: Shaped[Tensor, "*batch depth height width"]
) -> Shaped[Tensor, "*batch out_depth out_height out_width"]:
    """Pad the last three dimensions of `x`; errors are those of `zero_pad1d`."""
    return pad("constant_pad", p, x, "constant", p.value)
