"""Functions of many tasks at once: in the operations of ordinary tensors, and with their derivatives in formulas.

Under a vmap over tasks whose parameters are all stacked, vmap makes a product and several views of every layer, and the
gradients that plain autograd records of them are made of twice as many. Here both are written out for stacked tensors.
Where a loss consists of these functions alone, its gradient is taken by formulas, see `_at_once_loss`. Where it does
anything else, autograd takes its gradient, of the same results.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _DisableFuncTorch
from torch._C._functorch import maybe_current_level
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.overrides import TorchFunctionMode

from purenn._modes import is_autocast
from purenn.transforms._at_once_formulas import Call, Formulas, formulas_of
from purenn.transforms._at_once_functions import AS_STRIDED, PLANNERS, Plan, Tasks, as_strided
from purenn.transforms._at_once_loss import Forward, Gradients, Loss
from purenn.transforms._at_once_rules import Some
from purenn.transforms._leaves import versions


class AtOnce(TorchFunctionMode):
    """Within this context some functions of one task are computed of all tasks.

    Args:
        tasks: the tasks.
        is_traced: whether a compiler sees all operations, which finds better ones itself. Default: False.
    """

    def __init__(self, tasks: Tasks, *, is_traced: bool = False) -> None:
        super().__init__()
        self._tasks, self._planners = tasks, {} if is_traced else PLANNERS
        self._leaves: Sequence[Tensor] = ()

    def begin(self, leaves: Sequence[Tensor]) -> None:
        """Begin with the tensors of all tasks by which `gradients` will be asked for."""
        self._leaves = leaves
        # The leaves and the results of the calls; kept, so that no other tensor gets the identity of one of them.
        self._values = [*leaves]
        self._places = {id(leaf): place for place, leaf in enumerate(leaves)}
        self._versions = versions(leaves)
        self._calls: list[Call] = []
        self._given: list[Sequence[Tensor]] = []
        # What the rules keep, the versions of that, and how much it is after each call.
        self._kept: list[Any] = []
        self._versions_kept: list[int] = []
        self._ends: list[int] = []
        # The call that gives the values of which the gradients are known, and their formulas.
        self._last: tuple[int, Formulas] | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        options, found, planner = kwargs or {}, None, self._planners.get(func)
        if (planner or func in AS_STRIDED) and maybe_current_level() == self._tasks.level:
            with _DisableFuncTorch():
                if planner:
                    found = self._computed(planner(self._tasks, *args, **options))
                else:
                    found = as_strided(self._tasks, *args, **options)
        return func(*args, **options) if found is None else found

    def _computed(self, plan: Plan | None) -> Tensor | None:
        if plan is None or is_autocast(plan.given[0]):
            return None
        output, kept = plan.rule.compute(plan.given, plan.numbers)
        if self._leaves and output.requires_grad:
            self._note(plan, output, kept)
        return self._tasks.of_each(output)

    def _note(self, plan: Plan, output: Tensor, kept: Sequence[Any]) -> None:
        known, places, dtype = self._places, [], output.dtype
        if dtype.is_complex:
            return
        for given in plan.given:
            place = None
            if given.requires_grad:
                # What is not known may depend on the leaves in a way that only autograd knows.
                place = known.get(id(given))
                if place is None or place in places or given._version != self._versions[place]:
                    return
                if given.dtype is not dtype:
                    return
            places.append(place)
        known[id(output)] = len(self._values)
        self._values.append(output)
        self._versions.append(output._version)
        self._calls.append(Call(type(plan.rule), plan.rule, tuple(places)))
        self._given.append(plan.given)
        self._kept += kept
        self._versions_kept += versions(kept)
        self._ends.append(len(self._kept))

    def gradients(self, total: Tensor, *, recorded: bool, rate: float | None = None) -> Sequence[Some] | None:
        """The gradients of the sum of all tasks' values, None for leaves that it does not depend on.

        Args:
            total: the values of all tasks.
            recorded: whether the gradients can be differentiated.
            rate: if given, not the gradients are returned, but the leaves less this multiple of them. Default: None.

        Returns:
            None where not all that leads from the leaves to the values is known.
        """
        count = len(self._leaves)
        number = self._places.get(id(total), -1) - count
        if number < 0 or total._version != self._versions[count + number]:
            return None
        end, formulas = self._ends[number], formulas_of(tuple(self._calls[: number + 1]), count)
        scale = 1.0 if rate is None else -rate
        top = scale if formulas.takes_number else torch.full_like(total, scale)
        loss = Loss(formulas, self._leaves, self._kept[:end], self._versions_kept[:end], top, rate is not None)
        if loss.is_written():
            return None
        self._last = number, formulas
        with temporarily_clear_interpreter_stack():
            with torch.no_grad():
                found, bent = loss.gradients()
            return Gradients.apply(loss, bent, found, *self._leaves) if recorded else found  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, data: Sequence[Tensor]) -> Forward | None:
        """How the values of which `gradients` were asked are computed; None if that is not known.

        Args:
            data: of what they are computed here beside the leaves.
        """
        if self._last is None:
            return None
        (number, formulas), places = self._last, {id(x): ~place for place, x in enumerate(data)}
        inputs = []
        for given, call in zip(self._given[: number + 1], self._calls, strict=False):
            own = [places.get(id(x)) if place is None else place for x, place in zip(given, call.places, strict=True)]
            if None in own:
                return None
            inputs.append(tuple(own))
        numbers = [x for x in self._kept[: self._ends[number]] if not isinstance(x, Tensor)]
        return Forward(formulas, tuple(inputs), numbers)
