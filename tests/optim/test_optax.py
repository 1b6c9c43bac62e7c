"""What torch.optim does not have against Optax: live where it is installed, everywhere against its recorded figures."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn import optim

Steps = Iterator[list[Tensor]]


class Case(NamedTuple):
    """Our parameters after every step, Optax's, and the `figure` of the latter after 10 and after 50 steps."""

    ours: Callable[[Any], Steps]
    theirs: Callable[["Optax"], Steps]
    recorded: tuple[float, float]


def figure(leaves: list[Tensor]) -> float:
    """All parameters in one number."""
    flat = torch.cat([leaf.detach().cpu().reshape(-1) for leaf in leaves])
    return float(flat @ torch.arange(len(flat), dtype=flat.dtype).cos())


def trained(p: Any) -> list[Tensor]:
    """The leaves that are trained."""
    return pn.tree.leaves(pn.tree.partition(p)[0])


def require(steps: Steps, recorded: tuple[float, float]) -> None:
    """Fifty steps give the recorded figures."""
    found = [figure(next(steps)) for _ in range(50)]
    assert (found[9], found[49]) == pytest.approx(recorded, rel=0, abs=1e-9)


def our_steps(optimizer: Any, problem: Any) -> Steps:
    """Our parameters after every step."""
    p = problem.params
    state = optimizer.init(p)
    while True:
        p, state = optimizer.step(p, pn.grad(problem.loss)(p), state)
        yield trained(p)


class Optax:
    """Optax's side: arrays in float64, gradients of our loss."""

    def __init__(self, problem: Any) -> None:
        self.optax, self.jax = pytest.importorskip("optax"), pytest.importorskip("jax")
        self.problem = problem

    def arrays(self, leaves: list[Tensor]) -> list[Any]:
        """Tensors as arrays."""
        return [self.jax.numpy.asarray(leaf.detach().cpu().numpy()) for leaf in leaves]

    def tensors(self, arrays: list[Any]) -> list[Tensor]:
        """Arrays as tensors."""
        return [torch.tensor(array.tolist(), dtype=torch.float64) for array in arrays]

    def start(self) -> list[Any]:
        """The first parameters."""
        return self.arrays(trained(self.problem.params))

    def gradient(self, arrays: list[Any]) -> list[Any]:
        """The gradient of the loss."""
        part, rest = pn.tree.partition(self.problem.params)
        values = iter(self.tensors(arrays))
        p = pn.tree.combine(pn.tree.map(lambda w: next(values).to(w.device), part), rest)
        return self.arrays(pn.tree.leaves(pn.grad(self.problem.loss)(p)))

    def steps(self, optimizer: Any) -> Steps:
        """The parameters after every step."""
        p = self.start()
        state, update = optimizer.init(p), self.jax.jit(optimizer.update)
        while True:
            updates, state = update(self.gradient(p), state, p)
            p = self.optax.apply_updates(p, updates)
            yield self.tensors(p)


def our_averages(problem: Any) -> Steps:
    """The averages of `ema`."""
    p, optimizer = problem.params, optim.ema(optim.sgd(0.1), 0.9)
    state = optimizer.init(p)
    while True:
        p, state = optimizer.step(p, pn.grad(problem.loss)(p), state)
        yield trained(state.average)


def their_averages(other: Optax) -> Steps:
    """The averages of `optax.incremental_update`."""
    average = other.arrays(trained(other.problem.params))
    for leaves in other.steps(other.optax.sgd(0.1)):
        average = other.optax.incremental_update(other.arrays(leaves), average, 1 - 0.9)
        yield other.tensors(average)


def their_lookahead(other: Optax) -> Steps:
    """The fast parameters of `optax.lookahead`."""
    optimizer = other.optax.lookahead(other.optax.adam(0.05), 4, 0.3)
    p = other.optax.LookaheadParams.init_synced(other.start())
    state, update = optimizer.init(p), other.jax.jit(optimizer.update)
    while True:
        updates, state = update(other.gradient(p.fast), state, p)
        p = other.optax.apply_updates(p, updates)
        yield other.tensors(p.fast)


def our_sam(problem: Any) -> Steps:
    """The parameters of `sam`."""
    p, optimizer = problem.params, optim.sam(optim.sgd(0.1, momentum=0.9), radius=0.05)
    state = optimizer.init(p)
    while True:
        p, state = optimizer.step(pn.grad(problem.loss), p, state)
        yield trained(p)


def their_sam(other: Optax) -> Steps:
    """The parameters of `optax.contrib.sam`."""
    contrib, sgd = other.optax.contrib, other.optax.sgd
    uphill = other.optax.chain(contrib.normalize(), sgd(0.05))
    optimizer, p = contrib.sam(sgd(0.1, 0.9), uphill, opaque_mode=True), other.start()
    state = optimizer.init(p)
    while True:
        updates, state = optimizer.update(other.gradient(p), state, p, grad_fn=lambda p, _: other.gradient(p))
        p = other.optax.apply_updates(p, updates)
        yield other.tensors(p)


def our_sophia(problem: Any) -> Steps:
    """The parameters of `sophia`, with the squared gradient for the curvature, observed after every second step."""
    p, optimizer = problem.params, optim.sophia(0.02, momentum=0.0, scale=2.0, eps=1e-3, weight_decay=0.1)
    state = optimizer.init(p)
    for number in itertools.count():
        grads = pn.grad(problem.loss)(p)
        p, state = optimizer.step(p, grads, state)
        if number % 2 == 0:
            state = optim.observe_curvature(state, pn.tree.map(torch.square, grads), decay=0.9)
        yield trained(p)


def their_sophia(other: Optax) -> Steps:
    """The parameters of `optax.contrib.sophia`, which corrects the running mean, so that there is none here."""
    square = other.optax.stateless(lambda updates, _: [update**2 for update in updates])
    optimizer = other.optax.contrib.sophia(
        0.02, 0.0, 0.9, 1e-3, 0.1, gamma=2.0, update_interval=2, hessian_diagonal_fn=square
    )
    return other.steps(optimizer)


def decayed(optax: Any, rate: float) -> Any:
    """Weight decay of the matrix only, the third of the leaves."""
    return optax.add_decayed_weights(rate, mask=[False, False, True, False])


def wide(schedule: Any) -> Any:
    """A schedule of Optax in float64, whatever its steps are counted in."""
    return lambda count: schedule(count.astype("float64"))


def simple(ours: Callable[[], Any], theirs: Callable[[Any], Any], recorded: tuple[float, float]) -> Case:
    """A transformation of gradients."""
    return Case(lambda problem: our_steps(ours(), problem), lambda other: other.steps(theirs(other.optax)), recorded)


CASES = {
    "lion": simple(
        lambda: optim.lion(0.01, weight_decay=0.1),
        lambda optax: optax.lion(0.01, weight_decay=0.1),
        (-14.0511134768, -16.9963210597),
    ),
    "lion options": simple(
        lambda: optim.lion(0.02, betas=(0.7, 0.95), weight_decay=0.0, maximize=True),
        lambda optax: optax.chain(optax.scale(-1), optax.lion(0.02, b1=0.7, b2=0.95, weight_decay=0.0)),
        (-10.887841658, -10.9054592023),
    ),
    "lamb": simple(
        lambda: optim.lamb(0.01, weight_decay=0.1),
        lambda optax: optax.lamb(0.01, weight_decay=0.1),
        (-13.9648438188, -15.6759105779),
    ),
    "lamb options": simple(
        lambda: optim.lamb(0.02, betas=(0.8, 0.9), eps=1e-3, maximize=True),
        lambda optax: optax.chain(optax.scale(-1), optax.lamb(0.02, b1=0.8, b2=0.9, eps=1e-3)),
        (-10.6244554218, -11.40291358),
    ),
    "clip_by_global_norm": simple(
        lambda: optim.chain(optim.clip_by_global_norm(0.5), optim.sgd(0.1)),
        lambda optax: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
        (-13.4201688761, -14.1724393191),
    ),
    "clip_by_value": simple(
        lambda: optim.chain(optim.clip_by_value(0.1), optim.sgd(0.1)),
        lambda optax: optax.chain(optax.clip(0.1), optax.sgd(0.1)),
        (-13.3895413732, -14.7813689726),
    ),
    "adaptive_grad_clip": simple(
        lambda: optim.chain(optim.adaptive_grad_clip(0.1, eps=0.5), optim.sgd(0.1)),
        lambda optax: optax.chain(
            # Optax has the outputs of a layer in the last axis.
            optax.partition(
                {
                    "whole": optax.adaptive_grad_clip(0.1, 0.5),
                    "rows": optax.adaptive_grad_clip(0.1, 0.5, axis=1),
                    "blocks": optax.adaptive_grad_clip(0.1, 0.5, axis=(1, 2)),
                },
                ["whole", "whole", "rows", "blocks"],
            ),
            optax.sgd(0.1),
        ),
        (-13.3146218727, -14.6517679231),
    ),
    "add_decayed_weights": simple(
        lambda: optim.chain(
            optim.masked(optim.add_decayed_weights(0.1), "matrix"), optim.add_decayed_weights(0.05), optim.sgd(0.1)
        ),
        lambda optax: optax.chain(decayed(optax, 0.1), optax.add_decayed_weights(0.05), optax.sgd(0.1)),
        (-12.6177678727, -9.9870873573),
    ),
    "adamw decayed": simple(
        lambda: optim.adamw(0.02, weight_decay=0.3, decayed="matrix"),
        lambda optax: optax.adamw(0.02, weight_decay=0.3, mask=[False, False, True, False]),
        (-15.1097069524, -17.8451259656),
    ),
    "scale and scale_by_schedule": simple(
        lambda: optim.chain(optim.scale_by_schedule(optim.linear_schedule(1.0, 0.1, 30)), optim.scale(-0.1)),
        lambda optax: optax.chain(
            optax.scale_by_schedule(wide(optax.linear_schedule(1.0, 0.1, 30))), optax.scale(-0.1)
        ),
        (-13.5050078759, -13.6914463737),
    ),
    "schedule": simple(
        lambda: optim.adam(optim.cosine_schedule(0.05, 40, warmup_steps=5, end=0.01)),
        lambda optax: optax.adam(wide(optax.warmup_cosine_decay_schedule(0.0, 0.05, 5, 40, 0.01))),
        (-16.8427863552, -17.9228735639),
    ),
    "inject_hyperparams": simple(
        lambda: optim.inject_hyperparams(optim.adam)(optim.exponential_schedule(0.1, 0.9), betas=(0.8, 0.9), eps=1e-3),
        lambda optax: optax.inject_hyperparams(optax.adam, hyperparam_dtype="float64")(
            wide(optax.exponential_decay(0.1, 1, 0.9)), 0.8, 0.9, 1e-3
        ),
        (-17.6336057972, -17.4845807283),
    ),
    "multi_transform": simple(
        lambda: optim.multi_transform(
            [("matrix", optim.sgd(0.1, momentum=0.9)), ("scalar", optim.set_to_zero())], default=optim.adam(0.02)
        ),
        lambda optax: optax.partition(
            {"fast": optax.sgd(0.1, 0.9), "none": optax.set_to_zero(), "rest": optax.adam(0.02)},
            ["none", "rest", "fast", "rest"],
        ),
        (-14.9941395177, -18.6303653504),
    ),
    "accumulate": simple(
        lambda: optim.accumulate(optim.adam(0.05), 3),
        lambda optax: optax.MultiSteps(optax.adam(0.05), 3, accumulator_dtype="float64"),
        (-14.7381213934, -18.0975359311),
    ),
    "ema": Case(our_averages, their_averages, (-13.1781785877, -14.0709547789)),
    "lookahead": Case(
        lambda problem: our_steps(optim.lookahead(optim.adam(0.05), every=4, share=0.3), problem),
        their_lookahead,
        (-15.3787443816, -18.4807177891),
    ),
    "sam": Case(our_sam, their_sam, (-15.2037636799, -20.4148193677)),
    "sophia": Case(our_sophia, their_sophia, (-14.9055508551, -14.8800986127)),
}


@pytest.fixture
def optax(problem: Any) -> Iterator[Optax]:
    """Optax in float64, if it is installed."""
    other = Optax(problem)
    with other.jax.enable_x64(True):
        yield other


@pytest.mark.parametrize("name", CASES)
def test_equals_recorded(name: str, problem: Any) -> None:
    """Fifty steps give the figures that Optax has given."""
    require(CASES[name].ours(problem), CASES[name].recorded)


@pytest.mark.parametrize("name", CASES)
def test_recorded(name: str, optax: Optax) -> None:
    """The figures are Optax's."""
    require(CASES[name].theirs(optax), CASES[name].recorded)


SCHEDULES = {
    "constant": (optim.constant_schedule(0.1), lambda optax: optax.constant_schedule(0.1)),
    "linear": (optim.linear_schedule(0.1, 0.02, 20), lambda optax: optax.linear_schedule(0.1, 0.02, 20)),
    "polynomial": (
        optim.polynomial_schedule(0.1, 0.02, 20, power=2.5),
        lambda optax: optax.polynomial_schedule(0.1, 0.02, 2.5, 20),
    ),
    "cosine": (optim.cosine_schedule(0.1, 20, end=0.01), lambda optax: optax.cosine_decay_schedule(0.1, 20, alpha=0.1)),
    "cosine with warm-up": (
        optim.cosine_schedule(0.1, 20, warmup_steps=5, start=0.02, end=0.01),
        lambda optax: optax.warmup_cosine_decay_schedule(0.02, 0.1, 5, 20, 0.01),
    ),
    # Optax counts the steps between the values, we count the values.
    "one cycle": (
        optim.one_cycle_schedule(0.1, 21, rise=7 / 21),
        lambda optax: optax.cosine_onecycle_schedule(20, 0.1, pct_start=0.3),
    ),
    "one cycle, three phases": (
        optim.one_cycle_schedule(0.1, 21, rise=7 / 21, linear=True, three_phases=True),
        lambda optax: optax.linear_onecycle_schedule(20, 0.1, pct_start=0.3, pct_final=0.6),
    ),
    "piecewise": (
        optim.piecewise_schedule([0.1, 0.05, 0.005], [5, 12]),
        lambda optax: optax.piecewise_constant_schedule(0.1, {5: 0.5, 12: 0.1}),
    ),
    "exponential": (
        optim.exponential_schedule(0.1, 0.5, steps=6, end=0.02),
        lambda optax: optax.exponential_decay(0.1, 6, 0.5, end_value=0.02),
    ),
    "exponential, staircase": (
        optim.exponential_schedule(0.1, 1.5, steps=6, staircase=True, end=0.3),
        lambda optax: optax.exponential_decay(0.1, 6, 1.5, staircase=True, end_value=0.3),
    ),
    "join": (
        optim.join_schedules([optim.linear_schedule(0.0, 0.1, 5), optim.exponential_schedule(0.1, 0.9)], [5]),
        lambda optax: optax.join_schedules(
            [optax.linear_schedule(0.0, 0.1, 5), optax.exponential_decay(0.1, 1, 0.9)], [5]
        ),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str, optax: Optax) -> None:
    """From the first step to far beyond the last one a schedule has Optax's values."""
    ours, make = SCHEDULES[name]
    theirs = make(optax.optax)
    for step in (*range(30), 1000):
        right = pytest.approx(float(theirs(optax.jax.numpy.asarray(step))), rel=0, abs=1e-12)
        assert ours(step) == right
        assert float(ours(torch.tensor(step))) == right
