"""Trees whose leaves lie on many devices: torch's DTensors."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from purenn.errors import ArgumentError, SelectionError
from purenn.tree import map as tree_map
from purenn.tree import select
from purenn.tree._partition import selected_leaves
from purenn.tree._walk import Structure, flatten, quoted, short

T = TypeVar("T")

#: Along one axis of a mesh, or along each: an axis of the tensor to cut, or torch's own word for it.
Where = int | Placement | Sequence[int | Placement]


def replicate(tree: T, mesh: DeviceMesh) -> T:
    """The tree as DTensors of which every device has a copy. All copies are those of the first process.

    Args:
        tree: a tree of tensors, with the same structure and shapes in all processes.
        mesh: the devices, from `torch.distributed.device_mesh.init_device_mesh`.
    """
    return shard(tree, mesh, {})


def shard(tree: T, mesh: DeviceMesh, rules: Mapping[str, Where] | Where) -> T:
    """The tree as DTensors, cut into pieces as the rules say. The values are those of the first process.

    Functions of such a tree compute what they compute of the whole one, gradients and optimisers too: torch exchanges
    the pieces that an operation needs. So parameters that are cut on every device with a batch that is cut by rows are
    fully sharded data-parallel training. Within ``torch.distributed.tensor.experimental.implicit_replication()`` what a
    function makes itself, such as a mask, counts as copied everywhere. `vmap` does not know DTensors.

    Args:
        tree: a tree of tensors, with the same structure and shapes in all processes.
        mesh: the devices, from `torch.distributed.device_mesh.init_device_mesh`.
        rules: path patterns (as in `pn.tree.select`) to where the leaves are that they hit, or that are below a hit:
            the axis of the tensor that is cut; for a mesh of several axes, one entry for each of these. All other
            leaves are copied to every device. Or one such rule for all leaves: 0 cuts a batch by rows.

    Raises:
        SelectionError: a pattern hits nothing, or two hit one leaf.
        ArgumentError: a tensor has no such axis, or the rule not as many entries as the mesh has axes.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear
        >>> p = Linear.init(pn.random.key(0), 4, 6)
        >>> def halves(mesh):  # a mesh of two devices
        ...     return pn.distributed.shard(p, mesh, {"weight": 0})
    """
    values, structure = flatten(tree)
    if isinstance(rules, Mapping):
        found = _placements(tree, structure, mesh, rules)
    else:
        found = dict.fromkeys(structure.paths, _as_placements("all leaves", rules, mesh))
    placed = []
    for leaf, value in zip(structure.leaves, values, strict=True):
        placements = found.get(leaf.path, [Replicate()] * mesh.ndim)
        if isinstance(value, Tensor):
            _require_axes(leaf.path, value, placements)
            value = distribute_tensor(value.detach(), mesh, placements)
        placed.append(value)
    return structure.rebuild(placed)


def gather(tree: T) -> T:
    """The whole tensors of a tree of DTensors, in every process. Other leaves stay as they are."""
    return tree_map(lambda leaf: leaf.full_tensor() if isinstance(leaf, DTensor) else leaf, tree)


def place_like(tree: T, other: Any) -> T:
    """The tree with its DTensors in the places that those of another tree have.

    For gradients that is the message of a step: the gradient of a parameter that is copied everywhere is a sum over the
    devices, which is added up here; that of a parameter that is cut goes in pieces to the devices that have these.

    Args:
        tree: gradients, for instance.
        other: a tree of the same structure, but for holes: the parameters.

    Raises:
        StructureError: the trees differ in structure.
    """

    def move(leaf: Any, like: Any) -> Any:
        both = isinstance(leaf, DTensor) and isinstance(like, DTensor)
        return leaf.redistribute(like.device_mesh, like.placements) if both else leaf

    return tree_map(move, tree, other)


def _placements(
    tree: Any, structure: Structure, mesh: DeviceMesh, rules: Mapping[str, Where]
) -> dict[str, list[Placement]]:
    found: dict[str, list[Placement]] = {}
    by: dict[str, str] = {}
    for pattern, where in rules.items():
        placements = _as_placements(f"'{pattern}'", where, mesh)
        hits = selected_leaves(tree, structure, select(tree).paths(pattern).require("shard"))
        for leaf, hit in zip(structure.leaves, hits, strict=True):
            if not hit:
                continue
            if leaf.path in found:
                raise SelectionError(
                    f"shard: {quoted(leaf.path)} is hit by two rules, '{by[leaf.path]}' and '{pattern}': make them "
                    f"disjoint."
                )
            found[leaf.path], by[leaf.path] = placements, pattern
    return found


def _as_placements(what: str, where: Where, mesh: DeviceMesh) -> list[Placement]:
    given = list(where) if isinstance(where, Sequence) else [where]
    if len(given) != mesh.ndim:
        raise ArgumentError(
            f"shard: the rule for {what} has {len(given)} entries, but the mesh has {mesh.ndim} axes: give one "
            f"for each."
        )
    return [Shard(item) if isinstance(item, int) else item for item in given]


def _require_axes(path: str, value: Tensor, placements: Sequence[Placement]) -> None:
    for placement in placements:
        if isinstance(placement, Shard) and not -value.dim() <= placement.dim < value.dim():
            raise ArgumentError(f"shard: {quoted(path)} is {short(value)} and has no axis {placement.dim} to cut.")
