"""Every optimiser against an independent implementation: torch.optim, or the formulas of the paper as a plain loop.

What torch does not have is held against Optax in `test_optax`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn import optim


def trained_by_torch(p: Any, make: Any) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """Copies of the trained leaves, and torch's optimiser of them."""
    leaves = [leaf.clone().requires_grad_() for leaf in pn.tree.leaves(pn.tree.partition(p)[0])]
    return leaves, make(leaves)


def with_leaves(p: Any, leaves: list[Tensor]) -> Any:
    """The parameters with other values for the trained leaves."""
    values = iter(leaves)
    part, rest = pn.tree.partition(p)
    return pn.tree.combine(pn.tree.map(lambda _: next(values).detach(), part), rest)


@pytest.mark.usefixtures("precise")
def test_equals_torch(torch_case: Any, problem: Any) -> None:
    """Fifty updates, fifty fast steps and fifty donated steps give torch.optim's parameters."""
    p = problem.params
    leaves, reference = trained_by_torch(p, torch_case.reference)
    optimizer = torch_case.make()
    plain, fast = (p, optimizer.init(p)), (p, optimizer.init(p))
    own = pn.tree.map(torch.clone, p)
    donated = own, optimizer.init(own)
    for _ in range(50):
        grads = pn.grad(problem.loss)(with_leaves(p, leaves))
        for leaf, grad in zip(leaves, pn.tree.leaves(grads), strict=True):
            leaf.grad = grad
        reference.step()
        updates, state = optimizer.update(grads, plain[1], plain[0])
        plain = optim.apply_updates(plain[0], updates), state
        fast = optimizer.step(fast[0], grads, fast[1])
        donated = optimizer.step(donated[0], grads, donated[1], donate=True)
    right = with_leaves(p, leaves)
    for mine, state in (plain, fast, donated):
        assert pn.tree.allclose(mine, right, rtol=1e-12, atol=1e-12)
        assert pn.tree.allclose(state, plain[1], rtol=1e-12, atol=1e-12)
    assert donated[0] is own


def side_by_side(optimizer: optim.GradientTransformation, make: Any, problem: Any) -> Any:
    """Our parameters and state, and torch's, after fifty steps with our gradients."""
    p = problem.params
    leaves, reference = trained_by_torch(p, make)
    state = optimizer.init(p)
    for _ in range(50):
        grads = pn.grad(problem.loss)(p)
        for leaf, grad in zip(leaves, pn.tree.leaves(grads), strict=True):
            leaf.grad = grad
        reference.step()
        p, state = optimizer.step(p, grads, state)
    return p, state, leaves, reference


@pytest.mark.usefixtures("precise")
def test_asgd_average_equals_torch(problem: Any) -> None:
    """The average of asgd is torch's."""
    optimizer = optim.asgd(0.05, start=3)
    _, state, leaves, reference = side_by_side(optimizer, lambda ps: torch.optim.ASGD(ps, 0.05, t0=3), problem)
    for mine, leaf in zip(pn.tree.leaves(state.average), leaves, strict=True):
        torch.testing.assert_close(mine, reference.state[leaf]["ax"], rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("precise")
def test_decoupled_adam_equals_torch(problem: Any) -> None:
    """adamw is also torch's Adam with decoupled weight decay."""
    options = {"weight_decay": 0.1, "amsgrad": True}
    p, _, leaves, _ = side_by_side(
        optim.adamw(0.05, **options),
        lambda ps: torch.optim.Adam(ps, 0.05, decoupled_weight_decay=True, **options),
        problem,
    )
    assert pn.tree.allclose(p, with_leaves(p, leaves), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("scaling", "iteration"),
    [
        ("original", {}),
        ("match_rms_adamw", {}),
        ("original", {"coefficients": (3.0, -4.0, 2.0), "iterations": 3, "eps": 2.0}),
    ],
)
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_torch(scaling: str, iteration: dict[str, Any], nesterov: bool, device: torch.device) -> None:
    """Wide and tall matrices move as by torch.optim.Muon, and the rest as by the fallback."""
    keys = pn.random.split(pn.random.key(1), 3)
    shapes = [(6, 3), (3, 5), (4,)]
    leaves = [pn.random.normal(k, s, dtype=torch.float64).to(device) for k, s in zip(keys, shapes, strict=True)]
    references = [leaf.clone().requires_grad_() for leaf in leaves]
    options = {"weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    theirs = {{"coefficients": "ns_coefficients", "iterations": "ns_steps"}.get(k, k): v for k, v in iteration.items()}
    matrices = torch.optim.Muon(references[:2], 0.02, adjust_lr_fn=scaling, **options, **theirs)
    vector = torch.optim.AdamW(references[2:], 0.02, weight_decay=0.1)
    optimizer = optim.muon(0.02, scaling=scaling, **options, **iteration)
    p: Any = tuple(leaves)
    state = optimizer.init(p)
    for _ in range(50):
        grads = [leaf.detach().sin() for leaf in references]
        for reference, grad in zip(references, grads, strict=True):
            reference.grad = grad
        matrices.step()
        vector.step()
        p, state = optimizer.step(p, tuple(grads), state)
    for mine, right in zip(p, references, strict=True):
        torch.testing.assert_close(mine, right.detach(), rtol=1e-12, atol=1e-12)


def run(optimizer: optim.GradientTransformation, problem: Any) -> Any:
    """The parameters after fifty steps."""
    p = problem.params
    state = optimizer.init(p)
    for _ in range(50):
        p, state = optimizer.step(p, pn.grad(problem.loss)(p), state)
    return p


def looped(p: Any, problem: Any, step: Any) -> Any:
    """The parameters after fifty steps ``step(number, w, g, memory) -> w`` of each leaf, with a memory of its own."""
    memories: list[dict[str, Any]] = [{} for _ in pn.tree.leaves(p)]
    for number in range(1, 51):
        grads = pn.grad(problem.loss)(p)
        memory = iter(memories)
        p = pn.tree.map(lambda w, g, number=number, memory=memory: step(number, w, g, next(memory)), p, grads)
    return p


def test_lion_equals_its_program(problem: Any) -> None:
    """Lion is the program of the paper, leaf by leaf."""

    def step(number: int, w: Tensor, g: Tensor, memory: dict[str, Any]) -> Tensor:
        mean = memory.get("mean", torch.zeros_like(w))
        memory["mean"] = 0.95 * mean + 0.05 * g
        return w - 0.01 * (torch.sign(0.8 * mean + 0.2 * g) + 0.1 * w)

    ours = run(optim.lion(0.01, betas=(0.8, 0.95), weight_decay=0.1), problem)
    assert pn.tree.allclose(ours, looped(problem.params, problem, step), rtol=0, atol=1e-12)


def test_lamb_equals_its_algorithm(problem: Any) -> None:
    """LAMB is the algorithm of the paper, leaf by leaf."""

    def step(number: int, w: Tensor, g: Tensor, memory: dict[str, Any]) -> Tensor:
        memory["mean"] = 0.8 * memory.get("mean", torch.zeros_like(w)) + 0.2 * g
        memory["square"] = 0.9 * memory.get("square", torch.zeros_like(w)) + 0.1 * g.square()
        ratio = (memory["mean"] / (1 - 0.8**number)) / ((memory["square"] / (1 - 0.9**number)).sqrt() + 1e-6)
        ratio = ratio + 0.1 * w
        return w - 0.01 * w.norm() / ratio.norm() * ratio

    ours = run(optim.lamb(0.01, betas=(0.8, 0.9), weight_decay=0.1), problem)
    assert pn.tree.allclose(ours, looped(problem.params, problem, step), rtol=0, atol=1e-12)


def test_lamb_moves_from_zero(device: torch.device) -> None:
    """A parameter that is zero, which has no norm to scale by, moves like Adam's."""
    p = {"w": torch.zeros(3, dtype=torch.float64, device=device)}
    g = {"w": torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, device=device)}
    one, other = optim.lamb(0.1, eps=1e-8), optim.adam(0.1)
    assert pn.tree.allclose(one.step(p, g, one.init(p))[0], other.step(p, g, other.init(p))[0], rtol=1e-12, atol=1e-12)
