"""Rows 44 to 52 of the list of components: what is done with a model's tree of parameters."""

import math
from typing import Any

import pytest
import torch
from _reference import numbers, same
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn import initializers, layers
from purenn.errors import DeviceError, SelectionError


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device)


def model(device: torch.device, *, bias: bool = True) -> layers.Sequential:
    """Two linear maps with a tanh between them."""
    first, second = pn.random.split(key(device))
    return layers.Sequential.of(
        layers.Linear.init(first, 4, 3, bias=bias, dtype=torch.float64),
        layers.Tanh(),
        layers.Linear.init(second, 3, 2, bias=bias, dtype=torch.float64),
    )


BOUNDS = {"xavier_uniform": math.sqrt(6 / 500), "kaiming_uniform": math.sqrt(3 / 200)}
DEVIATIONS = {
    "xavier_uniform": math.sqrt(2 / 500),
    "xavier_normal": math.sqrt(2 / 500),
    "kaiming_uniform": math.sqrt(1 / 200),
    "kaiming_normal": math.sqrt(1 / 200),
}


@pytest.mark.parametrize("name", DEVIATIONS)
def test_row_44_fans(name: str, device: torch.device) -> None:
    """Xavier's and Kaiming's have the deviations and bounds of their papers."""
    w = getattr(initializers, name)(key(device), (300, 200), dtype=torch.float64)
    gain = 1 if "xavier" in name else math.sqrt(2) if w.std() > 1.2 * DEVIATIONS[name] else 1
    assert abs(w.std() / (gain * DEVIATIONS[name]) - 1) < 0.02
    if name in BOUNDS:
        assert 0.99 < w.abs().max() / (gain * BOUNDS[name]) <= 1


def test_row_44_other_initialisers(device: torch.device) -> None:
    """Zeros, ones, a constant .5, normal .01, truncated, orthogonal, dirac, eye, sparse."""
    k, double = key(device), {"dtype": torch.float64}
    assert (initializers.zeros(k, (3, 2)) == 0).all()
    assert (initializers.ones(k, (3, 2)) == 1).all()
    assert (initializers.constant(k, (3, 2), value=0.5) == 0.5).all()
    assert abs(initializers.normal(k, (200, 200), std=0.01, **double).std() - 0.01) < 2e-4
    cut = initializers.trunc_normal(k, (300, 300), std=0.02, a=-2, b=2, **double)
    assert abs(cut.std() - 0.02) < 3e-4
    assert initializers.trunc_normal(k, (300, 300), std=2.0, a=-2, b=2, **double).abs().max() <= 2
    q = initializers.orthogonal(k, (5, 3), **double)
    same(q.mT @ q, torch.eye(3, dtype=torch.float64, device=device))
    assert torch.equal(initializers.eye(k, (3, 2), device=device), torch.eye(3, 2, device=device))
    x = numbers(1, 3, 6, device=device)
    kernel = initializers.dirac(k, (3, 3, 3), **double)
    same(nn.functional.conv1d(x, kernel, padding=1), x)
    assert ((initializers.sparse(k, (10, 4), sparsity=0.3) == 0).sum(0) == 3).all()


@pytest.mark.parametrize("bias", [True, False])
def test_row_44_on_every_linear(bias: bool, device: torch.device) -> None:
    """A selection of a tree is drawn anew, each part by its own key; where there is no bias nothing breaks."""
    p = model(device, bias=bias)
    keys = iter(pn.random.split(key(device, 1), 2))

    def again(part: layers.Linear) -> layers.Linear:
        weight = initializers.xavier_uniform(next(keys), part.weight.shape, dtype=part.weight.dtype)
        return pn.replace(part, weight=weight, bias=None if part.bias is None else torch.full_like(part.bias, 0.01))

    new = pn.tree.select(p).instances(layers.Linear).apply(again)
    assert not torch.equal(new[0].weight, p[0].weight)
    assert new[0].weight.abs().max() <= math.sqrt(6 / 7)
    assert pn.tree.count(new) == pn.tree.count(p) == (4 * 3 + 3 * 2 + (5 if bias else 0))


@pn.container
class Parts(pn.Layer):
    """Parameters in every kind of place."""

    scale: Tensor
    steps: Tensor = pn.buffer()
    listed: tuple[Tensor, ...] = ()
    named: dict[str, layers.Linear] | None = None


def test_row_45_registration(device: torch.device) -> None:
    """Fields, tuples and dicts hold parameters, buffers and children; names are those of `state_dict`."""
    one, linear = torch.ones(2, device=device), layers.Linear.init(key(device), 2, 3)
    p = Parts(one, one.clone(), (one.clone(), one.clone()), {"a": linear})
    names = ["scale", "steps", "listed.0", "listed.1", "named.a.weight", "named.a.bias"]
    assert [path for path, _ in pn.tree.named_leaves(p)] == names
    p = layers.Sequential.of(linear, layers.ReLU())
    reference = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    assert [path.removeprefix("layers.") for path, _ in pn.tree.named_leaves(p)] == list(reference.state_dict())
    assert p[0] is linear
    named = layers.Sequential.named(first=linear, last=layers.ReLU())
    assert named["first"] is linear
    assert [path for path, _ in pn.tree.named_leaves(named)] == ["layers.first.weight", "layers.first.bias"]
    assert list(bridge.to_module(named).state_dict()) == ["layers.first.weight", "layers.first.bias"]


def test_row_46_counts_names_and_repr(device: torch.device) -> None:
    """Parameters are counted, trainable or not, named, listed with their modules, and printed with their sizes."""
    p = model(device)
    assert pn.tree.count(p) == 23
    frozen = pn.tree.freeze(p, "layers.0.*")
    assert pn.tree.count(frozen, trainable=True) == 8
    assert pn.tree.count(frozen, trainable=False) == 15
    assert [path for path, _ in pn.tree.named_leaves(p)] == [
        f"layers.{n}.{leaf}" for n in (0, 2) for leaf in ("weight", "bias")
    ]
    assert "Linear(in_features=4, out_features=3, bias=True)" in repr(p)
    assert pn.summary(frozen).endswith("23 parameters, 8 trained, 0 elements in buffers")
    module = bridge.to_module(p)
    assert [name for name, _ in module.named_modules()] == ["", "layers", "layers.0", "layers.1", "layers.2"]
    assert [name for name, _ in module.named_children()] == ["layers"]


def test_row_47_moves_and_the_one_device(device: torch.device) -> None:
    """`to` moves and casts; the check names the paths that differ, knows buffers, and takes a tree without any."""
    p = layers.BatchNorm1d.init(3, device=device)
    half = pn.tree.to(p, torch.bfloat16)
    assert half.weight.dtype == half.running_mean.dtype == torch.bfloat16
    assert half.num_batches_tracked.dtype == torch.int64
    assert pn.tree.device(p) == p.weight.device
    assert pn.tree.device(layers.ReLU()) is None
    split = pn.replace(p, running_mean=p.running_mean.to("meta"))
    with pytest.raises(DeviceError) as error:
        pn.tree.device(split)
    assert "on meta: running_mean" in str(error.value)
    assert pn.tree.device(pn.tree.to(split, "meta")) == torch.device("meta")


def test_row_48_train_and_eval(device: torch.device) -> None:
    """`train=` says it to a function, `.train()` and `.eval()` to a module, with the same results."""
    p = layers.BatchNorm1d.init(3, dtype=torch.float64, device=device)
    x = numbers(5, 3, device=device)
    module = bridge.to_module(p, copy=True)
    y, new = layers.batch_norm(p, x, train=True)
    same(module.train()(x), y)
    same(module.eval()(x), layers.batch_norm(new, x)[0])
    same(dict(module.state_dict()), dict(pn.tree.named_leaves(new)))
    assert not torch.equal(y, layers.batch_norm(p, x)[0])


def test_row_49_frozen_parameters(device: torch.device) -> None:
    """Frozen leaves get no gradient and no weight decay; under no_grad and detached nothing is recorded."""
    p = pn.tree.freeze(model(device), "layers.0.*")
    x = numbers(5, 4, device=device)
    grads = pn.grad(lambda p: p(x).square().sum())(p)
    assert len(pn.tree.leaves(grads)) == 2
    optimizer = pn.optim.adamw(0.1, weight_decay=0.5)
    updates, _ = optimizer.update(grads, optimizer.init(p), p)
    new = pn.optim.apply_updates(p, updates)
    assert torch.equal(new[0].weight, p[0].weight)
    assert not torch.equal(new[2].weight, p[2].weight)
    watched = pn.tree.map(lambda leaf: leaf.clone().requires_grad_(), model(device))
    with torch.no_grad():
        assert not watched(x).requires_grad
    assert not pn.tree.map(torch.detach, watched)(x).requires_grad
    assert watched(x).requires_grad


def test_row_50_hooks_and_features(device: torch.device) -> None:
    """Outputs by path, all calls of a shared layer, under vmap, unknown names refused; real hooks fire in a module."""
    p, x = model(device), numbers(5, 4, device=device)
    y, found = pn.capture(layers.sequential, ["layers.0", "layers.1"])(p, x)
    same(found["layers.0"], x @ p[0].weight.mT + p[0].bias)
    same(found["layers.1"], found["layers.0"].tanh())
    many = pn.vmap(lambda x: pn.capture(layers.sequential, "layers.1")(p, x)[1])(x)
    same(many["layers.1"], found["layers.1"])
    with pytest.raises(SelectionError):
        pn.capture(layers.sequential, "layers.7")(p, x)
    square = layers.Linear.init(key(device), 4, 4, dtype=torch.float64)
    shared = pn.tree.tie(layers.Sequential.of(square, square))
    _, calls = pn.capture(lambda p, x: p(x).mul_(2), "layers.*")(shared, x)
    same(calls["layers.1"], layers.linear(square, layers.linear(square, x)))
    module, seen = bridge.to_module(p), []
    handles = [
        module.layers[0].register_forward_hook(lambda *_: seen.append("forward")),
        module.layers[2].register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    module(x).sum().backward()
    assert seen == ["forward", "backward"]
    for handle in handles:
        handle.remove()
    module(x).sum().backward()
    assert seen == ["forward", "backward"]
    same(module(x), y)


def test_row_51_gradcheck(device: torch.device) -> None:
    """A whole container's derivatives are held against differences, and a wrong one is found."""
    p, x = model(device), numbers(2, 4, device=device)
    pn.check_grads(lambda p, x: p(x).sin().sum(), (p, x))

    @pn.custom_jvp
    def wrong(x: Tensor) -> Tensor:
        return x.sin()

    @wrong.defjvp
    def _wrong_jvp(primals: Any, tangents: Any) -> Any:
        return wrong(*primals), tangents[0]

    with pytest.raises(pn.errors.PurennError):
        pn.check_grads(lambda x: wrong(x).sum(), (x,), order=1)


def test_row_52_gradient_clipping(device: torch.device) -> None:
    """By norm and by value, pure, as torch's do in place."""
    p = model(device)
    grads = pn.tree.map(lambda leaf: 3 * leaf, p)
    before = pn.tree.map(torch.clone, grads)
    for clip, theirs, limit in (
        (pn.optim.clip_by_global_norm, nn.utils.clip_grad_norm_, 0.5),
        (pn.optim.clip_by_value, nn.utils.clip_grad_value_, 0.2),
    ):
        transform = clip(limit)
        clipped, _ = transform.update(grads, transform.init(p), p)
        parameters = [nn.Parameter(leaf.clone()) for leaf in pn.tree.leaves(p)]
        for parameter, grad in zip(parameters, pn.tree.leaves(grads), strict=True):
            parameter.grad = grad.clone()
        theirs(parameters, limit)
        # torch adds 1e-6 to the norm that it divides by.
        same(list(pn.tree.leaves(clipped)), [q.grad for q in parameters], tolerance=1e-6)
    assert pn.tree.equal(before, grads)
