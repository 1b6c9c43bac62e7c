"""Several steps of an optimiser in a row."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from purenn.optim._aligned import Aligned
from purenn.optim._hyperparameters import Values, as_number, on_device
from purenn.tree import replace

if TYPE_CHECKING:
    from purenn.optim._rule import Rule

# ``finish(direction, parameter, values)``: what becomes of a parameter.
Finish = Callable[[Any, Any, Values], Any]


class Row:
    """Steps of a rule in plain operations: trees are taken apart before the first and put together after the last.

    Attributes:
        columns: the leaves that are trained, and for each slot of the state those that belong to them.
        together: whether plain numbers decide how each element is stepped, so that many models can be stepped as one.
    """

    def __init__(self, rule: "Rule", columns: list[list[Tensor]], state: Any, found: Aligned | None = None) -> None:
        """Begin with leaves.

        Args:
            rule: the rule.
            columns: see `Row`.
            state: the optimiser's.
            found: the trees of which the leaves are. A rule without slots needs none, but for `params` and `updates`.
        """
        self.columns = columns
        self._rule, self._state, self._found, self._steps = rule, state, found, 0
        self._done = as_number(state.count)
        self._carried = {name: getattr(state, name) for name in rule.carried}
        scalars = (self._done, *rule.hyperparameters.values())
        self.together = rule.elementwise and all([isinstance(scalar, (int, float)) for scalar in scalars])  # noqa: C419

    @classmethod
    def of(cls, rule: "Rule", params: Any, grads: Any, state: Any) -> "Row":
        """Begin with trees.

        Raises:
            StructureError: parameters, gradients and state do not fit together.
            ShapeError: a gradient or a part of the state has another shape than its parameter.
            DeviceError: they are on different devices.
        """
        found = Aligned.of(rule.name, params, grads, rule.slots_of(state))
        found.require_alike(shapes=rule.elementwise)
        first, _, *slots = found.columns
        return cls(rule, [first, *slots], state, found)

    @property
    def gradients(self) -> list[Tensor]:
        """Those that it was begun with, if it was with trees."""
        return self._trees.columns[1]

    @property
    def _trees(self) -> Aligned:
        assert self._found is not None
        return self._found

    def step(self, gradients: Sequence[Tensor], finish: Finish | None = None) -> None:
        """One more step by some gradients; `finish` makes new parameters if it is not given."""
        rule, columns = self._rule, [gradients, *self.columns]
        finish = rule.stepped if finish is None else finish
        values = rule.values(self._done, self._carried)
        placed: dict[torch.device, Values] = {}
        rows = []
        for g, w, *slots in zip(*columns, strict=True):
            device = w.device
            if device not in placed:
                placed[device] = on_device(values, device)
            rows.append(rule.apply(finish, g, w, slots, placed[device]))
        self.columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in self.columns]
        self._carried = {name: values[name] for name in rule.carried}
        self._done, self._steps = self._done + 1, self._steps + 1

    def rate(self) -> float | None:
        """The multiple of the gradients by which the next step goes down, if it does nothing else; for `went`."""
        rule = self._rule
        if not rule.plain or rule.maximize or rule.decays:
            return None
        rate = rule.values(self._done, self._carried)["rate"]
        return rate if type(rate) is float else None

    def went(self, parameters: Sequence[Tensor], count: int = 1) -> None:
        """That so many steps have been made by somebody else, to these parameters."""
        self.columns, self._done, self._steps = [list(parameters)], self._done + count, self._steps + count

    def updates(self) -> Any:
        """The first of the columns as a tree of updates."""
        return self._trees.updates(self.columns[0])

    def params(self) -> Any:
        """The parameters as they are now."""
        return self._trees.with_results(self.columns).tree(0)

    def state(self) -> Any:
        """The state as it is now."""
        slots, trees = self._rule.slots, {}
        if slots:
            new = self._trees.with_results(self.columns)
            trees = {name: new.tree(number) for number, name in enumerate(slots, 2)}
        scalars = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in self._carried.items()}
        return replace(self._state, count=self._state.count + self._steps, **scalars, **trees)
