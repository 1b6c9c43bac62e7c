"""How containers look in text: one line each, shapes and dtypes instead of numbers."""

from typing import Any

import optree
from torch import Tensor

from purenn.tree._fields import Marks, Spec, is_container
from purenn.tree._holes import Placeholder
from purenn.tree._walk import one_level, short


def describe(p: Any) -> str:
    """A container as ``Linear(in_features=784, out_features=10)`` or, with children, as an indented outline.

    A class may define ``extra_repr(self) -> str``, as modules do, to write its options in place of its tensor fields.
    """
    spec: Spec = p.__container_spec__
    fields = {a.name: getattr(p, a.name) for a in spec.fields}
    write = getattr(p, "extra_repr", None)
    # A tree that holds placeholders, such as a tree of axes for vmap, has no shapes to write options from.
    if write is None or not all(_has_shapes(fields[name]) for name in spec.dynamic):
        return outline(type(p).__name__, fields, p._marks)
    try:
        options = write()
    except (IndexError, ValueError):  # leaves with fewer dimensions than the layer's, such as the norm of each
        return outline(type(p).__name__, fields, p._marks)
    children = {name: value for name, value in fields.items() if _has_container(value)}
    return outline(type(p).__name__, children, p._marks, options=options)


def outline(name: str, fields: dict[str, Any], marks: Marks | None, *, options: str = "") -> str:
    """A node as ``name(options, field=value, ...)``, followed by its children, one indented block each."""
    inline = [options] if options else []
    inline += [f"{field}={_value(value)}" for field, value in fields.items() if not _has_container(value)]
    if marks is not None and marks.frozen:
        inline.append(f"frozen={{{', '.join(sorted(marks.frozen))}}}")
    head = f"{name}({', '.join(inline)}"
    nested = [f"({field}): {_value(value)}" for field, value in fields.items() if _has_container(value)]
    if not nested:
        return f"{head})"
    body = "\n".join(nested).replace("\n", "\n  ")
    return f"{head}\n  {body}\n)"


def _has_shapes(value: Any) -> bool:
    level = None if isinstance(value, Placeholder) else one_level(value)
    return isinstance(value, Tensor) if level is None else all(map(_has_shapes, level.children))


def _has_container(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_has_container(item) for item in value)
    if isinstance(value, dict):
        return any(_has_container(item) for item in value.values())
    return is_container(value)


def _value(value: Any) -> str:
    if isinstance(value, Tensor):
        return short(value)
    if _has_container(value) and not is_container(value):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        body = "\n".join(f"({key}): {_value(item)}" for key, item in pairs).replace("\n", "\n  ")
        return f"{type(value).__name__}(\n  {body}\n)"
    if one_level(value) is not None and not is_container(value):
        return repr(optree.tree_map(lambda leaf: _Text(_value(leaf)), value))
    if callable(value) and hasattr(value, "__name__") and not is_container(value):
        return value.__name__
    return repr(value)


class _Text(str):
    """Text that stands for a leaf in a tuple or dict: printed without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
