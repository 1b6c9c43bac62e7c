"""Gradients of convolution kernels, one for each example, as a single operation.

On the CPU the ordinary kernel of the gradient runs once for each example, which is faster than one grouped convolution
and needs no windows; of small images these are laid out after all, those of one example at a time. As an operation of
its own it is one node of a compiled graph instead of one for each example. On other devices all examples are one
grouped convolution.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, library

_backward = torch.ops.aten.convolution_backward.default
# Up to so many numbers in an image torch lays out windows too, and takes longer.
_MOST_IN_WINDOWS = 20480


class Convolution(NamedTuple):
    """The options of a convolution, with a number for each spatial dimension."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    @property
    def sizes(self) -> tuple[list[int], list[int], list[int]]:
        """Stride, padding and dilation."""
        return self.stride, self.padding, self.dilation

    @property
    def dimensions(self) -> int:
        """How many spatial dimensions there are."""
        return len(self.stride)


def weight_gradient(gradient: Tensor, input: Tensor, weight: Tensor, options: Convolution) -> Tensor:
    """The gradient of the kernel, summed over the batch.

    Args:
        gradient: of the output, ``[batch, out_channels, *space]``.
        input: ``[batch, in_channels, *space]``.
        weight: the kernel, for its shape.
        options: of the convolution.
    """
    return _backward(gradient, input, weight, None, *options, [False, True, False])[1]


def weight_gradients(gradient: Tensor, input: Tensor, weight: Tensor, examples: int, options: Convolution) -> Tensor:
    """The gradient of the kernel for each example, ``[examples, *kernel]``; arguments as of `weight_gradient`."""
    return _weight_gradients(gradient.contiguous(), input, weight, examples, *options)


@library.custom_op("purenn::convolution_weight_gradients", mutates_args=())
def _weight_gradients(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    examples: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    options = Convolution(stride, padding, dilation, transposed, output_padding, groups)
    if gradient.device.type == "cpu":
        if _is_small(input, weight, examples, options):
            return _by_windows(gradient, input, weight, examples, options)
        return _one_by_one(gradient, input, weight, examples, options)
    return _grouped(gradient, input, weight, examples, options)


@_weight_gradients.register_fake
def _(gradient: Tensor, input: Tensor, weight: Tensor, examples: int, *options: object) -> Tensor:
    return gradient.new_empty(examples, *weight.shape)


def _one_by_one(gradient: Tensor, input: Tensor, weight: Tensor, examples: int, options: Convolution) -> Tensor:
    made = gradient.new_empty(examples, *weight.shape)
    inner = len(input) // max(examples, 1)
    for n in range(examples):
        part = slice(n * inner, (n + 1) * inner)
        made[n] = weight_gradient(gradient[part], input[part], weight, options)
    return made


def _is_small(input: Tensor, weight: Tensor, examples: int, options: Convolution) -> bool:
    is_plain = options.groups == 1 and not options.transposed and weight.dim() == 4 and len(input) == examples
    return is_plain and weight.dtype in (torch.float32, torch.float64) and input.shape[1:].numel() <= _MOST_IN_WINDOWS


def _by_windows(gradient: Tensor, input: Tensor, weight: Tensor, examples: int, options: Convolution) -> Tensor:
    (down, right), (above, left), (lower, further) = options.sizes
    sizes = *weight.shape[1:], *gradient.shape[2:]
    windows = input.new_empty(sizes)
    matrix = windows.flatten(3).flatten(0, 2).t()
    made = gradient.new_empty(examples, weight.shape[0], matrix.shape[1])
    for own, one, x in zip(made, gradient.flatten(2), input, strict=True):
        wide = F.pad(x, (left, left, above, above))
        channel, row, column = wide.stride()
        windows.copy_(wide.as_strided(sizes, (channel, row * lower, column * further, row * down, column * right)))
        torch.mm(one, matrix, out=own)
    return made.view(examples, *weight.shape)


def _grouped(gradient: Tensor, input: Tensor, weight: Tensor, examples: int, options: Convolution) -> Tensor:
    def side_by_side(x: Tensor) -> Tensor:
        return x.unflatten(0, (examples, -1)).transpose(0, 1).flatten(1, 2)

    copies = weight.expand(examples, *weight.shape).flatten(0, 1)
    wide = options._replace(groups=options.groups * examples)
    return weight_gradient(side_by_side(gradient), side_by_side(input), copies, wide).view(examples, *weight.shape)
