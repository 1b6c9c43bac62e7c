"""The forms of dynamic routing, by votes, folded and by tiles: equal under every transformation, and lean."""

import functools
from collections.abc import Callable

import optree
import pytest
import torch
from _pairing import peak_bytes
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import purenn as pn
from purenn.errors import ArgumentError
from purenn.layers import DynamicRouting, dynamic_routing
from purenn.ops import route_by_agreement

DOUBLE = torch.float64
FORMS = ["folded", "tiled"]
OPTIONS = [{}, {"iterations": 1}, {"leaky": True}, {"stop_gradient": True, "iterations": 4, "leaky": True}]


def draw(device: torch.device) -> tuple[Tensor, Tensor]:
    """W [3, 37, 5, 4] and a batch of 4 u [37, 4]."""
    generator = torch.Generator().manual_seed(0)
    W = 0.5 * torch.randn(3, 37, 5, 4, generator=generator, dtype=DOUBLE)
    return W.to(device), torch.randn(4, 37, 4, generator=generator, dtype=DOUBLE).to(device)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in both directions even at these sizes."""
    monkeypatch.setattr("purenn.ops._routing_tiles._CPU_TILE", 2**8)
    monkeypatch.setattr("purenn.ops._routing_tiles._TILE", 2**8)
    monkeypatch.setattr("purenn.ops._routing_tiles._COLUMNS", 7)


def loss(route: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda W, u: route(W, u).sin().sum()


def twice(route: Callable[..., Tensor], W: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    W, u = W.clone().requires_grad_(), u.clone().requires_grad_()
    first = torch.autograd.grad(loss(route)(W, u), (W, u), create_graph=True)
    return torch.autograd.grad(sum(g.sin().sum() for g in first), (W, u))


def forward_mode(route: Callable[..., Tensor], W: Tensor, u: Tensor) -> Tensor:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(W, W.cos())
        return forward_ad.unpack_dual(route(dual, u)).tangent


def meta(route: Callable[..., Tensor], W: Tensor, u: Tensor) -> Tensor:
    task = loss(route)
    return grad(lambda W: vmap(lambda u: task(W - 0.1 * grad(task)(W, u), u))(u).sum())(W)


TRANSFORMED: dict[str, Callable[..., object]] = {
    "one": lambda f, W, u: f(W, u[0]),
    "batch": lambda f, W, u: f(W, u),
    "two batch axes": lambda f, W, u: f(W, u.unflatten(0, (2, 2))),
    "no examples": lambda f, W, u: f(W, u[:0]),
    "vmap over examples": lambda f, W, u: vmap(f, (None, 0))(W, u),
    "vmap over models": lambda f, W, u: vmap(f, (0, None))(torch.stack([W, 2 * W]), u),
    "vmap over both": lambda f, W, u: vmap(f, (0, 0))(torch.stack([W, 2 * W]), u[:2]),
    "models and examples": lambda f, W, u: vmap(lambda W: vmap(f, (None, 0))(W, u))(torch.stack([W, 2 * W])),
    "other axes": lambda f, W, u: vmap(f, (None, 1), out_dims=1)(W, u.movedim(0, 1)),
    "grad": lambda f, W, u: grad(loss(f), (0, 1))(W, u),
    "per-sample gradients": lambda f, W, u: vmap(grad(loss(f), (0, 1)), (None, 0))(W, u),
    "gradients of groups": lambda f, W, u: vmap(grad(loss(f), (0, 1)), (None, 0))(W, u.unflatten(0, (2, 2))),
    "per-sample, per model": lambda f, W, u: vmap(lambda W: vmap(grad(loss(f)), (None, 0))(W, u))(
        torch.stack([W, 2 * W])
    ),
    "grad of vmap": lambda f, W, u: grad(lambda W: vmap(f, (None, 0))(W, u).sin().sum())(W),
    "grad of vmap of grad": meta,
    "double backward": twice,
    "jvp": lambda f, W, u: jvp(f, (W, u), (W.cos(), u.cos())),
    "jvp of grad": lambda f, W, u: jvp(grad(loss(f), (0, 1)), (W, u), (W.cos(), u.cos())),
    "vmap of jvp": lambda f, W, u: vmap(lambda u: jvp(f, (W, u), (W.cos(), u.cos())))(u),
    "plain forward mode": forward_mode,
    "jacrev": lambda f, W, u: jacrev(f, (0, 1))(W, u[0]),
    "jacfwd": lambda f, W, u: jacfwd(f, 1)(W, u[0]),
    "hessian": lambda f, W, u: hessian(lambda u: loss(f)(W, u))(u[0, :, :]),
    "traced": lambda f, W, u: make_fx(vmap(grad(loss(f), (0, 1)), (None, 0)), tracing_mode="fake")(W, u)(W, u),
}


def same(got: object, expected: object) -> None:
    for one, other in zip(optree.tree_leaves(got), optree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("memory", FORMS)
@pytest.mark.parametrize("name", TRANSFORMED)
def test_forms_are_equal(name: str, memory: str, options: dict, device: torch.device) -> None:
    """Under every transformation each form equals the one that keeps its votes."""
    run = TRANSFORMED[name]
    got, expected = (
        run(functools.partial(route_by_agreement, memory=form, **options), *draw(device)) for form in (memory, "votes")
    )
    same(got, expected)


@pytest.mark.usefixtures("small_tiles")
def test_compiled(device: torch.device) -> None:
    """Compiled by torch.compile, with and without gradients and vmap, and by pn.jit, every form is what it was."""
    W, u = draw(device)

    def backward(route: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = (W.clone().requires_grad_(), u.clone().requires_grad_())
        return torch.autograd.grad(loss(route)(*leaves), leaves)

    for memory in ("votes", "tiled"):
        f = functools.partial(route_by_agreement, memory=memory)
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        same(backward(compiled), backward(f))
        rows = vmap(grad(loss(f), (0, 1)), (None, 0))
        same(torch.compile(rows, fullgraph=True, backend="aot_eager")(W, u), rows(W, u))
    same(pn.jit(rows)(W, u.mT.contiguous().mT), rows(W, u))
    torch.compiler.reset()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("memory", ["auto", "votes", *FORMS])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision(dtype: torch.dtype, memory: str, device: torch.device) -> None:
    """Values and gradients keep the dtype, and agree with float64 within its precision."""
    W, u = draw(device)
    W = 0.4 * W
    route = functools.partial(route_by_agreement, memory=memory)
    out = route(W.to(dtype), u.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.to(DOUBLE), route(W, u), rtol=0, atol=20 * torch.finfo(dtype).eps)
    found = grad(lambda W, u: route(W, u).float().sum(), (0, 1))(W.to(dtype), u.to(dtype))
    for got, expected in zip(found, grad(lambda W, u: route(W, u).sum(), (0, 1))(W, u), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.to(DOUBLE), expected, rtol=0, atol=80 * torch.finfo(dtype).eps)


def test_peak_memory() -> None:
    """Tiles need a fraction of the memory of the votes, in both passes, and vmap needs no more than a native batch."""
    batch, in_caps, out_caps, in_dim, out_dim = 128, 576, 10, 8, 16
    W = 0.05 * torch.randn(out_caps, in_caps, out_dim, in_dim)
    u = torch.randn(batch, in_caps, in_dim)
    votes = 4 * batch * in_caps * out_caps * out_dim
    peaks = {}
    for name, route in (("native", route_by_agreement), ("vmap", vmap(dynamic_routing, (None, 0)))):
        leaves = (W.clone().requires_grad_(), u.clone().requires_grad_())
        forward = peak_bytes(lambda route=route: route(W, u))
        both = peak_bytes(lambda route=route, leaves=leaves: torch.autograd.grad(route(*leaves).sum(), leaves))
        assert forward <= 0.3 * votes
        assert both <= 0.6 * votes
        peaks[name] = (forward, both)
    for native, batched in zip(peaks["native"], peaks["vmap"], strict=True):
        assert batched <= 1.05 * native


def test_what_is_kept_for_the_gradient() -> None:
    """By tiles W, u and the outputs of the iterations are kept between the passes, and nothing else of their size."""
    W, u = torch.randn(10, 256, 16, 8).requires_grad_(), torch.randn(8, 256, 8).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        route_by_agreement(W, u, memory="tiled")
    own = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    for given in (W, u):
        own.pop(given.untyped_storage().data_ptr())
    assert sum(own.values()) < 0.05 * 4 * 8 * 256 * 10 * 16


def test_options_of_the_layer(device: torch.device) -> None:
    """The layer hands its options on; leaky routing may send a vote nowhere."""
    W, u = draw(device)
    for memory in ("auto", "votes", *FORMS):
        p = DynamicRouting(W, 2, True, True, memory)
        same(p(u), route_by_agreement(W, u, iterations=2, stop_gradient=True, leaky=True))
    one = dynamic_routing(W[:1], u[0], leaky=True, iterations=1)
    same(one, pn.ops.squash(torch.einsum("oidk,ik->od", W[:1], u[0]) / 2))
    with pytest.raises(ArgumentError) as error:
        dynamic_routing(W, u[0], memory="lean")
    assert str(error.value) == "dynamic_routing: memory must be 'auto', 'votes', 'folded' or 'tiled', got 'lean'."


def test_other_public_forms_differ(device: torch.device) -> None:
    """Sharing logits over the batch, or a softmax over the wrong axis, gives gradients that point elsewhere."""
    W, u = draw(device)

    def wrong(W: Tensor, axis: int, *, shared: bool) -> Tensor:
        votes = torch.einsum("oidk,nik->noid", W, u)
        b = torch.zeros(votes.shape[:-1], dtype=DOUBLE, device=device)
        for _ in range(3):
            v = pn.ops.squash(torch.einsum("noi,noid->nod", b.softmax(axis), votes))
            agreement = torch.einsum("noid,nod->noi", votes, v)
            b = b + (agreement.mean(0, keepdim=True) if shared else agreement)
        return v

    right = route_by_agreement(W, u)
    same(wrong(W, -2, shared=False), right)
    assert not torch.allclose(wrong(W, -2, shared=True), right, atol=1e-3)
    assert not torch.allclose(wrong(W, -1, shared=False), right, atol=1e-3)
