"""Recurrent networks over sequences: layers of cells, in one direction or in both.

Options, layouts, results and names of the parameters are those of `torch.nn`. The parameters of layer 1 are
``weight_ih_l1``, ``weight_hh_l1`` and so on; those of its second direction end in ``_l1_reverse``. Two things differ:
dropout between layers happens if a key is given, and sequences of unequal length are not packed, but come with
`lengths`.

Since names depend on the number of layers, so does the class: `LSTM` itself has one layer and one direction, and `init`
makes subclasses of it with more fields, which are also called LSTM.
"""

import re
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.layers._recurrent import Family, Lengths, run
from purenn.layers._recurrent_container import Recurrent, with_layers
from purenn.layers._recurrent_parameters import require_nonlinearity
from purenn.ops._recurrent import gru_step, lstm_step, relu_step, tanh_step
from purenn.tree import applies, container, static

Sequences = Float[Tensor, "*batch_and_length input_size"]
Output = Float[Tensor, "*batch_and_length features"]
States = Float[Tensor, "layers *batch size"]
Cells = Float[Tensor, "layers *batch hidden_size"]


@container
class RNN(Recurrent):
    """A simple recurrent network; see `rnn`.

    Attributes:
        weight_ih_l0: of layer 0, ``[hidden_size, input_size]``; ``weight_ih_l1`` and so on have as many columns as the
            layer before has features.
        weight_hh_l0: ``[hidden_size, hidden_size]``.
        bias_ih_l0: ``[hidden_size]`` or None.
        bias_hh_l0: ``[hidden_size]`` or None.
        batch_first: whether batches are ``[batch, length, features]`` and not ``[length, batch, features]``. Default:
            False.
        dropout: probability of a zero in what a layer hands on to the next, if a key is given. Default: 0.
        nonlinearity: "tanh" or "relu". Default: "tanh".
    """

    nonlinearity: str = static(default="tanh", validator=require_nonlinearity, kw_only=True)

    @classmethod
    def init(
        cls,
        key: Tensor,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw all parameters from U(-k, k), ``k = 1 / sqrt(hidden_size)``.

        Args:
            key: random key.
            input_size: size of the input's last dimension.
            hidden_size: features of the hidden state.
            num_layers: how many layers, each with the output of the one before as its input. Default: 1.
            nonlinearity: "tanh" or "relu". Default: "tanh".
            bias: whether there are biases. Default: True.
            batch_first: whether batches are ``[batch, length, features]`` and not ``[length, batch, features]``.
                Default: False.
            dropout: probability of a zero in what a layer hands on to the next, if a key is given. Default: 0.
            bidirectional: whether every layer also reads the sequences backwards. Default: False.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: a size is not positive, `dropout` is no probability, or `nonlinearity` is another name.
        """
        return cls._drawn(
            *(key, input_size, hidden_size, num_layers, bidirectional, bias, dtype, device),
            batch_first=batch_first,
            dropout=dropout,
            nonlinearity=nonlinearity,
        )


_RNN = {
    "tanh": Family("rnn", ("h",), tanh_step, torch.rnn_tanh),
    "relu": Family("rnn", ("h",), relu_step, torch.rnn_relu),
}


@applies(RNN)
def rnn(
    p: RNN, x: Sequences, hx: States | None = None, *, lengths: Lengths = None, key: Tensor | None = None
) -> tuple[Output, States]:
    """``h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)`` in every layer, or with relu.

    Args:
        p: the parameters.
        x: ``[length, batch, input_size]``, ``[batch, length, input_size]`` with `batch_first`, or one sequence,
            ``[length, input_size]``.
        hx: the first state of all layers and directions, ``[layers * directions, batch, hidden_size]``, without batch
            for one sequence. Default: zeros.
        lengths: how many steps of each sequence count, ``[batch]``, or one number for one sequence. Later outputs are
            zero, the last state is that of the last step that counts, and the second direction starts there. A
            sequence of length 0 keeps its first state. Default: all steps count.
        key: random key of the dropout between layers; without one there is none.

    Returns:
        The output of the last layer, with ``directions * hidden_size`` features, and the last state, in the form of
        `hx`.

    Raises:
        ShapeError: `x`, `hx` or `lengths` has another shape, or there is no step.
        ArgumentError: `hx` is no tensor, `x` is a PackedSequence, or `lengths` has other values; where looking at
            them would mean waiting for a device, or they are traced, such values are not noticed.

    Source:
        Elman: Finding Structure in Time, 1990. Two directions: Schuster, Paliwal: Bidirectional Recurrent Neural
        Networks, 1997.
    """
    y, (h,) = run(_RNN[p.nonlinearity], p, x, hx, (p.hidden_size,), lengths, key)
    return y, h


@container
class LSTM(Recurrent):
    """A long short-term memory; see `lstm`.

    Attributes:
        weight_ih_l0: of layer 0, ``[4 * hidden_size, input_size]``, the rows of the gates i, f, g, o one below the
            other; ``weight_ih_l1`` and so on have as many columns as the layer before has features.
        weight_hh_l0: ``[4 * hidden_size, proj_size or hidden_size]``.
        bias_ih_l0: ``[4 * hidden_size]`` or None.
        bias_hh_l0: ``[4 * hidden_size]`` or None.
        weight_hr_l0: the projection of the output, ``[proj_size, hidden_size]``, or None.
        batch_first, dropout: as in `RNN`.
    """

    weight_hr_l0: Float[Tensor, "proj_size hidden_size"] | None = None

    _gates: ClassVar[int] = 4
    _parts: ClassVar[tuple[str, ...]] = (*Recurrent._parts, "weight_hr")

    @classmethod
    def init(
        cls,
        key: Tensor,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the parameters; arguments are those of `RNN.init`, without `nonlinearity`, and `proj_size`.

        That is how many features the output is projected to, fewer than `hidden_size`; 0, the default, is none.

        Raises:
            ArgumentError: a size is not positive, `dropout` is no probability, or `proj_size` is out of range.

        Example:
            >>> import torch, purenn as pn
            >>> from purenn.layers import LSTM
            >>> p = LSTM.init(pn.random.key(0), 3, 5, num_layers=2, bidirectional=True)
            >>> y, (h, c) = p(torch.ones(7, 2, 3))
            >>> y.shape, h.shape, p.weight_ih_l1_reverse.shape
            (torch.Size([7, 2, 10]), torch.Size([4, 2, 5]), torch.Size([20, 10]))
        """
        if not 0 <= proj_size < max(hidden_size, 1):
            raise ArgumentError(
                f"{cls.__name__}.init: proj_size must be less than hidden_size={hidden_size}, or 0 for no projection, "
                f"got {proj_size!r}."
            )
        return cls._drawn(
            *(key, input_size, hidden_size, num_layers, bidirectional, bias, dtype, device, proj_size),
            batch_first=batch_first,
            dropout=dropout,
        )

    @property
    def proj_size(self) -> int:
        """Features of the projected output, 0 without projection."""
        return 0 if self.weight_hr_l0 is None else self.weight_hr_l0.shape[-2]


_LSTM = Family("lstm", ("h", "c"), lstm_step, torch.lstm)


@applies(LSTM)
def lstm(
    p: LSTM,
    x: Sequences,
    hx: tuple[States, Cells] | None = None,
    *,
    lengths: Lengths = None,
    key: Tensor | None = None,
) -> tuple[Output, tuple[States, Cells]]:
    """``c_t = f c_(t-1) + i g`` and ``h_t = o tanh(c_t)`` in every layer, see `lstm_cell`; with a projection W_hr h_t.

    Args:
        p: the parameters.
        x: ``[length, batch, input_size]``, ``[batch, length, input_size]`` with `batch_first`, or one sequence,
            ``[length, input_size]``.
        hx: the first state ``(h, c)`` of all layers and directions, ``[layers * directions, batch, size]`` with
            `hidden_size` features, h with `proj_size` if there is a projection; without batch for one sequence.
            Default: zeros.
        lengths: as in `rnn`.
        key: random key of the dropout between layers; without one there is none.

    Returns:
        The output h of the last layer, with ``directions * (proj_size or hidden_size)`` features, and the last state
        ``(h, c)``, in the form of `hx`.

    Raises:
        ShapeError: `x`, `hx` or `lengths` has another shape, or there is no step.
        ArgumentError: `hx` is no pair; and as in `rnn`.

    Source:
        Hochreiter, Schmidhuber: Long Short-Term Memory, 1997. The projection: Sak, Senior, Beaufays: Long Short-Term
        Memory Based Recurrent Neural Network Architectures for Large Vocabulary Speech Recognition, 2014.
    """
    y, (h, c) = run(_LSTM, p, x, hx, (p.proj_size or p.hidden_size, p.hidden_size), lengths, key)
    return y, (h, c)


@container
class GRU(Recurrent):
    """A network of gated recurrent units; see `gru`.

    Attributes:
        weight_ih_l0: of layer 0, ``[3 * hidden_size, input_size]``, the rows of the gates r, z, n one below the other;
            ``weight_ih_l1`` and so on have as many columns as the layer before has features.
        weight_hh_l0: ``[3 * hidden_size, hidden_size]``.
        bias_ih_l0: ``[3 * hidden_size]`` or None.
        bias_hh_l0: ``[3 * hidden_size]`` or None.
        batch_first, dropout: as in `RNN`.
    """

    _gates: ClassVar[int] = 3

    @classmethod
    def init(
        cls,
        key: Tensor,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the parameters; arguments and errors are those of `RNN.init`, without `nonlinearity`."""
        return cls._drawn(
            *(key, input_size, hidden_size, num_layers, bidirectional, bias, dtype, device),
            batch_first=batch_first,
            dropout=dropout,
        )


_GRU = Family("gru", ("h",), gru_step, torch.gru)


@applies(GRU)
def gru(
    p: GRU, x: Sequences, hx: States | None = None, *, lengths: Lengths = None, key: Tensor | None = None
) -> tuple[Output, States]:
    """``h_t = (1 - z) n + z h_(t-1)`` in every layer, see `gru_cell`; arguments, results and errors as in `rnn`.

    Source:
        Cho et al.: Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation, 2014.
    """
    y, (h,) = run(_GRU, p, x, hx, (p.hidden_size,), lengths, key)
    return y, h


def __getattr__(name: str) -> Any:
    # Where pickle looks for the classes of several layers.
    found = re.fullmatch(r"(RNN|LSTM|GRU)_([1-9]\d*)(_bidirectional)?", name)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return with_layers(globals()[found[1]], int(found[2]), found[3] is not None)
