"""What a compiled graph is valid for, and which part of that has changed, in words."""

import operator
from typing import Any, NamedTuple

import attrs
import optree
import torch
from torch import Tensor
from torch._C._dynamo.guards import TensorGuards

from purenn.errors import ArgumentError
from purenn.tree._checks import a_or_an
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
    """What a compiled graph is valid for, besides the tensors' metadata.

    Attributes:
        spec: the structure of the arguments.
        others: the positions of leaves that are no tensors, the last first.
        values: those leaves, then the static arguments' names and values.
        aliases: for every tensor the first that is the same; None if all are different.
        modes: see `_modes`.
    """

    spec: optree.PyTreeSpec
    others: tuple[int, ...]
    values: tuple[Any, ...]
    aliases: tuple[int, ...] | None
    modes: tuple[Any, ...]


def key_of(call: Call) -> tuple[Key, list[Tensor]]:
    """The key of a call and its tensors, each once.

    Raises:
        ArgumentError: a static argument, or a leaf that is no tensor, cannot be compared with that of another call.
    """
    leaves: list[Any]
    leaves, spec = optree.tree_flatten(call.tree)
    others = tuple([n for n in reversed(range(len(leaves))) if not isinstance(leaves[n], Tensor)])
    values = _without_tensors(call, leaves, others)
    for label, value in zip(_value_labels(call, others), values, strict=True):
        _require_comparable(label, value)
    aliases = _aliases(leaves)
    return Key(spec, others, values, aliases, _modes()), _each_once(leaves, aliases)


def tensors_like(call: Call, key: Key) -> list[Tensor] | None:
    """What `key_of` gives for a call that has this key already, in half the time; None if it cannot have it.

    The guards still have to be asked: another object may be where the key has a tensor.
    """
    # Every microsecond here is one of every call.
    leaves: list[Any]
    try:
        leaves = key.spec.flatten_up_to(call.tree)
    except ValueError:
        return None
    values = _without_tensors(call, leaves, key.others)
    if _modes() != key.modes or not _same_values(values, key):
        return None
    # The guards refuse a tensor that comes twice.
    if key.aliases is None:
        return leaves
    return _each_once(leaves, key.aliases) if _aliases(leaves) == key.aliases else None


def _without_tensors(call: Call, leaves: list[Any], others: tuple[int, ...]) -> tuple[Any, ...]:
    # They are taken out of the leaves.
    values = [leaves.pop(position) for position in others]
    for item in call.statics.items():
        values += item
    return tuple(values)


def _same_values(values: tuple[Any, ...], key: Key) -> bool:
    # Types first: 1, 1.0 and True are equal, and a tensor in a number's place is not to be compared with it.
    if len(values) != len(key.values) or not all(map(operator.is_, map(type, values), map(type, key.values))):
        return False
    return all(map(_same, values, key.values))


def _same(one: Any, other: Any) -> bool:
    # 0.0 and -0.0 are equal and two nan are not, but the text of a floating-point number is all of it.
    return repr(one) == repr(other) if isinstance(one, (float, complex)) else bool(one == other)


def _value_labels(call: Call, others: tuple[int, ...]) -> list[str]:
    paths = optree.tree_paths(call.tree) if others else []
    return [
        *(_label(paths[position]) for position in others),
        *(f"the static argument {name!r}" for name in call.statics for _ in range(2)),
    ]


def _require_comparable(label: str, value: Any) -> None:
    try:
        if not any(isinstance(leaf, Tensor) for leaf in optree.tree_leaves(value)):
            bool(value == value)
            return
        cause = None
    except (TypeError, ValueError, RuntimeError) as error:
        cause = error
    raise ArgumentError(
        f"jit: {label} is {a_or_an(value)}, and whether two of them are equal is no single yes or no, so the graph for "
        f"it would not be found again: pass it as a tensor that is not static."
    ) from cause


def _aliases(tensors: list[Tensor]) -> tuple[int, ...] | None:
    if len(set(map(id, tensors))) == len(tensors):
        return None
    ids = [id(tensor) for tensor in tensors]
    return tuple(ids.index(number) for number in ids)


def _each_once(tensors: list[Tensor], aliases: tuple[int, ...] | None) -> list[Tensor]:
    if aliases is None:
        return tensors
    return [tensor for position, tensor in enumerate(tensors) if aliases[position] == position]


def _modes() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch._C._len_torch_function_stack() and torch.get_default_device(),
    )


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


def _pairs(key: Key) -> str:
    given = iter(key.values[len(key.others) :])
    return ", ".join(f"{name}={value!r}" for name, value in zip(given, given, strict=True)) or "none"


def what_changed(
    last: Key, before: tuple[tuple[str, str], ...], key: Key, now: tuple[tuple[str, str], ...], call: Call
) -> str:
    """What differs between two keys, in words; the first difference that is found."""
    if last.spec != key.spec:
        leaf = torch.empty(0)
        where, reason = first_difference(optree.tree_unflatten(last.spec, [leaf] * last.spec.num_leaves), call.tree, ())
        which, *rest = where.strip("'").split(".")
        kind = "keyword" if int(which) else "positional"
        return f"the structure of {_label((int(which), *rest)) if rest else f'the {kind} arguments'}: {reason}"
    for (where, one), (_, other) in zip(before, now, strict=True):
        if one != other:
            return f"{where} from {one} to {other}"
    if not _same_values(last.values, key):
        return f"static arguments from {_pairs(last)} to {_pairs(key)}"
    if last.aliases != key.aliases:
        return "which arguments are the same tensor"
    return "the grad mode, the default dtype or device, autocast or deterministic algorithms"


def ordinal(n: int) -> str:
    """A number as 1st, 2nd, 3rd, 4th."""
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(n, f"{n}th")
