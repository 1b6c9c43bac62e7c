"""Rules of convolutions, transposed ones too, over any number of spatial dimensions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purenn._dtypes import in_dtype
from purenn.transforms.per_sample._handle import Handle, Node
from purenn.transforms.per_sample._kernel_gradients import Convolution, weight_gradient, weight_gradients
from purenn.transforms.per_sample._outer import is_compact, is_fast
from purenn.transforms.per_sample._part import Part, Small, root
from purenn.transforms.per_sample._tape import Tape, rule


class Windows(Part):
    """The gradient of a kernel: for every example a convolution of its input with the gradient of its output.

    Attributes:
        gradient: of the output, ``[examples * inner, out_channels, *space]``.
        input: ``[examples * inner, in_channels, *space]``.
        weight: the kernel, for its shape.
        options: of the convolution.
    """

    def __init__(self, gradient: Tensor, input: Tensor, weight: Tensor, options: Convolution, examples: int) -> None:
        super().__init__(examples, weight.shape, weight.element_size())
        # Under autocast they are in other dtypes.
        self.gradient, self.input = in_dtype(weight.dtype, gradient), in_dtype(weight.dtype, input)
        self.weight, self.options = weight, options

    @property
    def compact(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether norms can be found from the windows of the input, as those of a matrix."""
        return self.has_windows and is_compact(*self._lengths)

    @property
    def ghost(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether they are."""
        return self.compact and is_fast(*self._lengths)

    @property
    def _lengths(self) -> tuple[int, int, int]:
        return self.gradient.shape[2:].numel(), self.shape[0], self.shape[1:].numel()

    @property
    def has_windows(self) -> bool:
        """Whether the convolution is a product of a matrix with the windows of one input for each example."""
        plain = self.options.groups == 1 and not self.options.transposed and self.gradient.dim() <= 4
        return plain and len(self.gradient) == self.examples

    def made(self, start: int, stop: int) -> Tensor:
        """By the kernel of the ordinary gradient, for every example."""
        inner = len(self.input) // self.examples
        part = slice(start * inner, stop * inner)
        return weight_gradients(self.gradient[part], self.input[part], self.weight, stop - start, self.options)

    def summed(self, weights: Tensor) -> Tensor:
        """The ordinary gradient of the batch."""
        inner = len(self.input) // self.examples
        factors = weights.to(self.gradient.dtype).repeat_interleave(inner) if inner != 1 else weights
        factors = factors.to(self.gradient.dtype).view(-1, *[1] * (self.gradient.dim() - 1))
        return weight_gradient(self.gradient * factors, self.input, self.weight, self.options)

    def ghost_norms(self) -> Tensor:
        """From the windows."""
        windows, rows = self.windows(), self.gradient.flatten(2)
        return root(torch.bmm(windows.mT, windows).mul_(torch.bmm(rows.mT, rows)).sum((1, 2)))

    def windows(self) -> Tensor:
        """What the kernel sees at each position, ``[examples, in_channels * kernel, positions]``."""
        stride, padding, dilation = self.options.sizes
        x, kernel = self.input, list(self.shape[2:])
        if x.dim() == 3:
            x, kernel, padding = x.unsqueeze(2), [1, *kernel], [0, *padding]
            stride, dilation = [1, *stride], [1, *dilation]
        return F.unfold(x, *(tuple(sizes) for sizes in (kernel, dilation, padding, stride)))


def _convolve(
    tape: Tape,
    function: Callable[..., Tensor],
    input: Any,
    weight: Any,
    bias: Any,
    options: Convolution,
    arguments: Sequence[Any],
) -> Any:
    x = tape.physical(input)
    if x is None or not isinstance(weight, Handle) or weight.node.value.dim() != options.dimensions + 2:
        return NotImplemented
    node, of_bias = weight.node, bias.node if isinstance(bias, Handle) else None
    if bias is not None and of_bias is None:
        return NotImplemented
    # Of one example without a batch, or of a batch of its own for each example.
    lead = x.shape[: -1 - options.dimensions]
    flat = x.reshape(-1, *x.shape[-1 - options.dimensions :])

    def pull(gradient: Tensor) -> list[tuple[Node, Part]]:
        gradient = gradient.reshape(-1, *gradient.shape[-1 - options.dimensions :])
        parts: list[tuple[Node, Part]] = [(node, Windows(gradient, flat.detach(), node.value, options, tape.examples))]
        if of_bias is not None:
            sums = gradient.flatten(2).sum(2)
            parts.append(
                (of_bias, Small(sums if len(lead) == 1 else sums.view(tape.examples, -1, sums.shape[1]).sum(1)))
            )
        return parts

    y = function(flat, node.beside(flat), None if of_bias is None else of_bias.value, *arguments)
    return tape.use(y.view(*lead, *y.shape[1:]), flat, node, pull)


def _sizes(value: Any, dimensions: int) -> list[int]:
    return [value] * dimensions if isinstance(value, int) else list(value) * (dimensions if len(value) == 1 else 1)


def _forward(function: Callable[..., Tensor], dimensions: int) -> None:
    @rule(function)
    def convolution(
        tape: Tape,
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        if isinstance(padding, str):
            return _with_named_padding(function, input, weight, bias, stride, padding, dilation, groups, dimensions)
        sizes = [_sizes(value, dimensions) for value in (stride, padding, dilation)]
        options = Convolution(sizes[0], sizes[1], sizes[2], False, [0] * dimensions, groups)
        return _convolve(tape, function, input, weight, bias, options, (stride, padding, dilation, groups))


def _with_named_padding(
    function: Any, input: Any, weight: Any, bias: Any, stride: Any, padding: str, dilation: Any, groups: int, dims: int
) -> Any:
    if padding == "valid":
        return function(input, weight, bias, stride, 0, dilation, groups)
    totals = [step * (size - 1) for step, size in zip(_sizes(dilation, dims), weight.shape[2:], strict=True)]
    sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return function(F.pad(input, sides), weight, bias, stride, 0, dilation, groups)


def _transposed(function: Callable[..., Tensor], dimensions: int) -> None:
    @rule(function)
    def convolution(
        tape: Tape,
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Any:
        sizes = [_sizes(value, dimensions) for value in (stride, padding, dilation)]
        options = Convolution(sizes[0], sizes[1], sizes[2], True, _sizes(output_padding, dimensions), groups)
        arguments = (stride, padding, output_padding, groups, dilation)
        return _convolve(tape, function, input, weight, bias, options, arguments)


for _n, (_function, _inverse) in enumerate(
    ((F.conv1d, F.conv_transpose1d), (F.conv2d, F.conv_transpose2d), (F.conv3d, F.conv_transpose3d)), start=1
):
    _forward(_function, _n)
    _transposed(_inverse, _n)
