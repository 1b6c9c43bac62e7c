"""Layers one after the other.

`Sequential` holds its members in a tuple, or by name in a dict, and is itself a layer: it can be a member of another.
What `sequential` returns depends on the members alone: an output, or an output and the container with the new state of
its stateful members.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Self

from torch import Tensor, nn

from purenn import random
from purenn.errors import ContainerError
from purenn.layers.shape import Lambda
from purenn.tree import Layer, applies, container, is_container, replace, static
from purenn.tree._applies import Binding, binding_of


@container
class Sequential(Layer):
    """Layers that are applied in order; make it by `of` or `named`.

    It is indexed, sliced and iterated like a sequence of its members, ``p[0]``, ``p[1:]``, and by name, ``p["act"]``.

    Attributes:
        layers: the members, as a tuple or, if they have names, as a dict.
        names: the names in order, None for a tuple. They are here because the order of a dict's keys is no part of a
            tree's structure.
    """

    layers: tuple[Any, ...] | dict[str, Any]
    names: tuple[str, ...] | None = static(default=None)

    @names.validator  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    def _check_names(self, _: Any, names: tuple[str, ...] | None) -> None:
        if set(names or ()) != set(self.layers if isinstance(self.layers, dict) else ()):
            raise ContainerError(
                "Sequential: the names must be the keys of the dict of layers. Use Sequential.named(first=..., "
                "second=...), or Sequential.of(...) for layers without names."
            )

    @classmethod
    def of(cls, *layers: Any) -> Self:
        """Members that are known by their positions.

        Args:
            *layers: containers with a function, or plain functions, which become `Lambda`.

        Raises:
            ContainerError: something is neither; the error names its position.

        Example:
            >>> import torch, purenn as pn
            >>> from purenn.layers import Linear, ReLU, Sequential
            >>> p = Sequential.of(Linear.init(pn.random.key(0), 3, 2), ReLU(), torch.sin)
            >>> p(torch.ones(5, 3)).shape
            torch.Size([5, 2])
        """
        return cls(tuple(_as_layer(position, layer) for position, layer in enumerate(layers)))

    @classmethod
    def named(cls, **layers: Any) -> Self:
        """Members that are known by names, which are parts of the paths of their leaves; order and values as in `of`.

        Example:
            >>> import purenn as pn
            >>> from purenn.layers import Linear, ReLU, Sequential
            >>> p = Sequential.named(hidden=Linear.init(pn.random.key(0), 3, 2), act=ReLU())
            >>> [path for path, _ in pn.tree.named_leaves(p)]
            ['layers.hidden.weight', 'layers.hidden.bias']
        """
        return cls({name: _as_layer(name, layer) for name, layer in layers.items()}, tuple(layers))

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(_members(self))

    def __getitem__(self, which: int | str | slice) -> Any:
        if isinstance(which, str):
            if which not in (self.names or ()):
                has = ", ".join(f"'{name}'" for name in self.names) if self.names else "no names, only positions"
                raise ContainerError(f"Sequential has no member '{which}'; it has {has}.")
            return self.layers[which]  # pyright: ignore[reportArgumentType, reportCallIssue]
        if isinstance(which, slice):
            if self.names is None:
                return type(self)(self.layers[which])  # pyright: ignore[reportArgumentType]
            names = self.names[which]
            return type(self)({name: self.layers[name] for name in names}, names)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return _members(self)[which]


@applies(Sequential)
def sequential(p: Sequential, x: Any, *, key: Tensor | None = None, train: bool = False) -> Any:
    """Apply the members in order, each to the output of the one before.

    Args:
        p: the members.
        x: the input of the first member; without members, the output.
        key: random key; it is split among the members that take one. Without it all are deterministic.
        train: passed to the members that take it.

    Returns:
        The output, or ``(output, new container)`` exactly if a member is stateful (`purenn.is_stateful`).

    Raises:
        ContainerError: a member has no function.
    """
    members = _members(p)
    keys = None if key is None else iter(_split_among(members, key))
    changed = {}
    for position, member in enumerate(members):
        # Plain lookups, and the function as it was written where there are no ties to resolve and no module to call:
        # this loop is all that a call costs beyond its layers.
        binding = getattr(type(member), "__container_binding__", None)
        if binding is None:
            binding = _require_binding(p, position, member)
            run = binding.layer
        else:
            run = binding.raw if member._marks is None else binding.layer
        if binding.takes:
            options: dict[str, Any] = {"train": train} if "train" in binding.takes else {}
            if keys is not None and "key" in binding.takes:
                options["key"] = next(keys)
            x = run(member, x, **options)
        else:
            x = run(member, x)
        # What a stateful layer returns can be told by its form: no other returns a container of its own class.
        if type(x) is tuple and len(x) == 2 and type(x[1]) is type(member):
            x, changed[position] = x
    if not changed:
        return x
    new = [changed.get(position, member) for position, member in enumerate(members)]
    return x, replace(p, layers=tuple(new) if p.names is None else dict(zip(p.names, new, strict=True)))


def _members(p: Any) -> tuple[Any, ...] | list[Any]:
    if p.names is not None:
        return [p.layers[name] for name in p.names]
    return p.layers


def _split_among(members: Iterable[Any], key: Tensor) -> Iterable[Tensor]:
    bindings = [binding_of(member) for member in members]
    takers = sum("key" in binding.takes for binding in bindings if binding is not None)
    return random.split(key, takers) if takers else ()


def _require_binding(p: Any, position: int, member: Any) -> Binding:
    binding = binding_of(member)
    if binding is None and isinstance(member, nn.Module):
        # A foreign module within a module: it keeps its own state and mode.
        return Binding(nn.Module.__call__, nn.Module.__call__, False, frozenset())
    if binding is None:
        name = position if p.names is None else p.names[position]
        raise ContainerError(
            f"sequential: the member '{name}' is a {type(member).__name__}, which has no function to apply: bind one "
            f"with @pn.applies, or turn a module into a container with bridge.from_module."
        )
    return binding


def _as_layer(name: int | str, layer: Any) -> Any:
    if not isinstance(layer, (type, nn.Module)) and binding_of(layer) is not None:
        return layer
    if callable(layer) and not is_container(layer) and not isinstance(layer, (type, nn.Module, Tensor)):
        return Lambda(layer)
    kind = f"the class {layer.__name__}" if isinstance(layer, type) else f"a {type(layer).__name__}"
    raise ContainerError(
        f"Sequential: the member '{name}' is {kind}; expected a container with a function (make one with its "
        f"constructor or init, turn a module into one with bridge.from_module) or a plain function."
    )
