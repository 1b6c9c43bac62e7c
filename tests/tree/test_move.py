"""Moving and casting trees, where they live, and how large they are."""

from typing import Any

import pytest
import torch
from _models import Box, Chain, Count, Scale, make_affine, make_chain, make_tied

import purenn as pn
from purenn.errors import ArgumentError, DeviceError

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def make_mixed(device: torch.device) -> Box:
    x = torch.ones(2, device=device)
    key = torch.tensor([1, 2], dtype=torch.uint32, device=device)
    return Box((x, x.bfloat16(), x.long(), x.bool(), x.to(torch.complex64), key, 1.5, None), {"mean": x.double()})


@pytest.mark.parametrize("dtype", FLOATS)
def test_casting_changes_floats_only(dtype: torch.dtype, device: torch.device) -> None:
    """A cast changes floating leaves, buffers too; integers, booleans, complex numbers and keys keep their dtype."""
    p = make_mixed(device)
    for q in (pn.tree.to(p, dtype), pn.tree.to(p, dtype=dtype)):
        assert [x.dtype for x in pn.tree.leaves(q) if isinstance(x, torch.Tensor)] == [
            dtype,
            dtype,
            torch.int64,
            torch.bool,
            torch.complex64,
            torch.uint32,
            dtype,
        ]
        assert q.content[6:] == (1.5, None)
    assert p.content[0].dtype == torch.float32


def test_moving_changes_all(device: torch.device) -> None:
    """A move takes every tensor along, whatever its dtype, and keeps dtypes."""
    p = make_mixed(device)
    for target in (torch.device("meta"), "meta"):
        for q in (pn.tree.to(p, target), pn.tree.to(p, device=target)):
            assert pn.tree.device(q) == torch.device("meta")
            assert [x.dtype for x in q.content[:6]] == [x.dtype for x in p.content[:6]]
    assert pn.tree.device(pn.tree.to(pn.tree.to(torch.ones(1), device), "cpu")) == torch.device("cpu")


def test_both_at_once(device: torch.device) -> None:
    """Device and dtype can change in one call, in either spelling."""
    p = make_affine(device=device)
    for q in (
        pn.tree.to(p, torch.float64, device="meta"),
        pn.tree.to(p, "meta", dtype=torch.float64),
        pn.tree.to(p, device="meta", dtype=torch.float64),
    ):
        assert (q.weight.dtype, q.weight.device.type) == (torch.float64, "meta")


def test_nothing_is_copied_without_need(device: torch.device) -> None:
    """Leaves that are right already are the same objects; options, marks and ties stay."""
    p = pn.tree.freeze(make_chain(device=device), "layers.0")
    q = pn.tree.to(p, torch.float32)
    for a, b in zip(pn.tree.leaves(p), pn.tree.leaves(q), strict=True):
        assert a is b
    assert pn.tree.equal(p, q)
    assert len(pn.tree.leaves(pn.tree.to(make_tied(device=device), torch.float64))) == 3


def test_odd_keys_can_be_moved() -> None:
    """Moving needs no paths: any tree of tensors will do."""
    assert pn.tree.to({"a.b": torch.ones(1)}, torch.float64)["a.b"].dtype == torch.float64


TO_ERRORS: list[Any] = [
    ((), {}, "to(tree, ...) needs a device, a dtype or both, got neither."),
    ((None,), {}, "to(tree, ...) needs a device, a dtype or both, got neither."),
    (("cpu",), {"device": "meta"}, "to(tree, ...) got two values for the device: cpu and meta."),
    (
        (torch.float32,),
        {"dtype": torch.float64},
        "to(tree, ...) got two values for the dtype: torch.float32 and torch.float64.",
    ),
    (
        (torch.int64,),
        {},
        "to(tree, dtype=...) casts floating leaves and needs a floating dtype, got torch.int64.",
    ),
    (
        (),
        {"dtype": torch.complex64},
        "to(tree, dtype=...) casts floating leaves and needs a floating dtype, got torch.complex64.",
    ),
    (
        ("nowhere",),
        {},
        "to(tree, ...) takes a device such as 'cpu' or 'cuda:0', or a dtype such as torch.float64, got 'nowhere'.",
    ),
    (
        (),
        {"device": (1, 2)},
        "to(tree, ...) takes a device such as 'cpu' or 'cuda:0', or a dtype such as torch.float64, got (1, 2).",
    ),
]


@pytest.mark.parametrize(("args", "options", "message"), TO_ERRORS)
def test_to_errors(args: Any, options: Any, message: str) -> None:
    """A move without sense is refused."""
    with pytest.raises(ArgumentError) as error:
        pn.tree.to(make_affine(), *args, **options)
    assert str(error.value) == message


def test_devices_that_cannot_be_reached() -> None:
    """A device that is not there, and a leaf without data, are refused with the device's name and the leaf's path."""
    with pytest.raises(DeviceError) as error:
        pn.tree.to(make_affine(), "cuda:99")
    assert str(error.value) == f"to(tree, device): cuda:99 cannot be used here: {error.value.__cause__}"
    p = make_chain()
    half = pn.tree.select(p).paths("layers.1.**").apply(lambda x: x.to("meta"))
    with pytest.raises(DeviceError) as error:
        pn.tree.to(half, "cpu")
    assert str(error.value) == (
        "to(tree, device): 'layers.1.weight' (f32[2,4]) is on the meta device and has no data to move. Draw its values "
        "where they shall be, with init(key, ..., device=device), or load them with pn.load."
    )
    assert pn.tree.to(half, torch.float64).layers[1].weight.is_meta


def test_the_one_device(device: torch.device) -> None:
    """A tree on one device has that device; a tree without tensors has none."""
    assert pn.tree.device(make_mixed(device)) == torch.ones(1, device=device).device
    assert pn.tree.device(Box((1, None))) is None
    assert pn.tree.device(()) is None


def test_trees_on_several_devices(device: torch.device) -> None:
    """Tensors that are elsewhere are listed by path; the most common device is the one they differ from."""
    p = make_chain(device=device)
    p = pn.tree.select(p).paths("layers.0.*").apply(lambda x: x.to("meta"))
    q = Chain((p, make_affine(device=device)))
    here = torch.ones(1, device=device).device
    with pytest.raises(DeviceError) as error:
        pn.tree.device(q)
    assert str(error.value) == (
        f"the tree is not on one device: 3 tensors are on {here}, but on meta: layers.0.layers.0.weight, "
        f"layers.0.layers.0.bias. Move all with pn.tree.to(tree, device)."
    )


def test_counts(device: torch.device) -> None:
    """Elements are counted by kind, and by whether they are trained."""
    x = torch.ones(2, device=device)
    p = Chain(
        (pn.tree.freeze(make_affine(device=device), "bias"), Count(x, torch.ones(5, device=device)), Scale(x.long()))
    )
    assert pn.tree.count(p) == 6 + 2 + 2 + 2
    assert pn.tree.count(p, trainable=True) == 6 + 2
    assert pn.tree.count(p, trainable=False) == 2 + 2
    assert pn.tree.count(p, kind="buffer") == 5
    assert pn.tree.count(p, kind="all") == 17
    assert pn.tree.count(p, kind="all", trainable=False) == 9
    assert pn.tree.count(p, kind="buffer", trainable=True) == 0
    assert pn.tree.count(Box((1.5, None, torch.ones((), device=device)))) == 1
    assert pn.tree.count(make_tied(device=device)) == 15
    with pytest.raises(ArgumentError) as error:
        pn.tree.count(p, kind="static")
    assert str(error.value) == "count: kind must be 'parameter', 'buffer' or 'all', got 'static'."
