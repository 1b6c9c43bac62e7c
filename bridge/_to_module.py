"""From a container to a module."""

from collections.abc import Callable
from typing import Any, overload

import attrs
from torch import Tensor, nn

from bridge._convert_registry import back_of
from bridge._module import Group, Module
from bridge._opaque import Opaque, carry
from bridge._pure_copies import copied
from bridge._pure_function import give_function
from bridge._twins import carrier_class
from purenn.errors import BridgeError
from purenn.tree._applies import is_stateful
from purenn.tree._checks import a_or_an
from purenn.tree._fields import BUFFER, PARAMETER, is_container, spec_of
from purenn.tree._ties import aliases_of, untie
from purenn.tree._walk import is_trainable, walk

Function = Callable[..., Any] | None


@overload
def to_module(p: Opaque, fn: Function = None, *, copy: bool = False) -> nn.Module: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def to_module(p: Any, fn: None = None, *, copy: bool = False) -> Module: ...
@overload
def to_module(p: Any, fn: Callable[..., Any], *, copy: bool = False) -> Any: ...
def to_module(p: Any, fn: Function = None, *, copy: bool = False) -> nn.Module:
    """Carry a container by a stateful `nn.Module` that runs the same function.

    Hooks fire on every inner layer, ``state_dict`` keys are the leaves' paths, and everything that works on modules
    works on the result: ``.to``, ``.train`` and ``.eval``, `torch.optim`, `torch.compile`, DistributedDataParallel.
    Frozen leaves have ``requires_grad=False``; tied leaves are one shared parameter.

    The modules of linear and convolutional layers, embeddings and normalisations are instances of torch's classes as
    well, so code that looks for a `torch.nn.Linear` or a batch norm finds them, unless it compares classes exactly (as
    `torch.ao.quantization.quantize_dynamic` does). What it puts in their places is called like any module.

    Args:
        p: a container, or with `fn` any tuple or dict of containers and tensors.
        fn: the function to run, ``fn(p, *args)``, in the place of the one that is bound to the container's class. It is
            given a module in the place of the container, and may pass that, or a part of it, to layers' functions as
            well as to `pn.vmap`, `pn.grad`, `pn.tree.map`, `pn.meta.inner_loop` and so on:
            ``fn=pn.vmap(linear, (0, None))`` runs an ensemble. As for bound functions, options `train` and `key` are
            filled in if it has them, and if `p` is stateful it must return ``(y, p_new)``.
        copy: whether to copy the tensors. By default parameters and buffers share storage with the container's leaves,
            so an optimiser of the module writes into those too.

    Returns:
        The module, in training mode. An opaque container, made by `from_module` of someone else's module, becomes a
        module of the original class, also within other containers; so does one for which `register_conversion` knows
        the way back.

    Raises:
        BridgeError: `p` is no container, or a part of it cannot be a part of a module.

    Example:
        >>> import torch, bridge, purenn as pn
        >>> from purenn.layers import Linear, linear
        >>> m = bridge.to_module(Linear.init(pn.random.key(0), 3, 2))
        >>> list(m.state_dict())
        ['weight', 'bias']
        >>> models = pn.ensemble(Linear.init)(pn.random.split(pn.random.key(0), 5), 3, 2)
        >>> bridge.to_module(models, pn.vmap(linear, (0, None)))(torch.ones(4, 3)).shape
        torch.Size([5, 4, 2])
    """
    if not is_container(p) and not (fn is not None and type(p) in (tuple, list, dict)):
        hint = " It is a module already." if isinstance(p, nn.Module) else ""
        raise BridgeError(f"to_module takes a container, got {type(p).__name__}.{hint}")
    builder = _Builder(copy)
    if not is_container(p):
        assert fn is not None
        return give_function(builder.group(p, PARAMETER, "", "", frozenset()), p, fn)
    made = builder.module(p, PARAMETER, "", with_function=fn is not None)
    return made if fn is None else give_function(made, p, fn)


@attrs.define
class _Builder:
    copy: bool
    seen: set[int] = attrs.Factory(set)

    def module(self, p: Any, kind: str, path: str, *, with_function: bool = False) -> nn.Module:
        if isinstance(p, Opaque):
            return self.foreign(p, kind)
        tied = p._marks is not None and p._marks.tied
        aliases = aliases_of(p) if tied else {}
        frozen = frozenset() if p._marks is None else p._marks.frozen
        whole = untie(p) if tied else p
        back = None if with_function else back_of(p)
        if back is not None:
            made = self.by_conversion(back, whole, kind, path, frozen)
        else:
            made = self.carrier(whole, kind, path, frozen, aliases, is_stateful(p))
        for alias, leaf in aliases.items():
            *parent, last = alias.split(".")
            made.get_submodule(".".join(parent)).register_parameter(last, made.get_parameter(leaf))
        return made

    def carrier(
        self, p: Any, kind: str, path: str, frozen: frozenset[str], aliases: dict[str, str], stateful: bool
    ) -> nn.Module:
        """The module that runs the container's function."""
        spec = spec_of(p)
        assert spec is not None
        own = {leaf.path: leaf.kind == PARAMETER and _is_float(value) for leaf, value in walk(p)} if frozen else {}
        shown = frozenset([path for path in frozen if own.get(path)])
        made = carrier_class(type(p))(type(p), stateful, aliases, frozen - shown)
        for name in spec.dynamic:
            _refuse_taken(made, name, type(p).__name__)
            below = BUFFER if BUFFER in (kind, spec.kinds[name]) else PARAMETER
            self.put(made, name, getattr(p, name), below, _join(path, name), name, frozen)
        for name in spec.static:
            _refuse_taken(made, name, type(p).__name__)
            # Past nn.Module's own __setattr__: a static field is never a child, even if it is a module without tensors.
            object.__setattr__(made, name, getattr(p, name))
        return made

    def by_conversion(
        self, back: Callable[..., Any], p: Any, kind: str, path: str, frozen: frozenset[str]
    ) -> nn.Module:
        """The module that a registered conversion makes."""
        spec = spec_of(p)
        assert spec is not None
        held = nn.Module()

        def part(name: str) -> Any:
            below = BUFFER if BUFFER in (kind, spec.kinds[name]) else PARAMETER
            self.put(held, name, getattr(p, name), below, _join(path, name), name, frozen)
            return getattr(held, name)

        made = back(p, part)
        if not isinstance(made, nn.Module):
            raise BridgeError(
                f"to_module: what is registered for {type(p).__name__} returned {a_or_an(made)}, expected a module."
            )
        return made

    def foreign(self, p: Opaque, kind: str) -> nn.Module:
        """The original class with the container's tensors in it."""
        pattern = p._skeleton.module
        aliases = aliases_of(p)
        tensors: dict[str, Tensor] = {}
        memo: dict[int, Any] = {}
        for leaf, value in walk(untie(p) if aliases else p):
            *parent, last = leaf.path.split(".")
            owner = pattern.get_submodule(".".join(parent))
            empty, tensor = owner._buffers.get(last), self.own(value)
            if last in owner._parameters:
                trained = kind == PARAMETER and is_trainable(leaf, value)
                empty, tensor = owner._parameters[last], nn.Parameter(tensor, requires_grad=trained)
            # In the copy this one is wherever the module has the other, in a list for example.
            tensors[leaf.path] = memo[id(empty)] = tensor
        made = copied(pattern, memo)
        for path, tensor in tensors.items():
            *parent, last = path.split(".")
            # By assignment, of which some classes (recurrent ones) take note.
            setattr(made.get_submodule(".".join(parent)), last, tensor)
        for alias, leaf in aliases.items():
            *parent, last = alias.split(".")
            owner = made.get_submodule(".".join(parent))
            setattr(owner, last, made.get_parameter(leaf) if last in owner._parameters else made.get_buffer(leaf))
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
                trained = local not in frozen and _is_float(tensor)
                owner.register_parameter(name, nn.Parameter(tensor, requires_grad=trained))
        elif value is None:
            (owner.register_buffer if kind == BUFFER else owner.register_parameter)(name, None)
        elif is_container(value):
            made = self.module(value, kind, path)
            place = type(value), is_stateful(value)
            owner.__dict__.setdefault("places", {})[name] = place
            owner.add_module(name, made if isinstance(made, Module) else carry(made, *place))
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


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _refuse_taken(module: nn.Module, name: str, owner: str) -> None:
    if "." in name or not name or hasattr(type(module), name) or name in module.__dict__:
        raise BridgeError(f"to_module: '{name}' of {owner} cannot be the name of a module's member: rename it.")
