"""Running a module's own code on the tensors of a container, without touching either."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from bridge._pure_autograd import APPLY, CHECKPOINTS
from bridge._pure_huggingface import HUGGING_FACE
from bridge._pure_mode import Pure
from bridge._pure_replaced import replaced, replacing
from bridge._pure_template import Copy, Place
from bridge._pure_writes import Writes
from purenn._modes import is_plain
from purenn.errors import BridgeError
from purenn.tree._fields import Watched
from purenn.tree._ties import resolved, tie_like
from purenn.tree._watch import begun, shown

New = dict[str, Any]

for _replacement in (APPLY, *CHECKPOINTS, *HUGGING_FACE):
    replacing(_replacement)


def run(p: Any, args: tuple, kwargs: dict[str, Any], *, train: bool, key: Tensor | None) -> tuple[Any, Any]:
    """The module's output, and the container with the buffers that it has afterwards.

    Args:
        p: an opaque container, without ties of its own.
        args: positional arguments of the module.
        kwargs: keyword arguments of the module.
        train: whether the module runs in training mode.
        key: the key of everything that is drawn, or None.
    """
    template, place = p._skeleton.template, p._skeleton.place
    copy = template.take()
    mounted = _Mounted(copy, train)
    try:
        mounted.put(p, place)
        mounted.protect((args, kwargs))
        mounted.writes.protected.update(copy.attributes.tensors)
        for made in mounted.writes.copies:
            del mounted.writes.protected[made]
        paths = {id(copy.modules[i]): path for i, path in mounted.paths.items()}
        with _without_cache(), _replaced(paths), Pure(mounted.writes, key, paths):
            out = copy.modules[place.index](*args, **kwargs)
        if mounted.writes.newest:
            out = mounted.writes.renewed(out)
        return copy.attributes.released(out), mounted.renewed(p, place)
    finally:
        for hook in mounted.hooks:
            hook.remove()
        copy.clear()
        template.give_back(copy)


def _without_cache() -> contextlib.AbstractContextManager[None]:
    return _own_cache() if parametrize._cache_enabled else contextlib.nullcontext()


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    # Within `torch.nn.utils.parametrize.cached` tensors are known by their module, which has others in every call.
    before, parametrize._cache = parametrize._cache, {}
    try:
        yield
    finally:
        parametrize._cache = before


def _replaced(paths: dict[int, str]) -> contextlib.AbstractContextManager[None]:
    transformed = not is_plain()
    if transformed or torch.is_grad_enabled():
        return replaced(paths, transformed=transformed)
    return contextlib.nullcontext()


class _Mounted:
    """The tensors of a container in a copy of its module."""

    def __init__(self, copy: Copy, train: bool) -> None:
        self.copy = copy
        self.train = train
        self.writes = Writes()
        self.paths: dict[int, str] = {}
        #: Of every module by its number: its node, and its tensors as they were put in.
        self.nodes: dict[int, tuple[Any, New]] = {}
        self.versions: dict[int, int] = {}
        self.copies: dict[int, Tensor] = {}
        self.hooks: list[RemovableHandle] = []

    def put(self, node: Any, place: Place, path: str = "") -> None:
        """Put the tensors of a node and of all below it into their modules."""
        if node._skeleton.place is not place and node._skeleton.place.signature != place.signature:
            raise BridgeError(
                f"from_module: '{path}' is the container of a {node._skeleton}, but the module's code is written for "
                f"another there. Containers can change places only if their modules are equally built."
            )
        node = resolved(node)
        children = node._children
        if place.index in self.paths:
            self._require_same(children, place, path)
            return
        self.paths[place.index] = path
        if path and node._marks is not None and node._marks.watched is not None:
            self._show(self.copy.modules[place.index], node._marks.watched)
        parameters = {name: children[name] for name in place.parameters}
        buffers = {name: self._buffer(children[name], name, place) for name in place.buffers}
        installed = {**parameters, **buffers}
        self.nodes[place.index] = node, installed
        self.copy.mount(place, parameters, buffers, self.train)
        for name, tensor in self.copy.held(place):
            self.writes.newest[id(tensor)] = installed[name]
        self.writes.homes.append((parameters, buffers))
        self.writes.protected.update({id(tensor): tensor for tensor in installed.values()})
        for name, child in place.children.items():
            self.put(children[name], child, f"{path}.{name}" if path else name)

    def _show(self, module: nn.Module, watched: Watched) -> None:
        # A watched layer within the module's own code is seen by hooks; the module as a whole shows itself.
        before = module.register_forward_pre_hook(lambda _, inputs: begun(watched, inputs))
        after = module.register_forward_hook(lambda _, inputs, output: shown(watched, output))
        self.hooks += [before, after]

    def _buffer(self, tensor: Tensor | None, name: str, place: Place) -> Tensor | None:
        # What the code may write into is copied, so that kernels and views can do so; shared buffers stay shared.
        written = place.written
        if tensor is None or not (name in written.always or (self.train and name in written.in_training)):
            return tensor
        if id(tensor) not in self.copies:
            made = self.copies[id(tensor)] = tensor.clone()
            self.writes.copies[id(made)] = made
            self.versions[id(made)] = -1 if made.is_inference() else made._version
        return self.copies[id(tensor)]

    def _require_same(self, children: dict[str, Any], place: Place, path: str) -> None:
        first = self.nodes[place.index][0]._children
        for name in (*place.parameters, *place.buffers):
            if children[name] is not first[name]:
                raise BridgeError(
                    f"from_module: '{path}' and '{self.paths[place.index]}' are one submodule that is used twice, so "
                    f"they must have the same '{name}': leave them tied."
                )

    def protect(self, value: Any) -> None:
        """Note the caller's arguments, which must not be written into."""
        if isinstance(value, Tensor):
            self.writes.protected[id(value)] = value
        elif isinstance(value, (tuple, list)):
            for item in value:
                self.protect(item)
        elif isinstance(value, dict):
            for item in value.values():
                self.protect(item)

    def renewed(self, node: Any, place: Place) -> Any:
        """The node with what its modules hold now."""
        resolved_node, installed = self.nodes[place.index]
        module = self.copy.modules[place.index]
        changes: dict[str, Any] = {}
        for now in (module.__dict__["_parameters"], module.__dict__["_buffers"]):
            for name, before in installed.items():
                if name not in now or not self._is_new(before, now[name]):
                    continue
                value = None if now[name] is None else self.writes.latest(now[name]).detach()
                if now is module.__dict__["_buffers"] or not _is_cast(before, value):
                    changes[name] = value
        for name, child in place.children.items():
            below = node._children[name]
            new = self.renewed(below, child)
            if new is not below:
                changes[name] = new
        if not changes:
            return node
        made = node.with_children({**resolved_node._children, **changes})
        return tie_like(made, node) if node._marks is not None and node._marks.tied else made

    def _is_new(self, before: Tensor | None, now: Tensor | None) -> bool:
        if before is not now or before is None:
            return before is not now
        if id(before) in self.writes.newest or id(before) in self.writes.touched:
            return True
        version = self.versions.get(id(before))
        return version is not None and (version < 0 or before._version != version)


def _is_cast(before: Tensor | None, value: Tensor | None) -> bool:
    # Code that casts a part of the module for its own computation trains nothing.
    return before is not None and value is not None and before.dtype != value.dtype
