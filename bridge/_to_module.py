"""From a container to a module."""

from copy import deepcopy
from typing import Any, overload

import attrs
from torch import Tensor, nn

from bridge._module import Group, Module
from bridge._opaque import Opaque
from purenn.errors import BridgeError
from purenn.tree._applies import is_stateful
from purenn.tree._fields import BUFFER, PARAMETER, is_container, spec_of
from purenn.tree._ties import aliases_of, untie
from purenn.tree._walk import is_trainable, walk


@overload
def to_module(p: Opaque, *, copy: bool = False) -> nn.Module: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def to_module(p: Any, *, copy: bool = False) -> Module: ...
def to_module(p: Any, *, copy: bool = False) -> nn.Module:
    """Carry a container by a stateful `nn.Module` that runs the same function.

    Hooks fire on every inner layer, ``state_dict`` keys are the leaves' paths, and everything that works on modules
    works on the result: ``.to``, ``.train`` and ``.eval``, `torch.optim`, `torch.compile`, DistributedDataParallel.
    Frozen leaves have ``requires_grad=False``; tied leaves are one shared parameter.

    Args:
        p: a container to which a function is bound.
        copy: whether to copy the tensors. By default parameters and buffers share storage with the container's leaves,
            so an optimiser of the module writes into those too.

    Returns:
        The module, in training mode. An opaque container, made by `from_module` of someone else's module, becomes a
        module of the original class, also within other containers.

    Raises:
        BridgeError: `p` is no container, or a part of it cannot be a part of a module.

    Example:
        >>> import torch, bridge, purenn as pn
        >>> from purenn.layers import Linear
        >>> m = bridge.to_module(Linear.init(pn.random.key(0), 3, 2))
        >>> list(m.state_dict())
        ['weight', 'bias']
    """
    if not is_container(p):
        hint = " It is a module already." if isinstance(p, nn.Module) else ""
        raise BridgeError(f"to_module takes a container, got {type(p).__name__}.{hint}")
    return _Builder(copy).module(p, PARAMETER, "")


@attrs.define
class _Builder:
    copy: bool
    seen: set[int] = attrs.Factory(set)

    def module(self, p: Any, kind: str, path: str) -> nn.Module:
        if isinstance(p, Opaque):
            return self.foreign(p, kind)
        tied = p._marks is not None and p._marks.tied
        aliases = aliases_of(p) if tied else {}
        spec = spec_of(p)
        assert spec is not None
        made = Module(type(p), is_stateful(p), aliases)
        frozen = frozenset() if p._marks is None else p._marks.frozen
        whole = untie(p) if tied else p
        for name in spec.dynamic:
            _refuse_taken(made, name, type(p).__name__)
            below = BUFFER if BUFFER in (kind, spec.kinds[name]) else PARAMETER
            self.put(made, name, getattr(whole, name), below, _join(path, name), name, frozen)
        for name in spec.static:
            _refuse_taken(made, name, type(p).__name__)
            # Past nn.Module's own __setattr__: a static field is never a child, even if it is a module without tensors.
            object.__setattr__(made, name, getattr(p, name))
        for alias, leaf in aliases.items():
            *parent, last = alias.split(".")
            made.get_submodule(".".join(parent)).register_parameter(last, made.get_parameter(leaf))
        return made

    def foreign(self, p: Opaque, kind: str) -> nn.Module:
        """The original class with the container's tensors in it."""
        made = deepcopy(p._skeleton.module)
        aliases = aliases_of(p)
        for leaf, value in walk(untie(p) if aliases else p):
            *parent, last = leaf.path.split(".")
            owner = made.get_submodule(".".join(parent))
            trained = kind == PARAMETER and is_trainable(leaf, value)
            tensor = self.own(value)
            # By assignment, of which some classes (recurrent ones) take note.
            is_parameter = last in owner._parameters
            setattr(owner, last, nn.Parameter(tensor, requires_grad=trained) if is_parameter else tensor)
        for alias, leaf in aliases.items():
            *parent, last = alias.split(".")
            setattr(made.get_submodule(".".join(parent)), last, made.get_parameter(leaf))
        return made.train()

    def put(
        self, owner: nn.Module, name: str, value: Any, kind: str, path: str, local: str, frozen: frozenset[str]
    ) -> None:
        """Register one child. `local` is its path relative to the innermost container, which holds the marks."""
        if isinstance(value, Tensor):
            tensor = self.own(value)
            if kind == BUFFER:
                owner.register_buffer(name, tensor)
            else:
                trained = local not in frozen and (tensor.is_floating_point() or tensor.is_complex())
                owner.register_parameter(name, nn.Parameter(tensor, requires_grad=trained))
        elif value is None:
            (owner.register_buffer if kind == BUFFER else owner.register_parameter)(name, None)
        elif is_container(value):
            owner.add_module(name, self.module(value, kind, path))
        elif type(value) in (tuple, list, dict):
            owner.add_module(name, self.group(value, kind, path, local, frozen))
        elif isinstance(value, (bool, int, float, complex)):
            object.__setattr__(owner, name, value)
        else:
            raise BridgeError(
                f"to_module: '{path}' is a {type(value).__name__}, which no module can hold: use tensors, "
                f"containers, and tuples or dicts of them."
            )

    def group(self, value: Any, kind: str, path: str, local: str, frozen: frozenset[str]) -> nn.Module:
        is_tuple = not isinstance(value, dict)
        names = tuple(range(len(value))) if is_tuple else tuple(value)
        children = list(value) if is_tuple else list(value.values())
        made: nn.Module
        if children and all(is_container(child) for child in children):
            made = nn.ModuleList() if is_tuple else nn.ModuleDict()
        else:
            made = Group(names, is_tuple)
        for name, child in zip(names, children, strict=True):
            if not is_tuple:
                _refuse_taken(made, str(name), "a dict")
            self.put(made, str(name), child, kind, _join(path, name), _join(local, name), frozen)
        return made

    def own(self, tensor: Tensor) -> Tensor:
        # Two leaves that are the same tensor but not tied are two parameters: they must not share storage.
        again = id(tensor) in self.seen
        self.seen.add(id(tensor))
        tensor = tensor.detach()
        return tensor.clone() if self.copy or again else tensor


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _refuse_taken(module: nn.Module, name: str, owner: str) -> None:
    if "." in name or not name or hasattr(type(module), name) or name in module.__dict__:
        raise BridgeError(f"to_module: '{name}' of {owner} cannot be the name of a module's member: rename it.")
