"""A look at a model: a table of its leaves, or of its layers as they work on an example."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from purenn.errors import ContainerError
from purenn.tree._applies import container_of
from purenn.tree._move import count
from purenn.tree._partition import freeze
from purenn.tree._summary_of_calls import Call, calls_of
from purenn.tree._ties import aliases_of
from purenn.tree._walk import flatten, is_trainable, short

Rows = Sequence[tuple[str, ...]]


class Summary(str):
    """A table as a text, which is shown as it is; a `rich` console shows it in colour.

    Attributes:
        parameters: the number of elements of all parameters.
        flops: floating-point operations of the whole call; None for a table of leaves.
    """

    __slots__ = ("_notes", "_rows", "flops", "parameters")

    parameters: int
    flops: int | None

    def __new__(cls, rows: Rows, notes: Sequence[str], parameters: int, flops: int | None = None) -> "Summary":
        """Write the table: `rows`, of which the first is the heading, and `notes` below it."""
        self = super().__new__(cls, "\n".join([*_aligned(rows), *notes]))
        self._rows, self._notes = rows, notes
        self.parameters, self.flops = parameters, flops
        return self

    def __repr__(self) -> str:
        return str(self)

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(caption="\n".join(self._notes))
        for title, right in zip(self._rows[0], _are_numbers(self._rows), strict=True):
            table.add_column(title, justify="right" if right else "left")
        for row in self._rows[1:]:
            table.add_row(*row)
        return table


def summary(p: Any, *inputs: Any, **options: Any) -> Summary:
    """A table of a model.

    Without inputs it has a row for every leaf: path, class of its container, shape, number of elements, role. With
    inputs the model is applied to them without computing or allocating anything, also when it is on the meta device,
    and there is a row for every layer: shapes of its inputs and of its output, its own parameters (those of layers
    within it are in their rows), bytes of its tensors, and the floating-point operations of its call, with those of the
    layers within it. As usual, these are the additions and multiplications of convolutions, matrix products and
    attention. A layer that is applied more than once has the shapes of its first call and the operations of all.

    Below the table are ties and totals.

    Args:
        p: a model, or a module made by `bridge.to_module`; without inputs any tree.
        *inputs: an example.
        **options: options of the model's function, such as ``train=True``.

    Returns:
        The table as a text, with the totals as attributes.

    Raises:
        ContainerError: there are inputs, and `p` has no function to apply; or `p` is a module of another make.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear, ReLU, Sequential
        >>> p = Sequential.of(Linear.init(pn.random.key(0), 784, 10, device="meta"), ReLU())
        >>> pn.summary(p, torch.empty(32, 784))
        path      layer       in           out         parameters  trained   bytes    FLOPs
        --------  ----------  -----------  ----------  ----------  -------  ------  -------
        -         Sequential  f32[32,784]  f32[32,10]           0        0       0  501,760
        layers.0  Linear      f32[32,784]  f32[32,10]       7,850    7,850  31,400  501,760
        layers.1  ReLU        f32[32,10]   f32[32,10]           0        0       0        0
        7,850 parameters, 7,850 trained, 0 elements in buffers
        31,400 bytes, 501,760 FLOPs
    """
    p = _container(p)
    notes = [f"{alias} = {path} (tied)" for alias, path in aliases_of(p).items()]
    parameters, buffers = count(p), count(p, kind="buffer")
    notes.append(f"{parameters:,} parameters, {count(p, trainable=True):,} trained, {buffers:,} elements in buffers")
    if not inputs and not options:
        return Summary(_of_leaves(p), notes, parameters)
    calls = calls_of(p, inputs, options)
    flops = calls[0].flops
    notes.append(f"{sum(call.bytes for call in calls):,} bytes, {flops:,} FLOPs")
    return Summary(_of_calls(calls), notes, parameters, flops)


def _container(p: Any) -> Any:
    if not isinstance(p, nn.Module):
        return p
    if not hasattr(p, "container_class"):
        raise ContainerError(
            f"summary: a {type(p).__name__} is no container and was not made of one: give bridge.from_module(m), or "
            f"bridge.convert(m) to see the layers within it."
        )
    frozen = [name for name, parameter in p.named_parameters() if not parameter.requires_grad]
    return freeze(container_of(p), frozen) if frozen else container_of(p)


def _of_leaves(p: Any) -> Rows:
    values, structure = flatten(p)
    rows = [("path", "in", "tensor", "elements", "role")]
    for leaf, value in zip(structure.leaves, values, strict=True):
        role = leaf.kind if leaf.kind == "buffer" else "trained" if is_trainable(leaf, value) else "frozen"
        if leaf.kind == "parameter" and not leaf.frozen and role == "frozen":
            role = "not trained"
        elements = f"{value.numel():,}" if isinstance(value, Tensor) else "-"
        rows.append((leaf.path or "(the leaf itself)", leaf.owner or "-", short(value), elements, role))
    return rows


def _of_calls(calls: Sequence[Call]) -> Rows:
    rows: list[tuple[str, ...]] = [("path", "layer", "in", "out", "parameters", "trained", "bytes", "FLOPs")]
    for call in calls:
        path = (call.path or "-") + (f" (x{call.times})" if call.times > 1 else "")
        numbers = (f"{number:,}" for number in (call.parameters, call.trained, call.bytes))
        # Of a layer that was not seen at work, such as one within a module that is carried whole, nothing is known.
        flops = f"{call.flops:,}" if call.times else "-"
        rows.append((path, call.kind, call.inputs, call.output, *numbers, flops))
    return rows


def _are_numbers(rows: Rows) -> list[bool]:
    # Of every column. Paths are none, though those of a list begin with digits.
    return [
        number > 0
        and any(cell[0].isdigit() for cell in column)
        and all(cell == "-" or cell[0].isdigit() for cell in column)
        for number, (_, *column) in enumerate(zip(*rows, strict=True))
    ]


def _aligned(rows: Rows) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = _are_numbers(rows)
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines
