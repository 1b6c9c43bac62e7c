"""What a compiled graph is valid for, and which part of that has changed, in words."""

from typing import Any, NamedTuple

import attrs
import optree
import torch
from torch import Tensor
from torch._C._dynamo.guards import TensorGuards

from purenn.tree._map import first_difference
from purenn.tree._walk import join, short


class Call(NamedTuple):
    """The arguments of a call, the static ones taken out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    statics: dict[str, Any]

    @property
    def tree(self) -> Any:
        """All arguments that are not static."""
        return self.args, self.kwargs


@attrs.frozen(eq=False)
class Key:
    """What a compiled graph is valid for, besides the tensors' metadata."""

    spec: optree.PyTreeSpec
    statics: tuple[Any, ...]
    aliases: tuple[int, ...] | None
    modes: tuple[Any, ...]

    def same(self, other: "Key") -> bool:
        return (
            self.spec == other.spec
            and self.aliases == other.aliases
            and self.modes == other.modes
            and len(self.statics) == len(other.statics)
            and all(type(a) is type(b) and a == b for a, b in zip(self.statics, other.statics, strict=True))
        )


def key_of(call: Call) -> tuple[Key, list[Tensor]]:
    """The key of a call and its tensors, each once."""
    leaves, spec = optree.tree_flatten(call.tree)
    return _described(call, leaves, spec)


def matched_key(call: Call, like: Key) -> tuple[Key, list[Tensor]] | None:
    """The same in half the time, if the arguments can be taken apart as those of another key; None if they cannot.

    The two keys still have to be compared: a tree may stand where the other call had a leaf.
    """
    try:
        leaves = like.spec.flatten_up_to(call.tree)
    except ValueError:
        return None
    return _described(call, leaves, like.spec)


def _described(call: Call, leaves: list[Any], spec: optree.PyTreeSpec) -> tuple[Key, list[Tensor]]:
    # Every microsecond here is one of every call.
    only_tensors = set(map(type, leaves)) == {Tensor}
    tensors = leaves if only_tensors else [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    values = () if only_tensors else [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    aliases = None
    if len(set(map(id, tensors))) < len(tensors):
        ids = [id(tensor) for tensor in tensors]
        aliases = tuple(ids.index(number) for number in ids)
        tensors = [tensor for position, tensor in enumerate(tensors) if aliases[position] == position]
    modes = (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )
    return Key(spec, (*values, *call.statics.items()), aliases, modes), tensors


def places_of(leaves: list[Any], aliases: tuple[int, ...] | None) -> list[int | None]:
    """For every leaf the position of its tensor among the graph's inputs, None for other leaves."""
    places: list[int | None] = []
    count = 0
    inputs: dict[int, int] = {}
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            places.append(None)
            continue
        own = count if aliases is None else aliases[count]
        count += 1
        places.append(inputs.setdefault(own, len(inputs)))
    return places


def guards_for(tensors: list[Tensor]) -> Any:
    """A check of shapes, strides, dtypes, devices and requires_grad that runs in C++."""
    return TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)


def _label(path: tuple[Any, ...]) -> str:
    # Paths start in the pair (args, kwargs).
    which, name, *rest = path
    label = f"argument {name}" if which == 0 else f"argument {name!r}"
    return f"{label}, {join(tuple(rest))!r}" if rest else label


def input_labels(call: Call, places: list[int | None]) -> list[str]:
    """What to call each of the graph's inputs: its first place among the arguments."""
    named: dict[int, str] = {}
    for path, place in zip(optree.tree_paths(call.tree), places, strict=True):
        if place is not None:
            named.setdefault(place, _label(path))
    return [named[place] for place in range(len(named))]


def described_leaves(call: Call) -> tuple[tuple[str, str], ...]:
    """Every leaf's place and metadata, in words."""
    leaves, paths = optree.tree_leaves(call.tree), optree.tree_paths(call.tree)
    return tuple((_label(path), _metadata(leaf)) for path, leaf in zip(paths, leaves, strict=True))


def _metadata(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    extra = "" if leaf.is_contiguous() else f", strides {tuple(leaf.stride())}"
    return f"{short(leaf)} on {leaf.device}{extra}{', requires grad' if leaf.requires_grad else ''}"


def what_changed(
    last: Key, before: tuple[tuple[str, str], ...], key: Key, now: tuple[tuple[str, str], ...], call: Call
) -> str:
    """What differs between two keys, in words; the first difference that is found."""
    if last.spec != key.spec:
        where, reason = first_difference(optree.tree_unflatten(last.spec, [None] * last.spec.num_leaves), call.tree, ())
        return f"the structure of the arguments at {where}: {reason}"
    for (where, one), (_, other) in zip(before, now, strict=True):
        if one != other:
            return f"{where} from {one} to {other}"
    if last.statics != key.statics:
        return f"static values from {last.statics} to {key.statics}"
    if last.aliases != key.aliases:
        return "which arguments are the same tensor"
    return "the grad mode, the default dtype or autocast"


def ordinal(n: int) -> str:
    """A number as 1st, 2nd, 3rd, 4th."""
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(n, f"{n}th")
