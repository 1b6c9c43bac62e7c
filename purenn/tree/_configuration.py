"""The classes and options of a tree as JSON, to be kept beside its tensors and compared when these are loaded.

Nothing is made from it, and no class is looked up: it is text that is compared with the text of the tree that is there.
"""

from collections.abc import Collection, Mapping
from typing import Any

from purenn.errors import StructureError
from purenn.tree._dumpable import dumpable
from purenn.tree._fields import spec_of
from purenn.tree._walk import Entries, join, one_level, quoted

#: By path: the class of a container, and its options by name.
Configuration = dict[str, tuple[str, dict[str, Any]]]


def configuration_of(tree: Any) -> Configuration:
    """The classes and options of all containers in a tree.

    What is no number, text, tuple, dtype or function of a module is there by the name of its class alone.
    """
    found: Configuration = {}

    def visit(node: Any, entries: Entries) -> None:
        level = one_level(node)
        if level is None:
            return
        spec = spec_of(node)
        if spec is not None:
            options = {name: _content(getattr(node, name)) for name in spec.static}
            found[join(entries)] = (_name(type(node)), options)
        for entry, child in zip(level.entries, level.children, strict=True):
            visit(child, (*entries, entry))

    visit(tree, ())
    return found


def is_configuration(content: Any) -> bool:
    """Whether what was read from JSON can be compared as a configuration."""
    return isinstance(content, dict) and all(
        isinstance(node, list) and len(node) == 2 and isinstance(node[0], str) and isinstance(node[1], dict)
        for node in content.values()
    )


def differences(
    saved: Mapping[str, Any], here: Configuration, *, saved_leaves: Collection[str], leaves: Collection[str]
) -> list[str]:
    """What differs between the configuration of a file and that of a tree, a line for each.

    Classes and functions differ if their own names do: modules are moved, and a program is a module of another name
    when it is imported. Options that only one of them knows do not count, nor do containers with leaves that only one
    of them has: for these the names of the leaves speak.
    """
    lines = []
    for path, (name, options) in here.items():
        if path not in saved:
            if not _has_leaves(path, leaves):
                lines.append(f"different: {quoted(path)} is nothing in the file, {_own(name)} in the tree")
            continue
        saved_name, saved_options = saved[path]
        if _own(saved_name) != _own(name):
            lines.append(f"different: {quoted(path)} is {_own(saved_name)} in the file, {_own(name)} in the tree")
            continue
        for option, value in options.items():
            before = saved_options.get(option, value)
            one, other = _shown(before), _shown(value)
            # 1 is 1.0, and NaN is as much NaN as another.
            if before != value and one != other:
                where = f"{path}.{option}" if path else option
                lines.append(f"different: {where} is {one} in the file, {other} in the tree")
    lines += [
        f"different: {quoted(path)} is {_own(name)} in the file, nothing in the tree"
        for path, (name, _) in saved.items()
        if path not in here and not _has_leaves(path, saved_leaves)
    ]
    return lines


def _has_leaves(path: str, leaves: Collection[str]) -> bool:
    return any(leaf.startswith(f"{path}.") for leaf in leaves) if path else bool(leaves)


def _content(value: Any) -> Any:
    if type(value) is tuple:
        return {"tuple": [_content(item) for item in value]}
    try:
        return dumpable(value)
    except StructureError:
        return {"instance": _name(type(value))}


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _own(name: str) -> str:
    return name.rpartition(":")[2].rpartition(".")[2]


def _shown(content: Any) -> str:
    if not isinstance(content, dict):
        return repr(content)
    kind, inner = next(iter(content.items()), ("", ""))
    if kind == "tuple" and isinstance(inner, list):
        return f"({', '.join(map(_shown, inner))}{',' * (len(inner) == 1)})"
    if kind in ("object", "instance") and isinstance(inner, str):
        return _own(inner) if kind == "object" else f"some {_own(inner)}"
    return f"{kind} {inner}"
