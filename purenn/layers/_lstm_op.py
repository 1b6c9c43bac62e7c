"""One direction of an LSTM as one operation of a compiled graph.

Eager calls run torch's kernel, which takes half the time of a compiled loop over steps, so under `pn.jit` the kernel is
an operation that compilers do not look into. Its gradient is another one, for which the kernel runs again. Everything
else, forward mode, batches and second derivatives, goes by the formula, the loop.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library

# x ``[length, batch, features]``, h and c ``[batch, size]``, two weights and two biases -> outputs, last h, last c.
Formula = Callable[..., tuple[Tensor, Tensor, Tensor]]
_ARGUMENTS = 7


def has_kernel(x: Tensor) -> bool:
    """Whether there is a kernel for such sequences."""
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    return fits and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")


def lstm_by_kernel(formula: Formula, *tensors: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What `formula` gives for its tensors, by the kernel.

    Args:
        formula: the same in plain operations.
        *tensors: see `Formula`.
        reverse: whether the sequences are read from their ends.
    """
    y, h, c = _Sequence.apply(formula, reverse, *[tensor.contiguous() for tensor in tensors])
    return y, h, c


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(formula: Formula, reverse: bool, *tensors: Tensor) -> tuple:
        return torch.ops.purenn.lstm(*tensors, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.formula, ctx.reverse, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:
        cotangents = tuple(cotangent.contiguous() for cotangent in cotangents)
        return None, None, *_SequenceGradient.apply(ctx.formula, ctx.reverse, *ctx.saved_tensors, *cotangents)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple:
        return _push(ctx.formula, ctx.saved_tensors, tangents[2:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple, formula: Formula, reverse: bool, *tensors: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.func.vmap(formula, in_dims[2:])(*tensors), (0, 0, 0)


class _SequenceGradient(torch.autograd.Function):
    @staticmethod
    def forward(formula: Formula, reverse: bool, *tensors: Tensor) -> tuple:
        return torch.ops.purenn.lstm_gradient(*tensors, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.formula, _, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:
        _, pull, *_ = torch.func.vjp(_gradient(ctx.formula), *ctx.saved_tensors)
        return None, None, *pull(cotangents)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple:
        return _push(_gradient(ctx.formula), ctx.saved_tensors, tangents[2:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple, formula: Formula, reverse: bool, *tensors: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.func.vmap(_gradient(formula), in_dims[2:])(*tensors), (0,) * _ARGUMENTS


def _gradient(formula: Formula) -> Callable[..., tuple[Tensor, ...]]:
    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        _, pull, *_ = torch.func.vjp(formula, *tensors[:_ARGUMENTS])
        return pull(tensors[_ARGUMENTS:])

    return gradient


def _push(function: Callable[..., tuple], tensors: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> tuple:
    # By two pulls, because forward mode cannot be nested in the forward mode that may be running.
    results, pull, *_ = torch.func.vjp(function, *tensors)
    _, pull_again, *_ = torch.func.vjp(pull, tuple(torch.zeros_like(result) for result in results))
    filled = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(tensors, tangents, strict=True))
    return pull_again(filled)[0]


# The operators.

_LSTM = 2  # the kernel's number for it


def _run(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, last_h, last_c, _ = _forward(x, h, c, [w_ih, w_hh, b_ih, b_hh], reverse, train=False)
    return y, last_h, last_c


def _forward(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor], reverse: bool, *, train: bool) -> list[Tensor]:
    size = h.shape[-1]
    return torch.ops.aten.mkldnn_rnn_layer(x, *weights, h, c, reverse, [], _LSTM, size, 1, True, False, False, train)


def _run_gradient(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    of_y: Tensor,
    of_h: Tensor,
    of_c: Tensor,
    reverse: bool,
) -> tuple[Tensor, ...]:
    weights = [w_ih, w_hh, b_ih, b_hh]
    # The kernel keeps what its gradient needs only where gradients are enabled; here nothing requires one.
    with torch.enable_grad():
        *results, workspace = _forward(x, h, c, weights, reverse, train=True)
    of_x, *of_weights, of_first_h, of_first_c = torch.ops.aten.mkldnn_rnn_layer_backward(
        *(x, *weights, h, c, *results, of_y, of_h, of_c),
        *(reverse, _LSTM, h.shape[-1], 1, True, True, False, [], False, workspace),
    )
    first, second, of_bias, of_other_bias = of_weights
    # Both biases have the same gradient, in one tensor; results of an operator share no storage.
    return of_x, of_first_h, of_first_c, first, second, of_bias, of_other_bias.clone()


def _fake(x: Tensor, h: Tensor, c: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty((*x.shape[:2], h.shape[-1])), torch.empty_like(h), torch.empty_like(c)


def _fake_gradient(*tensors: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in tensors[:_ARGUMENTS])


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, *cotangents: Tensor) -> tuple:
    cotangents = tuple(cotangent.contiguous() for cotangent in cotangents)
    return *torch.ops.purenn.lstm_gradient(*ctx.saved_tensors, *cotangents, ctx.reverse), None


_LIBRARY = library.Library("purenn", "FRAGMENT")
_STATE = "Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh"
_LIBRARY.define(f"lstm({_STATE}, bool reverse) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    f"lstm_gradient({_STATE}, Tensor of_y, Tensor of_h, Tensor of_c, bool reverse) -> ({', '.join(['Tensor'] * 7)})"
)
_LIBRARY.impl("lstm", _run, "CompositeExplicitAutograd")
_LIBRARY.impl("lstm_gradient", _run_gradient, "CompositeExplicitAutograd")
library.register_fake("purenn::lstm", _fake, lib=_LIBRARY)
library.register_fake("purenn::lstm_gradient", _fake_gradient, lib=_LIBRARY)
# For gradients that are asked for outside of the jitted function: the compiler differentiates its graph.
library.register_autograd("purenn::lstm", _backward, setup_context=_setup, lib=_LIBRARY)
