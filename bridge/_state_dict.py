"""State dicts of containers, and loading those of modules: dicts, safetensors files, and folders with an index."""

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from bridge._opaque import Opaque
from bridge._state_dict_rename import Rename, renamed, unused_rules
from bridge._to_module import to_module
from purenn.errors import BridgeError, CheckpointError
from purenn.tree import named_leaves, select, untie
from purenn.tree._misfits import misfits
from purenn.tree._stored import tensors_of
from purenn.tree._ties import aliases_of
from purenn.tree._walk import flatten, node_at

T = TypeVar("T")

#: A state dict, or where to read one.
Source = Mapping[str, Tensor] | str | os.PathLike[str]


def state_dict(p: Any) -> dict[str, Tensor]:
    """The tensors of a container by the names that they have in a module's ``state_dict``.

    These are the keys and values of ``bridge.to_module(p).state_dict()``, in the order of the container's fields; a
    tied tensor is there under each of its names, and buffers that a module does not save are left out.

    Args:
        p: a container, or a tuple or dict of containers.

    Returns:
        The tensors, which share storage with the leaves.

    Raises:
        BridgeError: `p` is a module.

    Example:
        >>> import torch, bridge, purenn as pn
        >>> from purenn.layers import Linear
        >>> tensors = bridge.state_dict(Linear.init(pn.random.key(0), 3, 2))
        >>> {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        {'weight': (2, 3), 'bias': (2,)}
        >>> torch.nn.Linear(3, 2).load_state_dict(tensors)
        <All keys matched successfully>
    """
    kept, aliases = _kept(p, "state_dict"), aliases_of(p)
    return kept | {alias: kept[leaf] for alias, leaf in aliases.items() if leaf in kept}


def load_state_dict(p: T, source: Source, *, strict: bool = True, rename: Rename | None = None) -> T:
    """The container with the tensors of a state dict in the place of its own.

    A tied tensor may be there under one or all of its names. Values are cast to the dtype of the leaf if both are
    floating, or both complex, as a module does it, and moved to its device; a leaf on the meta device takes the tensor
    where it is, a DTensor its own part. What need not be cast or moved shares storage with the state dict. Files are
    memory-mapped, so a container on the meta device is filled without reading them: the data come from the disk when
    they are used. (Those of `pn.save` are read once, for their checksum.)

    Args:
        p: a container, or a tuple or dict of containers. It is not changed.
        source: the state dict; or the path of a safetensors file, of an index (``*.safetensors.index.json``), or of a
            folder with one or the other, as Hugging Face keeps large models.
        strict: whether names that only one of them has are errors. If not, what the state dict lacks stays as it is.
            Shapes must always agree. Default: True.
        rename: how names of the state dict become those of the container: a dict of beginnings (whole parts between
            dots; the longest counts, and an empty one is that of all names) to what stands there instead, or a function
            of the name, with None for tensors to leave out. ``{"module": ""}`` undoes what DistributedDataParallel
            does to names, ``bridge.report(m).paths`` leads from a module to what `convert` makes of it. Default: None.

    Returns:
        The new container.

    Raises:
        CheckpointError: names are missing or unexpected, shapes or kinds of numbers differ, tied tensors have
            different values, two names become one, or a file cannot be read. All that does not fit is listed in one
            error.
        BridgeError: `p` is a module, or a state dict is no mapping and no path.

    Example:
        >>> import torch, bridge, purenn as pn
        >>> from purenn.layers import Linear
        >>> m = torch.nn.Sequential(torch.nn.Linear(3, 2))
        >>> p = Linear.init(pn.random.key(0), 3, 2, device="meta")
        >>> p = bridge.load_state_dict(p, m.state_dict(), rename={"0": ""})
        >>> torch.equal(p.weight, m[0].weight)
        True
    """
    given = _read(source)
    wanted = _kept(p, "load_state_dict")
    stored, problems = renamed(given, rename)
    problems += _merge_ties(aliases_of(p), stored)
    if not strict:
        shared = wanted.keys() & stored.keys()
        wanted, stored = ({name: d[name] for name in d if name in shared} for d in (wanted, stored))
    problems += misfits(wanted, stored, source="state dict", target="container", fits=_fits)
    problems += [
        f"no data: {name} is on the meta device in the state dict"
        for name, value in stored.items()
        if isinstance(value, Tensor) and value.is_meta and name in wanted and not wanted[name].is_meta
    ]
    if problems:
        problems += unused_rules(given, rename)
        where = "the state dict" if isinstance(source, Mapping) else os.fspath(source)
        raise CheckpointError(
            f"load_state_dict: {where} does not fit the container:\n  " + "\n  ".join(problems) + "\n"
            "Names are mended with rename=, those that only one of them has are let pass by strict=False."
        )
    values, structure = flatten(p)
    loaded = [
        _placed(stored[path], value) if path in stored else value
        for path, value in zip(structure.paths, values, strict=True)
    ]
    return structure.rebuild(loaded)


def _kept(p: Any, caller: str) -> dict[str, Tensor]:
    """The leaves that a module would save, by path, without ties."""
    if isinstance(p, nn.Module):
        raise BridgeError(f"{caller} takes a container, got the module {type(p).__name__}: use its own .{caller}.")
    transient = _transient(untie(p))
    return {
        path or "leaf": leaf.detach()
        for path, leaf in named_leaves(p)
        if isinstance(leaf, Tensor) and path not in transient
    }


def _transient(p: Any) -> set[str]:
    """The paths of what a module has but does not save, which only foreign modules can have."""
    found: set[str] = set()
    outermost: list[str] = []
    selected = select(p).instances(Opaque)
    for path, entries in zip(selected.names, selected.entries, strict=True):
        if any(not above or path.startswith(f"{above}.") for above in outermost):
            continue
        outermost.append(path)
        node = node_at(p, entries)
        saved = to_module(node).state_dict()
        found |= {f"{path}.{name}" if path else name for name, _ in named_leaves(node) if name not in saved}
    return found


def _read(source: Any) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise BridgeError(
            f"load_state_dict takes a state dict or the path of a file or folder, got {type(source).__name__}."
        )
    return tensors_of("load_state_dict", source)


def _merge_ties(aliases: Mapping[str, str], stored: dict[str, Any]) -> list[str]:
    """Move what is stored under an alias to its leaf; returns what speaks against it."""
    problems = []
    for alias, leaf in aliases.items():
        if alias not in stored:
            continue
        value = stored.pop(alias)
        if not _same(stored.setdefault(leaf, value), value):
            problems.append(f"tied: {alias} and {leaf} differ, but they are one tensor in the container")
    return problems


def _same(one: Any, other: Any) -> bool:
    if one is other or not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one.is_meta or other.is_meta:
        return True
    return one.shape == other.shape and torch.equal(one, other.to(one))


def _fits(found: Tensor, leaf: Tensor) -> bool:
    if found.shape != leaf.shape:
        return False
    floating = found.is_floating_point() and leaf.is_floating_point()
    return found.dtype == leaf.dtype or floating or (found.is_complex() and leaf.is_complex())


def _placed(value: Tensor, leaf: Tensor) -> Tensor:
    value = value.detach().to(device=value.device if leaf.is_meta else leaf.device, dtype=leaf.dtype)
    if isinstance(leaf, DTensor) and not isinstance(value, DTensor):
        # Every process has the whole value, so nothing is sent.
        return distribute_tensor(value, leaf.device_mesh, leaf.placements, src_data_rank=None)
    return value
