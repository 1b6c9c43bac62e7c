"""Steps of an inner loop in a row: what is the same in all of them is done once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from purenn._modes import is_traced
from purenn.meta._step import Carry, Step
from purenn.optim._row import Row
from purenn.transforms._at_once_loss import Forward
from purenn.transforms._lean import is_alone, outermost
from purenn.transforms._leaves import take_apart
from purenn.transforms._nested import Examples, Known, can_nest, remember


def steps_in_a_row(
    step: Step,
    carry: Carry,
    rest: Any,
    data: Callable[[int], tuple],
    kwargs: dict[str, Any],
    numbers: range,
    *,
    repeats: bool,
) -> tuple[Carry, Tensor] | None:
    """The carry after some steps that are differentiated, and their losses.

    The parameters are taken apart before the first step and put together after the last. If there are many tasks, only
    the loss is computed under their vmap: the optimiser steps the parameters of all of them as one.

    Args:
        step: the step.
        carry: parameters and state.
        rest: the parameters that are not adapted, or None.
        data: the loss's positional arguments in a step.
        kwargs: its keyword arguments.
        numbers: of the steps.
        repeats: whether all steps may do what the first does, without another call of the loss.

    Returns:
        None where the steps must be made one by one: by an optimiser that looks at the tree or at all numbers of a
        task, by a loss that returns buffers, or where no graph is recorded, so that kernels can do the steps.
    """
    if step.optimizer.row is None or step.stateful or is_traced() or not can_nest() or outermost():
        return None
    params, state = carry
    argument, examples = take_apart(params), Examples.around()
    if is_alone() and not examples.level:
        return None
    loss = step.loss_with(rest)
    row = step.optimizer.row(params, argument, state)
    if not row.columns[0] or (examples.level and not row.together):
        return None
    row.columns = [examples.out_of(column) for column in row.columns]
    totals, known, left = [], examples.at_once() if repeats else None, iter(numbers)
    for number in left:
        args, rate = data(number), row.rate()
        total, _, found = examples.value_and_grad(
            "inner_loop",
            lambda values, args=args: loss(argument.rebuilt(values), *args, **kwargs),
            row.columns[0],
            private=number > numbers[0],
            rate=rate,
            known=known,
        )
        totals.append(total)
        if rate is None:
            row.step(found)
        else:
            row.went(found)
        if known:
            given = examples.all_in(args, kwargs, rest)
            forward = known.forward(given)
            if forward:
                if rest is None and not kwargs:
                    remember(Known(step.loss, argument.structure, args, forward))
                others = [data(number) for number in left]
                each = [given if other is args else examples.all_in(other, kwargs, rest) for other in others]
                totals += _repeated(forward, row, each)
    row.columns = [examples.into(column) for column in row.columns]
    return (argument.rebuilt(row.columns[0]), row.state()), examples.into([torch.stack(totals, -1)])[0]


def _repeated(forward: Forward, row: Row, data: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    # The values before some more steps, made as the one before them.
    recorded, rate, totals = not is_alone(), row.rate(), []
    if data and rate is not None:
        # The same for all, since steps of many tasks as one have plain numbers.
        totals, parameters = forward(row.columns[0], data, [rate] * len(data), recorded)
        row.went(parameters, len(data))
        return totals
    for each in data:
        (total,), gradients = forward(row.columns[0], [each], [None], recorded)
        totals.append(total)
        pairs = zip(row.columns[0], gradients, strict=True)
        row.step([torch.zeros_like(x) if gradient is None else gradient for x, gradient in pairs])
    return totals
