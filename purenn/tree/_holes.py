"""Two nodes without leaves: `HOLE`, where a partition has taken a leaf out, and `Alias`, where a leaf is a tie."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NoReturn

import attrs

from purenn.errors import PlaceholderError
from purenn.tree._register import register_empty


class Placeholder:
    """What stands in the place of a tensor. Using it as one is an error that says where the tensor is."""

    __slots__ = ()

    @property
    def explanation(self) -> str:
        """Why there is no tensor, and what to do."""
        return f"there is no tensor here, but {self!r}."

    def __getattr__(self, name: str) -> Any:
        # Private names are what copy, pickle and the pytree libraries ask for.
        raise AttributeError(name) if name.startswith("_") else PlaceholderError(self.explanation)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> NoReturn:
        raise PlaceholderError(next(_placeholders((*args, *(kwargs or {}).values()))).explanation)


def _refuse(self: Placeholder, *_: Any) -> NoReturn:
    raise PlaceholderError(self.explanation)


# torch takes part only where a tensor is the other operand.
for _name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow"):
    setattr(Placeholder, f"__{_name}__", _refuse)
    setattr(Placeholder, f"__r{_name}__", _refuse)
for _name in ("neg", "abs", "getitem", "float", "int"):
    setattr(Placeholder, f"__{_name}__", _refuse)


def _placeholders(values: Iterable[Any]) -> Iterator[Placeholder]:
    for value in values:
        if isinstance(value, Placeholder):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _placeholders(value)


class Hole(Placeholder):
    """The type of `HOLE`, the only instance. It is an empty node for optree and for torch's pytree."""

    __slots__ = ()

    _instance: ClassVar["Hole | None"] = None

    def __new__(cls) -> "Hole":
        """The one hole."""
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    @property
    def explanation(self) -> str:
        """Why there is no tensor, and what to do."""
        return (
            "there is a HOLE here instead of a tensor: pn.tree.partition, or a gradient, has left this leaf out. Put "
            "the parts together with pn.tree.combine first."
        )

    def __repr__(self) -> str:
        return "HOLE"

    def __reduce__(self) -> tuple:
        return Hole, ()

    def __deepcopy__(self, memo: dict) -> "Hole":
        return self


HOLE = Hole()


@attrs.frozen
class Alias(Placeholder):
    """A place whose tensor is the leaf at another path of the same tied container.

    Attributes:
        path: the dotted path of the leaf, relative to the container that `tie` was called on.
    """

    path: str

    @property
    def explanation(self) -> str:
        """Why there is no tensor, and what to do."""
        return (
            f"this parameter is tied to '{self.path}' and has no tensor of its own here: apply the whole tied model, "
            f"or call pn.tree.untie(p) first and use the part of the result."
        )

    def __repr__(self) -> str:
        return f"Alias({self.path})"


register_empty(Hole, str, lambda _: HOLE)
register_empty(Alias, lambda alias: alias.path, Alias)
