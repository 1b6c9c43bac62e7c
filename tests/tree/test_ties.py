"""One leaf in several places."""

from collections import OrderedDict, deque, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import Affine, Box, Chain, Count, Scale, chain, double, make_affine, make_tied
from torch import Tensor

import purenn as pn
from purenn.errors import PathError, PlaceholderError, StructureError
from purenn.tree import Alias

Pair = namedtuple("Pair", "left right")


def names(tree: Any) -> list[str]:
    return [path for path, _ in pn.tree.named_leaves(tree)]


def scales(device: torch.device, number: int = 3) -> Chain:
    """Scale layers with the factors 2, 3, 4, ..."""
    return Chain(tuple(Scale(torch.full((), 2.0 + n, **double(device))) for n in range(number)))


def factor(number: int) -> str:
    return f"layers.{number}.factor"


# ---------------------------------------------------------------------------------------------------- meaning


def test_a_tie_is_one_leaf(device: torch.device) -> None:
    """The tied place has no leaf of its own: it is not mapped, counted or listed."""
    p = make_tied(device=device)
    assert names(p) == ["layers.0.weight", "layers.0.bias", "layers.1.bias"]
    assert p.layers[1].weight == Alias("layers.0.weight")
    assert pn.tree.count(p) == 9 + 3 + 3
    assert len(pn.tree.leaves(pn.tree.map(torch.zeros_like, p))) == 3


def test_applying_resolves_ties(device: torch.device) -> None:
    """The model computes what the model with the tensor in both places computes."""
    p, x = make_tied(**double(device)), torch.ones(3, **double(device))
    whole = pn.tree.untie(p)
    assert whole.layers[1].weight is p.layers[0].weight
    for y in (p(x), chain(p, x), Chain((p,))(x)):
        assert torch.equal(y, whole(x))


def test_gradients_accumulate_once(device: torch.device) -> None:
    """The gradient of a tied leaf is the sum of the gradients of its places."""
    p, x = make_tied(**double(device)), torch.linspace(0, 1, 3, **double(device))

    def loss(p: Chain) -> Tensor:
        return p(x).square().sum()

    tied, parts = torch.func.grad(loss)(p), torch.func.grad(loss)(pn.tree.untie(p))
    total = parts.layers[0].weight + parts.layers[1].weight
    assert torch.allclose(tied.layers[0].weight, total, rtol=0, atol=1e-12)
    assert torch.allclose(tied.layers[1].bias, parts.layers[1].bias, rtol=0, atol=1e-12)
    assert tied.layers[1].weight == Alias("layers.0.weight")


def test_vmap_over_tied_models(device: torch.device) -> None:
    """An ensemble of tied models is tied."""
    p, x = make_tied(**double(device)), torch.ones(3, **double(device))
    models = pn.tree.stack([p, pn.tree.map(lambda w: 2 * w, p)])
    assert names(models) == names(p)
    ys = torch.func.vmap(chain, (0, None))(models, x)
    assert torch.allclose(ys[0], p(x), rtol=0, atol=1e-12)


def test_untie(device: torch.device) -> None:
    """Untying gives every place its leaf, at any depth of the tree; without ties nothing changes."""
    p = make_tied(device=device)
    for tree in (p, Chain((p,)), (p, {"a": [p]}), Box({"a": p})):
        whole = pn.tree.untie(tree)
        assert "Alias" not in repr(whole)
        assert pn.tree.count(whole) > pn.tree.count(tree)
        assert pn.tree.equal(pn.tree.untie(whole), whole)
    q = make_affine()
    assert pn.tree.untie(q).weight is q.weight
    assert pn.tree.equal(pn.tree.untie((q, None)), (q, None))
    assert repr(pn.tree.untie(p)) == repr(Chain((make_affine(3, 3), make_affine(3, 3))))


def test_ties_through_collections(device: torch.device) -> None:
    """Places in dicts, named tuples and other registered nodes can be tied, as alias and as leaf."""
    x, y = torch.ones(2, device=device), torch.zeros(2, device=device)

    @pn.container
    class Holder(pn.Layer):
        first: Any
        second: Any

    @pn.applies(Holder)
    def total(p: Holder) -> Tensor:
        leaves = pn.tree.leaves((p.first, p.second))
        assert len(leaves) == 2, p
        return sum(leaves, torch.zeros(2, device=device))

    for make in (lambda x: (x,), lambda x: {0: x}, lambda x: {"0": x}, lambda x: Pair(x, None), lambda x: deque([x])):
        p = Holder(make(x), make(y))
        q = pn.tree.tie(p, {"second.0": "first.0"})
        assert len(pn.tree.leaves(q)) == 1
        assert torch.equal(q(), 2 * x)
        assert type(pn.tree.untie(q).second) is type(p.second)
    p = pn.tree.tie(Holder(OrderedDict(a=x), {"b": (y,)}), {"second.b.0": "first.a"})
    assert torch.equal(p(), 2 * x)


# ---------------------------------------------------------------------------------------------------- making ties


def test_tie_finds_shared_tensors(device: torch.device) -> None:
    """Without a mapping all places of one tensor object are tied to the first."""
    x, y = torch.ones(2, device=device), torch.ones(2, device=device)
    p = pn.tree.tie(Chain((Affine(x, y), Affine(y, x), Affine(torch.ones(2, device=device)))))
    assert names(p) == ["layers.0.weight", "layers.0.bias", "layers.2.weight"]
    assert p.layers[1] == p.layers[1]
    assert (p.layers[1].weight, p.layers[1].bias) == (Alias("layers.0.bias"), Alias("layers.0.weight"))


def test_tie_without_anything_shared(device: torch.device) -> None:
    """A model that shares nothing stays the very same."""
    p = make_affine(device=device)
    assert pn.tree.tie(p) is p
    assert pn.tree.tie(p, {}) is p


def test_shared_parameters_and_buffers_are_not_tied(device: torch.device) -> None:
    """A tensor that starts as parameter and as buffer is shared by accident: it is not tied."""
    x = torch.zeros(2, device=device)
    p = Chain((Count(x, x), Count(x, x)))
    assert names(pn.tree.tie(p)) == ["layers.0.gain", "layers.0.calls"]


@pytest.mark.parametrize(
    "steps",
    [
        [{0: 1, 1: 2}],
        [{1: 2, 0: 1}],
        [{0: 1}, {1: 2}],
        [{1: 2}, {0: 1}],
        [{0: 2}, {1: 2}],
        [{0: 2}, {1: 0}],
        [{1: 2}, {0: 1}, {1: 2, 0: 2}],
    ],
)
def test_chains_of_ties(steps: list[dict[int, int]], device: torch.device) -> None:
    """Ties of ties end at one leaf, in whatever order they are made."""
    p, x = scales(device), torch.ones((), **double(device))
    for step in steps:
        p = pn.tree.tie(p, {factor(alias): factor(leaf) for alias, leaf in step.items()})
    assert names(p) == [factor(2)]
    assert p(x).item() == 4.0**3


def test_an_alias_may_be_tied_elsewhere(device: torch.device) -> None:
    """Tying an alias to another leaf moves it there."""
    p = pn.tree.tie(scales(device), {factor(0): factor(1)})
    q = pn.tree.tie(p, {factor(0): factor(2)})
    assert names(q) == [factor(1), factor(2)]
    assert q(torch.ones((), **double(device))).item() == 4.0 * 3.0 * 4.0


def test_tied_models_in_tied_models(device: torch.device) -> None:
    """Models with ties of their own can be tied to each other, from outside to inside and back."""
    x = torch.ones((), **double(device))
    inner = pn.tree.tie(scales(device, 2), {factor(1): factor(0)})
    outer = Chain((inner, *scales(device).layers))
    assert outer(x).item() == 2.0 * 2.0 * 2.0 * 3.0 * 4.0
    assert pn.tree.tie(outer, {"layers.1.factor": "layers.0.layers.1.factor"})(x).item() == 2.0**3 * 3.0 * 4.0
    assert pn.tree.tie(outer, {"layers.1.factor": "layers.0.layers.0.factor"})(x).item() == 2.0**3 * 3.0 * 4.0
    for place in (0, 1):
        q = pn.tree.tie(outer, {f"layers.0.layers.{place}.factor": "layers.3.factor"})
        assert q(x).item() == (4.0 if place == 0 else 2.0) * 4.0 * 2.0 * 3.0 * 4.0
        assert pn.tree.untie(q)(x).item() == q(x).item()
        assert Chain((q,))(x).item() == q(x).item()
    deep = pn.tree.tie(Chain((outer, Scale(torch.full((), 7.0, **double(device))))), {})
    deep = pn.tree.tie(deep, {"layers.0.layers.0.layers.0.factor": "layers.1.factor"})
    own = [f"layers.0.layers.{n}.factor" for n in (1, 2, 3)]
    assert names(deep) == [*own, "layers.1.factor"]
    assert deep(x).item() == 7.0**3 * 2.0 * 3.0 * 4.0


def test_an_untouched_part_keeps_its_own_ties(device: torch.device) -> None:
    """A tied part whose places are not tied to the outside can still be applied alone."""
    inner = pn.tree.tie(scales(device, 2), {factor(1): factor(0)})
    outer = pn.tree.tie(Chain((inner, inner)), {"layers.1.layers.0.factor": "layers.0.layers.0.factor"})
    x = torch.ones((), **double(device))
    assert outer.layers[0](x).item() == 4.0
    assert outer(x).item() == 16.0
    with pytest.raises(PlaceholderError):
        outer.layers[1](x)


def test_tie_errors() -> None:
    """Ties between places that cannot be one tensor are refused."""
    x = torch.ones(2)
    p = Box((x, torch.ones(3), x.double(), x.clone(), Affine(x.clone()), 1.5, None), (x.clone(),))
    cases: list[Any] = [
        ("content.0", "content.1", "(f32[2]) cannot be tied to 'content.1' (f32[3]): shape and dtype must be equal."),
        ("content.0", "content.2", "(f32[2]) cannot be tied to 'content.2' (f64[2]): shape and dtype must be equal."),
        ("content.0", "content.4", "(f32[2]) cannot be tied to 'content.4' (an Affine): both must be tensors."),
        ("content.4", "content.0", "(an Affine) cannot be tied to 'content.0' (f32[2]): both must be tensors."),
        ("content.0", "content.5", "(f32[2]) cannot be tied to 'content.5' (a float): both must be tensors."),
        ("content.0", "content.6", "(f32[2]) cannot be tied to 'content.6' (None): both must be tensors."),
        (
            "content.0",
            "state.0",
            "(f32[2]) cannot be tied to 'state.0' (f32[2]): one is a parameter, the other a buffer.",
        ),
        (
            "state.0",
            "content.0",
            "(f32[2]) cannot be tied to 'content.0' (f32[2]): one is a buffer, the other a parameter.",
        ),
        ("content.0", "content.0", "cannot be tied to itself."),
    ]
    for alias, leaf, rest in cases:
        with pytest.raises(StructureError) as error:
            pn.tree.tie(p, {alias: leaf})
        assert str(error.value) == f"'{alias}' {rest}"
    with pytest.raises(StructureError) as error:
        pn.tree.tie(p, {"content.0": "content.3", "content.3": "content.0"})
    assert str(error.value) == "'content.3' cannot be tied to itself."
    with pytest.raises(StructureError) as error:
        pn.tree.tie(p, {"": "content.0"})
    assert str(error.value) == ("the tree itself (a Box) cannot be tied to 'content.0' (f32[2]): both must be tensors.")
    with pytest.raises(StructureError) as error:
        pn.tree.tie((x, x))
    assert str(error.value) == "tie takes a container, got tuple: put the parts into a container first."
    for mapping in ({"content.9": "content.0"}, {"content.0": "content.9"}):
        with pytest.raises(PathError) as error:
            pn.tree.tie(p, mapping)
        assert str(error.value) == (
            "the path 'content.9' names nothing: below 'content' there is '0', '1', '2', '3', '4', '5', '6', but no "
            "'9'."
        )


# ---------------------------------------------------------------------------------------------------- use of parts


def test_a_part_of_a_tied_model(device: torch.device) -> None:
    """A part that holds an alias has no tensor there: every use says what to do."""
    part = make_tied(device=device).layers[1]
    x = torch.ones(3, device=device)
    message = (
        "this parameter is tied to 'layers.0.weight' and has no tensor of its own here: apply the whole tied model, or "
        "call pn.tree.untie(p) first and use the part of the result."
    )
    uses: list[Any] = [
        lambda: part(x),
        lambda: x @ part.weight,
        lambda: part.weight @ x,
        lambda: part.weight + x,
        lambda: x * part.weight,
        lambda: torch.cat([x, part.weight]),
        lambda: torch.add(x, other=part.weight),
        lambda: part.weight.shape,
        lambda: part.weight.t(),
        lambda: part.weight**2,
        lambda: 2 - part.weight,
        lambda: -part.weight,
        lambda: part.weight[0],
        lambda: float(part.weight),
    ]
    for use in uses:
        with pytest.raises(PlaceholderError) as error:
            use()
        assert str(error.value) == message


def test_surgery_on_an_alias(device: torch.device) -> None:
    """An alias can be replaced by a tensor of its own; the other ties stay."""
    p = make_tied(device=device)
    x = torch.zeros(3, 3, device=device)
    q = pn.tree.select(p).paths("layers.1.weight").set(x)
    assert names(q) == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    assert torch.equal(q(torch.ones(3, device=device)), q.layers[1].bias)


# ---------------------------------------------------------------------------------------------------- with the rest


def test_stateful_tied_models_keep_their_ties(device: torch.device) -> None:
    """The new container of a tied stateful model has the new buffers and the same aliases."""
    x = torch.full((), 2.0, device=device)
    p = Chain(tuple(Count(x + n, torch.zeros((), device=device)) for n in range(2)))
    p = pn.tree.tie(p, {"layers.1.gain": "layers.0.gain"})
    y, new = p(torch.ones((), device=device), train=True)
    assert y.item() == 4.0
    assert names(new) == names(p) == ["layers.0.gain", "layers.0.calls", "layers.1.calls"]
    assert [layer.calls.item() for layer in new.layers] == [1.0, 1.0]
    assert pn.tree.map(lambda a: a * 0, new)(torch.ones((), device=device))[0].item() == 0.0
    assert pn.tree.equal(pn.tree.map(lambda a: a * 0, new), pn.tree.map(lambda a: a * 0, p))
    (y, outer) = Chain((p, p))(torch.ones((), device=device), train=True)
    assert names(outer.layers[1]) == names(p)
    assert outer.layers[0].layers[1].calls.item() == 1.0


def test_stateful_tied_models_in_tied_models(device: torch.device) -> None:
    """New containers of tied models within tied models have all aliases where they were."""
    x, zero = torch.full((), 2.0, device=device), torch.zeros((), device=device)
    inner = pn.tree.tie(Chain((Count(x, zero), Count(x, zero))), {"layers.1.gain": "layers.0.gain"})
    outer = pn.tree.tie(Chain((inner, Count(x, zero))), {"layers.1.gain": "layers.0.layers.0.gain"})
    y, new = outer(torch.ones((), device=device), train=True)
    assert y.item() == 8.0
    assert pn.tree.equal(pn.tree.map(lambda a: a * 0, new), pn.tree.map(lambda a: a * 0, outer))
    assert [leaf.item() for path, leaf in pn.tree.named_leaves(new) if path.endswith("calls")] == [1.0, 1.0, 1.0]


def test_saving_stores_the_leaf_once(device: torch.device, tmp_path: Path) -> None:
    """A file of a tied model has one tensor, and loads into a tied model."""
    p = make_tied(device=device)
    pn.save(tmp_path / "p.safetensors", p)
    q = pn.load(tmp_path / "p.safetensors", like=pn.tree.map(torch.zeros_like, p))
    assert pn.tree.equal(p, q)
    assert torch.equal(p(torch.ones(3, device=device)), q(torch.ones(3, device=device)))


def test_freezing_a_tied_leaf(device: torch.device) -> None:
    """A frozen tied leaf is frozen in all its places."""
    p = pn.tree.freeze(make_tied(**double(device)), "layers.1.weight")
    assert pn.tree.count(p, trainable=True) == 6
    assert pn.tree.partition(p)[0].layers[0].weight is pn.tree.HOLE


def test_marks_survive_tying(device: torch.device) -> None:
    """Tying and untying keep the frozen marks."""
    p = pn.tree.freeze(scales(device), factor(2))
    tied = pn.tree.tie(p, {factor(0): factor(1)})
    assert pn.tree.count(tied, trainable=True) == 1
    assert pn.tree.equal(pn.tree.tie(pn.tree.untie(tied), {factor(0): factor(1)}), tied)
    frozen = pn.tree.tie(pn.tree.freeze(make_affine(2, 2, device=device), "bias"))
    assert pn.tree.count(frozen, trainable=True) == 4


@pytest.mark.parametrize("stateful", [False, True])
def test_tied_models_compile(stateful: bool, device: torch.device) -> None:
    """A tied model is applied inside a compiled function without a graph break."""
    torch._dynamo.reset()
    x = torch.ones(3, device=device)
    p = make_tied(device=device)
    if stateful:
        p = pn.replace(p, layers=(*p.layers, Count(x, x)))
    f = torch.compile(lambda p, x: p(x), fullgraph=True, backend="eager")
    for got, expected in zip(pn.tree.leaves(f(p, x)), pn.tree.leaves(p(x)), strict=True):
        assert torch.equal(got, expected)
    gradient = torch.compile(
        torch.func.grad(lambda p, x: pn.tree.leaves(p(x))[0].sum()), fullgraph=True, backend="eager"
    )
    assert pn.tree.allclose(
        gradient(p, x), torch.func.grad(lambda p, x: pn.tree.leaves(p(x))[0].sum())(p, x), atol=1e-6
    )


def test_untie_inside_a_compiled_function(device: torch.device) -> None:
    """Untying is traced."""
    torch._dynamo.reset()
    p, x = make_tied(device=device), torch.ones(3, device=device)
    f = torch.compile(lambda p, x: pn.tree.untie(p).layers[1](x), fullgraph=True, backend="eager")
    assert torch.equal(f(p, x), pn.tree.untie(p).layers[1](x))
