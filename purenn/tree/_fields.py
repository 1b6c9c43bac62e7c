"""The kinds of fields of a container, and what is known about its class."""

from collections.abc import Callable
from typing import Any, NamedTuple

import attrs

PARAMETER, BUFFER, STATIC = "parameter", "buffer", "static"
KIND = "purenn.kind"


def buffer(
    *,
    default: Any = attrs.NOTHING,
    factory: Callable[[], Any] | None = None,
    converter: Callable[[Any], Any] | None = None,
    validator: Callable[[Any, Any, Any], Any] | None = None,
    kw_only: bool = False,
) -> Any:
    """A field that holds a tensor (or a child) which is saved and moved, but not trained.

    Args:
        default: the value when the constructor is given none; required by default.
        factory: makes that value, instead of `default`.
        converter: what the constructor does to the value before it is stored.
        validator: ``f(container, field, value)``, which raises if the value is wrong.
        kw_only: whether the constructor takes the field by name only.
    """
    options: dict[str, Any] = {"converter": converter, "validator": validator, "kw_only": kw_only}
    return attrs.field(default=default, factory=factory, metadata={KIND: BUFFER}, **options)


def static(
    *,
    default: Any = attrs.NOTHING,
    factory: Callable[[], Any] | None = None,
    converter: Callable[[Any], Any] | None = None,
    validator: Callable[[Any, Any, Any], Any] | None = None,
    kw_only: bool = False,
) -> Any:
    """A field that holds hashable configuration: part of the tree's structure, never a leaf.

    Args:
        default: the value when the constructor is given none; required by default.
        factory: makes that value, instead of `default`.
        converter: what the constructor does to the value before it is stored.
        validator: ``f(container, field, value)``, which raises if the value is wrong.
        kw_only: whether the constructor takes the field by name only.
    """
    options: dict[str, Any] = {"converter": converter, "validator": validator, "kw_only": kw_only}
    return attrs.field(default=default, factory=factory, metadata={KIND: STATIC}, **options)


# The position of a watcher, and the path of the container for it.
Watched = tuple[tuple[int, str], ...]


class Marks(NamedTuple):
    """What is recorded about the fields of one container: part of its structure, kept by every transformation.

    Attributes:
        frozen: dotted paths, relative to the container, of leaves that are not trained.
        tied: whether an `Alias` below this container refers to a leaf below it.
        watched: if the container's output is watched while a function runs, by which watchers, and its path for each.
    """

    frozen: frozenset[str] = frozenset()
    tied: bool = False
    watched: Watched | None = None

    def __repr__(self) -> str:
        return f"Marks(frozen={{{', '.join(sorted(self.frozen))}}}, tied={self.tied})"


def changed_marks(marks: Marks | None, **changes: Any) -> Marks | None:
    """Marks with some of them changed; None if nothing is marked any more."""
    # Not `_replace`: torch 2.11's dynamo cannot return what that makes.
    new = Marks(**{**(marks or Marks())._asdict(), **changes})
    return new if new != Marks() else None


@attrs.frozen
class Spec:
    """What `container` knows about a class: its fields by kind, in the order in which they are rebuilt."""

    owner: type
    fields: tuple[attrs.Attribute, ...]
    kinds: dict[str, str]
    dynamic: tuple[str, ...]
    static: tuple[str, ...]
    by_alias: dict[str, str] | None
    #: The functions of the class's properties, by name.
    getters: dict[str, Callable[[Any], Any]] = attrs.field(factory=dict)


def spec_of(value: Any) -> Spec | None:
    """The `Spec` of a container instance or class, None for anything else."""
    return getattr(value, "__container_spec__", None) if isinstance(value, type) or is_container(value) else None


def is_container(value: Any) -> bool:
    """Whether `value` is an instance of a class made by `container`."""
    return getattr(type(value), "__container_spec__", None) is not None
