"""Padding with copies of the input: mirrored, of its outermost elements, or of its other end.

Sizes are as in `purenn.layers.padding`. `ReflectionPad2d` mirrors the input, `ReplicationPad2d` repeats its outermost
elements, and `CircularPad2d` continues it as if it were periodic.
"""

from typing import ClassVar

from jaxtyping import Shaped
from torch import Tensor

from purenn.layers._padding import Padding, pad
from purenn.tree import applies, container


@container
class ReflectionPad1d(Padding):
    """The mirror images of a sequence before and after it; its first and last elements are not repeated.

    Attributes:
        padding: how many elements, one number or ``(left, right)``, each smaller than the sequence's length; negative
            numbers cut elements off.
    """

    dimensions: ClassVar[int] = 1


@applies(ReflectionPad1d)
def reflection_pad1d(
    p: ReflectionPad1d, x: Shaped[Tensor, "*batch channels length"]
) -> Shaped[Tensor, "*batch channels out_length"]:
    """Pad the last dimension of `x`, ``[batch, channels, length]`` or ``[channels, length]``.

    Raises:
        ShapeError: `x` has another number of dimensions, or is too small for the padding.
    """
    return pad("reflection_pad", p, x, "reflect")


@container
class ReflectionPad2d(Padding):
    """The mirror images of an image around it; its outermost elements are not repeated.

    Attributes:
        padding: how many elements, one number or ``(left, right, top, bottom)``, each smaller than the dimension that
            it extends; negative numbers cut elements off.
    """

    dimensions: ClassVar[int] = 2


@applies(ReflectionPad2d)
def reflection_pad2d(
    p: ReflectionPad2d, x: Shaped[Tensor, "*batch channels height width"]
) -> Shaped[Tensor, "*batch channels out_height out_width"]:
    """Pad the last two dimensions of `x`; errors are those of `reflection_pad1d`."""
    return pad("reflection_pad", p, x, "reflect")


@container
class ReflectionPad3d(Padding):
    """The mirror images of a volume around it; its outermost elements are not repeated.

    Attributes:
        padding: how many elements, one number or ``(left, right, top, bottom, front, back)``, each smaller than the
            dimension that it extends; negative numbers cut elements off.
    """

    dimensions: ClassVar[int] = 3


@applies(ReflectionPad3d)
def reflection_pad3d(
    p: ReflectionPad3d, x: Shaped[Tensor, "*batch channels depth height width"]
) -> Shaped[Tensor, "*batch channels out_depth out_height out_width"]:
    """Pad the last three dimensions of `x`; errors are those of `reflection_pad1d`."""
    return pad("reflection_pad", p, x, "reflect")


@container
class ReplicationPad1d(Padding):
    """Copies of the first and the last element of a sequence before and after it.

    Attributes:
        padding: how many, as in `ZeroPad1d`.
    """

    dimensions: ClassVar[int] = 1


@applies(ReplicationPad1d)
def replication_pad1d(
    p: ReplicationPad1d, x: Shaped[Tensor, "*batch channels length"]
) -> Shaped[Tensor, "*batch channels out_length"]:
    """Pad the last dimension of `x`; shapes and errors are those of `reflection_pad1d`."""
    return pad("replication_pad", p, x, "replicate")


@container
class ReplicationPad2d(Padding):
    """Copies of the outermost elements of an image around it.

    Attributes:
        padding: how many, as in `ZeroPad2d`.
    """

    dimensions: ClassVar[int] = 2


@applies(ReplicationPad2d)
def replication_pad2d(
    p: ReplicationPad2d, x: Shaped[Tensor, "*batch channels height width"]
) -> Shaped[Tensor, "*batch channels out_height out_width"]:
    """Pad the last two dimensions of `x`; errors are those of `reflection_pad1d`."""
    return pad("replication_pad", p, x, "replicate")


@container
class ReplicationPad3d(Padding):
    """Copies of the outermost elements of a volume around it.

    Attributes:
        padding: how many, as in `ZeroPad3d`.
    """

    dimensions: ClassVar[int] = 3


@applies(ReplicationPad3d)
def replication_pad3d(
    p: ReplicationPad3d, x: Shaped[Tensor, "*batch channels depth height width"]
) -> Shaped[Tensor, "*batch channels out_depth out_height out_width"]:
    """Pad the last three dimensions of `x`; errors are those of `reflection_pad1d`."""
    return pad("replication_pad", p, x, "replicate")


@container
class CircularPad1d(Padding):
    """The end of a sequence before it and its beginning after it, as if it were periodic.

    Attributes:
        padding: how many elements, one number or ``(left, right)``, each at most the sequence's length; negative
            numbers cut elements off.
    """

    dimensions: ClassVar[int] = 1


@applies(CircularPad1d)
def circular_pad1d(
    p: CircularPad1d, x: Shaped[Tensor, "*batch channels length"]
) -> Shaped[Tensor, "*batch channels out_length"]:
    """Pad the last dimension of `x`; shapes and errors are those of `reflection_pad1d`."""
    return pad("circular_pad", p, x, "circular")


@container
class CircularPad2d(Padding):
    """The opposite sides of an image around it, as if it were periodic.

    Attributes:
        padding: how many elements, one number or ``(left, right, top, bottom)``, each at most the size of the dimension
            that it extends; negative numbers cut elements off.
    """

    dimensions: ClassVar[int] = 2


@applies(CircularPad2d)
def circular_pad2d(
    p: CircularPad2d, x: Shaped[Tensor, "*batch channels height width"]
) -> Shaped[Tensor, "*batch channels out_height out_width"]:
    """Pad the last two dimensions of `x`; errors are those of `reflection_pad1d`."""
    return pad("circular_pad", p, x, "circular")


@container
class CircularPad3d(Padding):
    """The opposite sides of a volume around it, as if it were periodic.

    Attributes:
        padding: how many elements, one number or ``(left, right, top, bottom, front, back)``, each at most the size of
            the dimension that it extends; negative numbers cut elements off.
    """

    dimensions: ClassVar[int] = 3


@applies(CircularPad3d)
def circular_pad3d(
    p: CircularPad3d, x: Shaped[Tensor, "*batch channels depth height width"]
) -> Shaped[Tensor, "*batch channels out_depth out_height out_width"]:
    """Pad the last three dimensions of `x`; errors are those of `reflection_pad1d`."""
    return pad("circular_pad", p, x, "circular")
