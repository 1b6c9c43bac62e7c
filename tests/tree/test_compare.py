"""Comparing trees, and naming the first difference."""

from typing import Any

import pytest
import torch
from _models import Affine, Box, Chain, Scale, make_affine, make_chain, make_tied
from torch import Tensor

import purenn as pn

NAN, INF = float("nan"), float("inf")


def tensor(*values: Any, **options: Any) -> Tensor:
    return torch.tensor(values, **options)


def test_equal_trees(device: torch.device) -> None:
    """A comparison without difference is true and says so."""
    p = make_chain(device=device)
    for same in (pn.tree.equal(p, pn.tree.map(torch.clone, p)), pn.tree.allclose(p, p)):
        assert same
        assert (same.same, same.path, same.reason, str(same)) == (True, None, "", "no difference")


EQUAL_VALUES: list[Any] = [
    (tensor(NAN, 1.0), tensor(NAN, 1.0)),
    (tensor(INF, -INF), tensor(INF, -INF)),
    (tensor(1, 2), tensor(1, 2)),
    (tensor(True), tensor(True)),
    (tensor(1 + 2j, complex(NAN, 0)), tensor(1 + 2j, complex(NAN, 0))),
    (torch.ones(0, 3), torch.ones(0, 3)),
    (torch.ones(2, device="meta"), torch.zeros(2, device="meta")),
    (tensor(1.0).to(torch.float8_e4m3fn), tensor(1.0).to(torch.float8_e4m3fn)),
    (tensor(1.0).bfloat16(), tensor(1.0).bfloat16()),
    (torch.ones(2, 3).T, torch.ones(3, 2)),
    (tensor(1 + 2j).conj(), tensor(1 - 2j)),
    (1.5, 1.5),
    (None, None),
    ((), ()),
]


@pytest.mark.parametrize(("a", "b"), EQUAL_VALUES)
def test_equal_values(a: Any, b: Any) -> None:
    """Equal are values of the same dtype; NaN equals NaN, whatever the memory layout."""
    assert pn.tree.equal(Box((a, 0)), Box((b, 0)))


DIFFERENT: list[Any] = [
    (tensor(1.0, 2.0, 5.0), tensor(1.0, 2.5, 4.0), "2 of 3 elements differ, by at most 1"),
    (tensor(0.0), tensor(-0.0), "1 of 1 elements differ, by at most 0"),
    (tensor(INF, 1.0), tensor(INF, 1.25), "1 of 2 elements differ, by at most 0.25"),
    (tensor(INF, 1.0), tensor(-INF, 1.0), "1 of 2 elements differ, by at most inf"),
    (tensor(NAN, NAN), tensor(NAN, 1.0), "1 of 2 elements differ, by at most inf"),
    (tensor(3, 4), tensor(3, 7), "1 of 2 elements differ, by at most 3"),
    (tensor(True, False), tensor(True, True), "1 of 2 elements differ, by at most 1"),
    (tensor(3 + 4j, 1), tensor(0, 1 + 0j), "1 of 2 elements differ, by at most 5"),
    (tensor(complex(0.0, 0.0)), tensor(complex(0.0, -0.0)), "1 of 1 elements differ, by at most 0"),
    (tensor(1.0), tensor(1.0, dtype=torch.float64), "f32[1] against f64[1]"),
    (tensor(1.0), torch.ones(1, 1), "f32[1] against f32[1,1]"),
    (tensor(1.0), torch.ones(1, device="meta"), "device cpu against meta"),
    (tensor(1.0), 1.0, "f32[1] against 1.0"),
    (1, 2, "1 against 2"),
    (1, 1.0, "1 against 1.0"),
    (None, tensor(1.0), "None against a Tensor"),
    ((1, 2), (1,), "the children [0, 1] against [0]"),
    (Scale(tensor(1.0)), Scale(tensor(1.0), 2), "the static field 'power': 1 against 2"),
    (Scale(tensor(1.0)), Affine(tensor(1.0)), "a Scale against an Affine"),
    (
        pn.tree.freeze(Affine(tensor(1.0))),
        Affine(tensor(1.0)),
        "the marks of frozen and tied leaves: Marks(frozen={weight}, tied=False) against None",
    ),
]


@pytest.mark.parametrize(("a", "b", "reason"), DIFFERENT)
def test_the_first_difference_is_named(a: Any, b: Any, reason: str) -> None:
    """The comparison is false and has the path of the first difference and what it is."""
    found = pn.tree.equal(Box((0, a, 1)), Box((0, b, 2)))
    assert not found
    assert (found.path, found.reason) == ("content.1", reason)
    assert str(found) == f"content.1: {reason}"
    at_the_top = pn.tree.equal(a, b)
    assert str(at_the_top) == f"the top: {reason}"
    assert at_the_top.path == ""


def test_any_keys_can_be_compared() -> None:
    """Comparing needs no unique paths, so state dicts can be compared as well."""
    a, b = torch.nn.Linear(2, 2).state_dict(prefix="x."), torch.nn.Linear(2, 2, bias=False).state_dict(prefix="x.")
    assert pn.tree.equal(a, a)
    assert str(pn.tree.equal(a, {**a, "x.bias": a["x.bias"] + 1})).startswith("the top: an OrderedDict against a dict")
    assert pn.tree.equal({"m": dict(a)}, {"m": {**a, "x.bias": a["x.bias"] * float("nan")}}).path == "m.x.bias"
    assert str(pn.tree.equal(a, b)) == "the top: the children ['x.weight', 'x.bias'] against ['x.weight']"


def test_leaves_that_require_grad(device: torch.device) -> None:
    """They are compared without a graph, and without a warning."""
    a, b = (torch.full((2,), value, device=device, requires_grad=True) for value in (1.0, 1.5))
    assert pn.tree.equal({"a": a}, {"a": a})
    for compared in (pn.tree.equal({"a": a}, {"a": b}), pn.tree.allclose({"a": a}, {"a": b})):
        assert str(compared) == "a: 2 of 2 elements differ, by at most 0.5"


def test_ties_and_holes_are_structure(device: torch.device) -> None:
    """A tied model differs from the untied one, and a part from the whole."""
    p = make_tied(device=device)
    assert str(pn.tree.equal(p, pn.tree.untie(p))) == "layers.1.weight: an Alias against a Tensor"
    q = make_affine(device=device)
    assert str(pn.tree.equal(q, pn.tree.partition(q, paths="bias")[0])) == "weight: a Tensor against HOLE"


CLOSE: list[Any] = [
    (tensor(1.0), tensor(1.0 + 1e-6), {}, True),
    (tensor(1.0), tensor(1.0 + 1e-4), {}, False),
    (tensor(1.0), tensor(1.0 + 1e-4), {"atol": 1e-3}, True),
    (tensor(100.0), tensor(101.0), {"rtol": 0.01, "atol": 0.0}, True),
    (tensor(101.0), tensor(100.0), {"rtol": 0.00999, "atol": 0.0}, False),
    (tensor(NAN), tensor(NAN), {}, False),
    (tensor(NAN), tensor(NAN), {"equal_nan": True}, True),
    (tensor(INF), tensor(INF), {}, True),
    (tensor(1.0), tensor(1.0, dtype=torch.float64), {}, True),
    (tensor(1.5), tensor(1), {}, False),
    (tensor(1), tensor(1.5), {}, False),
    (tensor(1.0), tensor(1), {}, True),
    (tensor(True), tensor(True), {}, True),
    (tensor(True), tensor(False), {}, False),
    (tensor(1 + 1j), tensor(1 + 1j + 1e-7), {}, True),
    (torch.ones(1, device="meta"), torch.ones(1, device="meta"), {}, True),
    (tensor(1.0), torch.ones(1, device="meta"), {}, False),
    (tensor(1.0), tensor(1.0, 1.0), {}, False),
    (1, 1, {}, True),
    (1, 2, {}, False),
]


@pytest.mark.parametrize(("a", "b", "options", "expected"), CLOSE)
def test_allclose(a: Any, b: Any, options: Any, expected: bool) -> None:
    """Values are close if |a - b| <= atol + rtol |b|, in the wider of the two dtypes."""
    found = pn.tree.allclose(Chain((Box(a),)), Chain((Box(b),)), **options)
    assert found.same is expected
    assert found.path == (None if expected else "layers.0.content")


def test_allclose_tells_how_far() -> None:
    """The reason counts the elements out of tolerance and their largest distance."""
    found = pn.tree.allclose(tensor(1.0, 2.0, 3.0), tensor(1.0, 2.5, 3.001, dtype=torch.float64), atol=0.01)
    assert str(found) == "the top: 1 of 3 elements differ, by at most 0.5"
