"""Every optimiser is pure, batched, compiled, and differentiable through its steps."""

from typing import Any

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn import optim
from purenn.errors import StructureError


def unrolled(optimizer: optim.GradientTransformation, problem: Any, p: Any, state: Any, steps: int = 3) -> Any:
    """Parameters and state after some steps."""
    for _ in range(steps):
        p, state = optimizer.step(p, pn.grad(problem.loss)(p), state)
    return p, state


def test_pure(case: Any, problem: Any) -> None:
    """The same arguments give the same answer and are not changed; frozen leaves and buffers are not touched."""
    optimizer, p = case.make(), pn.tree.freeze(problem.params, "vector")
    grads, state = pn.grad(problem.loss)(p), optimizer.init(p)
    before = pn.tree.map(torch.clone, (p, grads, state))
    for move in (optimizer.step, lambda p, grads, state: optimizer.update(grads, state, p)):
        assert pn.tree.equal(move(p, grads, state), move(p, grads, state))
        assert pn.tree.equal((p, grads, state), before)
    new, after = optimizer.step(p, grads, state)
    assert new.vector is p.vector
    assert new.offset is p.offset
    assert not torch.equal(new.matrix, p.matrix)
    # A second initialisation, and another number of steps done, change nothing of it.
    assert pn.tree.equal(optimizer.init(p), state)
    optimizer.step(new, grads, after)
    assert pn.tree.equal(optimizer.step(p, grads, state), (new, after))


def test_saved(case: Any, problem: Any, tmp_path: Any) -> None:
    """A state is saved and loaded like a model."""
    optimizer = case.make()
    _, state = unrolled(optimizer, problem, problem.params, optimizer.init(problem.params), 2)
    pn.save(tmp_path / "state.safetensors", state)
    assert pn.tree.equal(pn.load(tmp_path / "state.safetensors", like=state), state)


def test_vmap(case: Any, problem: Any) -> None:
    """Models at different steps, stacked with their states, move as one by one."""
    optimizer, p = case.make(), problem.params
    one = p, optimizer.init(p)
    other = unrolled(optimizer, problem, *one)
    batched = pn.vmap(lambda p, state: unrolled(optimizer, problem, p, state, 2))(
        pn.tree.stack([one[0], other[0]]), pn.tree.stack([one[1], other[1]])
    )
    for number, start in enumerate((one, other)):
        alone = unrolled(optimizer, problem, *start, 2)
        assert pn.tree.allclose(pn.tree.unstack(batched)[number], alone, rtol=1e-10, atol=1e-12)


def test_jit(case: Any, problem: Any) -> None:
    """A compiled step gives the numbers of the eager one, with a single trace for all steps."""
    optimizer, p = case.make(), problem.params

    @pn.assert_max_traces(1)
    def step(p: Any, state: Any) -> Any:
        return optimizer.step(p, pn.grad(problem.loss)(p), state)

    compiled = pn.jit(step, backend="eager")
    ours = p, optimizer.init(p)
    for _ in range(3):
        ours = compiled(*ours)
    assert pn.tree.allclose(ours, unrolled(optimizer, problem, p, optimizer.init(p)), rtol=1e-10, atol=1e-12)


def after(optimizer: optim.GradientTransformation, problem: Any, p: Any) -> Tensor:
    """The loss after three steps."""
    return problem.loss(unrolled(optimizer, problem, p, optimizer.init(p))[0])


def test_differentiable(case: Any, problem: Any) -> None:
    """The derivative of the loss after three steps, along a direction, is that of finite differences."""
    optimizer, p = case.make(), problem.params
    direction = pn.tree.map(torch.cos, p)

    def moved(distance: Any) -> Tensor:
        return after(optimizer, problem, pn.tree.map(lambda w, d: w + distance * d, p, direction))

    zero = torch.zeros((), dtype=torch.float64, device=p.matrix.device)
    for derivative in (pn.grad(moved)(zero), pn.jvp(moved, (zero,), (torch.ones_like(zero),))[1]):
        differences = (moved(1e-6) - moved(-1e-6)) / 2e-6
        torch.testing.assert_close(derivative, differences, rtol=1e-5, atol=1e-7)


def test_vmap_of_gradient(case: Any, problem: Any) -> None:
    """Batched gradients through the steps are those of one model at a time."""
    optimizer, p = case.make(), problem.params
    other = pn.tree.map(lambda w: w + 0.1 * w.cos(), p)

    def outer(p: Any) -> Any:
        return pn.grad(lambda p: after(optimizer, problem, p))(p)

    batched = pn.tree.unstack(pn.vmap(outer)(pn.tree.stack([p, other])))
    for mine, start in zip(batched, (p, other), strict=True):
        assert pn.tree.allclose(mine, outer(start), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: optim.sgd(rate, momentum=0.9),
        optim.asgd,
        optim.adam,
        lambda rate: optim.adamw(rate, betas=(1 - rate, 1 - rate / 2), eps=rate / 10, weight_decay=rate),
        lambda rate: optim.nadam(rate, momentum_decay=rate),
        lambda rate: optim.radam(rate, betas=(0.8, 0.9)),
        optim.adamax,
        lambda rate: optim.adagrad(rate, learning_rate_decay=rate, initial_total=rate),
        lambda rate: optim.rmsprop(rate, centered=True, momentum=rate, decay=1 - rate),
        optim.adadelta,
        optim.rprop,
        optim.lion,
        optim.lamb,
        optim.adafactor,
        lambda rate: optim.muon(rate, dtype=None),
        lambda rate: optim.muon(0.02, momentum=1 - rate, weight_decay=rate, dtype=None),
        lambda rate: optim.sgd(0.05, momentum=1 - rate, dampening=rate, weight_decay=rate),
        lambda rate: optim.adadelta(decay=1 - rate, eps=rate, weight_decay=rate),
        lambda rate: optim.lamb(0.05, betas=(1 - rate, 1 - rate / 2), eps=rate, weight_decay=rate),
        lambda rate: optim.lion(0.05, weight_decay=rate),
        lambda rate: optim.sophia(rate, weight_decay=rate),
        lambda rate: optim.sophia(0.1, momentum=1 - rate, scale=10 * rate, eps=2.0),
        lambda rate: optim.adamax(0.05, betas=(1 - rate, 1 - rate / 2), eps=rate, weight_decay=rate),
        lambda rate: optim.asgd(0.05, decay=rate, power=10 * rate, weight_decay=rate),
        lambda rate: optim.sgd(lambda step: rate * 0.9**step),
        lambda rate: optim.chain(optim.clip_by_global_norm(10 * rate), optim.scale(-rate)),
        lambda rate: optim.chain(optim.add_decayed_weights(rate), optim.clip_by_value(rate), optim.sgd(0.1)),
        lambda rate: optim.lookahead(optim.sgd(0.1), every=2, share=10 * rate),
    ],
)
def test_hyperparameters_are_differentiable(make: Any, problem: Any) -> None:
    """Numbers given as a tensor have the gradient of finite differences, by `grad`, autograd and vmap(grad)."""

    def outer(rate: Tensor) -> Tensor:
        return after(make(rate), problem, problem.params)

    rate = torch.tensor(0.03, dtype=torch.float64, device=problem.params.matrix.device)
    differences = (outer(rate + 1e-6) - outer(rate - 1e-6)) / 2e-6
    torch.testing.assert_close(pn.grad(outer)(rate), differences, rtol=1e-5, atol=1e-7)
    own = rate.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(outer(own), own)
    torch.testing.assert_close(by_autograd, differences, rtol=1e-5, atol=1e-7)
    batched = pn.vmap(pn.grad(outer))(torch.stack([rate, rate * 1.1]))
    torch.testing.assert_close(batched[0], differences, rtol=1e-5, atol=1e-7)


def test_forward_mode_along_some_gradients(problem: Any) -> None:
    """The tangent of a step along gradients with holes is that of finite differences; other holes are refused."""
    optimizer, p = optim.adam(0.05), problem.params
    whole = pn.grad(problem.loss)(p)
    grads, state = pn.tree.partition(whole, paths=["matrix", "scalar"])[0], optimizer.init(p)
    along = pn.tree.map(torch.cos, grads)

    def moved(grads: Any) -> Tensor:
        return problem.loss(optimizer.step(p, grads, state)[0])

    ahead, back = (pn.tree.map(lambda g, d, s=sign: g + s * 1e-6 * d, grads, along) for sign in (1, -1))
    differences = (moved(ahead) - moved(back)) / 2e-6
    torch.testing.assert_close(pn.jvp(moved, (grads,), (along,))[1], differences, rtol=1e-5, atol=1e-9)
    for tangent, text in (
        (whole, "jvp: the tangent of argument 0 has a leaf where the argument has a hole: put pn.tree.HOLE there."),
        (
            {"matrix": whole.matrix},
            "jvp: the tangent of argument 0 must have the argument's structure; they differ at the top: a Weights "
            "against a dict.",
        ),
    ):
        with pytest.raises(StructureError) as error:
            pn.jvp(moved, (grads,), (tangent,))
        assert str(error.value) == text


def test_hyperparameters_in_forward_mode_and_twice(problem: Any) -> None:
    """A few hyper-parameters are differentiated forwards, however long the training, and to the second order."""
    numbers = torch.tensor([0.02, 0.9, 0.99, 0.05], dtype=torch.float64, device=problem.params.matrix.device)

    def outer(numbers: Tensor) -> Tensor:
        rate, *betas, decay = numbers.unbind(0)
        return after(optim.adamw(rate, betas=(betas[0], betas[1]), weight_decay=decay), problem, problem.params)

    gradient, hessian = pn.grad(outer)(numbers), pn.hessian(outer)(numbers)
    torch.testing.assert_close(pn.jacfwd(outer)(numbers), gradient, rtol=1e-9, atol=1e-12)
    step = 1e-6 * torch.eye(4, dtype=torch.float64, device=numbers.device)
    rows = [(pn.grad(outer)(numbers + row) - pn.grad(outer)(numbers - row)) / 2e-6 for row in step]
    torch.testing.assert_close(hessian, torch.stack(rows), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [optim.adam, optim.adagrad, optim.rmsprop, optim.lamb, optim.radam, optim.nadam])
def test_zero_gradient_has_finite_derivatives(make: Any, device: torch.device) -> None:
    """Where a gradient is exactly zero, as that of a dead unit, the derivatives through the steps are finite."""
    optimizer = make(0.1)

    def outer(w: Tensor) -> Tensor:
        p, state = {"w": w}, optimizer.init({"w": w})
        for _ in range(2):
            p, state = optimizer.step(p, pn.grad(lambda p: p["w"].relu().square().sum())(p), state)
        return p["w"].square().sum()

    w = torch.tensor([-1.0, 2.0], dtype=torch.float64, device=device)
    assert pn.grad(outer)(w).isfinite().all()
    assert pn.grad(lambda w: pn.grad(outer)(w).sum())(w).isfinite().all()


@pytest.mark.slow
def test_inductor(device: torch.device) -> None:
    """A step compiled by inductor, parameters and state donated, gives the numbers of the eager one."""
    optimizer = optim.adamw(0.05)
    p = {"w": pn.random.normal(pn.random.key(0), (5, 3), dtype=torch.float64).to(device)}
    grads = pn.tree.map(torch.sin, p)
    compiled = pn.jit(lambda p, grads, state: optimizer.step(p, grads, state), donate_argnums=(0, 2))
    right = optimizer.step(p, grads, optimizer.init(p))
    ours = compiled(pn.tree.map(torch.clone, p), grads, optimizer.init(p))
    assert pn.tree.allclose(ours, right, rtol=0, atol=1e-12)


def test_torch_compile(problem: Any) -> None:
    """torch.compile traces a whole step without a graph break."""
    optimizer, p = optim.adam(0.05), problem.params

    def step(p: Any, state: Any) -> Any:
        return optimizer.step(p, pn.grad(problem.loss)(p), state)

    ours = torch.compile(step, fullgraph=True, backend="eager")(p, optimizer.init(p))
    assert pn.tree.allclose(ours, step(p, optimizer.init(p)), rtol=0, atol=1e-12)
