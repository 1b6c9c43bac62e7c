"""Running a cell over sequences: one direction of a layer, one layer, all layers.

Within this file sequences are ``[length, batch, features]`` and states tuples of ``[directions, batch, features]``.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from purenn import random
from purenn._kernels import may_use_kernels
from purenn._modes import is_autocast, is_plain
from purenn.errors import ArgumentError, ShapeError
from purenn.layers._lstm_op import has_kernel, lstm_by_kernel
from purenn.layers.dropout import Dropout, dropout
from purenn.ops._recurrent import State, Step, Weights, input_part, lstm_step
from purenn.transforms import scan
from purenn.transforms._program import writes_programs

Lengths = Int[Tensor, "*batch"] | None
Valid = Bool[Tensor, "length batch 1"] | None

# Annotations of an inner function are evaluated whenever it is made; dynamo traces names only.
Entry = tuple[Tensor, Tensor | None]
Stepped = tuple[State, Tensor]


class Family(NamedTuple):
    """What tells one kind of recurrent layer from the others.

    Attributes:
        name: the layer's function, for errors.
        states: names of the parts of the state.
        step: see `purenn.ops._recurrent`.
        kernel: torch's function for whole sequences.
    """

    name: str
    states: tuple[str, ...]
    step: Step
    kernel: Callable[..., Sequence[Tensor]]


def run(
    family: Family, p: Any, x: Tensor, hx: Any, sizes: tuple[int, ...], lengths: Lengths, key: Tensor | None
) -> tuple[Tensor, State]:
    """The output and the last state of all layers.

    Args:
        family: the kind of layer.
        p: container or module with the parameters and options.
        x: the input in the order of dimensions that `p` takes.
        hx: the first state as the layer's function takes it, ``[layers * directions, *batch, size]`` each, or None.
        sizes: how many features each part of the state has.
        lengths: of the sequences, or None if all are whole.
        key: of the dropout between layers, or None for no dropout.
    """
    batch = _checked_input(family, p, x)
    directions = 2 if p.bidirectional else 1
    shapes = [(p.num_layers * directions, *batch, size) for size in sizes]
    state = as_state(family.name, hx, family.states)
    state = tuple(x.new_zeros(shape) for shape in shapes) if state is None else _checked_state(family, state, shapes)
    time_first = x.transpose(0, 1) if batch and p.batch_first else x
    if not batch:
        time_first, state = x.unsqueeze(1), tuple(h.unsqueeze(1) for h in state)
    valid = None
    if lengths is not None:
        valid = _valid_steps(family, lengths, len(time_first), batch)
        # Whatever fills the rest of a shorter sequence, a NaN for example, must not reach the weights' gradients.
        time_first = torch.where(valid, time_first, 0)
    y, last = _all_layers(family, p, time_first, state, valid, key)
    if not batch:
        return y.squeeze(1), tuple(h.squeeze(1) for h in last)
    return (y.transpose(0, 1) if p.batch_first else y), last


def _all_layers(family: Family, p: Any, x: Tensor, hx: State, valid: Valid, key: Tensor | None) -> tuple[Tensor, State]:
    by_kernel = valid is None and may_use_kernels(x, *hx) and _has_kernel(x, hx)
    keys = random.split(key, p.num_layers - 1) if key is not None and p.dropout and p.num_layers > 1 else None
    states = zip(*(h.split(2 if p.bidirectional else 1) for h in hx), strict=True)
    finals = []
    for layer, state in enumerate(states):
        if keys is not None and layer:
            x = dropout(Dropout(p.dropout), x, key=keys[layer - 1])
        weights = [weights_of(p, layer, reverse) for reverse in ((False, True) if p.bidirectional else (False,))]
        if by_kernel:
            x, last = _layer_by_kernel(family.kernel, weights, x, state)
        else:
            x, last = _layer(family.step, weights, x, state, valid)
        finals.append(last)
    return x, finals[0] if len(finals) == 1 else tuple(torch.cat(parts) for parts in zip(*finals, strict=True))


def _has_kernel(x: Tensor, hx: State) -> bool:
    # On the CPU torch's kernels have all derivatives. Those of cuDNN have no second one, and warn about weights
    # that do not lie in one piece. A projection in another dtype than float64 brings a warning that oneDNN has none.
    projects = len({h.shape[-1] for h in hx}) > 1
    return x.device.type == "cpu" and (not projects or x.dtype == torch.float64)


def weights_of(p: Any, layer: int, reverse: bool) -> Weights:
    """The parameters of one direction of one layer, by their names in torch."""
    place = place_of(layer, reverse)
    parts = ["weight_ih", "weight_hh"]
    if p.bias:
        parts += ["bias_ih", "bias_hh"]
    if getattr(p, "proj_size", 0):
        parts.append("weight_hr")
    return Weights(**{part: getattr(p, f"{part}{place}") for part in parts})


def place_of(layer: int, reverse: bool) -> str:
    """How the names of all parameters of one direction of one layer end."""
    return f"_l{layer}_reverse" if reverse else f"_l{layer}"


def _layer_by_kernel(
    kernel: Callable[..., Sequence[Tensor]], weights: list[Weights], x: Tensor, state: State
) -> tuple[Tensor, State]:
    flat = [weight for direction in weights for weight in direction if weight is not None]
    hx = state[0] if len(state) == 1 else state
    biased, training = weights[0].bias_ih is not None, torch.is_grad_enabled()
    y, *last = kernel(x, hx, flat, biased, 1, 0.0, training, len(weights) > 1, False)
    return y, tuple(last)


def _layer(step: Step, weights: list[Weights], x: Tensor, state: State, valid: Valid) -> tuple[Tensor, State]:
    is_plain_lstm = step is lstm_step and valid is None and weights[0].weight_hr is None
    by_operation = is_plain_lstm and writes_programs() and has_kernel(x)
    outputs, lasts = zip(
        *(
            _by_operation(own, x, first, reverse) if by_operation else _direction(step, own, x, first, valid, reverse)
            for own, first, reverse in zip(weights, _by_direction(state), (False, True), strict=False)
        ),
        strict=True,
    )
    return torch.cat(outputs, -1), tuple(torch.stack(parts) for parts in zip(*lasts, strict=True))


def _by_direction(state: State) -> list[State]:
    return list(zip(*(h.unbind() for h in state), strict=True))


def _direction(
    step: Step, weights: Weights, x: Tensor, first: State, valid: Valid, reverse: bool
) -> tuple[Tensor, State]:
    """The outputs and the last state of one direction of one layer, from the states ``[batch, features]`` on.

    Where a step is not valid the state stays what it is. So the reverse direction, which meets those steps first,
    starts at each sequence's own end.
    """
    has_other_dtypes = is_autocast(x)

    def body(state: State, entry: Entry) -> Stepped:
        of_x, here = entry
        new = step(of_x, state, weights)
        y = new[0]
        if has_other_dtypes:
            new = tuple(after.to(before.dtype) for after, before in zip(new, state, strict=True))
        if here is None:
            return new, y
        new = tuple(torch.where(here, after, before) for after, before in zip(new, state, strict=True))
        return new, torch.where(here, y, 0)

    last, outputs = scan(body, first, (input_part(x, weights), valid), reverse=reverse)
    return outputs, last


def _by_operation(weights: Weights, x: Tensor, first: State, reverse: bool) -> tuple[Tensor, State]:
    # Under `pn.jit`: the kernel as an operation of the graph.
    def formula(x: Tensor, h: Tensor, c: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = _direction(lstm_step, Weights(*parameters), x, (h, c), None, reverse)
        return y, h, c

    w_ih, w_hh, b_ih, b_hh, _ = weights
    biases = [w_ih.new_zeros(len(w_ih)) if bias is None else bias for bias in (b_ih, b_hh)]
    y, *last = lstm_by_kernel(formula, x, *first, w_ih, w_hh, *biases, reverse=reverse)
    return y, tuple(last)


def _valid_steps(family: Family, lengths: Tensor, steps: int, batch: tuple[int, ...]) -> Bool[Tensor, "length batch 1"]:
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise ArgumentError(f"{family.name}: lengths must be a tensor of whole numbers, got {got}.")
    if lengths.shape != batch:
        wanted = "one number for each sequence" if batch else "one number, because x is one sequence"
        raise ShapeError(
            f"{family.name}: lengths must be of shape {list(batch)}, {wanted}, got shape {list(lengths.shape)}."
        )
    # Elsewhere the values are not there to be looked at, or only by waiting for them.
    if lengths.device.type == "cpu" and is_plain(lengths) and lengths.numel():
        least, most = (int(bound) for bound in lengths.aminmax())
        if least < 0 or most > steps:
            raise ArgumentError(
                f"{family.name}: lengths must be from 0 to {steps}, the number of steps in x, got {least} to {most}."
            )
    valid = torch.arange(steps, device=lengths.device).unsqueeze(-1) < lengths
    return valid.unsqueeze(-1)


def _checked_input(family: Family, p: Any, x: Tensor) -> tuple[int, ...]:
    """The batch dimension, if there is one."""
    if isinstance(x, PackedSequence):
        raise ArgumentError(
            f"{family.name}: x is a PackedSequence; give the padded sequences and their lengths instead: "
            f"x, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first={p.batch_first}), then "
            f"{family.name}(p, x, lengths=lengths)."
        )
    features = p.weight_ih_l0.shape[-1]
    if x.dim() not in (2, 3) or x.shape[-1] != features:
        order = "batch, length" if p.batch_first else "length, batch"
        raise ShapeError(
            f"{family.name}: expected x of shape [{order}, {features}], or [length, {features}] for one sequence, got "
            f"shape {list(x.shape)}."
        )
    time = 1 if x.dim() == 3 and p.batch_first else 0
    if not x.shape[time]:
        raise ShapeError(f"{family.name}: the sequences must have at least one step, got x of shape {list(x.shape)}.")
    return () if x.dim() == 2 else (x.shape[1 - time],)


def _checked_state(family: Family, hx: State, shapes: list[tuple[int, ...]]) -> State:
    for name, h, shape in zip(family.states, hx, shapes, strict=True):
        batch = "batch, " if len(shape) == 3 else ""
        require_state(family.name, name, h, shape, f"[layers * directions, {batch}features]")
    return hx


def as_state(name: str, hx: Any, parts: tuple[str, ...]) -> State | None:
    """The argument `hx` as a tuple of tensors: it is a tensor if the state has one part, otherwise a pair.

    Raises:
        ArgumentError: it is something else.
    """
    if hx is None:
        return None
    if len(parts) == 1 and isinstance(hx, Tensor):
        return (hx,)
    if len(parts) > 1 and isinstance(hx, (tuple, list)) and len(hx) == len(parts):
        return tuple(hx)
    wanted = "a tensor" if len(parts) == 1 else f"a pair ({', '.join(parts)})"
    got = f"a {type(hx).__name__}" + (f" of {len(hx)}" if isinstance(hx, (tuple, list)) else "")
    raise ArgumentError(f"{name}: hx must be {wanted} or None, got {got}.")


def require_state(name: str, part: str, h: Shaped[Tensor, "..."], shape: tuple[int, ...], meaning: str) -> None:
    """Raise a ShapeError if a part of the first state has another shape."""
    if h.shape != shape:
        raise ShapeError(f"{name}: {part} must be of shape {list(shape)}, {meaning}, got shape {list(h.shape)}.")
