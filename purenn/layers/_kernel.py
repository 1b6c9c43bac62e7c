"""The container that convolutions and transposed convolutions share."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.tree import Layer, container, static


@container
class Kernel(Layer):
    """A kernel that slides over one, two or three spatial dimensions.

    Attributes:
        weight: the kernel.
        bias: what is added to each channel of the result, ``[out_channels]``, or None.
        stride: how far the kernel moves in each step.
        padding: how much is added on both sides of the input.
        dilation: distance between the kernel's elements.
        groups: number of blocks of channels that do not see each other.
    """

    dimensions: ClassVar[int]

    weight: Float[Tensor, "..."]
    bias: Float[Tensor, " out_channels"] | None
    stride: int | tuple[int, ...] = static(default=1)
    padding: int | tuple[int, ...] | str = static(default=0)
    dilation: int | tuple[int, ...] = static(default=1)
    groups: int = static(default=1)

    @property
    def in_channels(self) -> int:
        """Number of the input's channels."""
        return self.weight.shape[-1 - self.dimensions] * self.groups

    @property
    def out_channels(self) -> int:
        """Number of the result's channels."""
        return self.weight.shape[-2 - self.dimensions]

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Size of the kernel in each spatial dimension."""
        return tuple(self.weight.shape[-self.dimensions :])

    def extra_repr(self) -> str:
        """The sizes, and the options that differ from their defaults."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, default in (("padding", 0), ("dilation", 1), ("output_padding", 0), ("groups", 1)):
            value = getattr(self, name, default)
            if value not in (default, (default,) * self.dimensions):
                text += f", {name}={value}"
        if self.bias is None:
            text += ", bias=False"
        mode = getattr(self, "padding_mode", "zeros")
        return text if mode == "zeros" else f"{text}, padding_mode={mode}"


def check_groups(cls: type, in_channels: int, out_channels: int, groups: int) -> None:
    """Require that both numbers of channels are multiples of `groups`.

    Raises:
        ArgumentError: one of them is not, or `groups` is not positive.
    """
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ArgumentError(
            f"{cls.__name__}.init: in_channels={in_channels} and out_channels={out_channels} must be multiples of "
            f"groups={groups}, which must be positive."
        )
