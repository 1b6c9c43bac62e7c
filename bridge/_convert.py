"""From a module to native containers, as far as its classes are known."""

from collections.abc import Iterator
from typing import Any

import attrs
import optree
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bridge._convert_registry import conversion_of, is_registered, known_base, note_container
from bridge._convertible import require_parts, require_same_tensors, why_opaque
from bridge._from_module import prepared
from bridge._module import Module
from bridge._opaque import live_opaque
from purenn.errors import BridgeError, ContainerError
from purenn.tree import freeze, is_container, is_stateful, tie
from purenn.tree._checks import a_or_an
from purenn.tree._fields import PARAMETER
from purenn.tree._walk import parse, walk


def convert(module: nn.Module, *, example: Any = None) -> Any:
    """The native containers of a module: the same parameters and buffers in the layers and losses of `purenn`.

    Every class of torch.nn that has a counterpart becomes that, and so do modules that are made of such classes alone:
    Sequential, the Transformers, and classes that are known by `register_conversion`. All others become opaque
    containers, as in `from_module`, each with everything below it; `report` lists them with the reasons. Those are
    subclasses of known classes that change more than the constructor, modules with hooks or parametrizations, and
    options that `purenn` does not have. The residual networks of torchvision are known as well.

    Whether the module is in training mode does not matter: containers take ``train=`` and ``key=`` in each call.

    Args:
        module: the module, which is not touched.
        example: a tuple of arguments for a module with lazy parameters, as in `from_module`.

    Returns:
        The container; a tuple or dict of containers for a ModuleList or ModuleDict. Its leaves share storage with the
        module's tensors and do not require grad; parameters that do not require grad are frozen; tensors that are
        shared are tied. Paths are the ``state_dict`` keys, but for members of a Sequential, which are in its field
        `layers`: ``layers.0.weight`` instead of ``0.weight``. ``report(module).paths`` has all of them.

    Raises:
        BridgeError: `module` is no module, or is lazy, or is a ModuleList or ModuleDict whose members share tensors.
        ContainerError: what a registered conversion returns is no container.

    Example:
        >>> import torch, bridge, purenn as pn
        >>> p = bridge.convert(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()))
        >>> p[0], p[1]
        (Linear(in_features=3, out_features=2, bias=True), ReLU())
        >>> [path for path, _ in pn.tree.named_leaves(p)]
        ['layers.0.weight', 'layers.0.bias']
    """
    live = converted(module, "convert", example).live
    _require_separate(live)
    return _finished(live)


@attrs.frozen
class Node:
    """What one module became.

    Attributes:
        path: the module's name.
        module: the module.
        container: the name of the container class; None for an opaque container.
        reason: why it is opaque, empty if it is not.
    """

    path: str
    module: nn.Module
    container: str | None
    reason: str


@attrs.frozen
class Converted:
    """A converted module before its ties are tied: a tree of the module's own tensors.

    Attributes:
        live: the container, or the tuple or dict of containers.
        nodes: what became of it and its submodules, those within an opaque one left out.
    """

    live: Any
    nodes: list[Node]


def converted(module: nn.Module, caller: str, example: Any = None) -> Converted:
    """Convert a module; `caller` is the function to name in errors."""
    if not isinstance(module, nn.Module):
        hint = " It is a container already." if is_container(module) else ""
        raise BridgeError(f"{caller} takes a module, got {type(module).__name__}.{hint}")
    module = prepared(module, example)
    for name, child in module.named_modules():
        if any(map(is_lazy, (*child.parameters(recurse=False), *child.buffers(recurse=False)))):
            raise BridgeError(
                f"{caller}: {_quoted(name)} ({type(child).__name__}) is lazy and has no parameters yet: call the "
                f"module once on an example input first, or give one: {caller}(module, example=(x,))."
            )
    converter = _Converter()
    return Converted(converter.child(module, ""), converter.nodes)


@attrs.define
class _Converter:
    nodes: list[Node] = attrs.Factory(list)
    #: The modules whose containers are stateful, by their ids.
    stateful: set[int] = attrs.Factory(set)

    def child(self, module: nn.Module | None, path: str) -> Any:
        """The container of a submodule, or what stands for several."""
        if type(module) is nn.ModuleList:
            return tuple([self.child(member, _join(path, name)) for name, member in module.named_children()])
        if type(module) is nn.ModuleDict:
            return {name: self.child(member, _join(path, name)) for name, member in module._modules.items()}
        return None if module is None else self.container(module, path)

    def container(self, module: nn.Module, path: str) -> Any:
        start = len(self.nodes)
        reason = why_opaque(module)
        if reason is None:
            try:
                made = self.native(module, path)
                return self.noted(module, made, path, start)
            except BridgeError as error:
                reason = str(error)
        del self.nodes[start:]
        self.nodes.append(Node(path, module, None, reason))
        made = live_opaque(module)
        if is_stateful(made):
            self.stateful.add(id(module))
        return made

    def native(self, module: nn.Module, path: str) -> Any:
        """The native container; raises a BridgeError with the reason if there is none."""
        if isinstance(module, Module):
            return module.tree()

        def part(name: str) -> Any:
            parent, _, last = name.rpartition(".")
            return self.child(getattr(module.get_submodule(parent), last), _join(path, name))

        base = known_base(type(module))
        assert base is not None
        made = conversion_of(base)(module, part)
        if not is_container(made):
            # Not a BridgeError, which would be the reason why the module is opaque.
            raise ContainerError(
                f"convert: what is registered for {type(module).__name__} returned {a_or_an(made)} for "
                f"{_quoted(path)}, expected a container."
            )
        require_parts(made)
        note_container(base, made)
        if not is_registered(base):
            require_same_tensors(made, module)
        self.require_own_state(module)
        return made

    def noted(self, module: nn.Module, made: Any, path: str, start: int) -> Any:
        self.nodes.insert(start, Node(path, module, type(made).__name__, ""))
        if is_stateful(made):
            self.stateful.add(id(module))
        return made

    def require_own_state(self, module: nn.Module) -> None:
        """Require that no two parts are or have the same stateful module: each would return new buffers for it."""
        first: dict[int, str] = {}
        for name, member in _members(module, ""):
            for inner in member.modules():
                if id(inner) in self.stateful and first.setdefault(id(inner), name) != name:
                    both = f"'{first[id(inner)]}' and '{name}'"
                    raise BridgeError(f"{both} share {a_or_an(inner)}, whose buffers change in each of them")


def _quoted(name: str) -> str:
    return f"'{name}'" if name else "the module"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _members(module: Any, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module._modules.items():
        if type(child) in (nn.ModuleList, nn.ModuleDict):
            yield from _members(child, f"{prefix}{name}.")
        elif child is not None:
            yield f"{prefix}{name}", child


def _finished(live: Any) -> Any:
    """The tree with its ties and frozen leaves, and plain tensors."""
    if not is_container(live):
        return tuple(map(_finished, live)) if isinstance(live, tuple) else {k: _finished(v) for k, v in live.items()}
    p = tie(live)
    frozen = [leaf.path for leaf, value in walk(p) if leaf.kind == PARAMETER and _is_frozen(value)]
    p = freeze(p, frozen) if frozen else p
    return optree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, p)


def _is_frozen(value: Any) -> bool:
    differentiable = isinstance(value, nn.Parameter) and (value.is_floating_point() or value.is_complex())
    return differentiable and not value.requires_grad


def _require_separate(live: Any) -> None:
    # There is no container that could hold the ties between the parts of a tuple or dict.
    if is_container(live):
        return
    first: dict[int, str] = {}
    for leaf, value in walk(live):
        name = first.setdefault(id(value), leaf.path)
        if leaf.entries[0] != parse(live, name)[0]:
            raise BridgeError(
                f"convert: '{name}' and '{leaf.path}' are one tensor, but only a container can hold a tie: convert the "
                f"members together, as torch.nn.Sequential(*members), or register a conversion for what holds them."
            )
