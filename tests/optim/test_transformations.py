"""What is put before, around and beside optimisers: clipping, decay, parts, accumulation, averages, injection, SAM."""

from typing import Any

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn import optim
from purenn.errors import ArgumentError, SelectionError, ShapeError

WRAPPED = {
    "chain": lambda: optim.chain(optim.clip_by_global_norm(0.3), optim.adam(0.1)),
    "chain of all": lambda: optim.chain(
        optim.adaptive_grad_clip(0.1),
        optim.add_decayed_weights(lambda step: 0.1 / (step + 1)),
        optim.clip_by_value(0.02),
        optim.scale_by_schedule(optim.linear_schedule(1.0, 0.1, 3)),
        optim.scale(-1.0),
    ),
    "masked": lambda: optim.chain(optim.masked(optim.add_decayed_weights(0.1), "matrix"), optim.sgd(0.1)),
    "multi_transform": lambda: optim.multi_transform(
        [("matrix", optim.sgd(0.1)), (lambda s: s.paths("vector"), optim.set_to_zero())], default=optim.adam(0.1)
    ),
    "adamw decayed": lambda: optim.adamw(0.1, weight_decay=0.5, decayed=["matrix", "stack"]),
    "muon": lambda: optim.muon(0.1, dtype=None, fallback=optim.sgd(0.1, momentum=0.9)),
    "accumulate": lambda: optim.accumulate(optim.adam(0.1), 2),
    "ema": lambda: optim.ema(optim.adam(0.1), lambda step: 0.9 - 0.5 / (step + 1)),
    "lookahead": lambda: optim.lookahead(optim.adam(0.1), every=2),
    "inject": lambda: optim.inject_hyperparams(optim.adam)(
        optim.exponential_schedule(0.1, 0.9), betas=(0.8, 0.9), eps=1e-6
    ),
    "schedule": lambda: optim.adamw(optim.cosine_schedule(0.1, 5), weight_decay=optim.linear_schedule(0.1, 0.2, 4)),
}


@pytest.fixture(params=WRAPPED)
def wrapped(request: pytest.FixtureRequest) -> optim.GradientTransformation:
    """Every transformation in use."""
    return WRAPPED[request.param]()


def steps(optimizer: Any, problem: Any, p: Any, state: Any, count: int = 4, **options: Any) -> Any:
    """Parameters and state after some fast steps."""
    for _ in range(count):
        p, state = optimizer.step(p, pn.grad(problem.loss)(p), state, **options)
    return p, state


def updates(optimizer: Any, problem: Any, p: Any, state: Any, count: int = 4) -> Any:
    """The same by `update`."""
    for _ in range(count):
        change, state = optimizer.update(pn.grad(problem.loss)(p), state, p)
        p = optim.apply_updates(p, change)
    return p, state


def test_every_way_is_the_same(wrapped: Any, problem: Any) -> None:
    """`update`, `step`, donated, contiguous, compiled and batched steps agree, and none changes its arguments."""
    p = pn.tree.freeze(problem.params, "scalar")
    state = wrapped.init(p)
    before = pn.tree.map(torch.clone, (p, state))
    right = updates(wrapped, problem, p, state)
    assert pn.tree.allclose(steps(wrapped, problem, p, state), right, rtol=0, atol=1e-12)
    assert pn.tree.equal((p, state), before)
    assert right[0].scalar is p.scalar
    assert not torch.equal(right[0].matrix, p.matrix)
    own = pn.tree.map(torch.clone, p)
    donated = steps(wrapped, problem, own, wrapped.init(own), donate=True)
    assert pn.tree.allclose(donated, right, rtol=0, atol=1e-12)
    joined = pn.tree.contiguous(p)
    assert pn.tree.allclose(steps(wrapped, problem, joined, wrapped.init(joined)), right, rtol=0, atol=1e-12)

    @pn.assert_max_traces(1)
    def step(p: Any, state: Any) -> Any:
        return wrapped.step(p, pn.grad(problem.loss)(p), state)

    compiled, ours = pn.jit(step, backend="eager"), (p, state)
    for _ in range(4):
        ours = compiled(*ours)
    assert pn.tree.allclose(ours, right, rtol=0, atol=1e-10)
    one, other = (p, state), steps(wrapped, problem, p, state, 1)
    batch = pn.tree.stack([one[0], other[0]]), pn.tree.stack([one[1], other[1]])
    batched = pn.tree.unstack(pn.vmap(lambda *args: steps(wrapped, problem, *args, count=3))(*batch))
    assert pn.tree.allclose(batched[0], updates(wrapped, problem, *one, 3), rtol=0, atol=1e-10)
    assert pn.tree.allclose(batched[1], right, rtol=0, atol=1e-10)


def test_differentiable(wrapped: Any, problem: Any) -> None:
    """The derivative through three steps is that of finite differences."""
    p = problem.params
    direction = pn.tree.map(torch.cos, p)

    def moved(distance: Any) -> Tensor:
        start = pn.tree.map(lambda w, d: w + distance * d, p, direction)
        return problem.loss(steps(wrapped, problem, start, wrapped.init(start), 3)[0])

    zero = torch.zeros((), dtype=torch.float64, device=p.matrix.device)
    differences = (moved(1e-6) - moved(-1e-6)) / 2e-6
    torch.testing.assert_close(pn.grad(moved)(zero), differences, rtol=1e-5, atol=1e-7)


def only(optimizer: Any, grads: Any, params: Any = None) -> Any:
    """The first updates."""
    params = grads if params is None else params
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_clipping(device: torch.device) -> None:
    """Clipping by norm keeps the direction, small updates pass, and by value every element is limited."""
    g = {"a": torch.tensor([3.0, 0.0], device=device), "b": torch.tensor(4.0, device=device)}
    assert float(optim.global_norm(g)) == 5
    clipped = only(optim.clip_by_global_norm(1.0), g)
    assert pn.tree.allclose(clipped, pn.tree.map(lambda x: x / 5, g), rtol=0, atol=1e-7)
    assert pn.tree.equal(only(optim.clip_by_global_norm(6.0), g), g)
    assert pn.tree.equal(only(optim.clip_by_value(3.5), g), {"a": g["a"], "b": torch.tensor(3.5, device=device)})
    zero = pn.tree.map(torch.zeros_like, g)
    assert pn.tree.equal(only(optim.clip_by_global_norm(1.0), zero), zero)
    norm = pn.grad(lambda g: optim.global_norm(only(optim.clip_by_global_norm(1.0), g)))
    assert pn.tree.equal(norm(zero), zero)
    assert float(optim.global_norm({})) == 0
    half = {"a": torch.full((70_000,), 1.0, dtype=torch.float16, device=device)}
    assert float(optim.global_norm(half)) == pytest.approx(70_000**0.5, rel=1e-6)


def test_clipping_what_is_not_finite(device: torch.device) -> None:
    """A norm that is NaN makes everything NaN, one that is infinite all that is finite zero, as for torch."""
    for bad, rest in ((float("nan"), float("nan")), (float("inf"), 0.0)):
        g = {"a": torch.tensor([bad, 1.0], device=device), "b": torch.tensor([1e6], device=device)}
        leaves = [leaf.clone().requires_grad_() for leaf in g.values()]
        for leaf, grad in zip(leaves, g.values(), strict=True):
            leaf.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        for mine, right in zip(only(optim.clip_by_global_norm(1.0), g).values(), leaves, strict=True):
            torch.testing.assert_close(mine, right.grad, equal_nan=True)
        units = torch.tensor([[bad, 5.0], [1.0, 0.0]], device=device)
        right = torch.tensor([[float("nan"), rest], [0.2, 0.0]], device=device)
        clipped = only(optim.adaptive_grad_clip(0.1), units, torch.full_like(units, 2**0.5))
        torch.testing.assert_close(clipped, right, equal_nan=True)


def test_clipping_complex_updates(device: torch.device) -> None:
    """By value real and imaginary part are limited, by norm the direction in the complex plane is kept."""
    g = {"w": torch.tensor([3.0 + 4.0j, 0.5j], device=device)}
    limited = only(optim.clip_by_value(1.0), g)
    torch.testing.assert_close(limited["w"], torch.tensor([1.0 + 1.0j, 0.5j], device=device))
    shorter = only(optim.clip_by_global_norm(1.0), g)
    torch.testing.assert_close(shorter["w"], g["w"] / g["w"].norm())


def test_parameters_keep_their_dtype(device: torch.device) -> None:
    """Gradients in another dtype than the parameters' change neither these nor the state."""
    p, g = {"w": torch.ones(2, dtype=torch.bfloat16, device=device)}, {"w": torch.ones(2, device=device)}
    scaled = optim.chain(optim.clip_by_global_norm(1.0), optim.scale(-0.1))
    for optimizer in (scaled, optim.accumulate(scaled, 1), optim.accumulate(optim.adam(0.1), 2)):
        state = optimizer.init(p)
        for new, after in (optimizer.step(p, g, state), updated(optimizer, p, g, state)):
            assert new["w"].dtype == torch.bfloat16
            assert [leaf.dtype for leaf in pn.tree.leaves(after)] == [leaf.dtype for leaf in pn.tree.leaves(state)]


def updated(optimizer: Any, p: Any, grads: Any, state: Any) -> Any:
    """One step by `update`."""
    change, state = optimizer.update(grads, state, p)
    return optim.apply_updates(p, change), state


def test_adaptive_clipping(device: torch.device) -> None:
    """Each row of a matrix is limited in proportion to the norm of its weights, small weights counting as eps."""
    w = {"m": torch.tensor([[3.0, 4.0], [0.0, 0.0]], device=device), "v": torch.tensor([6.0, 8.0], device=device)}
    g = {"m": torch.tensor([[0.0, 10.0], [1.0, 0.0]], device=device), "v": torch.tensor([0.5, 0.0], device=device)}
    right = {"m": torch.tensor([[0.0, 0.5], [1e-4, 0.0]], device=device), "v": torch.tensor([0.5, 0.0], device=device)}
    assert pn.tree.allclose(only(optim.adaptive_grad_clip(0.1), g, w), right, rtol=0, atol=1e-7)


def test_frozen_leaves_never_decay(problem: Any) -> None:
    """Weight decay leaves frozen leaves and buffers alone, even if they have a gradient."""
    p = pn.tree.freeze(problem.params, "vector")
    grads = pn.tree.map(torch.zeros_like, p)
    for optimizer in (
        optim.adamw(0.1, weight_decay=0.5),
        optim.chain(optim.add_decayed_weights(0.5), optim.sgd(0.1)),
        optim.muon(0.1, weight_decay=0.5),
        optim.lion(0.1, weight_decay=0.5),
    ):
        new, _ = optimizer.step(p, grads, optimizer.init(p))
        assert new.vector is p.vector
        assert new.offset is p.offset
        assert not torch.equal(new.matrix, p.matrix)


def test_decay_of_some(problem: Any) -> None:
    """Only selected leaves decay, by `masked`, by `adamw(decayed=...)` and by param groups of torch.optim alike."""
    p = problem.params
    grads = pn.tree.map(torch.zeros_like, pn.tree.partition(p)[0])
    coupled = optim.chain(optim.masked(optim.add_decayed_weights(0.5), "matrix"), optim.sgd(0.1))
    decoupled = optim.adamw(0.1, weight_decay=0.5, decayed="matrix")
    for optimizer in (coupled, decoupled):
        new, _ = optimizer.step(p, grads, optimizer.init(p))
        torch.testing.assert_close(new.matrix, p.matrix * 0.95)
        assert torch.equal(new.vector, p.vector)


def test_parts(problem: Any) -> None:
    """Each part moves as its own optimiser moves it alone; leaves of `set_to_zero` stay the same objects."""
    p = problem.params
    grads = pn.grad(problem.loss)(p)
    slow, fast = optim.sgd(0.01), optim.adam(0.1)
    optimizer = optim.multi_transform(
        [(["vector", "scalar"], slow), (lambda s: s.paths("matrix"), optim.set_to_zero())], default=fast
    )
    new, state = optimizer.step(p, grads, optimizer.init(p))
    assert state.paths == (("scalar", "vector"), ("matrix",), ("stack",))
    assert new.matrix is p.matrix
    assert torch.equal(new.vector, slow.step(p, grads, slow.init(p))[0].vector)
    assert torch.equal(new.stack, fast.step(p, grads, fast.init(p))[0].stack)


def test_accumulate(problem: Any) -> None:
    """Two gradients make one step with their mean; in between nothing changes."""
    p, inner = problem.params, optim.adam(0.1)
    optimizer = optim.accumulate(inner, 2)
    one = pn.grad(problem.loss)(p)
    other = pn.tree.map(torch.sin, one)
    same, state = optimizer.step(p, one, optimizer.init(p))
    assert same is p
    new, state = optimizer.step(p, other, state)
    mean = pn.tree.map(lambda a, b: (a + b) / 2, one, other)
    assert pn.tree.allclose(new, inner.step(p, mean, inner.init(p))[0], rtol=0, atol=1e-12)
    assert int(state.count) == 0
    assert int(state.inner.count) == 1


def test_ema_equals_torch(problem: Any) -> None:
    """The average is that of torch.optim.swa_utils, and the parameters are those of the optimiser."""
    p = problem.params
    optimizer = optim.ema(optim.sgd(0.1), 0.9)
    averaged = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    right = [leaf.clone() for leaf in pn.tree.leaves(pn.tree.partition(p)[0])]
    state = optimizer.init(p)
    for _ in range(5):
        p, state = optimizer.step(p, pn.grad(problem.loss)(p), state)
        averaged(right, pn.tree.leaves(pn.tree.partition(p)[0]), 1)
    for mine, other in zip(pn.tree.leaves(state.average), right, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
    alone = optim.sgd(0.1)
    assert pn.tree.equal(p, steps(alone, problem, problem.params, alone.init(p), 5)[0])
    evaluated = pn.tree.map(lambda w, mean: mean, p, state.average)
    assert evaluated.offset is p.offset


def test_lookahead(problem: Any) -> None:
    """After every second step the parameters are between the slow and the fast ones."""
    p, inner = problem.params, optim.sgd(0.1)
    optimizer = optim.lookahead(inner, every=2, share=0.25)
    slow = p
    mine, state = p, optimizer.init(p)
    for _ in range(3):
        mine, state = steps(optimizer, problem, mine, state, 2)
        fast, _ = steps(inner, problem, slow, inner.init(p), 2)
        slow = pn.tree.map(lambda a, b: a + 0.25 * (b - a), slow, fast)
        assert pn.tree.allclose(mine, slow, rtol=0, atol=1e-12)


def test_lookahead_without_all_gradients(problem: Any) -> None:
    """All parameters go back to the slow ones, those without a gradient as well, by `step` as by `update`."""
    optimizer = optim.lookahead(optim.sgd(0.1), every=2)
    start, grads = problem.params, pn.grad(problem.loss)(problem.params)
    one, other = [pn.tree.partition(grads, paths=path)[0] for path in ("matrix", "vector")]
    right = pn.tree.map(lambda w, g: w - 0.05 * g, start, pn.tree.combine(one, other))
    for move in (optimizer.step, lambda *args: updated(optimizer, *args)):
        p, state = move(start, one, optimizer.init(start))
        p, state = move(p, other, state)
        assert pn.tree.allclose(p, right, rtol=0, atol=1e-12)
        assert pn.tree.equal(state.slow, pn.tree.partition(p)[0])


def test_injected_hyperparameters(problem: Any) -> None:
    """They are in the state: seen, changed, stacked, and differentiated; schedules write their value there."""
    p = problem.params
    optimizer = optim.inject_hyperparams(optim.sgd)(0.1, momentum=0.5, weight_decay=lambda step: 0.1 * step)
    state = optimizer.init(p)
    assert {name: float(value) for name, value in state.hyperparameters.items()} == {
        "learning_rate": 0.1,
        "momentum": 0.5,
        "weight_decay": 0.0,
    }
    _, after = steps(optimizer, problem, p, state, 3)
    assert float(after.hyperparameters["weight_decay"]) == 0.2

    def final(rate: Tensor) -> Tensor:
        start = pn.replace(state, hyperparameters={**state.hyperparameters, "learning_rate": rate})
        return problem.loss(steps(optimizer, problem, p, start, 3)[0])

    rate = torch.tensor(0.3, dtype=torch.float64, device=p.matrix.device)
    differences = (final(rate + 1e-6) - final(rate - 1e-6)) / 2e-6
    torch.testing.assert_close(pn.grad(final)(rate), differences, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(pn.vmap(final)(torch.stack([rate, 2 * rate]))[0], final(rate))
    direct = optim.sgd(0.3, momentum=0.5, weight_decay=lambda step: 0.1 * step)
    torch.testing.assert_close(
        final(rate), problem.loss(steps(direct, problem, p, direct.init(p), 3)[0]), rtol=0, atol=1e-12
    )


def test_what_is_no_number_is_not_injected(problem: Any) -> None:
    """Selections, and numbers that cannot be tensors, are used as they are given."""
    p = problem.params
    grads = pn.grad(problem.loss)(p)

    def matrix(selection: Any) -> Any:
        return selection.paths("matrix")

    for factory, given in (
        (optim.adamw, {"decayed": matrix}),
        (optim.muon, {"matrices": matrix, "coefficients": (3.0, -4.0, 2.0), "eps": 1e-3, "dtype": None}),
        (optim.rprop, {"etas": (0.4, 1.3), "step_sizes": (1e-3, 0.1)}),
        (optim.sophia, {"eps": 1e-3}),
    ):
        factory: Any
        injected, direct = optim.inject_hyperparams(factory)(0.1, **given), factory(0.1, **given)
        state = injected.init(p)
        assert {"decayed", "matrices", "coefficients", "etas", "step_sizes"}.isdisjoint(state.hyperparameters)
        right = direct.step(p, grads, direct.init(p))[0]
        assert pn.tree.allclose(injected.step(p, grads, state)[0], right, rtol=1e-10, atol=1e-12)
        batch = [pn.tree.stack([tree, tree]) for tree in (p, grads, state)]
        batched = pn.tree.unstack(pn.vmap(lambda *args, step=injected.step: step(*args)[0])(*batch))
        assert pn.tree.allclose(batched[1], right, rtol=1e-10, atol=1e-12)


def test_every_optimizer_can_be_injected(problem: Any) -> None:
    """All numbers of all optimisers may live in the state, and zeros among them change nothing."""
    p = problem.params
    for factory, given in (
        (optim.sgd, {"momentum": 0.9, "dampening": 0.1}),
        (optim.asgd, {"decay": 0.1}),
        (optim.adam, {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.0}),
        (optim.adamw, {"weight_decay": 0.1}),
        (optim.nadam, {"momentum_decay": 0.1}),
        (optim.radam, {"betas": (0.8, 0.9)}),
        (optim.adamax, {"eps": 1e-3}),
        (optim.adagrad, {"initial_total": 0.1}),
        (optim.rmsprop, {"momentum": 0.5}),
        (optim.adadelta, {"decay": 0.8}),
        (optim.rprop, {}),
        (optim.lion, {"weight_decay": 0.1}),
        (optim.lamb, {"weight_decay": 0.1}),
        (optim.adafactor, {"clipping": 1.5}),
        (optim.sophia, {"momentum": 0.5, "weight_decay": 0.1}),
    ):
        injected, direct = optim.inject_hyperparams(factory)(0.05, **given), factory(0.05, **given)
        right = steps(direct, problem, p, direct.init(p), 2)[0]
        for move in (steps, updates):
            assert pn.tree.allclose(move(injected, problem, p, injected.init(p), 2)[0], right, rtol=0, atol=1e-10), (
                factory
            )


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam(adaptive: bool, problem: Any) -> None:
    """The step is that of the optimiser, with the gradient from a place uphill."""
    p, inner = problem.params, optim.sgd(0.1)
    gradient = pn.grad(problem.loss)
    optimizer = optim.sam(inner, radius=0.2, adaptive=adaptive)
    mine, _ = optimizer.step(gradient, p, optimizer.init(p))
    g = gradient(p)
    uphill = pn.tree.map(lambda g, w: g * w.square() if adaptive else g, g, p)
    size = optim.global_norm(pn.tree.map(lambda g, w: g * w.abs() if adaptive else g, g, p))
    there = pn.tree.map(lambda w, u: w + 0.2 * u / size, p, uphill)
    right, _ = inner.step(p, gradient(there), inner.init(p))
    assert pn.tree.allclose(mine, right, rtol=0, atol=1e-12)
    flat = {"w": torch.zeros(2)}
    same, _ = optimizer.step(lambda p: pn.tree.map(torch.zeros_like, p), flat, inner.init(flat))
    assert pn.tree.equal(same, flat)


@pytest.mark.parametrize("donate", [None, False, True])
def test_states_of_something_else(donate: bool | None, wrapped: optim.GradientTransformation, problem: Any) -> None:
    """The state of another transformation is refused, by `update` and by `step`, and named."""
    p = problem.params
    grads, wrong = pn.grad(problem.loss)(p), optim.sgd(0.1).init(p)
    expected = f"the {type(wrapped.init(p)).__name__} that init(params) makes, got a SgdState."
    with pytest.raises(ArgumentError) as error:
        wrapped.update(grads, wrong, p) if donate is None else wrapped.step(p, grads, wrong, donate=donate)
    assert str(error.value).split(": the state must be ")[1] == expected


def test_errors(problem: Any) -> None:
    """Settings that make no sense are refused, when they are given."""
    p = problem.params
    tensor = torch.tensor([1, 2])
    cases = {
        "sgd: momentum must not be negative, got -1.": lambda: optim.sgd(0.1, momentum=-1),
        "sgd: nesterov=True needs a momentum above 0.": lambda: optim.sgd(0.1, nesterov=True),
        "sgd: nesterov=True needs dampening=0.": lambda: optim.sgd(0.1, momentum=0.9, dampening=0.1, nesterov=True),
        "adam: both betas must be at least 0 and below 1, got (0.9, 1.0).": lambda: optim.adam(0.1, betas=(0.9, 1.0)),
        "adam: betas must be a pair of numbers, got 0.9.": lambda: optim.adam(0.1, betas=0.9),  # pyright: ignore
        "adam: eps must not be negative, got -1.": lambda: optim.adam(0.1, eps=-1),
        "adamw: learning_rate must be a number, a tensor or a schedule (a function of the number of steps done), got "
        "'fast'.": lambda: optim.adamw("fast"),  # pyright: ignore
        "lion: learning_rate as a tensor must be floating and without dimensions, got int64 of shape [2].": (
            lambda: optim.lion(tensor)
        ),
        "rmsprop: decay must be at least 0 and below 1, got 1.": lambda: optim.rmsprop(0.1, decay=1),
        "rprop: learning_rate is the step size at the beginning and cannot be a schedule.": (
            lambda: optim.rprop(lambda step: 0.1)  # pyright: ignore
        ),
        "rprop: etas must be a number between 0 and 1 and one above 1, got (1.2, 0.5).": (
            lambda: optim.rprop(0.1, etas=(1.2, 0.5))
        ),
        "adafactor: beta2_decay must not be positive, got 0.8.": lambda: optim.adafactor(0.1, beta2_decay=0.8),
        "adafactor: 'w' is c64[2], but complex parameters have no root mean square here; use adam for them.": (
            lambda: optim.adafactor(0.1).init({"w": torch.ones(2, dtype=torch.complex64)})
        ),
        "muon: scaling must be 'original' or 'match_rms_adamw', got 'none'.": lambda: optim.muon(0.1, scaling="none"),
        "muon: iterations must be at least 1, got 0.": lambda: optim.muon(0.1, iterations=0),
        "muon: 'vector' is f64[5] and no real matrix: leave it out of `matrices`.": (
            lambda: optim.muon(0.1, matrices=["matrix", "vector"]).init(p)
        ),
        "chain needs at least one transformation, got none.": lambda: optim.chain(),
        "scale: factor must be a number or a tensor; for a schedule there is scale_by_schedule.": (
            lambda: optim.scale(lambda step: 1.0)  # pyright: ignore
        ),
        "scale_by_schedule: schedule must be a function of the step, got 0.1.": (
            lambda: optim.scale_by_schedule(0.1)  # pyright: ignore
        ),
        "clip_by_value: limit must not be negative, got -1.": lambda: optim.clip_by_value(-1),
        "accumulate: every must be an integer of at least 1, got 0.": lambda: optim.accumulate(optim.sgd(0.1), 0),
        "lookahead: every must be an integer of at least 1, got 0.": lambda: optim.lookahead(optim.sgd(0.1), every=0),
        "lookahead: share must be above 0 and at most 1, got 0.": lambda: optim.lookahead(optim.sgd(0.1), share=0),
        "ema: decay must be at least 0 and below 1, got 1.": lambda: optim.ema(optim.sgd(0.1), 1),
        "sam: radius must not be negative, got -1.": lambda: optim.sam(optim.sgd(0.1), radius=-1),
        "inject_hyperparams: set_to_zero is given no float, floating tensor or schedule.": (
            lambda: optim.inject_hyperparams(optim.set_to_zero)()
        ),
        "multi_transform: 'matrix' is hit by the selections 0 and 1: make them disjoint.": lambda: (
            optim.multi_transform([("matrix", optim.sgd(0.1)), ("m*", optim.adam(0.1))]).init(p)
        ),
        "multi_transform: no selection hits 'scalar' and 2 other leaves: give a transformation for them as default.": (
            lambda: optim.multi_transform([("matrix", optim.sgd(0.1))]).init(p)
        ),
        "multi_transform: the selection (paths 'nothing') is empty in this Weights; its nodes are: scalar, offset, "
        "vector, matrix, stack.": lambda: optim.multi_transform([("nothing", optim.sgd(0.1))]).init(p),
    }
    for text, call in cases.items():
        with pytest.raises((ArgumentError, SelectionError, ShapeError)) as error:
            call()
        assert str(error.value) == text
