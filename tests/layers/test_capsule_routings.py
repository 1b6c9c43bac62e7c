"""Every routing against its paper written as loops, in both styles of batching, under all transformations."""

import functools
from collections.abc import Callable

import _capsules_by_loops as by_loops
import pytest
import torch
from _pairing import peak_bytes
from _transformations import check_transformations
from torch import Tensor
from torch.func import grad, vmap

import bridge
import purenn as pn
from purenn.errors import ArgumentError, ShapeError
from purenn.layers import (
    AgreementRouting,
    AttentionRouting,
    Capsules,
    EMRouting,
    InvertedAttentionRouting,
    SelfRouting,
    agreement_routing,
    attention_routing,
    em_routing,
    inverted_attention_routing,
    self_routing,
)

DOUBLE = torch.float64
BATCH, OUT, IN, OUT_DIM, IN_DIM = 3, 3, 4, 5, 2


def draw(device: torch.device) -> dict[str, Tensor]:
    """Votes and activations of a batch, and what the routings have as parameters."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=DOUBLE).to(device)

    return {
        "votes": normal(BATCH, OUT, IN, OUT_DIM),
        "activations": normal(BATCH, IN).sigmoid(),
        "logits": normal(BATCH, OUT, IN),
        "use": normal(OUT),
        "activation": normal(OUT),
        "bias": normal(OUT, IN),
        "scale": normal(OUT_DIM),
        "shift": normal(OUT_DIM),
    }


Routing = Callable[[dict[str, Tensor], Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

ROUTINGS: dict[str, tuple[Routing, Routing]] = {
    "agreement": (
        lambda d, v, a, x: agreement_routing(v, a),
        lambda d, v, a, x: lengths_too(by_loops.dynamic(v, 3)),
    ),
    "leaky agreement": (
        lambda d, v, a, x: agreement_routing(v, a, leaky=True, iterations=2),
        lambda d, v, a, x: lengths_too(by_loops.dynamic(v, 2, leaky=True)),
    ),
    "EM": (
        lambda d, v, a, x: em_routing(v, a, d["use"], d["activation"], inverse_temperature=0.5, eps=1e-3),
        lambda d, v, a, x: by_loops.em(v, a.expand(OUT, IN), d["use"], d["activation"], 3, 0.5, 1e-3),
    ),
    "self": (
        lambda d, v, a, x: self_routing(v, a, x, eps=0.0),
        lambda d, v, a, x: by_loops.self_routed(v, a, x),
    ),
    "attention": (
        lambda d, v, a, x: attention_routing(v, a, d["bias"]),
        lambda d, v, a, x: lengths_too(by_loops.attention(v, d["bias"])),
    ),
    "inverted attention": (
        lambda d, v, a, x: inverted_attention_routing(v, a, d["scale"], d["shift"], iterations=3),
        lambda d, v, a, x: lengths_too(by_loops.inverted_attention(v, d["scale"], d["shift"], 3, 1e-5)),
    ),
}


def lengths_too(poses: Tensor) -> tuple[Tensor, Tensor]:
    return poses, poses.norm(dim=-1)


@pytest.mark.parametrize("name", ROUTINGS)
def test_equals_the_paper(name: str, device: torch.device) -> None:
    """Poses, activations and their gradients are those of the procedure written capsule by capsule."""
    ours, theirs = ROUTINGS[name]
    d = draw(device)
    one = (d["votes"][0], d["activations"][0], d["logits"][0])
    for got, expected in zip(ours(d, *one), theirs(d, *one), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)

    def loss(routing: Routing) -> Callable[..., Tensor]:
        return lambda *args: sum(x.sin().sum() for x in routing(d, *args))

    found, right = (grad(loss(routing), (0, 1, 2))(*one) for routing in (ours, theirs))
    for got, expected in zip(found, right, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ROUTINGS)
def test_vmap_equals_the_native_batch(name: str, device: torch.device) -> None:
    """One example batched by vmap, a native batch, and a batch of two axes are the same; so are the gradients."""
    d = draw(device)
    ours = ROUTINGS[name][0]

    def loss(routing: Callable[..., object], args: tuple[Tensor, ...]) -> Tensor:
        return sum(x.sin().sum() for x in routing(*args))

    batch = (d["votes"], d["activations"], d["logits"])
    native = ours(d, *batch)
    for got, expected in zip(vmap(lambda *args: tuple(ours(d, *args)))(*batch), native, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    for got, expected in zip(ours(d, *(x[None] for x in batch)), native, strict=True):
        torch.testing.assert_close(got[0], expected, rtol=0, atol=1e-13)
    alone = ours(d, *(x[:1] for x in batch))
    for got, expected in zip(alone, native, strict=True):
        torch.testing.assert_close(got[0], expected[0], rtol=0, atol=1e-13)
    mapped, plain = (
        grad(functools.partial(loss, routing))(batch)
        for routing in (vmap(lambda *args: tuple(ours(d, *args))), functools.partial(ours, d))
    )
    for got, expected in zip(mapped, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def layer(name: str, seed: int, device: torch.device) -> Capsules:
    keys = pn.random.split(pn.random.key(seed, device))
    costs = 0.3 * torch.randn(2, OUT, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(device)
    routing = {
        "agreement": lambda: AgreementRouting(2),
        "EM": lambda: EMRouting(costs[0], costs[1], 2, 0.5),
        "self": lambda: SelfRouting.init(keys[0], IN, OUT, in_dim=IN_DIM, dtype=DOUBLE),
        "attention": lambda: AttentionRouting(
            torch.linspace(0, 1, OUT * IN, dtype=DOUBLE, device=device).view(OUT, IN)
        ),
        "inverted attention": lambda: InvertedAttentionRouting.init(keys[0], OUT_DIM, dtype=DOUBLE),
    }[name]()
    return Capsules.init(keys[1], IN, OUT, routing, in_dim=IN_DIM, out_dim=OUT_DIM, std=1.0, dtype=DOUBLE)


LAYERS = ["agreement", "EM", "self", "attention", "inverted attention"]


@pytest.mark.parametrize("name", LAYERS)
def test_transformations(name: str, device: torch.device) -> None:
    """A layer with any routing keeps every promise of a layer."""
    inputs = torch.randn(2, IN, IN_DIM + 1, generator=torch.Generator().manual_seed(1), dtype=DOUBLE).to(device)

    def apply(p: Capsules, x: Tensor) -> Tensor:
        poses, activations = p(x[..., 1:], x[..., 0].sigmoid())
        return torch.cat([poses, activations.unsqueeze(-1)], -1)

    check_transformations(lambda seed: layer(name, seed, device), apply, inputs)


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_of_a_layer_equals_its_native_batch(name: str, device: torch.device) -> None:
    """With weights in the place of votes too, in value and in the gradient of every parameter, and over two axes."""
    p = layer(name, 0, device)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, BATCH, IN, IN_DIM, generator=generator, dtype=DOUBLE).to(device)
    a = torch.randn(2, BATCH, IN, generator=generator, dtype=DOUBLE).sigmoid().to(device)

    def by_vmap(p: Capsules) -> tuple[Tensor, ...]:
        return vmap(vmap(lambda x, a: tuple(p(x, a))))(x, a)

    def by_one_axis(p: Capsules) -> tuple[Tensor, ...]:
        return tuple(y.unflatten(0, (2, BATCH)) for y in p(x.flatten(0, 1), a.flatten(0, 1)))

    def results(batched: Callable[[Capsules], tuple[Tensor, ...]]) -> list[Tensor]:
        loss = pn.grad(lambda p: sum(y.sin().sum() for y in batched(p)))
        return [*batched(p), *pn.tree.leaves(loss(p))]

    native = results(lambda p: tuple(p(x, a)))
    for batched in (by_vmap, by_one_axis):
        for got, expected in zip(results(batched), native, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_no_matrix_is_repeated_for_every_example(name: str) -> None:
    """Neither a native batch nor vmap needs as much memory as the weight once for every example, in both passes."""
    batch, in_caps, out_caps, in_dim, out_dim = 64, 16, 4, 32, 4
    routing = {
        "self": lambda: SelfRouting.init(pn.random.key(0), in_caps, out_caps, in_dim=in_dim),
        "attention": lambda: AttentionRouting.init(in_caps, out_caps),
        "inverted attention": lambda: InvertedAttentionRouting.init(pn.random.key(0), out_dim),
        "EM": lambda: EMRouting.init(out_caps),
        "agreement": lambda: AgreementRouting(),
    }[name]()
    p = Capsules.init(pn.random.key(1), in_caps, out_caps, routing, in_dim=in_dim, out_dim=out_dim)
    x, a = torch.randn(batch, in_caps, in_dim), torch.rand(batch, in_caps)
    repeated = batch * p.weight.numel() * p.weight.element_size()
    for batched in (Capsules.__call__, lambda p, x, a: vmap(lambda x, a: tuple(p(x, a)))(x, a)):
        loss = pn.grad(lambda p, batched=batched: sum(y.sum() for y in batched(p, x, a)))
        assert peak_bytes(lambda loss=loss: loss(p)) < repeated


@pytest.mark.parametrize("name", LAYERS)
def test_carried_by_a_module(name: str, device: torch.device) -> None:
    """The module gives the same, its routing is a module whose hooks fire, and it comes back."""
    p = layer(name, 0, device)
    module = bridge.to_module(p)
    x = torch.randn(BATCH, IN, IN_DIM, dtype=DOUBLE, device=device)
    activations = torch.rand(BATCH, IN, dtype=DOUBLE, device=device)
    fired: list[str] = []
    module.routing.register_forward_hook(lambda *_: fired.append("routing"))
    for got, expected in zip(module(x, activations), p(x, activations), strict=True):
        assert torch.equal(got, expected)
    assert fired == ["routing"]
    assert pn.tree.equal(bridge.from_module(module), p)
    assert repr(p).startswith("Capsules(")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ROUTINGS)
def test_dtype_is_kept(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Results keep the dtype of the votes and are finite, at votes of zero as well."""
    d = {key: value.to(dtype) for key, value in draw(device).items()}
    d |= {key: d[key].float() for key in ("use", "activation")}
    for scale in (1, 0):
        for got in ROUTINGS[name][0](d, d["votes"] * scale, d["activations"], d["logits"]):
            assert got.dtype == dtype
            assert got.isfinite().all()


def test_gradients_at_votes_of_zero(device: torch.device) -> None:
    """No routing has an infinite gradient where all votes are zero."""
    d = draw(device)
    for ours, _ in ROUTINGS.values():

        def loss(votes: Tensor, ours: Routing = ours) -> Tensor:
            return sum(x.sum() for x in ours(d, votes, d["activations"], d["logits"]))

        assert grad(loss)(torch.zeros_like(d["votes"])).isfinite().all()


def test_matrices(device: torch.device) -> None:
    """Capsules that are matrices are multiplied by matrices, from the right."""
    p = Capsules.init(
        pn.random.key(0, device), IN, OUT, AttentionRouting.init(IN, OUT), in_dim=9, out_dim=9, matrix=True
    )
    assert p.weight.shape == (OUT, IN, 3, 3)
    p = pn.tree.to(p, DOUBLE)
    x = torch.randn(BATCH, IN, 9, dtype=DOUBLE, device=device)
    votes = torch.stack(
        [torch.stack([(x[:, i].view(-1, 3, 3) @ p.weight[o, i]).flatten(1) for i in range(IN)], 1) for o in range(OUT)],
        1,
    )
    for got, expected in zip(p(x), attention_routing(votes, None, p.routing.bias), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(vmap(lambda x: p(x).poses)(x), p(x).poses, rtol=0, atol=1e-13)


def test_errors(device: torch.device) -> None:
    """What does not fit is said: shapes, missing activations, iterations."""
    d = draw(device)
    with pytest.raises(ShapeError) as error:
        em_routing(d["votes"], d["activations"][0], d["use"], d["activation"])
    assert str(error.value) == (
        "em_routing: expected votes [*batch, out_caps, in_caps, out_dim] and activations [*batch, in_caps], got votes "
        "(3, 3, 4, 5) and activations (4,)."
    )
    with pytest.raises(ArgumentError) as error:
        self_routing(d["votes"], None, d["logits"])
    assert (
        str(error.value) == "self_routing: this routing needs the activations of the input capsules, [*batch, in_caps]."
    )
    with pytest.raises(ArgumentError) as error:
        layer("self", 0, device).routing(d["votes"], d["activations"])
    assert str(error.value) == "SelfRouting: expected the pair of a weight and input capsules, got votes."
    with pytest.raises(ArgumentError) as error:
        inverted_attention_routing(d["votes"], iterations=0)
    assert str(error.value) == "inverted_attention_routing: iterations must be at least 1, got 0."
    with pytest.raises(ShapeError) as error:
        layer("EM", 0, device)(torch.zeros(IN + 1, IN_DIM, dtype=DOUBLE, device=device))
    assert str(error.value) == (
        "em_routing: expected a weight [out_caps, in_caps, out_dim, in_dim] and capsules [*batch, in_caps, in_dim], or "
        "a weight [out_caps, in_caps, n, m] and matrices [*batch, in_caps, n * n], got (3, 4, 5, 2) and (5, 2)."
    )


def test_parameters_of_other_numbers_of_capsules(device: torch.device) -> None:
    """A routing that was made for other capsules is refused, and never broadcast."""
    votes, activations = torch.zeros(2, 3, 4, 5, device=device), torch.ones(2, 4, device=device)
    one, three = torch.zeros(1, device=device), torch.zeros(3, device=device)
    cases: dict[str, Callable[[], object]] = {
        "em_routing: expected beta_use of shape (3,) for these votes, got (1,).": (
            lambda: em_routing(votes, activations, one, three)
        ),
        "em_routing: expected beta_activation of shape (3,) for these votes, got (1,).": (
            lambda: em_routing(votes, activations, three, one)
        ),
        "self_routing: expected logits of shape (3, 4) for these votes, got (2, 1, 4).": (
            lambda: self_routing(votes, activations, torch.zeros(2, 1, 4, device=device))
        ),
        "attention_routing: expected a bias of shape (3, 4) for these votes, got (3, 1).": (
            lambda: attention_routing(votes, None, torch.zeros(3, 1, device=device))
        ),
        "inverted_attention_routing: expected a weight of shape (5,) for these votes, got (1,).": (
            lambda: inverted_attention_routing(votes, None, one)
        ),
        "inverted_attention_routing: expected poses of shape (3, 5) for these votes, got (2, 1, 5).": (
            lambda: inverted_attention_routing(votes, poses=torch.zeros(2, 1, 5, device=device))
        ),
        "SelfRouting: it was made for capsules of shape [*batch, 4, 2], got (2, 5, 2).": (
            lambda: SelfRouting.init(pn.random.key(0, device), 4, 3, in_dim=2)(
                (torch.zeros(3, 5, 5, 2, device=device), torch.zeros(2, 5, 2, device=device)), activations
            )
        ),
    }
    for text, call in cases.items():
        with pytest.raises(ShapeError) as error:
            call()
        assert str(error.value) == text
    with pytest.raises(ArgumentError) as error:
        Capsules.init(pn.random.key(0, device), 4, 3, AgreementRouting(), in_dim=5, out_dim=16, matrix=True)
    assert str(error.value) == (
        "Capsules.init: capsules that are square matrices have n * n components, got in_dim=5 and out_dim=16. For "
        "vectors write matrix=False."
    )
