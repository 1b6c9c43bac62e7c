"""The meta-gradient of every layer is the same in all ways, and that of plain torch.autograd."""

import functools
from typing import Any

import pytest
import torch
from _cases import Case
from _exceptions import reason
from _rows import ROWS, cases
from torch import Tensor

import purenn as pn

TASKS, STEPS, RATE = 2, 2, 1e-3


def model_of(case: Case) -> Any:
    """The layer, and a learned shift for each of its inputs, so that layers without parameters have some."""
    return {"layer": case.p, "shifts": [torch.zeros_like(x) for x in case.inputs()[0]]}


def loss_of(case: Case, p: Any, floats: Any, others: Any) -> Tensor:
    return case.loss(p["layer"], [x + shift for x, shift in zip(floats, p["shifts"], strict=True)], others)


def task_loss(case: Case, adapt: Any, p: Any, *data: Any) -> Tensor:
    return loss_of(case, adapt(p, *data)[0], *data)


def reference(case: Case) -> list[Tensor]:
    """The mean of the tasks' meta-gradients, by torch.autograd."""
    p = model_of(case)
    trained, rest = pn.tree.partition(p)
    start = [leaf.detach().clone().requires_grad_() for leaf in pn.tree.leaves(trained)]

    def rebuilt(values: list[Tensor]) -> Any:
        given = iter(values)
        return pn.tree.combine(pn.tree.map(lambda _: next(given), trained), rest)

    total: Tensor = torch.zeros(())
    for number in range(TASKS):
        w = start
        for _ in range(STEPS):
            value = loss_of(case, rebuilt(w), *case.inputs(number))
            grads = torch.autograd.grad(value, w, create_graph=True, allow_unused=True, materialize_grads=True)
            w = [a - RATE * g for a, g in zip(w, grads, strict=True)]
        total = total + loss_of(case, rebuilt(w), *case.inputs(number)) / TASKS
    return list(torch.autograd.grad(total, start, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("row", ROWS)
def test_ways_agree(row: str) -> None:
    """Batched, summed, looped, and with recomputed steps, it is the meta-gradient of torch.autograd."""
    (case, *_) = cases(row, 1)
    if reason(row, "grad(vmap(grad))") or reason(row, "second order"):
        pytest.skip("the conformance matrix has a reason why it has no second derivative")
    p = model_of(case)
    if not pn.tree.leaves(pn.tree.partition(p)[0]):
        pytest.skip("nothing to differentiate")
    both = zip(*map(case.inputs, range(TASKS)), strict=True)
    floats, others = ([torch.stack(x) for x in zip(*part, strict=True)] for part in both)
    expected = reference(case)
    for unroll, how in (("python", "vmap"), ("python", "sum"), ("python", "loop"), ("vjp", "sum")):
        adapt = pn.meta.inner_loop(functools.partial(loss_of, case), pn.optim.sgd(RATE), STEPS, unroll=unroll)
        gradient = pn.meta.grad(functools.partial(task_loss, case, adapt), how)
        found = pn.tree.leaves(gradient(p, floats, others))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
