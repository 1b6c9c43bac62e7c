"""Recurrent cells: one step of a sequence, from an input and a state to the next state.

Names, layout and meaning of the parameters are those of `torch.nn`. For whole sequences there are `RNN`, `LSTM` and
`GRU`; a loop of your own is best written with `purenn.scan`.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn._kernels import may_use_kernels
from purenn.errors import ShapeError
from purenn.layers._recurrent import as_state, require_state
from purenn.layers._recurrent_parameters import draw_parameters, require_nonlinearity, require_sizes
from purenn.ops._recurrent import State, Step, Weights, gru_step, input_part, lstm_step, relu_step, tanh_step
from purenn.tree import Layer, applies, container, static

Features = Float[Tensor, "*batch hidden_size"]


@container
class _Cell(Layer):
    weight_ih: Float[Tensor, "rows input_size"]
    weight_hh: Float[Tensor, "rows hidden_size"]
    bias_ih: Float[Tensor, " rows"] | None = None
    bias_hh: Float[Tensor, " rows"] | None = None

    _gates: ClassVar[int] = 1

    @classmethod
    def init(
        cls,
        key: Tensor,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw all parameters from U(-k, k), ``k = 1 / sqrt(hidden_size)``.

        Args:
            key: random key.
            input_size: size of the input's last dimension.
            hidden_size: size of the state's last dimension.
            bias: whether there are biases. Default: True.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: a size is not positive.
        """
        require_sizes(cls.__name__, input_size=input_size, hidden_size=hidden_size)
        weights = draw_parameters(key, cls._gates, input_size, hidden_size, bias, dtype, device)
        return cls(*weights[:4])

    @property
    def input_size(self) -> int:
        """Size of the input's last dimension."""
        return self.weight_ih.shape[-1]

    @property
    def hidden_size(self) -> int:
        """Size of the state's last dimension."""
        return self.weight_hh.shape[-1]

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return self.bias_ih is not None

    def extra_repr(self) -> str:
        """The sizes, and the options that differ from their defaults."""
        return f"{self.input_size}, {self.hidden_size}{'' if self.bias else ', bias=False'}"


@container
class RNNCell(_Cell):
    """A step of a simple recurrent network; see `rnn_cell`.

    Attributes:
        weight_ih: ``[hidden_size, input_size]``.
        weight_hh: ``[hidden_size, hidden_size]``.
        bias_ih: ``[hidden_size]`` or None.
        bias_hh: ``[hidden_size]`` or None.
        nonlinearity: "tanh" or "relu". Default: "tanh".
    """

    nonlinearity: str = static(default="tanh", validator=require_nonlinearity)

    @classmethod
    def init(
        cls,
        key: Tensor,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        nonlinearity: str = "tanh",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw all parameters from U(-k, k), ``k = 1 / sqrt(hidden_size)``.

        Args:
            key: random key.
            input_size: size of the input's last dimension.
            hidden_size: size of the state's last dimension.
            bias: whether there are biases. Default: True.
            nonlinearity: "tanh" or "relu". Default: "tanh".
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: a size is not positive, or `nonlinearity` is another name.
        """
        p = super().init(key, input_size, hidden_size, bias=bias, dtype=dtype, device=device)
        return cls(p.weight_ih, p.weight_hh, p.bias_ih, p.bias_hh, nonlinearity)

    def extra_repr(self) -> str:
        """The sizes, and the options that differ from their defaults."""
        nonlinearity = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        return f"{self.input_size}, {self.hidden_size}{'' if self.bias else ', bias=False'}{nonlinearity}"


@applies(RNNCell)
def rnn_cell(p: RNNCell, x: Float[Tensor, "*batch input_size"], hx: Features | None = None) -> Features:
    """``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)``, or with relu.

    Args:
        p: the parameters.
        x: the input, ``[batch, input_size]`` or ``[input_size]``.
        hx: the state h, ``[batch, hidden_size]`` or ``[hidden_size]``. Default: zeros.

    Returns:
        The next state, which is also the output.

    Raises:
        ShapeError: `x` or `hx` has another shape.
        ArgumentError: `hx` is no tensor.

    Source:
        Elman: Finding Structure in Time, 1990.
    """
    if p.nonlinearity == "relu":
        return _step("rnn_cell", ("h",), relu_step, torch.rnn_relu_cell, p, x, hx)[0]
    return _step("rnn_cell", ("h",), tanh_step, torch.rnn_tanh_cell, p, x, hx)[0]


@container
class LSTMCell(_Cell):
    """A step of a long short-term memory; see `lstm_cell`.

    Attributes:
        weight_ih: ``[4 * hidden_size, input_size]``, the rows of the gates i, f, g, o one below the other.
        weight_hh: ``[4 * hidden_size, hidden_size]``.
        bias_ih: ``[4 * hidden_size]`` or None.
        bias_hh: ``[4 * hidden_size]`` or None.
    """

    _gates: ClassVar[int] = 4


@applies(LSTMCell)
def lstm_cell(
    p: LSTMCell, x: Float[Tensor, "*batch input_size"], hx: tuple[Features, Features] | None = None
) -> tuple[Features, Features]:
    """``c' = f c + i g`` and ``h' = o tanh(c')``.

    Each of i, f, g, o is ``W_ih x + b_ih + W_hh h + b_hh`` with rows of its own; then tanh for g, sigmoid for the rest.

    Args:
        p: the parameters.
        x: the input, ``[batch, input_size]`` or ``[input_size]``.
        hx: the state ``(h, c)``, ``[batch, hidden_size]`` or ``[hidden_size]`` each. Default: zeros.

    Returns:
        The next state ``(h', c')``; h' is also the output.

    Raises:
        ShapeError: `x`, h or c has another shape.
        ArgumentError: `hx` is no pair.

    Source:
        Hochreiter, Schmidhuber: Long Short-Term Memory, 1997.
    """
    h, c = _step("lstm_cell", ("h", "c"), lstm_step, torch.lstm_cell, p, x, hx)
    return h, c


@container
class GRUCell(_Cell):
    """A step of a gated recurrent unit; see `gru_cell`.

    Attributes:
        weight_ih: ``[3 * hidden_size, input_size]``, the rows of the gates r, z, n one below the other.
        weight_hh: ``[3 * hidden_size, hidden_size]``.
        bias_ih: ``[3 * hidden_size]`` or None.
        bias_hh: ``[3 * hidden_size]`` or None.
    """

    _gates: ClassVar[int] = 3


@applies(GRUCell)
def gru_cell(p: GRUCell, x: Float[Tensor, "*batch input_size"], hx: Features | None = None) -> Features:
    """``h' = (1 - z) n + z h`` with ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``.

    The gates r and z are ``sigmoid(W_ih x + b_ih + W_hh h + b_hh)`` with rows of their own.

    Args:
        p: the parameters.
        x: the input, ``[batch, input_size]`` or ``[input_size]``.
        hx: the state h, ``[batch, hidden_size]`` or ``[hidden_size]``. Default: zeros.

    Returns:
        The next state, which is also the output.

    Raises:
        ShapeError: `x` or `hx` has another shape.
        ArgumentError: `hx` is no tensor.

    Source:
        Cho et al.: Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation, 2014.
    """
    return _step("gru_cell", ("h",), gru_step, torch.gru_cell, p, x, hx)[0]


def _step(
    name: str, parts: tuple[str, ...], step: Step, kernel: Callable[..., Any], p: Any, x: Tensor, hx: Any
) -> State:
    size = p.weight_ih.shape[-1]
    if x.dim() not in (1, 2) or x.shape[-1] != size:
        raise ShapeError(
            f"{name}: expected x of shape [batch, {size}], or [{size}] for one example, got shape {list(x.shape)}."
        )
    shape = (*x.shape[:-1], p.weight_hh.shape[-1])
    state = as_state(name, hx, parts)
    if state is None:
        state = (x.new_zeros(shape),) * len(parts)
    for part, h in zip(parts, state, strict=True):
        require_state(name, part, h, shape, "like x with hidden_size features")
    if not may_use_kernels(x, *state):
        weights = Weights(p.weight_ih, p.weight_hh, p.bias_ih, p.bias_hh)
        return step(input_part(x, weights), state, weights)
    if x.dim() == 1:
        x, state = x[None], tuple(h[None] for h in state)
    new = kernel(x, state if len(parts) > 1 else state[0], p.weight_ih, p.weight_hh, p.bias_ih, p.bias_hh)
    new = new if len(parts) > 1 else (new,)
    return new if len(shape) > 1 else tuple(h[0] for h in new)
