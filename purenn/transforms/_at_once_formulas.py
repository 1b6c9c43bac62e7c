"""The derivatives of losses that are made of known calls, written once for all losses that are made of the same."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
def formulas_of(calls: tuple[Call, ...], leaves: int) -> "Formulas":
    """The formulas, the same object each time."""
    return Formulas(calls, leaves)


class Formulas:
    """Derivatives of a loss.

    Args:
        calls: the calls that lead from the leaves to the value, which the last gives.
        leaves: how many there are.
    """

    def __init__(self, calls: tuple[Call, ...], leaves: int) -> None:
        self._calls, self._leaves = calls, leaves
        self._written: dict[Any, Callable[..., Any]] = {}

    @property
    def takes_number(self) -> bool:
        """Whether the gradient by the value may be a number, the same for all tasks."""
        return self._calls[-1].rule.takes_number

    def gradients(self, is_step: bool, is_number: bool, is_alone: bool) -> Callable[..., Any]:
        """A function of the gradient by the value, of the leaves, and of what the calls keep.

        It returns the gradients, and the gradients by the results of those calls whose rules bend.

        Args:
            is_step: whether it returns the leaves plus the gradients.
            is_number: whether the gradient by the value is a number.
            is_alone: see `Writer.function`.
        """
        return self._once((self._write_gradients, is_step, is_number, is_alone))

    def changes(self, given: tuple[bool, ...], is_step: bool, is_alone: bool) -> Callable[..., Any]:
        """A function of tangents, of the gradients by results, and of what the calls keep.

        It returns the changes of the gradients.

        Args:
            given: which leaves have a tangent; it gets only these.
            is_step: whether it returns the tangents plus the changes.
            is_alone: see `Writer.function`.
        """
        return self._once((self._write_changes, given, is_step, is_alone))

    def whole(
        self, inputs: tuple[tuple[int, ...], ...], data: int, is_step: bool | None, is_alone: bool
    ) -> Callable[..., Any]:
        """A function of a number, the gradient by the value, of the leaves, of data, and of the numbers that are kept.

        It returns the value, what `gradients` returns, and what the calls keep.

        Args:
            inputs: for each call the places of its inputs: of a leaf or a result, or as ``~place`` one among the data.
            data: how many there are.
            is_step: whether it returns the leaves plus the gradients; None if it returns no gradients.
            is_alone: see `Writer.function`.
        """
        return self._once((self._write_whole, inputs, data, is_step, is_alone))

    def _once(self, key: tuple) -> Callable[..., Any]:
        written = self._written.get(key)
        if written is None:
            write, *how = key
            written = self._written[key] = write(*how)
        return written

    def _write_whole(
        self, inputs: tuple[tuple[int, ...], ...], data: int, is_step: bool | None, is_alone: bool
    ) -> Callable[..., Any]:
        writer = Writer()
        top = writer.argument(is_number=True)
        leaves = [writer.argument() for _ in range(self._leaves)]
        given = [writer.argument() for _ in range(data)]
        values, kept = [*leaves], []
        for call, places in zip(self._calls, inputs, strict=True):
            numbers = [writer.argument(is_number=kind is float) for kind in call.rule.keeps if kind is not Tensor]
            value, own = call.rule.compute([values[n] if n >= 0 else given[~n] for n in places], numbers)
            values.append(value)
            kept.append(own)
        if not self.takes_number:
            top = torch.full_like(values[-1], top)
        gradients, bent = ([], []) if is_step is None else self._pulled(top, leaves, kept, is_step)
        return writer.function((values[-1], gradients, bent, [x for own in kept for x in own]), is_alone=is_alone)

    def _write_gradients(self, is_step: bool, is_number: bool, is_alone: bool) -> Callable[..., Any]:
        writer = Writer()
        top = writer.argument(is_number=is_number)
        leaves = [writer.argument() for _ in range(self._leaves)]
        kept = self._kept(writer)
        return writer.function(self._pulled(top, leaves, kept, is_step), is_alone=is_alone)

    def _pulled(self, top: Any, leaves: list[Any], kept: list[Any], is_step: bool) -> tuple[list[Some], list[Any]]:
        found, bent = [*self._start(leaves, is_step), top], []
        for number, call in self._backwards():
            g = found.pop()
            if g is not None:
                if call.rule.bends:
                    bent.append(g)
                call.put(found, call.rule.pull(kept[number], g, call.of(found)))
        return [None if x is leaf else x for x, leaf in zip(found, leaves, strict=True)], bent

    def _write_changes(self, given: tuple[bool, ...], is_step: bool, is_alone: bool) -> Callable[..., Any]:
        writer = Writer()
        tangents = [writer.argument() if is_given else None for is_given in given]
        last, reached = len(self._calls) - 1, self._reached()
        bent = {
            number: writer.argument(is_number=number == last and call.rule.takes_number)
            for number, call in self._backwards()
            if number in reached and call.rule.bends
        }
        kept = self._kept(writer)
        along: list[Some] = [*tangents]
        for number, call in enumerate(self._calls[:-1]):
            along.append(call.rule.push(kept[number], call.of(along)) if number in reached else None)
        found = [*self._start(tangents, is_step), None]
        for number, call in self._backwards():
            change = found.pop()
            if number in reached:
                turned = call.rule.turn(kept[number], bent.get(number), change, call.of(along), call.of(found))
                call.put(found, turned)
        return writer.function(found, is_alone=is_alone)

    def _kept(self, writer: Writer) -> list[list[Any]]:
        return [[writer.argument(is_number=kind is float) for kind in call.rule.keeps] for call in self._calls]

    def _start(self, leaves: list[Any], is_step: bool) -> list[Any]:
        return [*(leaves if is_step else [None] * self._leaves), *[None] * (len(self._calls) - 1)]

    def _backwards(self) -> Iterator[tuple[int, Call]]:
        return reversed([*enumerate(self._calls)])

    def _reached(self) -> set[int]:
        # The calls on whose results the value depends.
        reached = {self._leaves + len(self._calls) - 1}
        for number, call in self._backwards():
            if self._leaves + number in reached:
                reached.update([place for place in call.places if place is not None])
        return {place - self._leaves for place in reached}
