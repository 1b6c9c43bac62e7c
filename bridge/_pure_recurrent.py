"""Recurrent layers while a module runs purely: torch's kernels where they can, the formulas elsewhere."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bridge._pure_context import Context, Handler
from bridge._pure_values import is_unknown
from purenn import layers
from purenn._modes import is_plain

_compiled: Any = torch._C
_torch = _compiled._VariableFunctions
_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
# The arguments of a kernel for padded sequences, and for packed ones.
_OPTIONS = ("hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional")
_PADDED, _PACKED = ("input", *_OPTIONS, "batch_first"), ("data", "batch_sizes", *_OPTIONS)


def _sequences(name: str) -> Handler:
    layer = {"lstm": layers.lstm, "gru": layers.gru}.get(name, layers.rnn)
    kernel = getattr(_torch, name)

    def run(context: Context, *args: Any, **kwargs: Any) -> Any:
        # Packed sequences come with the sizes of their batches in front, others with `batch_first` at the end.
        packed = "batch_first" not in kwargs and not (len(args) > 3 and isinstance(args[3], bool))
        names = (_PACKED if packed else _PADDED)[len(args) :]
        if set(names) != kwargs.keys():
            return kernel(*args, **kwargs)  # which says what is wrong with them
        input, *rest = *args, *[kwargs[name] for name in names]
        sizes, tail = (rest[:1], ()) if packed else ((), rest[7:])
        hx, weights, biased, number, dropout, train, bidirectional = rest[1:] if packed else rest[:7]
        key = context.next_key() if train and dropout else None
        if is_plain() and forward_ad._current_level < 0 and key is None:
            # With dropout the kernels would draw numbers of their own.
            return kernel(input, *sizes, hx, weights, biased, number, 0.0, train, bidirectional, *tail)
        p = _container(name, weights, biased, number, dropout, bidirectional, bool(tail and tail[0]))
        state = tuple(hx) if name == "lstm" else hx
        if packed:
            order = _Packing(*sizes)
            y, last = layer(p, order.padded(input), state, lengths=order.lengths, key=key)
            y = order.packed(y)
        else:
            y, last = layer(p, input, state, key=key)
        return (y, *last) if name == "lstm" else (y, last)

    return run


def _container(
    name: str, weights: Sequence[Tensor], biased: bool, number: int, dropout: float, bidirectional: bool, first: bool
) -> Any:
    """What the layer's function reads, by the names that torch's modules have for it."""
    places = [f"_l{layer}{end}" for layer in range(number) for end in (("", "_reverse") if bidirectional else ("",))]
    each = len(weights) // len(places)
    parts = _PARTS if biased else _PARTS[:2]
    projects = each > len(parts)
    parts = (*parts, "weight_hr") if projects else parts
    tensors = {
        f"{part}{place}": weights[n * each + k] for n, place in enumerate(places) for k, part in enumerate(parts)
    }
    gates = {"lstm": 4, "gru": 3}.get(name, 1)
    return SimpleNamespace(
        **tensors,
        bias=biased,
        num_layers=number,
        bidirectional=bidirectional,
        batch_first=first,
        dropout=dropout,
        hidden_size=weights[0].shape[0] // gates,
        proj_size=tensors["weight_hr_l0"].shape[0] if projects else 0,
        nonlinearity=name.removeprefix("rnn_"),
    )


class _Packing:
    """Which element of a padded batch of sequences is which row of a packed one."""

    def __init__(self, batch_sizes: Tensor) -> None:
        sizes = batch_sizes.tolist()
        steps, batch = torch.arange(len(sizes)).unsqueeze(-1), torch.arange(sizes[0])
        valid = batch < batch_sizes.unsqueeze(-1)
        starts = torch.cat([batch_sizes.new_zeros(1), batch_sizes.cumsum(0)[:-1]]).unsqueeze(-1)
        self.valid = valid
        self.rows = torch.where(valid, starts + batch, 0)
        self.lengths = valid.sum(0)
        self.places = (steps * sizes[0] + batch)[valid]

    def padded(self, rows: Tensor) -> Tensor:
        """``[length, batch, features]`` from packed rows; what fills up shorter sequences does not matter."""
        return rows[self.rows.to(rows.device)]

    def packed(self, x: Tensor) -> Tensor:
        """The rows of what is ``[length, batch, features]``."""
        return x.flatten(0, 1)[self.places.to(x.device)]


def _pack(context: Context, input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    kernel = _torch._pack_padded_sequence
    if is_plain() or is_unknown(lengths):
        return kernel(input, lengths, batch_first)
    # The kernel, which has no batching rule, is asked where each row is from.
    places, sizes = kernel(torch.arange(input.shape[:2].numel()).view(input.shape[:2]), lengths, batch_first)
    return input.flatten(0, 1)[places.to(input.device)], sizes


def _pad(
    context: Context, data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    kernel = _torch._pad_packed_sequence
    if is_plain() or is_unknown(batch_sizes):
        return kernel(data, batch_sizes, batch_first, padding_value, total_length)
    order = _Packing(batch_sizes)
    x = order.padded(data)
    x = torch.where(order.valid.view(*x.shape[:2], *[1] * (x.dim() - 2)).to(x.device), x, padding_value)
    if total_length > len(x):
        x = torch.cat([x, x.new_full((total_length - len(x), *x.shape[1:]), padding_value)])
    return x.transpose(0, 1) if batch_first else x, order.lengths


def _cell(name: str) -> Handler:
    kind = name.removesuffix("_cell")
    layer = {"lstm": layers.lstm_cell, "gru": layers.gru_cell}.get(kind, layers.rnn_cell)
    kernel = getattr(_torch, name)

    def run(
        context: Context,
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        weights = (w_ih, w_hh, b_ih, b_hh)
        if is_plain() and forward_ad._current_level < 0:
            return kernel(input, hx, *weights)
        p = SimpleNamespace(
            **dict(zip(_PARTS, weights, strict=True)),
            bias=b_ih is not None,
            hidden_size=w_hh.shape[-1],
            input_size=w_ih.shape[-1],
            nonlinearity=kind.removeprefix("rnn_"),
        )
        return layer(p, input, tuple(hx) if kind == "lstm" else hx)

    return run


HANDLERS: dict[Any, Handler] = {
    _torch._pack_padded_sequence: _pack,
    _torch._pad_packed_sequence: _pad,
    **{getattr(_torch, name): _sequences(name) for name in ("rnn_tanh", "rnn_relu", "gru", "lstm")},
    **{getattr(_torch, f"{name}_cell"): _cell(f"{name}_cell") for name in ("rnn_tanh", "rnn_relu", "gru", "lstm")},
}
