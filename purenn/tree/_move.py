"""Moving and casting a tree, and checking where it lives."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from purenn.errors import ArgumentError, DeviceError
from purenn.tree._fields import BUFFER, PARAMETER
from purenn.tree._map import map, named_leaves
from purenn.tree._walk import flatten, is_trainable, quoted, short

T = TypeVar("T")


def to(
    tree: T,
    target: torch.device | str | torch.dtype | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> T:
    """The tree on another device, in another dtype, or both.

    Args:
        tree: the tree.
        target: a device or a dtype, as in ``to(p, "cuda")`` and ``to(p, torch.float64)``.
        device: the device, None to leave it.
        dtype: a floating dtype, None to leave it. Only floating leaves are cast; integers, booleans, complex numbers
            and keys keep theirs.

    Raises:
        ArgumentError: nothing to do, both spellings at once, a dtype that is not floating, or no device of that name.
        DeviceError: the device is not there, or a leaf on the meta device has no data to move.
    """
    if isinstance(target, torch.dtype):
        dtype = _single("dtype", target, dtype)
    elif target is not None:
        device = _single("device", target, device)
    if device is None and dtype is None:
        raise ArgumentError("to(tree, ...) needs a device, a dtype or both, got neither.")
    if dtype is not None and not dtype.is_floating_point:
        raise ArgumentError(f"to(tree, dtype=...) casts floating leaves and needs a floating dtype, got {dtype}.")
    place = None if device is None else _device(device)

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.is_meta and place is not None and place.type != "meta":
            raise _no_data(tree)
        return leaf.to(device=place, dtype=dtype if leaf.is_floating_point() else None)

    return map(move, tree)


def _no_data(tree: Any) -> DeviceError:
    path, leaf = next((path, leaf) for path, leaf in named_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_meta)
    return DeviceError(
        f"to(tree, device): {quoted(path)} ({short(leaf)}) is on the meta device and has no data to move. Draw its "
        f"values where they shall be, with init(key, ..., device=device), or load them with pn.load."
    )


def _device(name: torch.device | str) -> torch.device:
    try:
        place = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f"to(tree, ...) takes a device such as 'cpu' or 'cuda:0', or a dtype such as torch.float64, got {name!r}."
        ) from error
    try:
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError) as error:
        raise DeviceError(f"to(tree, device): {place} cannot be used here: {error}") from error
    return place


def _single(name: str, first: Any, second: Any) -> Any:
    if second is not None:
        raise ArgumentError(f"to(tree, ...) got two values for the {name}: {first} and {second}.")
    return first


def device(tree: Any) -> torch.device | None:
    """The one device of all tensors of a tree, buffers included; None for a tree without tensors.

    Raises:
        DeviceError: the tensors are on several devices; the error names the paths on each but the most common one.
    """
    values, structure = flatten(tree)
    places: dict[torch.device, list[str]] = {}
    for leaf, value in zip(structure.leaves, values, strict=True):
        if isinstance(value, Tensor):
            places.setdefault(value.device, []).append(leaf.path)
    if len(places) <= 1:
        return next(iter(places), None)
    most = max(places, key=lambda d: len(places[d]))
    others = "; ".join(f"on {d}: {', '.join(paths)}" for d, paths in places.items() if d != most)
    raise DeviceError(
        f"the tree is not on one device: {len(places[most])} tensors are on {most}, but {others}. Move all with "
        f"pn.tree.to(tree, device)."
    )


def count(tree: Any, *, kind: str = PARAMETER, trainable: bool | None = None) -> int:
    """The number of elements of a tree's parameters; a tied leaf counts once.

    Args:
        tree: the tree.
        kind: "parameter", "buffer" or "all".
        trainable: True to count only leaves that are trained, False only those that are not, None for both.

    Raises:
        ArgumentError: an unknown kind.
    """
    if kind not in (PARAMETER, BUFFER, "all"):
        raise ArgumentError(f"count: kind must be 'parameter', 'buffer' or 'all', got {kind!r}.")
    values, structure = flatten(tree)
    return sum(
        value.numel()
        for leaf, value in zip(structure.leaves, values, strict=True)
        if isinstance(value, Tensor)
        and kind in ("all", leaf.kind)
        and (trainable is None or trainable == is_trainable(leaf, value))
    )
