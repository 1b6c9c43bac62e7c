"""The derivatives of losses that are made of known calls, written once for all losses that are made of the same."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from purenn.transforms._at_once_rules import Rule, Some
from purenn.transforms._written import Writer


class Call(NamedTuple):
    """A call of one of the functions.

    Attributes:
        kind: the class of its rule, since rules of two kinds may be equal as tuples.
        rule: its derivatives.
        places: for each input the place of its gradient; None if it does not depend on the leaves.
    """

    kind: type
    rule: Rule
    places: tuple[int | None, ...]

    def of(self, entries: Sequence[Some]) -> list[Some]:
        """Those of the inputs."""
        return [None if place is None else entries[place] for place in self.places]

    def put(self, entries: list[Some], new: Sequence[Some]) -> None:
        """Replace them."""
        for place, entry in zip(self.places, new, strict=True):
            if place is not None:
                entries[place] = entry


@functools.lru_cache(maxsize=1024)
def formulas_of(calls: tuple[Call, ...], leaves: int, is_step: bool) -> "Formulas":
    """The formulas, the same object each time."""
    return Formulas(calls, leaves, is_step)


class Formulas:
    """Derivatives of a loss.

    Args:
        calls: the calls that lead from the leaves to the value, which the last gives.
        leaves: how many there are.
        is_step: whether a multiple of the gradients is added to the leaves.
    """

    def __init__(self, calls: tuple[Call, ...], leaves: int, is_step: bool) -> None:
        self._calls, self._leaves, self._is_step = calls, leaves, is_step
        self._written: dict[Any, Callable[..., Any]] = {}

    def gradients(self, *, in_place: bool) -> Callable[..., Any]:
        """A function of the gradient by the value, of the leaves, and of what the calls keep.

        It returns the gradients, and the gradients by the results of those calls whose rules bend.
        """
        return self._once(in_place, self._write_gradients, in_place)

    def changes(self, given: tuple[bool, ...], *, in_place: bool) -> Callable[..., Any]:
        """A function of tangents, of the gradients by results, and of what the calls keep.

        It returns the changes of the gradients.

        Args:
            given: which leaves have a tangent; it gets only these.
            in_place: see `Writer.function`.
        """
        return self._once((given, in_place), self._write_changes, given, in_place)

    def _once(self, key: Any, write: Callable[..., Any], *args: Any) -> Callable[..., Any]:
        written = self._written.get(key)
        if written is None:
            written = self._written[key] = write(*args)
        return written

    def _write_gradients(self, in_place: bool) -> Callable[..., Any]:
        writer = Writer()
        top = writer.argument(is_number=self._calls[-1].rule.takes_number)
        leaves = [writer.argument() for _ in range(self._leaves)]
        kept = self._kept(writer)
        found, bent = [*self._start(leaves), top], []
        for number, call in self._backwards():
            g = found.pop()
            if g is not None:
                if call.rule.bends:
                    bent.append(g)
                call.put(found, call.rule.pull(kept[number], g, call.of(found)))
        return writer.function(
            ([None if x is leaf else x for x, leaf in zip(found, leaves, strict=True)], bent), in_place=in_place
        )

    def _write_changes(self, given: tuple[bool, ...], in_place: bool) -> Callable[..., Any]:
        writer = Writer()
        tangents = [writer.argument() if is_given else None for is_given in given]
        last = len(self._calls) - 1
        reached = self._reached()
        bent = {
            number: writer.argument(is_number=number == last and call.rule.takes_number)
            for number, call in self._backwards()
            if number in reached and call.rule.bends
        }
        kept = self._kept(writer)
        along: list[Some] = [*tangents]
        for number, call in enumerate(self._calls[:-1]):
            along.append(call.rule.push(kept[number], call.of(along)) if number in reached else None)
        found = [*self._start(tangents), None]
        for number, call in self._backwards():
            change = found.pop()
            if number in reached:
                turned = call.rule.turn(kept[number], bent.get(number), change, call.of(along), call.of(found))
                call.put(found, turned)
        return writer.function(found, in_place=in_place)

    def _kept(self, writer: Writer) -> list[list[Any]]:
        return [[writer.argument(is_number=kind is float) for kind in call.rule.keeps] for call in self._calls]

    def _start(self, leaves: list[Any]) -> list[Any]:
        return [*(leaves if self._is_step else [None] * self._leaves), *[None] * (len(self._calls) - 1)]

    def _backwards(self) -> Iterator[tuple[int, Call]]:
        return reversed([*enumerate(self._calls)])

    def _reached(self) -> set[int]:
        # The calls on whose results the value depends.
        reached = {self._leaves + len(self._calls) - 1}
        for number, call in self._backwards():
            if self._leaves + number in reached:
                reached.update([place for place in call.places if place is not None])
        return {place - self._leaves for place in reached}
