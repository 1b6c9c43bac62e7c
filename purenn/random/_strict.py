"""The reuse guard: while it is on, a key that is used twice raises an error that names both places.

Two draws from one key give related numbers, and nothing looks wrong: the guard is the test for that. It is off by
default, and then costs one look-up per draw.
"""

import sys
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from purenn._modes import is_traced
from purenn.errors import KeyReuseError
from purenn.random._levels import beneath

# A use is blamed on the innermost frame outside these packages.
_OWN_PACKAGES = ("purenn", "bridge", "torch")


class _Uses:
    """Where each key was used so far, within one `strict` block."""

    def __init__(self) -> None:
        self._places: dict[Hashable, tuple[str, object]] = {}

    def record(self, identities: Iterable[Hashable], held: object) -> None:
        place = _calling_place()
        for identity in identities:
            # `held` keeps an object alive as long as its id stands for it.
            entry = (place, held)
            # One atomic step, so that of two threads only one can be the first.
            earlier = self._places.setdefault(identity, entry)
            if earlier is not entry:
                raise KeyReuseError(
                    f"a random key was used twice: first at {earlier[0]}, then at {place}; "
                    "give each use a key of its own: first, second = purenn.random.split(key)"
                )


_active: ContextVar[_Uses | None] = ContextVar("purenn_random_strict", default=None)


@contextmanager
def strict(*, enabled: bool = True) -> Iterator[None]:
    """Refuse to use a random key twice.

    Within the block a key may be drawn from or split once, and folded with the same data once; folding in different
    data is not a use of the key itself. Keys are compared by value, under `vmap` every one of the batch. Keys that a
    tracer carries have no values yet, so there the same tensor object counts as the same key. Code compiled by
    ``torch.compile`` is not checked.

    The guard belongs to the current thread and to the tasks started in it. A block inside another continues the
    outer one. Reading the values of a key on an accelerator waits for the device: this is a tool for tests.

    Args:
        enabled: False lets keys be used freely within the block, for code that repeats a computation on purpose.

    Raises:
        KeyReuseError: At the second use, naming the places (``file:line``) of both.

    Example:
        >>> import purenn as pn
        >>> with pn.random.strict():
        ...     key = pn.random.key(0)
        ...     a = pn.random.normal(key, 3)
        ...     b = pn.random.normal(key, 3)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        purenn.errors.KeyReuseError: a random key was used twice: first at ...
    """
    uses = (_active.get() or _Uses()) if enabled else None
    token = _active.set(uses)
    try:
        yield
    finally:
        _active.reset(token)


def record_use(key: Tensor) -> None:
    """Note that a key is drawn from or split."""
    if torch.compiler.is_compiling() or (uses := _active.get()) is None:
        return
    values = _values(key)
    identities = [("object", id(key))] if values is None else [("key", value) for value in values]
    uses.record(identities, key)


def record_fold(key: Tensor, data: int | Tensor, child: Tensor) -> None:
    """Note that data is folded into a key."""
    if torch.compiler.is_compiling() or (uses := _active.get()) is None:
        return
    # Equal keys and data make equal children, and the child has the batch dimensions of both.
    values = _values(child)
    if values is None:
        folded = data if isinstance(data, int) else id(data)
        uses.record([("folded object", id(key), folded)], (key, data))
    else:
        uses.record([("child", value) for value in values], None)


def _values(key: Tensor) -> list[tuple[int, ...]] | None:
    """The words of a key, or of every key of a batch; None when they are not known yet."""
    key, _ = beneath(key)
    if type(key) is not Tensor or key.is_meta or is_traced():
        return None
    return [tuple(words) for words in key.reshape(-1, 2).tolist()]


def _calling_place() -> str:
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OWN_PACKAGES:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
