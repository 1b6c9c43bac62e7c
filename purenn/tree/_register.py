"""Making a class a pytree node, in optree's registry and in torch's.

Flattening and rebuilding are the hot paths of every transformation, so classes with just two children and no options
(weight and bias) have a form of their own, with attributes written out, which Python is fastest with: less than half
the time of a loop over names. A form exists twice where its fastest spelling (attrgetter, slot descriptors) is one that
dynamo cannot trace.
"""

from collections.abc import Callable
from operator import attrgetter
from types import FunctionType
from typing import Any

import optree
from optree.registry import __GLOBAL_NAMESPACE as OPTREE_GLOBAL
from torch.compiler import is_dynamo_compiling
from torch.serialization import add_safe_globals
from torch.utils import _pytree as torch_pytree

from purenn.tree._dumpable import dumpable, from_dumpable
from purenn.tree._fields import Marks

Flatten = Callable[[Any], tuple[tuple, Any, tuple]]
Unflatten = Callable[[Any, Any], Any]

# Nodes are data alone, so `torch.load` may make them with ``weights_only=True``.
add_safe_globals([Marks, frozenset])


def register(cls: type, children: tuple[str, ...], static: tuple[str, ...]) -> None:
    """Register a container class by the names of its children (nodes or leaves) and of its static fields.

    A node's metadata is its marks alone, or the tuple of its static fields and its marks.
    """
    register_node(cls, _flattener(children, static), _unflattener(cls, children, static))


def register_node(cls: type, flatten: Flatten, unflatten: Unflatten) -> None:
    """Register a class: ``flatten(node) -> (children, metadata, names)``, ``unflatten(metadata, children) -> node``."""
    optree.register_pytree_node(cls, flatten, unflatten, path_entry_type=optree.GetAttrEntry, namespace=OPTREE_GLOBAL)

    # torch's pytree counts None as a leaf, so absent children go into the context: (which are present, metadata).
    def torch_flatten(node: Any) -> tuple[list, tuple]:
        values, context, _ = flatten(node)
        return [v for v in values if v is not None], (tuple([v is not None for v in values]), context)

    def torch_flatten_with_keys(node: Any) -> tuple[list, tuple]:
        values, _, names = flatten(node)
        pairs = [(torch_pytree.GetAttrKey(n), v) for n, v in zip(names, values, strict=True) if v is not None]
        return pairs, torch_flatten(node)[1]

    def torch_unflatten(values: Any, context: tuple) -> Any:
        present, rest = context[0], iter(values)
        return unflatten(context[1], tuple(next(rest) if here else None for here in present))

    torch_pytree.register_pytree_node(
        cls,
        torch_flatten,
        torch_unflatten,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        to_dumpable_context=dumpable,
        from_dumpable_context=from_dumpable,
        flatten_with_keys_fn=torch_flatten_with_keys,
    )
    add_safe_globals([cls])


def register_empty(cls: type, text: Callable[[Any], str], of_text: Callable[[str], Any]) -> None:
    """Register a class without children: the node is its own metadata, `text` and `of_text` are it as text and back."""
    optree.register_pytree_node(cls, lambda node: ((), node, ()), _first, namespace=OPTREE_GLOBAL)
    torch_pytree.register_pytree_node(
        cls,
        lambda node: ([], node),
        lambda _, node: node,
        flatten_with_keys_fn=lambda node: ([], node),
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        to_dumpable_context=text,
        from_dumpable_context=of_text,
    )
    add_safe_globals([cls])


def _first(node: Any, _: Any) -> Any:
    return node


def _flattener(children: tuple[str, ...], static: tuple[str, ...]) -> Flatten:
    if len(children) == 2 and not static:

        def flatten(node: Any) -> tuple[tuple, Any, tuple]:
            return (node.first, node.second), node._marks, children

        return _for_names(flatten, children)

    get_values = attrgetter(*children) if len(children) > 1 else None
    get_context = attrgetter(*static, "_marks")

    def flatten_any(node: Any) -> tuple[tuple, Any, tuple]:
        if get_values is None or is_dynamo_compiling():
            values = tuple([getattr(node, name) for name in children])
        else:
            values = get_values(node)
        if not static:
            return values, node._marks, children
        if is_dynamo_compiling():
            return values, (*(getattr(node, name) for name in static), node._marks), children
        return values, get_context(node), children

    return flatten_any


def _unflattener(cls: type, children: tuple[str, ...], static: tuple[str, ...]) -> Unflatten:
    # Rebuilding runs no constructor: transformations rebuild trees with placeholders in them.
    new = object.__new__
    put_children = tuple(_slot(cls, name) for name in children)
    put_static = tuple(_slot(cls, name) for name in static)
    put_marks = _slot(cls, "_marks")

    def traced(context: Any, values: tuple) -> Any:
        node = object.__new__(cls)
        names = (*children, *static, "_marks")
        for name, value in zip(names, (*values, *context) if static else (*values, context), strict=True):
            object.__setattr__(node, name, value)
        return node

    if len(children) == 2 and not static and not _notices_subclasses(cls):
        # A node can be written to while it is of this class.
        methods = {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
        unfinished: Any = type(cls)(cls.__name__, (cls,), {"__slots__": (), **methods})

        def unflatten(context: Any, values: tuple) -> Any:
            if is_dynamo_compiling():
                return traced(context, values)
            node = new(unfinished)
            node.first, node.second = values
            node._marks = context
            node.__class__ = cls
            return node

        return _for_names(unflatten, children)

    def unflatten_any(context: Any, values: tuple) -> Any:
        if is_dynamo_compiling():
            return traced(context, values)
        node = new(cls)
        for put, value in zip(put_children, values, strict=True):
            put(node, value)
        if static:
            *settings, context = context
            for put, value in zip(put_static, settings, strict=True):
                put(node, value)
        put_marks(node, context)
        return node

    return unflatten_any


def _for_names(form: FunctionType, names: tuple[str, ...]) -> Any:
    # The function with these attributes instead of `first` and `second`.
    renamed: dict[str, str] = dict(zip(("first", "second"), names, strict=True))
    code = form.__code__.replace(co_names=tuple([renamed.get(name, name) for name in form.__code__.co_names]))
    return FunctionType(code, form.__globals__, form.__name__, closure=form.__closure__)


def _notices_subclasses(cls: type) -> bool:
    return type(cls) is not type or any("__init_subclass__" in vars(base) for base in cls.__mro__[:-1])


def _slot(cls: type, name: str) -> Callable[[Any, Any], None]:
    return next(base.__dict__[name] for base in cls.__mro__ if name in base.__dict__).__set__
