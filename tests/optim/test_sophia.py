"""Sophia against its algorithm, and the estimates of curvature that it lives on."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn import optim
from purenn.errors import ArgumentError, ShapeError, StructureError
from purenn.layers import Linear, linear

DOUBLE = torch.float64


def test_equals_its_algorithm(problem: Any) -> None:
    """Twelve steps, with the curvature observed before every fourth, are those of the paper, by every path."""
    key, estimate = pn.random.key(3, problem.params.matrix.device), optim.hutchinson_diagonal(problem.loss)
    right, memories = problem.params, [[0.0, 0.0] for _ in pn.tree.leaves(problem.params)]
    optimizer = optim.sophia(0.05, momentum=0.8, scale=0.5, eps=1e-3, weight_decay=0.1)
    plain, fast, donated = problem.params, problem.params, pn.tree.contiguous(problem.params)
    states = [optimizer.init(p) for p in (plain, fast, donated)]

    def one(w: Tensor, g: Tensor, h: Any, kept: Any, number: int) -> Tensor:
        kept[0] = 0.8 * kept[0] + 0.2 * g
        if number % 4 == 0:
            kept[1] = 0.9 * kept[1] + 0.1 * h
        step = (kept[0] / torch.clamp(0.5 * torch.as_tensor(kept[1]), min=1e-3)).clamp(-1, 1)
        return w - 0.05 * 0.1 * w - 0.05 * step

    for number in range(12):
        observed, grads = estimate(pn.random.fold_in(key, number), right), pn.grad(problem.loss)(right)
        if number % 4 == 0:
            states = [optim.observe_curvature(state, observed, decay=0.9) for state in states]
        memory = iter(memories)
        right = pn.tree.map(
            lambda w, g, h, n=number, memory=memory: one(w, g, h, next(memory), n), right, grads, observed
        )
        updates, states[0] = optimizer.update(grads, states[0], plain)
        plain = optim.apply_updates(plain, updates)
        fast, states[1] = optimizer.step(fast, grads, states[1])
        donated, states[2] = optimizer.step(donated, pn.tree.contiguous(grads), states[2], donate=True)
        for ours in (plain, fast, donated):
            assert pn.tree.allclose(ours, right, rtol=0, atol=1e-12)


def test_hutchinson_is_unbiased(device: torch.device) -> None:
    """The mean of many estimates is the Hessian's diagonal; where that is all there is, each one is."""
    p = pn.tree.to(Linear.init(pn.random.key(0), 3, 2, dtype=DOUBLE), device)
    x = pn.random.normal(pn.random.key(1, device), (5, 3), dtype=DOUBLE)

    def loss(p: Linear) -> Tensor:
        return linear(p, x).sin().square().sum()

    keys = pn.random.split(pn.random.key(2, device), 4000)
    samples = pn.vmap(optim.hutchinson_diagonal(loss), (0, None))(keys, p)
    blocks = pn.hessian(loss)(p)
    for name, right in (("weight", blocks.weight.weight.reshape(6, 6)), ("bias", blocks.bias.bias)):
        drawn = getattr(samples, name).flatten(1)
        error = (drawn.mean(0) - right.diagonal()).abs()
        assert (error < 5 * drawn.std(0) / math.sqrt(4000) + 1e-12).all(), name
    w = torch.tensor([1.0, -2.0], dtype=DOUBLE, device=device)
    assert torch.allclose(optim.hutchinson_diagonal(lambda w: (w**4).sum())(keys[0], w), 12 * w**2, rtol=1e-12)


def test_gauss_newton_bartlett_is_unbiased(device: torch.device) -> None:
    """The mean of many estimates is the diagonal of the Gauss-Newton matrix of the mean cross entropy."""
    p = pn.tree.to(Linear.init(pn.random.key(0), 3, 4, dtype=DOUBLE), device)
    x = pn.random.normal(pn.random.key(1, device), (5, 3), dtype=DOUBLE)
    keys = pn.random.split(pn.random.key(2, device), 4000)
    samples = pn.vmap(optim.gauss_newton_bartlett(linear), (0, None, None))(keys, p, x)
    jacobian = pn.jacrev(linear)(p, x).weight.reshape(5, 4, 12)
    probabilities = linear(p, x).softmax(-1)
    of_logits = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
    right = torch.einsum("bip,bij,bjp->p", jacobian, of_logits, jacobian) / 5
    drawn = samples.weight.flatten(1)
    assert ((drawn.mean(0) - right).abs() < 5 * drawn.std(0) / math.sqrt(4000)).all()


def test_learns_faster_than_signs(device: torch.device) -> None:
    """With the curvature observed, a badly scaled problem is solved that steps by the sign do not solve."""
    scales = torch.logspace(-2, 2, 5, dtype=DOUBLE, device=device)

    def loss(w: Tensor) -> Tensor:
        return (scales * (w - 1).square()).sum()

    optimizer = optim.sophia(0.2, momentum=0.5, scale=1.0, weight_decay=0.0)
    estimate, start = optim.hutchinson_diagonal(loss), torch.zeros(5, dtype=DOUBLE, device=device)
    ends = []
    for observes in (True, False):
        w, state = start, optimizer.init(start)
        for key in pn.random.split(pn.random.key(0, device), 60).unbind(0):
            if observes:
                state = optim.observe_curvature(state, estimate(key, w), decay=0.0)
            w, state = optimizer.step(w, pn.grad(loss)(w), state)
        ends.append(float(loss(w)))
    assert ends[0] < 1e-4 * ends[1]


def test_errors(device: torch.device) -> None:
    """Wrong settings, trees and logits are named."""
    for options, expected in (
        ({"eps": 0.0}, "sophia: eps must be a positive number, got 0.0."),
        ({"scale": -1.0}, "sophia: scale must not be negative, got -1.0."),
        ({"momentum": 1.0}, "sophia: momentum must be at least 0 and below 1, got 1.0."),
    ):
        options: Any
        with pytest.raises(ArgumentError) as error:
            optim.sophia(0.1, **options)
        assert str(error.value) == expected
    w = {"w": torch.ones(2, device=device)}
    state = optim.sophia(0.1).init(w)
    with pytest.raises(ArgumentError) as error:
        optim.observe_curvature(state, w, decay=1.0)
    assert str(error.value) == "observe_curvature: decay must be at least 0 and below 1, got 1.0."
    with pytest.raises(StructureError):
        optim.observe_curvature(state, {"v": w["w"]})
    with pytest.raises(ArgumentError) as error:
        optim.observe_curvature(optim.chain(optim.sophia(0.1)).init(w), w)  # pyright: ignore[reportArgumentType]
    assert str(error.value) == (
        "observe_curvature: the state must be the SophiaState that init(params) makes, got a ChainState."
    )
    with pytest.raises(ShapeError) as error:
        optim.gauss_newton_bartlett(lambda w: w["w"])(pn.random.key(0, device), w)
    assert str(error.value) == ("gauss_newton_bartlett: the logits must have the shape [*batch, classes], got f32[2].")
