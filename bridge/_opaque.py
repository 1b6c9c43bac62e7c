"""Any module as a container: its tensors as the tree, its own code as the function."""

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import optree
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bridge._pure_likeness import CARRIED
from bridge._pure_run import run
from bridge._pure_template import Place, Template, stripped
from purenn.errors import BridgeError, ContainerError
from purenn.tree import Layer, applies
from purenn.tree._fields import BUFFER, PARAMETER, Spec
from purenn.tree._register import register_node
from purenn.tree._walk import unflatten, walk


class Skeleton:
    """One module of a template: what is the same for all containers that were made from such a module.

    Two skeletons are equal if their modules have the same classes, names and settings throughout, so that the
    containers of equally built modules can be stacked and mapped over together.
    """

    def __init__(self, template: Template, place: Place) -> None:
        self.template = template
        self.place = place
        self._hash = hash(place.signature)

    @property
    def module(self) -> nn.Module:
        """The module without its tensors; it is not to be run or changed."""
        return self.template.module.get_submodule(self.place.path)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Skeleton) and self.place.signature == other.place.signature

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return type(self.module).__name__

    def __reduce__(self) -> tuple:
        return _skeleton, (self.template, self.place.path)

    def __deepcopy__(self, memo: dict) -> "Skeleton":
        return self


def _skeleton(template: Template, path: str) -> Skeleton:
    return Skeleton(template, template.place.named(path))


class _InstanceSpec:
    """The `Spec` of an opaque container: its fields are those of its module."""

    def __get__(self, node: "Opaque | None", owner: type) -> Spec:
        kinds = {} if node is None else node._kinds
        return Spec(owner=owner, fields=(), kinds=kinds, dynamic=tuple(kinds), static=(), by_alias=None)


class Opaque(Layer):
    """A module as a container: made by `from_module`, never by hand.

    Its fields are the parameters, buffers and submodules of the module, under their names; submodules are opaque
    containers themselves and can be applied alone.
    """

    __slots__ = ("__weakref__", "_children", "_kinds", "_marks", "_skeleton")
    __container_spec__ = _InstanceSpec()

    def __init__(self, skeleton: Skeleton, children: dict[str, Any], kinds: dict[str, str], marks: Any = None) -> None:
        object.__setattr__(self, "_skeleton", skeleton)
        object.__setattr__(self, "_children", children)
        object.__setattr__(self, "_kinds", kinds)
        object.__setattr__(self, "_marks", marks)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name not in self._children:
            raise AttributeError(name)
        if name in self._children:
            return self._children[name]
        raise AttributeError(f"the module {self._skeleton} has no parameter, buffer or submodule '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"containers are immutable: use pn.replace(p, {name}=...)")

    def __replace__(self, /, **changes: Any) -> "Opaque":
        for name in changes:
            if name not in self._kinds:
                raise ContainerError(
                    f"{self._skeleton} has no field '{name}'; its fields are: {', '.join(self._kinds) or 'none'}."
                )
        return self.with_children({**self._children, **changes})

    def with_children(self, children: dict[str, Any]) -> "Opaque":
        """The same container with other children."""
        return type(self)(self._skeleton, children, self._kinds, self._marks)

    def __reduce__(self) -> tuple:
        return type(self), (self._skeleton, self._children, self._kinds, self._marks)

    @property
    def __container_name__(self) -> str:
        """What a summary calls it: the class of its module."""
        return repr(self._skeleton)

    def __repr__(self) -> str:
        from purenn.tree._repr import outline

        return outline(f"opaque {self._skeleton}", self._children, self._marks)


class StatefulOpaque(Opaque):
    """An opaque container whose module writes into its buffers: applied, it returns the new ones as well."""

    __slots__ = ()


def _flatten(node: Opaque) -> tuple[tuple, Any, tuple]:
    names = tuple(node._kinds)
    return tuple([node._children[n] for n in names]), (node._skeleton, tuple(node._kinds.items()), node._marks), names


def _unflattener(cls: type[Opaque]) -> Any:
    def unflatten(context: tuple, values: tuple) -> Opaque:
        skeleton, kinds, marks = context
        return cls(skeleton, dict(zip((name for name, _ in kinds), values, strict=True)), dict(kinds), marks)

    return unflatten


register_node(Opaque, _flatten, _unflattener(Opaque))
register_node(StatefulOpaque, _flatten, _unflattener(StatefulOpaque))


def opaque(module: nn.Module, caller: str = "from_module", stateful: bool | None = None) -> Opaque:
    """The opaque container of a module that is no bridged one.

    Args:
        module: the module.
        caller: the function to name in errors.
        stateful: see `from_module`.
    """
    for name, child in module.named_modules():
        _require_runnable(child, f"'{name}'" if name else "the module", caller)
    template = Template(stripped(module, caller), stateful)
    return _part(module, template, template.place)


def live_opaque(module: nn.Module) -> Opaque:
    """The opaque container with the module's own tensors as leaves."""
    return live_like(opaque(module), module)


def live_like(p: Any, module: nn.Module) -> Opaque:
    """An opaque container with the tensors of a module, which is built like its own, as leaves."""
    tensors: Any = dict(module.named_parameters(remove_duplicate=False))
    tensors |= dict(module.named_buffers(remove_duplicate=False))
    return unflatten(optree.tree_structure(p), [tensors[leaf.path] for leaf, _ in walk(p)])


def carry(module: nn.Module, container_class: type, stateful: bool) -> nn.Module:
    """Let a module, which is a part of a bridged one, be applied by functions as its container is."""
    told = container_class, stateful, functools.partial(_apply_inside, module)
    for name, value in zip(CARRIED, told, strict=True):
        # Past nn.Module's own way, which may take a module for a submodule.
        object.__setattr__(module, name, value)
    return module


def _apply_inside(module: Any, *args: Any, key: Any = None, train: bool = False, **kwargs: Any) -> Any:
    # The module has a mode of its own, and draws from torch's generator.
    out = module(*args, **kwargs)
    return (out, module) if module.stateful else out


def _require_runnable(module: nn.Module, where: str, caller: str) -> None:
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    if any(map(is_lazy, own)):
        raise BridgeError(
            f"{caller}: {where} ({type(module).__name__}) is lazy and has no parameters yet: call the module once on "
            f"an example input first, or give one: {caller}(module, example=(x,))."
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise BridgeError(
            f"{caller}: {where} is a TorchScript module, whose code cannot run on other tensors: use the module that "
            f"it was made from."
        )
    if any(type(tensor).__name__ == "DTensor" for tensor in own):
        raise BridgeError(
            f"{caller}: {where} ({type(module).__name__}) is sharded over several processes, and its code gathers the "
            f"parts by hooks, which a container has not: make the container of the whole module, before fully_shard, "
            f"and distribute its leaves."
        )


def _part(module: nn.Module, template: Template, place: Place) -> Opaque:
    children: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for name, parameter in module._parameters.items():
        children[name], kinds[name] = None if parameter is None else parameter.detach(), PARAMETER
    for name, tensor in module._buffers.items():
        children[name], kinds[name] = None if tensor is None else tensor.detach(), BUFFER
    for name, child in module._modules.items():
        if child is not None:
            children[name], kinds[name] = _part(child, template, place.children[name]), PARAMETER
    return (StatefulOpaque if place.stateful else Opaque)(Skeleton(template, place), children, kinds)


@applies(Opaque, stateful=False, stands_in=True)
def apply_opaque(p: Opaque, *args: Any, key: Any = None, train: bool = False, **kwargs: Any) -> Any:
    """Run the module's own code on the tensors of its container.

    Raises:
        BridgeError: the module writes into its buffers, which was not to be seen from its code.
    """
    out, new = _applied(p, args, key, train, kwargs)
    if new is not p and p._skeleton.template.stateful is None:
        raise BridgeError(
            f"from_module: {p._skeleton} writes into its parameters or buffers, which was not to be seen from its "
            f"code, and the new values would be lost: make the container by from_module(module, stateful=True), and "
            f"applying it returns them, or by stateful=False to do without them."
        )
    return out


@applies(StatefulOpaque, stateful=True, stands_in=True)
def apply_stateful_opaque(p: Opaque, *args: Any, key: Any = None, train: bool = False, **kwargs: Any) -> Any:
    """Run the module's own code; returns its output and the container with the new buffers."""
    return _applied(p, args, key, train, kwargs)


def _applied(p: Opaque, args: tuple, key: Any, train: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    # A module may have arguments of these names itself; then they are the module's, unless given by position.
    own = _names(type(p._skeleton.module))
    if "key" in own[len(args) :]:
        kwargs, key = ({**kwargs, "key": key} if key is not None else kwargs), None
    if "train" in own[len(args) :]:
        kwargs, train = ({**kwargs, "train": train} if train else kwargs), False
    if torch.compiler.is_compiling():
        return _compiled(p, args, kwargs, train, key)
    return run(p, args, kwargs, train=train, key=key)


def _names(cls: type[nn.Module]) -> tuple[str, ...]:
    # No functools.cache, which torch.compile warns of.
    if cls not in _NAMES:
        parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
        _NAMES[cls] = tuple([p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)])
    return _NAMES[cls]


_NAMES: dict[type[nn.Module], tuple[str, ...]] = {}


def _compiled(p: Opaque, args: tuple, kwargs: dict[str, Any], train: bool, key: Any) -> tuple[Any, Any]:
    """For torch.compile, which cannot trace a pure run: torch's own way, without training and random numbers."""
    if train or key is not None:
        raise BridgeError(
            f"torch.compile can trace the container of a {p._skeleton} in evaluation mode only: use pn.jit, which "
            f"takes train=True and key= as well."
        )
    # Copies of buffers, into which the module may write.
    tensors = {path: value.clone() if kind == BUFFER else value for path, kind, value in _named(p, "")}
    return torch.func.functional_call(p._skeleton.module, tensors, args, kwargs, tie_weights=False), p


def _named(p: Opaque, prefix: str) -> Iterator[tuple[str, str, Any]]:
    # Paths, kinds and values as by `walk`, which asks opaque containers what torch.compile cannot trace.
    for name, child in p._children.items():
        if isinstance(child, Opaque):
            yield from _named(child, f"{prefix}{name}.")
        elif isinstance(child, Tensor):
            yield f"{prefix}{name}", p._kinds[name], child
        else:
            for leaf, value in walk(child):
                yield f"{prefix}{name}.{leaf.path}", leaf.kind, value
