"""Inner loops: values, derivatives in every form, truncation, selection, hyper-parameters, memory."""

import functools
from typing import Any

import pytest
import torch
from _meta_references import DOUBLE, adapted_by_hand, agree, leaves, loss_by_hand, mse, network, one_task, tasks
from _pairing import peak_bytes
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, GradientError, ShapeError
from purenn.layers import BatchNorm1d, Linear, Sequential

UNROLLS = ["python", "vjp", "scan", 2]
inner_loop = pn.meta.inner_loop


@pytest.mark.parametrize("unroll", UNROLLS)
@pytest.mark.parametrize("remat", [False, True])
def test_values_and_gradients(device: torch.device, unroll: Any, remat: bool) -> None:
    """Adapted parameters, losses and meta-gradients are those of plain torch.autograd, in eager and under jit."""
    p, (support, query) = network(device), one_task(tasks(device), 0)
    adapt = inner_loop(mse, pn.optim.sgd(0.1), 3, unroll=unroll, remat=remat)
    start = leaves(p)
    expected = adapted_by_hand(start, 0.1, 3, *support)
    adapted, losses = adapt(p, *support)
    agree(adapted, [w.detach() for w in expected])
    losses_by_hand = [loss_by_hand(adapted_by_hand(start, 0.1, n, *support), *support).detach() for n in range(3)]
    torch.testing.assert_close(losses, torch.stack(losses_by_hand), rtol=0, atol=1e-12)
    assert not losses.requires_grad

    def outer(p: Any, support: Any, query: Any) -> Tensor:
        adapted, losses = adapt(p, *support)
        return mse(adapted, *query) + losses.sum()

    by_hand = loss_by_hand(expected, *query)
    by_hand = by_hand + sum(loss_by_hand(adapted_by_hand(start, 0.1, n, *support), *support) for n in range(3))
    gradients = torch.autograd.grad(by_hand, start)
    agree(pn.grad(outer)(p, support, query), gradients)
    agree(pn.jit(pn.grad(outer), backend="eager")(p, support, query), gradients)


@pytest.mark.parametrize("unroll", UNROLLS)
def test_under_transformations(device: torch.device, unroll: Any) -> None:
    """Under vmap(grad), grad(vmap) and jvp, in eager and under jit, the derivatives are those of a loop."""
    p, (support, query) = network(device), tasks(device)
    adapt = inner_loop(mse, pn.optim.sgd(0.1), 2, unroll=unroll)

    def outer(p: Any, support: Any, query: Any) -> Tensor:
        return mse(adapt(p, *support)[0], *query)

    def batched(p: Any, support: Any, query: Any) -> Any:
        per_task = pn.vmap(pn.grad(outer), (None, 0, 0))(p, support, query)
        total = pn.grad(lambda p: pn.vmap(outer, (None, 0, 0))(p, support, query).sum())(p)
        return per_task, total

    start = leaves(p)
    each = []
    for number in range(3):
        s, q = one_task((support, query), number)
        each.append(torch.autograd.grad(loss_by_hand(adapted_by_hand(start, 0.1, 2, *s), *q), start))
    for run in (batched, pn.jit(batched, backend="eager")):
        per_task, total = run(p, support, query)
        agree(per_task, [torch.stack(column) for column in zip(*each, strict=True)])
        agree(total, [sum(column) for column in zip(*each, strict=True)])
    if unroll != "vjp":  # an operation of its own has reverse mode only
        direction = pn.tree.map(torch.cos, p)
        moved = pn.jvp(lambda p: outer(p, *one_task((support, query), 0)), (p,), (direction,))[1]
        along = sum((g * torch.cos(w)).sum() for g, w in zip(each[0], start, strict=True))
        torch.testing.assert_close(moved, along.detach(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("unroll", UNROLLS)
def test_third_derivative(device: torch.device, unroll: Any) -> None:
    """An inner loop in an inner loop, and the gradient of a gradient through one, are right."""
    p, (support, query) = network(device), one_task(tasks(device), 1)
    adapt = inner_loop(mse, pn.optim.sgd(0.1), 2, unroll=unroll)
    again = inner_loop(lambda p: mse(adapt(p, *support)[0], *query), pn.optim.sgd(0.2), 2, unroll=unroll)
    start = leaves(p)

    def once(w: Any, *_: Any) -> Tensor:
        return loss_by_hand(adapted_by_hand(w, 0.1, 2, *support), *query)

    expected = torch.autograd.grad(once(adapted_by_hand(start, 0.2, 2, loss=once)), start)
    agree(pn.grad(lambda p: mse(adapt(again(p)[0], *support)[0], *query))(p), expected, 1e-10)


@pytest.mark.parametrize("unroll", UNROLLS)
@pytest.mark.parametrize("how", ["closure", "injected", "argument"])
def test_hyper_gradients(device: torch.device, unroll: Any, how: str) -> None:
    """Derivatives by a learning rate and by a weight of the loss, wherever they come from."""
    p, (support, query) = network(device), one_task(tasks(device), 0)
    hyper = torch.tensor([0.1, 0.3], dtype=DOUBLE, device=device)

    def penalised(p: Any, weight: Tensor, *data: Tensor) -> Tensor:
        return mse(p, *data) + weight * sum(leaf.square().sum() for leaf in pn.tree.leaves(p))

    def outer(hyper: Tensor) -> Tensor:
        rate, weight = hyper.unbind()
        make = pn.optim.inject_hyperparams(pn.optim.sgd) if how == "injected" else pn.optim.sgd
        if how == "argument":
            loss, args = penalised, (weight,)
        else:
            loss, args = functools.partial(lambda p, *data, w: penalised(p, w, *data), w=weight), ()
        return mse(inner_loop(loss, make(rate), 3, unroll=unroll)(p, *args, *support)[0], *query)

    def penalised_by_hand(w: Any, weight: Tensor, *data: Tensor) -> Tensor:
        return loss_by_hand(w, *data) + weight * sum(leaf.square().sum() for leaf in w)

    at = hyper.clone().requires_grad_()
    adapted = adapted_by_hand(leaves(p), at[0], 3, at[1], *support, loss=penalised_by_hand)
    expected = torch.autograd.grad(loss_by_hand(adapted, *query), at)
    agree(pn.grad(outer)(hyper), expected)
    agree(pn.vmap(pn.grad(outer))(hyper[None])[0], expected)
    agree(pn.jit(pn.grad(outer), backend="eager")(hyper), expected)


def test_adam_and_momentum(device: torch.device) -> None:
    """Derivatives through stateful optimisers agree in all forms, and with finite differences."""
    p, (support, query) = network(device), one_task(tasks(device), 0)
    for optimizer in (pn.optim.adam(0.05), pn.optim.sgd(0.05, momentum=0.9)):
        maml = [pn.meta.maml(mse, optimizer, 3, unroll=unroll) for unroll in UNROLLS]
        outers = [functools.partial(task_loss, support=support, query=query) for task_loss in maml]
        first, *others = [pn.grad(outer)(p) for outer in outers]
        for other in others:
            agree(other, pn.tree.leaves(first))
        for compiled in outers[2:]:
            agree(pn.jit(pn.grad(compiled), backend="eager")(p), pn.tree.leaves(first))
        pn.check_grads(outers[0], (p,))


def test_first_order(device: torch.device) -> None:
    """Without second derivatives the gradient at the adapted parameters is the meta-gradient."""
    p, (support, query) = network(device), one_task(tasks(device), 0)
    adapt = inner_loop(mse, pn.optim.sgd(0.1), 3, first_order=True)
    adapted = [w.detach().requires_grad_() for w in adapted_by_hand(leaves(p), 0.1, 3, *support)]
    expected = torch.autograd.grad(loss_by_hand(adapted, *query), adapted)
    for gradient in (pn.grad, lambda f: pn.jit(pn.grad(f), backend="eager")):
        agree(gradient(lambda p: mse(adapt(p, *support)[0], *query))(p), expected)


def test_first_order_of_many_tasks(device: torch.device) -> None:
    """Gradients count as constants in every mode of differentiation, also where a task's tensors do not show it."""
    p, data = network(device), tasks(device)
    task_loss = pn.meta.maml(mse, pn.optim.sgd(0.1), 3, first_order=True)
    expected = []
    for number in range(3):
        support, query = one_task(data, number)
        adapted = [w.detach().requires_grad_() for w in adapted_by_hand(leaves(p), 0.1, 3, *support)]
        expected.append(torch.autograd.grad(loss_by_hand(adapted, *query) / 3, adapted))
    gradients = [torch.stack(column).sum(0) for column in zip(*expected, strict=True)]

    def total(p: Any, vmap: Any = pn.vmap) -> Tensor:
        return vmap(functools.partial(task_loss, p))(*data).mean()

    agree(pn.grad(total)(p), gradients)
    agree(torch.func.grad(functools.partial(total, vmap=torch.func.vmap))(p), gradients)
    agree(pn.jacfwd(total)(p), gradients)
    ways = [pn.meta.grad(task_loss, how) for how in ("vmap", "sum", "loop")]
    for gradient in ways:
        torch.compiler.reset()
        agree(torch.compile(gradient, fullgraph=True, backend="eager")(p, *data), gradients)
        models = pn.tree.stack([p, p])
        agree(pn.tree.unstack(pn.vmap(lambda p, gradient=gradient: gradient(p, *data))(models))[1], gradients)


@pytest.mark.parametrize("unroll", UNROLLS)
def test_truncated(device: torch.device, unroll: Any) -> None:
    """Only the last steps are differentiated through; the earlier gradients are constants."""
    p, (support, query) = network(device), one_task(tasks(device), 0)
    adapt = inner_loop(mse, pn.optim.sgd(0.1), 4, truncate=2, unroll=unroll)
    start = leaves(p)
    constants = [(a - b).detach() for a, b in zip(adapted_by_hand(start, 0.1, 2, *support), start, strict=True)]
    later = [w + c for w, c in zip(start, constants, strict=True)]
    expected = torch.autograd.grad(loss_by_hand(adapted_by_hand(later, 0.1, 2, *support), *query), start)

    def outer(p: Any, support: Any, query: Any) -> Tensor:
        return mse(adapt(p, *support)[0], *query)

    agree(pn.grad(outer)(p, support, query), expected)
    # A task's tensors do not show a gradient.
    same = [tuple(torch.stack([x, x]) for x in part) for part in (support, query)]
    agree(pn.grad(lambda p: pn.vmap(functools.partial(outer, p))(*same).mean())(p), expected)


def test_selected(device: torch.device) -> None:
    """Only the selected leaves are adapted; derivatives reach all."""
    p, (support, query) = network(device), one_task(tasks(device), 0)
    adapt = inner_loop(mse, pn.optim.sgd(0.1), 3, select="layers.2")
    start = leaves(p)
    expected = adapted_by_hand(start, 0.1, 3, *support, only=(2, 3))
    agree(adapt(p, *support)[0], [w.detach() for w in expected])
    found = pn.grad(lambda p: mse(adapt(p, *support)[0], *query))(p)
    agree(found, torch.autograd.grad(loss_by_hand(expected, *query), start))


@pytest.mark.parametrize("unroll", UNROLLS)
def test_batches_and_windows(device: torch.device, unroll: Any) -> None:
    """Each step has data of its own; two windows that hand the state on are one loop."""
    p, ((x, y), query) = network(device), tasks(device, 4)
    optimizer, query = pn.optim.adam(0.05), (query[0][0], query[1][0])
    whole = inner_loop(mse, optimizer, 4, batches=True, unroll=unroll)
    half = inner_loop(mse, optimizer, 2, batches=True, resumable=True, unroll=unroll)

    def by_steps(p: Any) -> Any:
        state = optimizer.init(p)
        for n in range(4):
            updates, state = optimizer.update(pn.grad(mse)(p, x[n], y[n]), state, p)
            p = pn.optim.apply_updates(p, updates)
        return p

    def in_windows(p: Any) -> Any:
        p, _, state = half(p, x[:2], y[:2])
        return half(p, x[2:], y[2:], state=state)[0]

    expected = pn.grad(lambda p: mse(by_steps(p), *query))(p)
    for fn in (lambda p: whole(p, x, y)[0], in_windows):
        agree(fn(p), pn.tree.leaves(by_steps(p)))
        agree(pn.grad(lambda p, fn=fn: mse(fn(p), *query))(p), pn.tree.leaves(expected))
        agree(pn.jit(pn.grad(lambda p, fn=fn: mse(fn(p), *query)), backend="eager")(p), pn.tree.leaves(expected))


@pytest.mark.parametrize("first_order", [False, True])
def test_stateful(device: torch.device, first_order: bool) -> None:
    """New buffers are kept from step to step."""
    one, two = pn.random.split(pn.random.key(0, device))
    norm = BatchNorm1d.init(4, dtype=DOUBLE, device=device)
    p = Sequential.of(Linear.init(one, 2, 4, dtype=DOUBLE), norm, Linear.init(two, 4, 1, dtype=DOUBLE))
    x, y = one_task(tasks(device), 0)[0]

    def loss(p: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        out, new = p(x, train=True)
        return (out - y).square().mean(), new

    adapt = inner_loop(loss, pn.optim.sgd(0.1), 3, stateful=True, first_order=first_order)
    adapted, _ = adapt(p, x, y)
    expected = p
    for _ in range(3):
        (_, new), grads = pn.value_and_grad(loss, has_aux=True)(expected, x, y)
        expected = pn.tree.map(lambda w, g: w - 0.1 * g, new, grads)
    agree(adapted, pn.tree.leaves(expected))
    assert int(adapted.layers[1].num_batches_tracked) == 3
    gradient = pn.grad(lambda p: loss(adapt(p, x, y)[0], x, y)[0])(p)
    assert all(leaf.isfinite().all() for leaf in pn.tree.leaves(gradient))


@pytest.mark.parametrize("options", [{"remat": True}, {"unroll": "vjp"}])
def test_memory_is_flat(device: torch.device, options: dict[str, Any]) -> None:
    """From 1 to 20 steps the memory of a meta-gradient grows by a tenth at most, unlike that of an unrolled graph."""
    keys = pn.random.split(pn.random.key(0, device), 2)
    p = Sequential.of(*(Linear.init(key, 24, 24) for key in keys))
    x = torch.ones(3000, 24, device=device)

    def peak(steps: int, **options: Any) -> int:
        adapt = inner_loop(lambda p: p(x).tanh().square().mean(), pn.optim.sgd(0.01), steps, **options)
        gradient = pn.grad(lambda p: adapt(p)[0](x).square().mean())
        return peak_bytes(lambda: gradient(p), device)

    assert peak(20, **options) <= 1.1 * peak(1, **options)
    assert peak(20) > 4 * peak(1)


def test_vjp_keeps_few_carries(device: torch.device) -> None:
    """Where parameters are all there is, "vjp" holds four more of them for 15 steps than for one, and is right."""
    w = torch.linspace(0.5, 1.0, 20_000, dtype=torch.float64, device=device)
    scale = torch.tensor(0.3, dtype=torch.float64, device=device)

    def of_scale(scale: Tensor, steps: int, **options: Any) -> Tensor:
        adapt = inner_loop(lambda w: (scale * w).square().sum(), pn.optim.sgd(0.1), steps, **options)
        return adapt(w)[0].square().sum()

    def peak(steps: int, **options: Any) -> float:
        return peak_bytes(lambda: pn.grad(of_scale)(scale, steps, **options), device) / w.nbytes

    for options, carries in (({"unroll": "vjp"}, 4), ({"remat": True}, 14)):
        assert peak(15, **options) == pytest.approx(peak(1, **options) + carries, abs=0.1)
    gradients = [pn.grad(of_scale)(scale, 16, **options) for options in ({}, {"remat": True}, {"unroll": "vjp"})]
    shrunk = (1 - 0.2 * scale.square()) ** 31
    right = -0.4 * scale * 32 * shrunk * w.square().sum()
    for gradient in gradients:
        torch.testing.assert_close(gradient, right, rtol=1e-10, atol=0)


@pytest.mark.parametrize("how", ["vmap", "sum", "loop"])
@pytest.mark.parametrize("options", [{"remat": True}, {"unroll": "vjp"}])
def test_recomputed_for_many_tasks(device: torch.device, how: Any, options: dict[str, Any]) -> None:
    """Steps that are computed again see the task that they are of, whatever the optimiser, also where leaves stay."""
    p, data = network(device), tasks(device)
    clipped = pn.optim.chain(pn.optim.clip_by_global_norm(0.1), pn.optim.adam(0.05))
    for optimizer in (clipped, pn.optim.masked(pn.optim.sgd(0.1, momentum=0.9), "layers.2.**")):
        expected = pn.meta.grad(pn.meta.maml(mse, optimizer, 7), "loop")(p, *data)
        found = pn.meta.grad(pn.meta.maml(mse, optimizer, 7, **options), how)(p, *data)
        agree(found, pn.tree.leaves(expected))


HIDDEN = torch.tensor(1.0, requires_grad=True)


def test_errors() -> None:
    """What cannot work is refused in our words."""
    optimizer = pn.optim.sgd(0.1)
    for options, text in (
        ({"steps": -1}, "inner_loop: steps must be at least 0, got -1."),
        ({"truncate": 3}, "inner_loop: truncate must be between 0 and the 2 steps, got 3."),
        (
            {"unroll": "jit"},
            "inner_loop: unroll must be 'python', 'scan', 'vjp' or a number of steps of at least 1, got 'jit'.",
        ),
        (
            {"unroll": 0},
            "inner_loop: unroll must be 'python', 'scan', 'vjp' or a number of steps of at least 1, got 0.",
        ),
        (
            {"select": "w", "stateful": True},
            "inner_loop: a stateful loss adapts all leaves; give select or stateful, not both.",
        ),
    ):
        with pytest.raises(ArgumentError) as error:
            inner_loop(mse, optimizer, **{"steps": 2, **options})
        assert str(error.value) == text
    with pytest.raises(ShapeError) as error:
        inner_loop(mse, optimizer, 2, batches=True)(torch.ones(1), {"x": torch.ones(3)})
    assert str(error.value) == (
        "inner_loop: with batches=True argument 1, 'x', must have a leading axis with an entry for each of the 2 "
        "steps, got f32[3]."
    )
    adapt = inner_loop(lambda w: (w * HIDDEN).square().sum(), optimizer, 2, remat=True)
    with pytest.raises(GradientError) as error:
        pn.grad(lambda w: adapt(w)[0].sum())(torch.ones(1))
    assert str(error.value) == (
        "inner_loop: with remat or unroll='vjp', the loss or the optimiser reaches a tensor that requires grad through "
        "a global variable or an object's attribute, where it cannot be found. Pass it as an argument, or refer to it "
        "by a local variable of the surrounding function."
    )
