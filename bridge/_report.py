"""What `convert` makes of a module, as a table."""

from typing import Any

import attrs
from torch import nn

from bridge._convert import Node, converted
from bridge._from_module import prepared
from purenn.tree import untie
from purenn.tree._walk import walk


@attrs.frozen
class Row:
    """What became of one module.

    Attributes:
        path: the name of the module; empty for the whole.
        module_class: the name of its class.
        container: the name of the container's class, None if it is opaque.
        reason: why it is opaque, empty if it is not.
        parameters: number of elements in its parameters, without those of parts that have rows of their own. A tied
            parameter counts in the row where it comes first.
        tied: its parameters that are tied: name -> the name of the one that comes first, as in the ``state_dict``.
        frozen: names of its parameters that are frozen.
    """

    path: str
    module_class: str
    container: str | None
    reason: str
    parameters: int
    tied: dict[str, str]
    frozen: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """The row as texts."""
        remarks = [self.reason] if self.reason else []
        remarks += [f"{name} tied to {first}" for name, first in self.tied.items()]
        remarks += [f"frozen: {', '.join(self.frozen)}"] if self.frozen else []
        becomes = "(opaque)" if self.container is None else self.container
        return self.path or "(whole)", self.module_class, becomes, f"{self.parameters:,}", "; ".join(remarks)


@attrs.frozen
class Report:
    """What `convert` makes of a module; printed, it is a table.

    Attributes:
        rows: one for each module, in order, those within an opaque one left out.
        paths: name of each parameter and buffer in the module -> path of the leaf in the container. A tied leaf has
            the path of its place, where the container has an alias.
    """

    rows: tuple[Row, ...]
    paths: dict[str, str]

    def __str__(self) -> str:
        head = ("path", "class", "becomes", "parameters", "remarks")
        table = [head, *(row.cells() for row in self.rows)]
        widths = [max(len(cells[column]) for cells in table) for column in range(len(head))]
        aligns = "<<<><"
        lines = [
            "  ".join(
                f"{cell:{align}{width}}" for cell, align, width in zip(cells, aligns, widths, strict=True)
            ).rstrip()
            for cells in table
        ]
        opaque = sum(row.container is None for row in self.rows)
        total = sum(row.parameters for row in self.rows)
        lines.append(f"{len(self.rows) - opaque} native, {opaque} opaque, {total:,} parameters")
        return "\n".join(lines)


def report(module: nn.Module, *, example: Any = None) -> Report:
    """What `convert` makes of each part of a module: a native container, or an opaque one and why.

    Args:
        module: the module, which is not touched.
        example: a tuple of arguments for a module with lazy parameters, as in `from_module`.

    Raises:
        BridgeError: as in `convert`.

    Example:
        >>> import torch, bridge
        >>> class Scaled(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> print(bridge.report(torch.nn.Sequential(torch.nn.Linear(3, 2), Scaled(2, 2))))
        path     class       becomes     parameters  remarks
        (whole)  Sequential  Sequential           0
        0        Linear      Linear               8
        1        Scaled      (opaque)             6  a subclass of Linear may differ from it
        2 native, 1 opaque, 14 parameters
    """
    module = prepared(module, example) if isinstance(module, nn.Module) else module
    found = converted(module, "report")
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first.setdefault(id(parameter), name)
    return Report(tuple(_row(node, module, found.nodes, first) for node in found.nodes), _paths(module, found.live))


def _row(node: Node, whole: nn.Module, nodes: list[Node], first: dict[int, str]) -> Row:
    prefix = f"{node.path}." if node.path else ""
    below = tuple(f"{other.path}." for other in nodes if other.path != node.path and other.path.startswith(prefix))
    own = {
        name: parameter
        for name, parameter in node.module.named_parameters(prefix=node.path, remove_duplicate=False)
        if not name.startswith(below)
    }
    return Row(
        path=node.path,
        module_class=type(node.module).__name__,
        container=node.container,
        reason=node.reason,
        parameters=sum(parameter.numel() for name, parameter in own.items() if first[id(parameter)] == name),
        tied={
            name.removeprefix(prefix): first[id(parameter)]
            for name, parameter in own.items()
            if first[id(parameter)] != name
        },
        frozen=tuple(name.removeprefix(prefix) for name, parameter in own.items() if not parameter.requires_grad),
    )


def _paths(module: nn.Module, live: object) -> dict[str, str]:
    # The places of one tensor are alike, so any may be paired with any.
    places: dict[int, list[str]] = {}
    for leaf, value in walk(untie(live)):
        places.setdefault(id(value), []).append(leaf.path)
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: places[id(value)].pop(0) for name, value in tensors if places.get(id(value))}
