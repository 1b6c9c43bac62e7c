"""One step of a recurrent network, in plain operations: it can be batched, and differentiated any number of times.

A step takes the input's part of the gates, ``weight_ih x + bias_ih``, which does not depend on the state: over a
sequence it is one large product, made before the loop. The state is a tuple, ``(h,)`` or ``(h, c)``, and ``h`` is the
output. All weights and their layout are those of `torch.nn`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

State = tuple[Tensor, ...]


class Weights(NamedTuple):
    """The parameters of one cell with so many gates, whose rows stand one gate below the other.

    Attributes:
        weight_ih: ``[gates * hidden_size, input_size]``.
        weight_hh: ``[gates * hidden_size, size of h]``.
        bias_ih: ``[gates * hidden_size]`` or None.
        bias_hh: likewise.
        weight_hr: the projection of the output, ``[proj_size, hidden_size]``, or None; only a LSTM has one.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_hr: Tensor | None = None


Step = Callable[[Tensor, State, Weights], State]


def input_part(x: Float[Tensor, "*batch input_size"], weights: Weights) -> Float[Tensor, "*batch rows"]:
    """The input's part of the gates."""
    return F.linear(x, weights.weight_ih, weights.bias_ih)


def _state_part(h: Tensor, weights: Weights) -> Tensor:
    return F.linear(h, weights.weight_hh, weights.bias_hh)


def tanh_step(of_x: Tensor, state: State, weights: Weights) -> State:
    """``h' = tanh(of_x + W_hh h + b_hh)``.

    Source:
        Elman: Finding Structure in Time, 1990.
    """
    return (torch.tanh(of_x + _state_part(state[0], weights)),)


def relu_step(of_x: Tensor, state: State, weights: Weights) -> State:
    """``h' = relu(of_x + W_hh h + b_hh)``.

    Source:
        Le, Jaitly, Hinton: A Simple Way to Initialize Recurrent Networks of Rectified Linear Units, 2015.
    """
    return (torch.relu(of_x + _state_part(state[0], weights)),)


def lstm_step(of_x: Tensor, state: State, weights: Weights) -> State:
    """``c' = f c + i g`` and ``h' = o tanh(c')``, projected if there is a projection; the gates are i, f, g, o.

    Source:
        Hochreiter, Schmidhuber: Long Short-Term Memory, 1997. The projection: Sak, Senior, Beaufays: Long Short-Term
        Memory Based Recurrent Neural Network Architectures for Large Vocabulary Speech Recognition, 2014.
    """
    h, c = state
    keep_in, forget, new, out = (of_x + _state_part(h, weights)).chunk(4, -1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(keep_in) * torch.tanh(new)
    h = torch.sigmoid(out) * torch.tanh(c)
    return (h if weights.weight_hr is None else F.linear(h, weights.weight_hr)), c


def gru_step(of_x: Tensor, state: State, weights: Weights) -> State:
    """``h' = (1 - z) n + z h`` with ``n = tanh(x_n + r h_n)``; the gates are r, z, n, and h_n contains its bias.

    Source:
        Cho et al.: Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation, 2014,
        with the reset gate behind the product, as in cuDNN.
    """
    (h,) = state
    size = h.shape[-1]
    x_gates, x_new = of_x.split((2 * size, size), -1)
    h_gates, h_new = _state_part(h, weights).split((2 * size, size), -1)
    reset, update = torch.sigmoid(x_gates + h_gates).chunk(2, -1)
    new = torch.tanh(x_new + reset * h_new)
    return (new + update * (h - new),)
