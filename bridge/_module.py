"""The second carrier: an `nn.Module` that runs the function of a container, with itself in the container's place."""

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bridge._opaque import Opaque, carry, live_opaque
from purenn.errors import BridgeError
from purenn.tree._applies import binding_of
from purenn.tree._fields import Marks, spec_of
from purenn.tree._ties import tie


class Module(nn.Module):
    """A container as a module: made by `to_module`, never by hand.

    Parameters, buffers and children have the container's field names, static fields are attributes, and properties and
    methods of the container's class work on the module as well. ``train`` follows ``module.training``. In training mode
    a function that takes a key is given one drawn from torch's global generator, so `torch.manual_seed` rules. New
    buffers are written into the module's own.

    Attributes:
        container_class: the class of the container.
        stateful: whether the container's function returns new buffers; the module itself returns the output alone.
        aliases: ties below this module: path of the alias -> path of the parameter.
        frozen: paths of the leaves that are frozen and are buffers or whole numbers, which requires_grad does not show.
    """

    container_class: type
    stateful: bool
    aliases: dict[str, str]
    frozen: frozenset[str]

    def __init__(
        self,
        container_class: type,
        stateful: bool,
        aliases: dict[str, str],
        frozen: frozenset[str] = frozenset(),
    ) -> None:
        # Past the constructors of torch's layers, of which some of these modules are.
        nn.Module.__init__(self)
        self.container_class = container_class
        self.stateful = stateful
        self.aliases = aliases
        self.frozen = frozen

    def _get_name(self) -> str:
        return self.container_class.__name__

    def extra_repr(self) -> str:
        """The options, as the container writes them."""
        write = getattr(self.container_class, "extra_repr", None)
        return "" if write is None else write(self)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "container_class" not in self.__dict__:
                raise
            container_class = self.__dict__["container_class"]
            found = getattr(container_class, name, None)
            # Slots are the container's own fields, which are members of this module and not of the class.
            if found is None or inspect.ismemberdescriptor(found):
                raise
            # Neither `__get__` nor `fget` of a property is traced by dynamo in all versions of torch.
            if isinstance(found, property):
                return container_class.__container_spec__.getters[name](self)
            return functools.partial(found, self) if inspect.isfunction(found) else found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the container's function to this module."""
        binding = binding_of(self)
        if binding is None:
            name = self.container_class.__name__
            raise BridgeError(f"{name} has no function to run: bind one with @pn.applies({name}).")
        kwargs = options(self, binding.takes, self._get_name(), args, kwargs)
        carry_strangers(self)
        out = binding.raw(self, *args, **kwargs)
        if not self.stateful:
            return out
        output, new = out
        if new is not self:
            self._adopt(new)
        return output

    def apply_inside(self, *args: Any, **kwargs: Any) -> Any:
        """Called by the function of the surrounding container: runs hooks and returns what the pure function would."""
        kwargs.pop("train", None)
        if not self.training:
            kwargs.pop("key", None)
        out = self(*args, **kwargs)
        return (out, self) if self.stateful else out

    def tree(self) -> Any:
        """The container that this module stands for; its leaves are the module's own parameters and buffers."""
        spec = spec_of(self.container_class)
        assert spec is not None
        p = object.__new__(self.container_class)
        for name in (*spec.dynamic, *spec.static):
            object.__setattr__(p, name, _tree(getattr(self, name)))
        object.__setattr__(p, "_marks", Marks(frozen=self.frozen) if self.frozen else None)
        return tie(p, self.aliases) if self.aliases else p

    def _adopt(self, new: Any) -> None:
        # The function has built a new container instead of using pn.replace: take its buffers over.
        raise BridgeError(
            f"the function of {self._get_name()} returned a new {type(new).__name__} for its state. To run as a "
            f"module it must return pn.replace(p, ...) of the object that it was given."
        )


class Group(nn.Module):
    """A tuple or dict of children of which some are tensors or None; a pure ModuleList or ModuleDict otherwise.

    It is indexed and iterated as what it stands for.

    Attributes:
        is_tuple: whether it stands for a tuple, otherwise for a dict.
    """

    is_tuple: bool

    def __init__(self, names: tuple[Any, ...], is_tuple: bool) -> None:
        super().__init__()
        self._names = names
        self.is_tuple = is_tuple

    def _get_name(self) -> str:
        return "Tuple" if self.is_tuple else "Dict"

    def _item(self, name: Any) -> Any:
        return getattr(self, str(name))

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Any]:
        return iter([self._item(name) for name in self._names]) if self.is_tuple else iter(self._names)

    def __contains__(self, name: Any) -> bool:
        return name in self._names

    def __getitem__(self, name: Any) -> Any:
        if self.is_tuple:
            return tuple(self)[name]
        if name not in self._names:
            raise KeyError(name)
        return self._item(name)

    def keys(self) -> tuple[Any, ...]:
        """The names, in order."""
        return self._names

    def values(self) -> list[Any]:
        """The children, in order."""
        return [self._item(name) for name in self._names]

    def items(self) -> list[tuple[Any, Any]]:
        """Names and children, in order."""
        return [(name, self._item(name)) for name in self._names]


def _tree(child: Any) -> Any:
    if isinstance(child, Module):
        return child.tree()
    if isinstance(child, Group):
        return tuple(map(_tree, child)) if child.is_tuple else {key: _tree(item) for key, item in child.items()}
    if isinstance(child, nn.ModuleList):
        return tuple(map(_tree, child))
    if isinstance(child, nn.ModuleDict):
        return {key: _tree(item) for key, item in child.items()}
    return _tree_of_foreign(child) if isinstance(child, nn.Module) else child


def _tree_of_foreign(module: nn.Module) -> Any:
    container_class = module.__dict__.get("container_class")
    if container_class is None or issubclass(container_class, Opaque):
        return live_opaque(module)
    # Its author has registered how to go both ways. Conversions need bridged modules, and so this one.
    from bridge._convert import converted

    return converted(module, "from_module").live


def is_changed(module: Module) -> bool:
    """Whether others have put something of their own into a bridged module, as parametrizations and pruning do.

    Its code still computes with that, but the container for which it was made has no place for it.
    """
    for part in module.modules():
        if isinstance(part, Module):
            spec = spec_of(part.container_class)
            assert spec is not None
            own = part._parameters.keys() | part._buffers.keys() | part._modules.keys()
            if not own <= set(spec.dynamic):
                return True
    return False


def carry_strangers(owner: nn.Module) -> None:
    """Let modules that others have put into the places of parts be applied by functions as those parts were.

    Args:
        owner: a bridged module, or what stands for a tuple or dict in one.
    """
    if not owner._modules or torch.compiler.is_compiling():
        return
    places = owner.__dict__.get("places", {})
    for name, child in owner._modules.items():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict, Group)):
            carry_strangers(child)
        elif name in places and child is not None and "container_class" not in child.__dict__:
            carry(child, *places[name])


def options(module: nn.Module, takes: frozenset[str], name: str, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The options of a call, with `train` and `key` as the module's mode has them.

    Args:
        module: the module that is called.
        takes: which of the two its function takes.
        name: of the module, for errors.
        args: positional arguments of the call.
        kwargs: options of the call.
    """
    if "train" in takes:
        if "train" in kwargs:
            known = binding_of(module)
            raise BridgeError(
                f"{name}: train= is not an option of the module, which follows its own mode: call module.train() or "
                f"module.eval()."
                + (
                    f" Within the function of another layer write {known.layer.__name__}(child, x, train=train), which "
                    f"serves containers and modules alike."
                    if known is not None
                    else ""
                )
            )
        kwargs = {**kwargs, "train": module.training}
    if "key" in takes and module.training and kwargs.get("key") is None:
        kwargs = {**kwargs, "key": _draw_key(module, args)}
    return kwargs


def _draw_key(module: nn.Module, args: tuple) -> Tensor:
    near = next((arg for arg in args if isinstance(arg, Tensor)), None)
    if near is None:
        near = next(module.parameters(), None)
    device = None if near is None else near.device
    return torch.randint(0, 1 << 32, (2,), dtype=torch.int64).to(device)
