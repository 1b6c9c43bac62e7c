"""Promises about functions: pure, rightly differentiated in both modes, and batched as a loop would.

Loops are written with plain `torch.autograd`, not with the transformations under test.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from _cases import Case, floating, tensors, total
from _derivatives import against_differences, derivatives, gradient, number_of, same, trained
from _reference import weights_like
from _samples import torch_may_warn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

import bridge
import purenn as pn
from purenn.errors import BatchingError

EXAMPLES = 2


def purity(case: Case) -> None:
    """No bit of an argument changes, and a second call gives the same."""
    given = (case.p, tuple(leaf for leaf in case.leaves if isinstance(leaf, Tensor)))
    before = pn.tree.map(torch.clone, given)
    first, second = (case.values(case.p, *case.inputs()) for _ in range(2))
    assert (found := pn.tree.equal(first, second)), found
    assert (found := pn.tree.equal(before, given)), found


def gradcheck(case: Case) -> None:
    """Gradients are what finite differences say."""
    against_differences(case, second=False)


def forward_mode(case: Case) -> None:
    """A derivative along a direction is the gradient times that direction: ``<u, J v> = <J^T u, v>``."""
    floats, others = case.inputs()
    leaves, rebuilt = trained(case.p)
    directions = [torch.cos(weights_like(x) * 5) for x in (*leaves, *floats)]
    moved = pn.tree.partition(rebuilt(directions[: len(leaves)]))[0] if leaves else None
    y, along = pn.jvp(
        lambda p, floats: case.outputs(p, floats, others),
        (case.p, floats),
        (moved, tuple(directions[len(leaves) :]) if floats else None),
    )
    u = [weights_like(one) for one in y]
    found = gradient(case, lambda *args: _inner(case.outputs(*args), u), case.p, 0)
    same(_inner(along, u), _inner(found, directions))


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return sum((a * b).sum() for a, b in zip(left, right, strict=True))  # type: ignore[return-value]


def vmap_inputs(case: Case) -> None:
    """Batched over inputs it gives what a loop gives."""
    _check_vmap(case, models=False)


def vmap_models(case: Case) -> None:
    """Batched over models, and over models and inputs together, it gives what a loop gives."""
    _check_vmap(case, models=True, inputs=False)
    _check_vmap(case, models=True)


def vmap_of_grad(case: Case) -> None:
    """Gradients of every example by ``vmap(grad(f))`` are those of a loop."""
    p, floats, others = case.p, *_stacked_inputs(case)
    found = pn.vmap(pn.grad(case.loss, case.argnums), (None, 0, 0))(p, floats, others)
    loop = [gradient(case, case.loss, p, number) for number in range(EXAMPLES)]
    same(tensors(found), [torch.stack(one) for one in zip(*loop, strict=True)])


def per_sample(case: Case) -> None:
    """Gradients, norms and clipped sums of examples by one recorded pass are a loop's; batch statistics are refused."""
    if not case.argnums:
        return
    floats, others = _stacked_inputs(case)

    def loss(p: Any, floats: tuple, others: tuple) -> Tensor:
        return case.loss(p["layer"], _moved(floats, p["shifts"]), others)

    rows = [gradient(case, case.loss, case.p, number) for number in range(EXAMPLES)]
    _check_records(case, loss, _with_shifts(case.p, floats), (floats, others), rows)


def opaque(case: Case) -> None:
    """The module carried over by `from_module` has torch's gradients: batched, recorded, and of stacked tasks."""
    special = case.sample.expected, case.sample.differentiable, case.sample.differentiable_twice, case.key
    if not case.argnums or any(x is not None for x in special):
        return
    (floats, others), train = _stacked_inputs(case), case.sample.train

    def loss(p: Any, floats: tuple, others: tuple) -> Tensor:
        args, kwargs = case.arguments_of_module(_moved(floats, p["shifts"]), others)
        y = p["layer"](*args, train=train, **kwargs)
        return total(floating(y[0] if pn.is_stateful(p["layer"]) else y))

    p, rows = _with_shifts(bridge.from_module(case.fresh_module()), floats), []
    for number in range(EXAMPLES):
        module, (given, rest) = case.fresh_module().train(train), case.inputs(number)
        given = tuple(x.clone().requires_grad_() for x in given)
        value = total(floating(case.reference(module, given, rest)))
        rows.append([x.to_dense() for x in derivatives(value, [*module.parameters(), *given])])
    adapt = pn.meta.inner_loop(loss, pn.optim.sgd(1e-3), 2)
    ways = [pn.meta.grad(lambda p, *task: loss(adapt(p, *task)[0], *task), how) for how in ("sum", "loop")]
    with torch_may_warn():  # that its module's kernels have no batching rule
        found = pn.vmap(pn.grad(loss), (None, 0, 0))(p, floats, others)
        same([x.to_dense() for x in tensors(found)], [torch.stack(one) for one in zip(*rows, strict=True)])
        _check_records(case, loss, p, (floats, others), rows)
        same(*[[x.to_dense() for x in tensors(way(p, floats, others))] for way in ways])


def _with_shifts(layer: Any, floats: tuple[Tensor, ...]) -> Any:
    # With something to learn for every input, so that layers without parameters have some.
    return {"layer": layer, "shifts": [torch.zeros_like(x[0]) for x in floats]}


def _moved(floats: Sequence[Tensor], shifts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x + shift for x, shift in zip(floats, shifts, strict=True))


def _check_records(case: Case, loss: Any, p: Any, batch: tuple, gradients: list[list[Tensor]]) -> None:
    if isinstance(case.module, _BatchNorm) and (case.sample.train or case.module.running_mean is None):
        with pytest.raises(BatchingError, match="normalises with the statistics of the batch"):
            pn.per_sample.record(loss, p, batch)
        return
    rows = torch.stack([torch.cat([g.flatten() for g in one]) for one in gradients])
    norms = rows.norm(dim=1)
    bound = float(norms.mean()) or 1.0
    factors = torch.where(norms > bound, bound / norms, 1.0)
    for budget in (2**30, 0):
        record = pn.per_sample.record(loss, p, batch, budget=budget)
        same(record.norms(), norms)
        same(torch.cat([x.flatten() for x in tensors(record.clipped_sum(bound))]), factors @ rows)
        same(torch.cat([x.reshape(EXAMPLES, -1) for x in tensors(record.grads())], 1), rows)


def grad_of_vmap_of_grad(case: Case) -> None:
    """The gradient of a function of gradients by ``vmap(grad(f))`` is that of a loop."""
    floats, others = _stacked_inputs(case)
    inner = pn.vmap(pn.grad(case.loss, case.argnums), (None, 0, 0))

    def outer(p: Any, floats: tuple, others: tuple) -> Tensor:
        return number_of(tensors(inner(p, floats, others)))

    found = pn.grad(outer, case.argnums)(case.p, floats, others)
    leaves, rebuilt = trained(case.p)
    point = [x.detach().requires_grad_() for x in (*leaves, *floats)]
    p, given = rebuilt(point[: len(leaves)]), point[len(leaves) :]
    rows: list[list[Tensor]] = []
    for number in range(EXAMPLES):
        x = tuple(value[number] for value in given)
        of = [*point[: len(leaves)], *x]
        value = case.loss(p, x, tuple(value[number] for value in others))
        rows.append(derivatives(value, of, create_graph=True))
    value = number_of([torch.stack(one) for one in zip(*rows, strict=True)])
    same(tensors(found), derivatives(value, point))


def _check_vmap(case: Case, *, models: bool, inputs: bool = True) -> None:
    p = pn.tree.stack([case.model(number) for number in range(EXAMPLES)]) if models else case.p
    floats, others = _stacked_inputs(case) if inputs else case.inputs()
    over = 0 if inputs else None
    if models and not inputs and not pn.tree.leaves(p):
        return  # a model without tensors has no axis of models
    found = pn.vmap(case.values, (0 if models else None, over, over))(p, floats, others)
    loop = [
        case.values(case.model(number if models else 0), *case.inputs(number if inputs else 0))
        for number in range(EXAMPLES)
    ]
    same(found, [torch.stack(one) for one in zip(*loop, strict=True)])


def _stacked_inputs(case: Case) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    examples = [case.inputs(number) for number in range(EXAMPLES)]
    floats, others = ([torch.stack(one) for one in zip(*kind, strict=True)] for kind in zip(*examples, strict=True))
    return tuple(floats), tuple(others)
