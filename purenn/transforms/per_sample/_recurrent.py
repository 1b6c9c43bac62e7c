"""Rules of torch's recurrent kernels: step by step, so that the products of every step are recorded."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from purenn.ops._recurrent import State, Step, Weights, gru_step, input_part, lstm_step, relu_step, tanh_step
from purenn.transforms.per_sample._tape import Tape, rule


def _register(step: Step, sequence: Any, cell: Any, states: int) -> None:
    @rule(sequence)
    def _sequence(
        tape: Tape,
        input: Any,
        hx: Any,
        params: Any,
        has_biases: bool,
        num_layers: Any,
        dropout: Any = 0.0,
        train: Any = False,
        bidirectional: Any = False,
        batch_first: Any = False,
    ) -> Any:
        if isinstance(params, bool) or not isinstance(params, (list, tuple)) or (dropout and train):
            return NotImplemented
        directions = 2 if bidirectional else 1
        x = input.transpose(0, 1) if batch_first else input
        groups = _grouped(params, has_biases, num_layers * directions)
        first = [part.unbind(0) for part in ((hx,) if isinstance(hx, Tensor) else hx)]
        last: list[State] = []
        for layer in range(num_layers):
            outputs = []
            for direction in range(directions):
                place = layer * directions + direction
                state = tuple(_of_each(tape, part[place]) for part in first)
                y, state = _run(step, groups[place], x, state, reverse=bool(direction))
                outputs.append(y)
                last.append(state)
            x = torch.cat(outputs, -1)
        ends = [torch.stack(parts) for parts in zip(*last, strict=True)]
        return x.transpose(0, 1) if batch_first else x, *ends

    @rule(cell)
    def _cell(tape: Tape, input: Any, hx: Any, *params: Any) -> Any:
        weights = Weights(*params)
        new = step(input_part(input, weights), (hx,) if isinstance(hx, Tensor) else tuple(hx), weights)
        return new if states > 1 else new[0]


def _of_each(tape: Tape, state: Tensor) -> Tensor:
    # The zeros at the start too, so that the first step is recorded like all others.
    return state if tape.differs(state) else tape.batched(state.expand(tape.examples, *state.shape))


def _grouped(params: Sequence[Any], has_biases: bool, count: int) -> list[Weights]:
    size = len(params) // count
    groups = [list(params[start : start + size]) for start in range(0, len(params), size)]
    if has_biases:
        return [Weights(*group) for group in groups]
    return [Weights(group[0], group[1], None, None, *group[2:]) for group in groups]


def _run(step: Step, weights: Weights, x: Tensor, state: State, *, reverse: bool) -> tuple[Tensor, State]:
    of_x = input_part(x, weights).unbind(0)
    outputs = []
    for entry in reversed(of_x) if reverse else of_x:
        state = step(entry, state, weights)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


for _step, _whole, _single, _count in (
    (lstm_step, torch.lstm, torch.lstm_cell, 2),
    (gru_step, torch.gru, torch.gru_cell, 1),
    (tanh_step, torch.rnn_tanh, torch.rnn_tanh_cell, 1),
    (relu_step, torch.rnn_relu, torch.rnn_relu_cell, 1),
):
    _register(_step, _whole, _single, _count)
