"""Splitting trees, putting them together, and freezing."""

from typing import Any

import pytest
import torch
from _models import Affine, Box, Chain, Count, Scale, affine, make_affine, make_chain, make_tied
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, SelectionError, StructureError
from purenn.tree import HOLE


def names(tree: Any) -> list[str]:
    return [path for path, _ in pn.tree.named_leaves(tree)]


def make_mixed(device: torch.device) -> Chain:
    """All kinds of leaves: trained, frozen, buffers, integers, complex numbers, no tensors."""
    x = torch.ones(2, device=device)
    return Chain(
        (
            pn.tree.freeze(Affine(x, x), "bias"),
            Count(x, x),
            Box((x.to(torch.int64), x.to(torch.complex64), 1.5), {"a": Affine(x)}),
        )
    )


OPTIONS: list[Any] = [
    ({}, ["layers.0.weight", "layers.1.gain", "layers.2.content.1"]),
    (
        {"kind": "parameter"},
        [
            "layers.0.weight",
            "layers.0.bias",
            "layers.1.gain",
            "layers.2.content.0",
            "layers.2.content.1",
            "layers.2.content.2",
        ],
    ),
    ({"kind": "buffer"}, ["layers.1.calls", "layers.2.state.a.weight"]),
    ({"paths": "**.weight"}, ["layers.0.weight", "layers.2.state.a.weight"]),
    ({"paths": ["layers.0", "layers.1.*"]}, ["layers.0.weight", "layers.0.bias", "layers.1.gain", "layers.1.calls"]),
    ({"instances": Affine}, ["layers.0.weight", "layers.0.bias", "layers.2.state.a.weight"]),
    (
        {"instances": (Count, Scale)},
        ["layers.1.gain", "layers.1.calls"],
    ),
    ({"where": lambda leaf: isinstance(leaf, float)}, ["layers.2.content.2"]),
    ({"where": lambda leaf: False}, []),
]


@pytest.mark.parametrize(("options", "expected"), OPTIONS)
def test_partition(options: Any, expected: list[str], device: torch.device) -> None:
    """The first tree has the chosen leaves, the second the others; together they are the whole."""
    p = make_mixed(device)
    chosen, rest = pn.tree.partition(p, **options)
    assert names(chosen) == expected
    assert sorted(names(chosen) + names(rest)) == sorted(names(p))
    assert type(chosen) is type(rest) is Chain
    for whole in (pn.tree.combine(chosen, rest), pn.tree.combine(rest, chosen)):
        assert pn.tree.equal(whole, p)
        for a, b in zip(pn.tree.leaves(whole), pn.tree.leaves(p), strict=True):
            assert a is b


def test_partition_of_bare_trees(device: torch.device) -> None:
    """Tensors, tuples and dicts are trees as well."""
    x, n = torch.ones(1, device=device), torch.ones(1, dtype=torch.int64, device=device)
    assert pn.tree.partition(x) == (x, HOLE)
    assert pn.tree.partition((n, {"a": x})) == ((HOLE, {"a": x}), (n, {"a": HOLE}))
    assert pn.tree.partition(None) == (None, None)


def test_partition_by_alias(device: torch.device) -> None:
    """An alias stands for its leaf: choosing the tied place chooses the shared tensor."""
    p = make_tied(device=device)
    assert names(pn.tree.partition(p, paths="layers.1.weight")[0]) == ["layers.0.weight"]
    assert names(pn.tree.partition(p, paths="layers.1")[0]) == ["layers.0.weight", "layers.1.bias"]
    assert pn.tree.equal(pn.tree.combine(*pn.tree.partition(p, paths="layers.1")), p)


def test_parts_of_parts(device: torch.device) -> None:
    """A part can be split further; its parts combine to it, or all parts at once to the whole."""
    p = make_mixed(device)
    trained, rest = pn.tree.partition(p)
    first, second = pn.tree.partition(trained, paths="layers.0")
    assert names(first) == ["layers.0.weight"]
    assert pn.tree.equal(pn.tree.combine(first, second), trained)
    assert pn.tree.equal(pn.tree.combine(first, rest, second), p)
    assert pn.tree.equal(pn.tree.combine(p), p)


def test_gradients_of_a_part(device: torch.device) -> None:
    """Raw torch.func.grad of the trained part equals the hand-written gradient; holes stay holes."""
    p = make_affine(dtype=torch.float64, device=device)
    x = torch.linspace(0, 1, 3, dtype=torch.float64, device=device)
    trained, rest = pn.tree.partition(pn.tree.freeze(p, "bias"))
    gradient = torch.func.grad(lambda t: affine(pn.tree.combine(t, rest), x).square().sum())(trained)
    assert gradient.bias is HOLE
    assert torch.allclose(gradient.weight, 2 * torch.outer(affine(p, x), x), rtol=0, atol=1e-12)
    rows = torch.func.vmap(torch.func.grad(lambda t, x: affine(pn.tree.combine(t, rest), x).square().sum()), (None, 0))(
        trained, torch.stack([x, x])
    )
    assert rows.weight.shape == (2, 2, 3)


def test_combine_inside_a_compiled_function(device: torch.device) -> None:
    """Combining is traced without a graph break."""
    p, x = make_chain(device=device), torch.ones(3, device=device)
    trained, rest = pn.tree.partition(pn.tree.freeze(p, "layers.0"))
    torch._dynamo.reset()
    f = torch.compile(lambda t, r, x: pn.tree.combine(t, r)(x), fullgraph=True, backend="eager")
    assert torch.equal(f(trained, rest, x), p(x))


PARTITION_ERRORS: list[Any] = [
    (
        {"kind": "parameter", "where": bool},
        ArgumentError,
        "partition takes one of kind, paths, instances and where, got kind and where.",
    ),
    (
        {"kind": "p", "paths": "a", "instances": Affine, "where": bool},
        ArgumentError,
        "partition takes one of kind, paths, instances and where, got kind and paths and instances and where.",
    ),
    ({"kind": "static"}, ArgumentError, "partition: kind must be 'parameter' or 'buffer', got 'static'."),
    (
        {"paths": "layers.7"},
        SelectionError,
        "partition: the selection (paths 'layers.7') is empty in this Chain; its nodes are: layers, layers.0, "
        "layers.0.weight, layers.0.bias, layers.1, layers.1.weight.",
    ),
    (
        {"instances": (Count, Scale)},
        SelectionError,
        "partition: the selection (instances of Count or Scale) is empty in this Chain; its nodes are: layers, "
        "layers.0, layers.0.weight, layers.0.bias, layers.1, layers.1.weight.",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), PARTITION_ERRORS)
def test_partition_errors(options: Any, kind: type[Exception], message: str) -> None:
    """Contradicting or empty choices are refused."""
    with pytest.raises(kind) as error:
        pn.tree.partition(make_chain(), **options)
    assert str(error.value) == message


def test_combine_errors() -> None:
    """Two leaves in one place, or trees of different structure, are refused with the path."""
    p = make_chain()
    trained, rest = pn.tree.partition(p, paths="layers.0.weight")
    tail = ". Both must have the same classes, absent children and static fields."
    x = torch.ones(1)
    cases: list[Any] = [
        ((p, p), "combine: 2 trees have a leaf at 'layers.0.weight'; only one may."),
        ((rest, trained, rest), "combine: 2 trees have a leaf at 'layers.0.bias'; only one may."),
        ((x, x, x), "combine: 3 trees have a leaf at the tree itself; only one may."),
        ((Affine(x), Affine(HOLE, x)), f"combine: the trees differ at 'bias': None against a Tensor{tail}"),  # pyright: ignore[reportArgumentType]
        ((Affine(HOLE, HOLE), Affine(x)), f"combine: the trees differ at 'bias': a Tensor against None{tail}"),  # pyright: ignore[reportArgumentType]
        ((HOLE, (x,)), f"combine: the trees differ at the top: a Tensor against a tuple{tail}"),
        (
            (pn.replace(rest, name="other"), trained),
            f"combine: the trees differ at the top: the static field 'name': 'other' against 'chain'{tail}",
        ),
        (
            (pn.tree.freeze(rest, "layers.0.bias"), trained),
            "combine: the trees differ at 'layers.0': the marks of frozen and tied leaves: Marks(frozen={bias}, "
            f"tied=False) against None{tail}",
        ),
    ]
    for trees, message in cases:
        with pytest.raises(StructureError) as error:
            pn.tree.combine(*trees)
        assert str(error.value) == message


# ---------------------------------------------------------------------------------------------------- freezing


def trained(p: Any) -> list[str]:
    return names(pn.tree.partition(p)[0])


def test_freeze_everything_and_back(device: torch.device) -> None:
    """Frozen leaves are not trained; unfreezing gives the first tree again."""
    p = make_chain(device=device)
    q = pn.tree.freeze(p)
    assert trained(q) == []
    assert trained(p) == ["layers.0.weight", "layers.0.bias", "layers.1.weight"]
    assert pn.tree.equal(pn.tree.unfreeze(q), p)
    assert pn.tree.equal(pn.tree.freeze(q), q)
    assert pn.tree.equal(pn.tree.unfreeze(p), p)


def test_freeze_some(device: torch.device) -> None:
    """Leaves are chosen by path patterns or by a selection; marks add up."""
    p = make_chain(device=device)
    q = pn.tree.freeze(p, "layers.0.bias")
    assert trained(q) == ["layers.0.weight", "layers.1.weight"]
    assert trained(pn.tree.freeze(q, lambda s: s.instances(Tensor).where(lambda t: t.dim() == 2))) == []
    assert trained(pn.tree.freeze(p, ["layers.1", "**.bias"])) == ["layers.0.weight"]
    assert trained(pn.tree.unfreeze(pn.tree.freeze(p), lambda s: s.paths("layers.1"))) == ["layers.1.weight"]


def test_freeze_leaves_in_tuples_and_dicts(device: torch.device) -> None:
    """The innermost container keeps the mark of a leaf that lies in a tuple or dict of it."""
    x = torch.ones(1, device=device)
    p = Box({"a": (x, Affine(x, x)), 3: x})
    q = pn.tree.freeze(p, ["content.a.0", "content.a.1.bias"])
    assert trained(q) == ["content.3", "content.a.1.weight"]
    assert repr(q) == (
        "Box(state=None, size=3, mode='plain', frozen={content.a.0}\n"
        "  (content): dict(\n"
        "    (a): tuple(\n"
        "      (0): f32[1]\n"
        "      (1): Affine(weight=f32[1], bias=f32[1], frozen={bias})\n"
        "    )\n"
        "    (3): f32[1]\n"
        "  )\n"
        ")"
    )
    assert pn.tree.equal(pn.tree.unfreeze(q), p)


def test_the_mark_survives(device: torch.device) -> None:
    """Frozen leaves stay frozen through map, replace, stack, partition, casts and surgery of others."""
    p = pn.tree.freeze(make_chain(device=device), "layers.0.bias")
    changed = [
        pn.tree.map(lambda x: x * 2, p),
        pn.replace(p, name="other"),
        pn.tree.stack([p, p]),
        pn.tree.combine(*pn.tree.partition(p, kind="buffer")),
        pn.tree.to(p, torch.float64),
        pn.tree.select(p).paths("layers.1.weight").apply(torch.zeros_like),
        torch.func.grad(lambda p: p(torch.ones(3, device=device)).sum())(p),
    ]
    for q in changed:
        assert trained(q) == ["layers.0.weight", "layers.1.weight"]


def test_freeze_a_tied_leaf(device: torch.device) -> None:
    """Freezing either place of a tie freezes the one shared leaf."""
    p = make_tied(device=device)
    for path in ("layers.0.weight", "layers.1.weight"):
        assert trained(pn.tree.freeze(p, path)) == ["layers.0.bias", "layers.1.bias"]
    assert trained(pn.tree.freeze(p, "layers.1")) == ["layers.0.bias"]
    assert trained(pn.tree.freeze(Box((p, p)), "content.1.layers.1.weight")) == [
        "content.0.layers.0.weight",
        "content.0.layers.0.bias",
        "content.0.layers.1.bias",
        "content.1.layers.0.bias",
        "content.1.layers.1.bias",
    ]


def test_freeze_buffers_and_options_only() -> None:
    """A tree without trained leaves can be frozen; nothing is trained then either."""
    assert trained(pn.tree.freeze(Box())) == []
    assert trained(pn.tree.freeze(Box(state=torch.ones(1)))) == []


def test_freeze_errors() -> None:
    """Freezing nothing, or what lies in no container, is refused."""
    p, x = make_affine(), torch.ones(1)
    empty = "is empty in this Affine; its nodes are: weight, bias."
    cases: list[Any] = [
        (p, "wieght", SelectionError, f"the selection (paths 'wieght') {empty}"),
        (p, ["a", "b.*"], SelectionError, f"the selection (paths 'a', 'b.*') {empty}"),
        (p, lambda s: s.instances(Chain), SelectionError, f"the selection (instances of Chain) {empty}"),
        (
            {"a": x, "b": p},
            None,
            StructureError,
            "'a' lies in no container, so there is nowhere to keep the mark: put it into a container, or choose what "
            "to train with pn.tree.partition.",
        ),
        (
            x,
            None,
            StructureError,
            "the tree itself lies in no container, so there is nowhere to keep the mark: put it into a container, or "
            "choose what to train with pn.tree.partition.",
        ),
    ]
    for name in ("freeze", "unfreeze"):
        for tree, selection, kind, rest in cases:
            with pytest.raises(kind) as error:
                getattr(pn.tree, name)(tree, selection)
            assert str(error.value) == f"{name}: {rest}"
