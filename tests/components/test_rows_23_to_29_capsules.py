"""Rows 23 to 29 of the list of components: capsules, their networks and losses."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _reference import numbers, same
from torch import Tensor

import purenn as pn
from purenn import layers, losses, ops
from purenn.errors import ArgumentError, ShapeError
from purenn.models import CapsNet, EfficientCapsNet, capsnet


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device)


def squashed(s: Tensor) -> Tensor:
    """``n^2 / (1 + n^2) * s / n``, by hand, in float64."""
    n = s.double().square().sum(-1, keepdim=True).sqrt()
    return (n / (1 + n * n)) * s.double()


def routed(weight: Tensor, u: Tensor, iterations: int) -> Tensor:
    """Algorithm 1 of Sabour et al. 2017, with loops over all capsules."""
    out_caps, in_caps = weight.shape[:2]
    votes = torch.stack([torch.stack([weight[j, i] @ u[i] for i in range(in_caps)]) for j in range(out_caps)])
    logits = torch.zeros(out_caps, in_caps, dtype=weight.dtype, device=weight.device)
    for _ in range(iterations):
        shares = logits.exp() / logits.exp().sum(0)
        v = squashed((shares[..., None] * votes).sum(1))
        logits = logits + (votes * v[:, None]).sum(-1)
    return v


def test_row_23_squash(device: torch.device) -> None:
    """It is ``n / (1 + n^2) * s``, finite with its gradient at 0, and right in half precision at n = 300."""
    s = numbers(5, 8, device=device)
    same(ops.squash(s), squashed(s))
    zero = torch.zeros(8, dtype=torch.float64, device=device)
    assert (ops.squash(zero) == 0).all()
    assert pn.grad(lambda s: ops.squash(s).sum())(zero).isfinite().all()
    long = torch.full((9,), 100.0, dtype=torch.float16, device=device)  # n = 300, whose square is no float16
    y = ops.squash(long)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), squashed(long), rtol=0, atol=1e-3)


def test_row_24_dynamic_routing(device: torch.device) -> None:
    """[in_caps, 8] becomes [out_caps, 16] for each example, as in the paper; vmap of it is the batched form."""
    p = layers.DynamicRouting.init(key(device), 6, 4, dtype=torch.float64)
    assert p.weight.shape == (4, 6, 16, 8)
    assert p.iterations == 3
    u = numbers(3, 6, 8, device=device)
    expected = torch.stack([routed(p.weight, one, 3) for one in u])
    same(layers.dynamic_routing(p.weight, u[0]), expected[0])
    same(pn.vmap(lambda u: layers.dynamic_routing(p.weight, u))(u), expected)
    same(layers.routing(p, u), expected)
    half = layers.dynamic_routing(p.weight.half(), u[0].half())
    assert half.dtype == torch.float16


def test_row_24_gradients_and_errors(device: torch.device) -> None:
    """The gradient goes through all iterations unless stopped; no iterations and wrong shapes are errors."""
    weight, u = numbers(3, 4, 5, 2, device=device), numbers(4, 2, seed=1, device=device)
    full = torch.func.grad(lambda w: layers.dynamic_routing(w, u).sin().sum())(weight)
    same(full, torch.func.grad(lambda w: routed(w, u, 3).sin().sum())(weight))
    stopped = torch.func.grad(lambda w: layers.dynamic_routing(w, u, stop_gradient=True).sin().sum())(weight)
    assert not torch.allclose(full, stopped)
    same(layers.dynamic_routing(weight, u, stop_gradient=True), layers.dynamic_routing(weight, u))
    with pytest.raises(ArgumentError):
        layers.dynamic_routing(weight, u, iterations=0)
    with pytest.raises(ShapeError):
        layers.dynamic_routing(weight, u.mT)


def test_row_24_initial_weights(device: torch.device) -> None:
    """With 1152 capsules the first weights leave outputs that are not saturated."""
    p = layers.DynamicRouting.init(key(device), 1152, 10)
    assert 0.01 <= p.weight.std() <= 0.06
    u = ops.squash(torch.randn(1152, 8, generator=torch.Generator().manual_seed(0)).to(device))
    assert layers.routing(p, u).norm(dim=-1).max() < 0.9


@pytest.mark.parametrize("memory", ["auto", "votes", "folded", "tiled"])
def test_row_25_lean_routing(memory: str, device: torch.device) -> None:
    """All ways to hold the routing's state agree to 1e-12 in float64, in values and gradients."""
    weight, u = numbers(3, 12, 5, 4, device=device), numbers(2, 12, 4, seed=1, device=device)

    def loss(weight: Tensor, u: Tensor) -> Tensor:
        return ops.route_by_agreement(weight, u, memory=memory).sin().sum()

    expected = torch.stack([routed(weight, one, 3) for one in u])
    same(ops.route_by_agreement(weight, u, memory=memory), expected, tolerance=1e-12)
    by_hand = torch.func.grad(lambda w: sum(routed(w, one, 3).sin().sum() for one in u))(weight)
    same(torch.func.grad(loss)(weight, u), by_hand, tolerance=1e-12)


def test_row_26_squash_of_self_attention_routing(device: torch.device) -> None:
    """Efficient-CapsNet's squash is ``(1 - exp(-n)) s / n``, 0 at 0."""
    s = numbers(5, 8, device=device)
    n = s.square().sum(-1, keepdim=True).sqrt()
    same(ops.squash_exponential(s), (1 - (-n).exp()) * s / n)
    assert (ops.squash_exponential(torch.zeros(3, device=device)) == 0).all()


ROUTINGS: dict[str, Callable[[Tensor], Any]] = {
    "agreement": lambda _: layers.AgreementRouting(),
    "EM": lambda k: layers.EMRouting.init(3, dtype=torch.float64, device=k.device),
    "self": lambda k: layers.SelfRouting.init(k, 5, 3, in_dim=4, dtype=torch.float64),
    "attention": lambda k: layers.AttentionRouting.init(5, 3, dtype=torch.float64, device=k.device),
}


@pytest.mark.parametrize("name", ROUTINGS)
def test_row_26_one_interface_for_all_routings(name: str, device: torch.device) -> None:
    """Each is the `routing` of the same capsules, per example, and vmap of that is the batched form."""
    routing = ROUTINGS[name](key(device, 1))
    p = layers.Capsules.init(key(device), 5, 3, routing, in_dim=4, out_dim=6, dtype=torch.float64)
    poses, activations = numbers(2, 5, 4, device=device), numbers(2, 5, seed=1, device=device).sigmoid()
    batched = layers.capsules(p, poses, activations)
    assert batched.poses.shape == (2, 3, 6)
    assert batched.activations.shape == (2, 3)
    same(tuple(pn.vmap(lambda u, a: layers.capsules(p, u, a))(poses, activations)), tuple(batched))
    assert ((batched.activations >= 0) & (batched.activations <= 1)).all()


def test_row_27_primary_capsules(device: torch.device) -> None:
    """A capsule is made of neighbouring channels at one pixel, not of neighbouring pixels."""
    p = layers.PrimaryCapsules.init(key(device), 3, types=2, dim=4, kernel_size=3, dtype=torch.float64)
    x = numbers(2, 3, 7, 7, device=device)
    maps = torch.nn.functional.conv2d(x, p.conv.weight, p.conv.bias, stride=2)
    own = [squashed(maps[:, 4 * kind : 4 * kind + 4, i, j]) for kind in range(2) for i in range(3) for j in range(3)]
    found, expected = layers.primary_capsules(p, x), torch.stack(own, 1)
    assert found.shape == (2, 18, 4)
    # In whatever order capsules come, each must be there.
    distances = (found[:, :, None] - expected[:, None]).abs().amax(-1)
    assert (distances.amin(-1) < 1e-12).all()
    assert (distances.amin(-2) < 1e-12).all()


def test_row_28_networks(device: torch.device) -> None:
    """CapsNet has 8,215,568 parameters for 28 x 28 images and 10 classes, 6,804,224 without its decoder."""
    p = CapsNet.init(pn.random.key(0), device="meta")
    assert pn.tree.count(p) == 8_215_568
    without = CapsNet.init(pn.random.key(0), decoder=None, device="meta")
    assert pn.tree.count(without) == 6_804_224
    efficient = EfficientCapsNet.init(pn.random.key(0), device="meta")
    norms = sum(pn.tree.count(part) for part in pn.tree.select(efficient).instances(layers.BatchNorm2d).get())
    assert (pn.tree.count(efficient) - norms, norms) == (161_248, 576)
    out = capsnet(p, torch.empty(2, 1, 28, 28, device="meta"))
    assert out.lengths.shape == (2, 10)
    assert out.poses.shape == (2, 10, 16)
    assert out.reconstruction.shape == (2, 1, 28, 28)


def test_row_29_losses(device: torch.device) -> None:
    """Margins 0.9 and 0.1, weight 0.5, summed over classes; 0.0005 times the sum of squares of each image."""
    lengths = numbers(4, 3, device=device).sigmoid()
    target = torch.tensor([0, 2, 1, 2], device=device)
    total = 0.0
    for example, label in enumerate(target.tolist()):
        for number in range(3):
            v = lengths[example, number].item()
            total += max(0, 0.9 - v) ** 2 if number == label else 0.5 * max(0, v - 0.1) ** 2
    assert math.isclose(losses.margin_loss(lengths, target).item(), total / 4, rel_tol=1e-12)
    spread = sum(
        max(0, 0.9 - (lengths[example, label] - lengths[example, number]).item()) ** 2
        for example, label in enumerate(target.tolist())
        for number in range(3)
        if number != label
    )
    assert math.isclose(losses.spread_loss(lengths, target).item(), spread / 4, rel_tol=1e-12)
    made, image = numbers(4, 1, 5, 5, device=device), numbers(4, 1, 5, 5, seed=1, device=device)
    same(losses.reconstruction_loss(made, image), 0.0005 * ((made - image) ** 2).sum() / 4)
