"""Capsule layers: dynamic routing against a plain loop, batching by vmap, and capsules grouped by channel."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import bridge
import purenn as pn
from purenn.errors import ArgumentError, ShapeError
from purenn.layers import (
    DynamicRouting,
    PrimaryCapsules,
    capsule_lengths,
    conv2d,
    dynamic_routing,
    mask_capsules,
    primary_capsules,
    routing,
)
from purenn.ops import squash

DOUBLE = torch.float64


def draw(device: torch.device, *, out_caps: int = 3, in_caps: int = 7, batch: int = 4) -> tuple[Tensor, Tensor]:
    """W [out_caps, in_caps, 5, 4] and a batch of u [in_caps, 4]."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(out_caps, in_caps, 5, 4, generator=generator, dtype=DOUBLE)
    u = torch.randn(batch, in_caps, 4, generator=generator, dtype=DOUBLE)
    return W.to(device), u.to(device)


def by_loops(W: Tensor, u: Tensor, iterations: int) -> Tensor:
    """The paper's procedure for one example, capsule by capsule, with the logits kept as its state."""
    out_caps, in_caps = W.shape[:2]
    votes = [[W[o, i] @ u[i] for i in range(in_caps)] for o in range(out_caps)]
    b = [[torch.zeros((), dtype=u.dtype, device=u.device) for _ in range(in_caps)] for _ in range(out_caps)]
    v: list[Tensor] = []
    for _ in range(iterations):
        columns = [torch.stack([b[o][i] for o in range(out_caps)]).softmax(0) for i in range(in_caps)]
        s = [sum(columns[i][o] * votes[o][i] for i in range(in_caps)) for o in range(out_caps)]
        v = [x * x.norm() / (1 + x.norm() ** 2) for x in s]
        b = [[b[o][i] + votes[o][i] @ v[o] for i in range(in_caps)] for o in range(out_caps)]
    return torch.stack(v)


def batched_by_hand(W: Tensor, u: Tensor, iterations: int = 3) -> Tensor:
    """The same for a batch, with the batch index written out in every product."""
    votes = torch.einsum("oidk,bik->boid", W, u)
    logits = torch.zeros(votes.shape[:3], dtype=u.dtype, device=u.device)
    for iteration in range(iterations):
        v = squash(torch.einsum("boi,boid->bod", logits.softmax(1), votes))
        if iteration + 1 < iterations:
            logits = logits + torch.einsum("boid,bod->boi", votes, v)
    return v


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_equals_the_paper(device: torch.device, iterations: int) -> None:
    """Values and gradients are those of the procedure written as loops."""
    W, u = draw(device, batch=1)

    def ours(W: Tensor, u: Tensor) -> Tensor:
        return dynamic_routing(W, u, iterations=iterations)

    def right(W: Tensor, u: Tensor) -> Tensor:
        return by_loops(W, u, iterations)

    torch.testing.assert_close(ours(W, u[0]), right(W, u[0]), rtol=0, atol=1e-12)
    for f, g in zip(
        grad(lambda W, u: ours(W, u).sin().sum(), (0, 1))(W, u[0]),
        grad(lambda W, u: right(W, u).sin().sum(), (0, 1))(W, u[0]),
        strict=True,
    ):
        torch.testing.assert_close(f, g, rtol=0, atol=1e-12)


def test_vmap_equals_batched_by_hand(device: torch.device) -> None:
    """Batched by vmap it equals the hand-batched form in value and gradient, and so does the layer."""
    W, u = draw(device)
    vmapped = vmap(dynamic_routing, (None, 0))
    torch.testing.assert_close(vmapped(W, u), batched_by_hand(W, u), rtol=0, atol=1e-12)
    torch.testing.assert_close(routing(DynamicRouting(W), u), vmapped(W, u), rtol=0, atol=1e-12)
    for f, g in zip(
        grad(lambda W, u: vmapped(W, u).sin().sum(), (0, 1))(W, u),
        grad(lambda W, u: batched_by_hand(W, u).sin().sum(), (0, 1))(W, u),
        strict=True,
    ):
        torch.testing.assert_close(f, g, rtol=0, atol=1e-12)


def test_batch_axes_of_the_layer(device: torch.device) -> None:
    """The layer takes one example, a batch, or a batch with several axes."""
    W, u = draw(device, batch=6)
    p = DynamicRouting(W)
    torch.testing.assert_close(p(u[0]), dynamic_routing(W, u[0]))
    torch.testing.assert_close(p(u.unflatten(0, (2, 3))), p(u).unflatten(0, (2, 3)))
    assert p(u[:0]).shape == (0, 3, 5)


def test_per_sample_gradients_ensembles_and_meta_gradients(device: torch.device) -> None:
    """vmap(grad), vmap over models and grad(vmap(grad)) equal the loops."""
    W, u = draw(device)

    def loss(W: Tensor, u: Tensor) -> Tensor:
        return dynamic_routing(W, u).sin().sum()

    rows = vmap(grad(loss), (None, 0))(W, u)
    torch.testing.assert_close(rows, torch.stack([grad(loss)(W, row) for row in u]), rtol=0, atol=1e-12)
    models = torch.stack([W, 2 * W])
    both = vmap(lambda W: vmap(dynamic_routing, (None, 0))(W, u))(models)
    torch.testing.assert_close(both, torch.stack([batched_by_hand(m, u) for m in models]), rtol=0, atol=1e-12)

    def meta(W: Tensor, how: str) -> Tensor:
        if how == "vmap":
            return vmap(lambda u: loss(W - 0.1 * grad(loss)(W, u), u))(u).sum()
        return sum(loss(W - 0.1 * grad(loss)(W, row), row) for row in u)

    torch.testing.assert_close(grad(meta)(W, "vmap"), grad(meta)(W, "loop"), rtol=0, atol=1e-10)


def test_derivatives_agree_with_finite_differences(device: torch.device) -> None:
    """Gradcheck in reverse and forward mode, first and second order."""
    W, u = draw(device, out_caps=2, in_caps=3, batch=1)
    W, u = W.requires_grad_(), u[0].requires_grad_()
    assert torch.autograd.gradcheck(dynamic_routing, (W, u), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(dynamic_routing, (W, u))
    assert hessian(lambda u: dynamic_routing(W.detach(), u).sum())(u.detach()).isfinite().all()
    assert jacrev(dynamic_routing, 1)(W.detach(), u.detach()).shape == (2, 5, 3, 4)


def test_softmax_is_over_output_capsules_and_per_example(device: torch.device) -> None:
    """An input capsule shares its vote among the outputs; one example does not see another."""
    W, u = draw(device)
    alone = vmap(dynamic_routing, (None, 0))(W, u[:1])
    together = vmap(dynamic_routing, (None, 0))(W, u)
    torch.testing.assert_close(alone[0], together[0], rtol=0, atol=1e-14)
    one_output = dynamic_routing(W[:1], u[0])
    torch.testing.assert_close(one_output[0], squash(torch.einsum("idk,ik->d", W[0], u[0])), rtol=0, atol=1e-12)


def test_stop_gradient(device: torch.device) -> None:
    """With stop_gradient the value is the same and the couplings are constants."""
    W, u = draw(device, batch=1)
    torch.testing.assert_close(dynamic_routing(W, u[0], stop_gradient=True), dynamic_routing(W, u[0]))

    def couplings_held(W: Tensor) -> Tensor:
        with torch.no_grad():
            votes = torch.einsum("oidk,ik->oid", W, u[0])
            state = squash(votes.mean(1) * votes.shape[1] / votes.shape[0])
            state = state + squash(
                torch.einsum("oi,oid->od", torch.einsum("oid,od->oi", votes, state).softmax(0), votes)
            )
            c = torch.einsum("oid,od->oi", votes, state).softmax(0)
        return squash(torch.einsum("oi,oid->od", c, torch.einsum("oidk,ik->oid", W, u[0]))).sin().sum()

    W_leaf = W.clone().requires_grad_()
    (expected,) = torch.autograd.grad(couplings_held(W_leaf), W_leaf)
    held = grad(lambda W: dynamic_routing(W, u[0], stop_gradient=True).sin().sum())(W)
    torch.testing.assert_close(held, expected, rtol=0, atol=1e-12)
    full = grad(lambda W: dynamic_routing(W, u[0]).sin().sum())(W)
    assert not torch.allclose(held, full)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(device: torch.device, dtype: torch.dtype) -> None:
    """Results keep the dtype and agree with float64 within its precision."""
    W, u = draw(device)
    right = vmap(dynamic_routing, (None, 0))(W * 0.2, u)
    out = vmap(dynamic_routing, (None, 0))((W * 0.2).to(dtype), u.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), right, rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_initial_weights_do_not_saturate(device: torch.device) -> None:
    """At 1152 capsules the default initialisation leaves output lengths well below 1 and gradients alive."""
    p = DynamicRouting.init(pn.random.key(0, device), 1152, 10)
    u = squash(torch.randn(1152, 8, generator=torch.Generator().manual_seed(0)).to(device))
    lengths = capsule_lengths(routing(p, u))
    assert 0.05 < lengths.max() < 0.99
    assert pn.grad(lambda p: capsule_lengths(routing(p, u)).sum())(p).weight.abs().max() > 1e-4
    assert p.weight.shape == (10, 1152, 16, 8)
    assert pn.tree.count(p) == 1_474_560


def test_primary_capsules_group_channels(device: torch.device) -> None:
    """A capsule's components are neighbouring channels at one position, not neighbouring pixels."""
    p = PrimaryCapsules.init(pn.random.key(0, device), 3, types=4, dim=2, kernel_size=3, stride=2)
    x = torch.randn(5, 3, 9, 9, device=device)
    maps = conv2d(p.conv, x)
    capsules = primary_capsules(p, x)
    height, width = maps.shape[-2:]
    assert capsules.shape == (5, 4 * height * width, 2)
    for kind in range(4):
        for row in range(height):
            for column in range(width):
                expected = squash(maps[:, 2 * kind : 2 * kind + 2, row, column])
                torch.testing.assert_close(capsules[:, (kind * height + row) * width + column], expected)
    torch.testing.assert_close(primary_capsules(p, x[0]), capsules[0])
    torch.testing.assert_close(vmap(primary_capsules, (None, 0))(p, x), capsules, rtol=0, atol=1e-6)


def test_lengths_and_masks(device: torch.device) -> None:
    """Lengths have a zero derivative at zero; a mask keeps the longest capsule or the given one."""
    poses = torch.zeros(2, 3, 4, dtype=DOUBLE, device=device)
    poses[0, 1] = 1.0
    poses[1, 2, 0] = 0.5
    assert torch.equal(capsule_lengths(poses), torch.tensor([[0, 2.0, 0], [0, 0, 0.5]], device=device))
    assert torch.equal(grad(lambda s: capsule_lengths(s).sum())(torch.zeros_like(poses)), torch.zeros_like(poses))
    kept = mask_capsules(poses).unflatten(-1, (3, 4))
    assert torch.equal(kept, poses)
    other = mask_capsules(poses, torch.tensor([0, 2], device=device)).unflatten(-1, (3, 4))
    assert torch.equal(other[0], torch.zeros_like(other[0]))
    assert torch.equal(other[1], poses[1])
    assert torch.equal(vmap(mask_capsules)(poses), mask_capsules(poses))


def test_traced_and_compiled(device: torch.device) -> None:
    """The layer compiles without a graph break and traces under vmap(grad)."""
    W, u = draw(device)
    p = DynamicRouting(W)
    compiled = torch.compile(lambda u: routing(p, u[0]), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(u), routing(p, u[0]))

    def rows(W: Tensor, u: Tensor) -> Tensor:
        return vmap(grad(lambda W, u: dynamic_routing(W, u).sum()), (None, 0))(W, u)

    torch.testing.assert_close(make_fx(rows, tracing_mode="fake")(W, u)(W, u), rows(W, u))


def test_carried_by_a_module(device: torch.device) -> None:
    """Both layers run as modules with the same outputs, and come back."""
    k1, k2 = pn.random.split(pn.random.key(0, device))
    primary = PrimaryCapsules.init(k1, 1, types=2, dim=4, kernel_size=3, stride=2)
    x = torch.randn(3, 1, 7, 7, device=device)
    top = DynamicRouting.init(k2, primary(x).shape[1], 2, in_dim=4, out_dim=3)
    assert torch.equal(bridge.to_module(primary)(x), primary(x))
    assert torch.equal(bridge.to_module(top)(primary(x)), top(primary(x)))
    assert pn.tree.equal(bridge.from_module(bridge.to_module(top)), top)
    assert repr(top) == "DynamicRouting(in_caps=18, out_caps=2, in_dim=4, out_dim=3, iterations=3)"
    assert repr(bridge.to_module(top)) == repr(top)


def test_errors(device: torch.device) -> None:
    """Iterations and shapes are checked, and a batch without vmap is explained."""
    W, u = draw(device)
    with pytest.raises(ArgumentError) as error:
        dynamic_routing(W, u[0], iterations=0)
    assert str(error.value) == "dynamic_routing: iterations must be at least 1, got 0."
    with pytest.raises(ArgumentError) as error:
        DynamicRouting.init(pn.random.key(0), 3, 2, iterations=0)
    assert str(error.value) == "DynamicRouting: iterations must be at least 1, got 0."
    with pytest.raises(ShapeError) as error:
        dynamic_routing(W, u)
    assert str(error.value) == (
        "dynamic_routing: expected W [out_caps, in_caps, out_dim, in_dim] and u [in_caps, in_dim] of one example, "
        "got W (3, 7, 5, 4) and u (4, 7, 4). Batch it with pn.vmap(dynamic_routing, (None, 0))(W, u)."
    )
    with pytest.raises(ShapeError) as error:
        dynamic_routing(W, u[0].T)
    assert str(error.value) == (
        "dynamic_routing: expected W [out_caps, in_caps, out_dim, in_dim] and u [in_caps, in_dim] of one example, "
        "got W (3, 7, 5, 4) and u (4, 7)."
    )
    assert math.isfinite(float(dynamic_routing(W, torch.zeros_like(u[0])).sum()))
    with pytest.raises(ArgumentError) as error:
        DynamicRouting.init(pn.random.key(0), 3, 2, iterations=1.5)
    assert str(error.value) == "DynamicRouting: iterations must be a whole number, got 1.5."


@pytest.mark.parametrize("memory", ["auto", "votes", "folded", "tiled"])
def test_what_does_not_fit_the_layer(memory: str, device: torch.device) -> None:
    """Capsules of other numbers, sizes and dtypes are refused in every form, tiles of many votes included."""
    weight = torch.zeros(10, 300, 4, 2, dtype=DOUBLE, device=device)
    p = DynamicRouting(weight, memory=memory)
    for shape in ((2, 301, 2), (2, 299, 2), (300, 3), (2,)):
        with pytest.raises(ShapeError) as error:
            p(torch.zeros(shape, dtype=DOUBLE, device=device))
        assert str(error.value) == (
            f"dynamic_routing: expected W [out_caps, in_caps, out_dim, in_dim] and u [*batch, in_caps, in_dim], got W "
            f"(10, 300, 4, 2) and u {shape}."
        )
    for place in (device, torch.device("meta")):
        with pytest.raises(ArgumentError) as error:
            pn.tree.to(p, place)(torch.zeros(2, 300, 2, dtype=torch.float32, device=place))
        assert str(error.value) == (
            "dynamic_routing: W is torch.float64 and u is torch.float32; cast one of them, as with u.to(W.dtype)."
        )
    for iterations, text in ((0, "must be at least 1, got 0."), (2.0, "must be a whole number, got 2.0.")):
        with pytest.raises(ArgumentError) as error:
            pn.replace(p, iterations=iterations)(torch.zeros(2, 300, 2, dtype=DOUBLE, device=device))
        assert str(error.value) == f"dynamic_routing: iterations {text}"


@pytest.mark.parametrize("memory", ["votes", "folded", "tiled"])
def test_autocast(memory: str, device: torch.device) -> None:
    """Under autocast single and half precision mix, and gradients keep the dtypes of their leaves."""
    generator = torch.Generator().manual_seed(0)
    W = 0.3 * torch.randn(3, 40, 5, 4, generator=generator).to(device)
    u = torch.randn(4, 40, 4, generator=generator).to(device, torch.bfloat16)
    expected = routing(DynamicRouting(W), u.float())
    with torch.autocast(device.type, torch.bfloat16):
        got = routing(DynamicRouting(W, memory=memory), u)
        grads = grad(lambda W, u: routing(DynamicRouting(W, memory=memory), u).float().square().sum(), (0, 1))(W, u)
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=0.03)
    assert [x.dtype for x in grads] == [torch.float32, torch.bfloat16]


def test_labels_that_do_not_fit(device: torch.device) -> None:
    """A mask needs a class for every example."""
    poses = torch.ones(2, 3, 4, device=device)
    for label, got in ((torch.zeros(3, dtype=torch.int64, device=device), "(3,)"), (1, "1")):
        with pytest.raises(ShapeError) as error:
            mask_capsules(poses, label)
        assert str(error.value) == (
            "mask_capsules: label must hold one class for every example, a tensor of shape (2,) for capsules of shape "
            f"(2, 3, 4), got {got}."
        )
