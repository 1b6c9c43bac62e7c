"""`bridge.state_dict` and `bridge.load_state_dict`: containers and the state dicts of modules."""

import copy
from typing import Any

import pytest
import torch
from _carried import make
from torch import nn

import bridge
import purenn as pn
from purenn.errors import BridgeError, CheckpointError
from purenn.layers import BatchNorm1d, Linear, Sequential


class Foreign(nn.Module):
    """A tied parameter, a shared submodule, saved and unsaved buffers, an integer parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.again = self.first
        self.codes = nn.Parameter(torch.arange(3), requires_grad=False)
        self.register_buffer("saved", torch.ones(2))
        self.register_buffer("unsaved", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.second(self.first(x)))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize("make_module", [Foreign, lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))])
def test_of_foreign_modules(make_module: Any, device: torch.device) -> None:
    """The state dict of from_module(m) is m's: all names of tied tensors, no unsaved buffers, the same storage."""
    m = make_module().to(device)
    found = bridge.state_dict(bridge.from_module(m))
    assert same(found, m.state_dict())
    assert {t.data_ptr() for t in found.values()} == {t.data_ptr() for t in m.state_dict().values()}
    m.load_state_dict(found)


def test_of_native_containers(device: torch.device) -> None:
    """The state dict of a container is that of its module, ties included."""
    p = pn.tree.tie(make(device), {"blocks.1.fc.bias": "blocks.0.fc.bias"})
    found = bridge.state_dict(p)
    assert same(found, bridge.to_module(p).state_dict())
    assert found["blocks.1.fc.bias"] is found["blocks.0.fc.bias"]
    assert not any(tensor.requires_grad for tensor in found.values())


def test_of_opaque_parts_within_native_ones(device: torch.device) -> None:
    """Unsaved buffers of a foreign module are left out wherever it stands, also in a tuple of containers."""
    m = Foreign().to(device)
    p = Sequential((bridge.from_module(m), Linear.init(pn.random.key(0, device), 3, 2)))
    names = {f"layers.0.{name}" for name in m.state_dict()} | {"layers.1.weight", "layers.1.bias"}
    assert set(bridge.state_dict(p)) == names
    assert set(bridge.state_dict((p,))) == {f"0.{name}" for name in names}


def test_load_gives_the_module_s_tensors(device: torch.device) -> None:
    """A state dict fills a container bit for bit; the container that was given keeps its own tensors."""
    p, other = make(device), make(device, seed=1)
    before = pn.tree.map(torch.clone, p)
    assert pn.tree.equal(bridge.load_state_dict(p, bridge.to_module(other).state_dict()), other)
    assert pn.tree.equal(p, before)
    m = Foreign().to(device)
    filled = bridge.load_state_dict(bridge.from_module(Foreign().to(device)), m.state_dict())
    assert same(bridge.state_dict(filled), m.state_dict())


def test_load_into_meta(device: torch.device) -> None:
    """A container on the meta device takes the tensors where they are; frozen and tied leaves stay so."""
    own = pn.tree.freeze(pn.tree.tie(make(device), {"blocks.1.fc.bias": "blocks.0.fc.bias"}), "parts.**")
    p = bridge.load_state_dict(pn.tree.to(own, "meta"), bridge.state_dict(own))
    assert pn.tree.equal(p, own)
    assert p.blocks[0].fc.weight.data_ptr() == own.blocks[0].fc.weight.data_ptr()


def test_load_casts_floating_and_complex_values(device: torch.device) -> None:
    """As in a module, values take the dtype of the leaf, if both are numbers of the same kind."""
    p = Linear.init(pn.random.key(0, device), 3, 2, dtype=torch.float64)
    half = {name: tensor.bfloat16() for name, tensor in bridge.state_dict(p).items()}
    loaded = bridge.load_state_dict(p, half)
    assert pn.tree.equal(loaded, pn.tree.map(lambda leaf: leaf.bfloat16().double(), p))
    z = {"z": torch.ones(2, dtype=torch.complex64, device=device)}
    assert bridge.load_state_dict({"z": z["z"].to(torch.complex128)}, z)["z"].dtype == torch.complex128


def test_ties_may_be_stored_under_any_name(device: torch.device) -> None:
    """A tied tensor is found under its own name, under an alias, or under all of them."""
    m = Foreign().to(device)
    p, full = bridge.from_module(Foreign().to(device)), m.state_dict()
    for dropped in (["second.weight", "again.weight"], ["first.weight"], ["first.weight", "second.weight"]):
        part = {name: tensor for name, tensor in full.items() if name not in dropped}
        assert same(bridge.state_dict(bridge.load_state_dict(p, part)), full)


def test_everything_that_does_not_fit_is_in_one_error(device: torch.device) -> None:
    """Missing, unexpected, mis-shaped and otherwise wrong entries are listed together."""
    m = Foreign()
    tensors: dict[str, Any] = dict(m.state_dict())
    del tensors["first.bias"], tensors["again.bias"]
    tensors |= {"extra": torch.ones(1), "saved": torch.ones(3), "codes": torch.ones(3), "second.bias": 1.5}
    tensors["second.weight"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError) as error:
        bridge.load_state_dict(bridge.from_module(m), tensors)
    assert str(error.value) == (
        "load_state_dict: the state dict does not fit the container:\n"
        "  tied: second.weight and first.weight differ, but they are one tensor in the container\n"
        "  missing: first.bias\n"
        "  unexpected: extra f32[1]\n"
        "  different: codes is f32[3] in the state dict, i64[3] in the container\n"
        "  different: saved is f32[3] in the state dict, f32[2] in the container\n"
        "  no tensor in the state dict: second.bias is 1.5\n"
        "Names are mended with rename=, those that only one of them has are let pass by strict=False."
    )


def test_not_strict(device: torch.device) -> None:
    """Without strict, names that only one has are let pass, but shapes must agree."""
    p = Linear.init(pn.random.key(0, device), 3, 2)
    weight = torch.ones(2, 3, device=device)
    loaded = bridge.load_state_dict(p, {"weight": weight, "more": weight}, strict=False)
    assert pn.tree.equal(loaded, Linear(weight, p.bias))
    with pytest.raises(CheckpointError) as error:
        bridge.load_state_dict(p, {"weight": weight.T}, strict=False)
    assert str(error.value) == (
        "load_state_dict: the state dict does not fit the container:\n"
        "  different: weight is f32[3,2] in the state dict, f32[2,3] in the container\n"
        "Names are mended with rename=, those that only one of them has are let pass by strict=False."
    )


def test_meta_tensors_have_no_data(device: torch.device) -> None:
    """A state dict on the meta device fills only containers that are there too."""
    p = Linear.init(pn.random.key(0, device), 3, 2, bias=False)
    meta = bridge.state_dict(pn.tree.to(p, "meta"))
    assert bridge.load_state_dict(pn.tree.to(p, "meta"), meta).weight.is_meta
    with pytest.raises(CheckpointError) as error:
        bridge.load_state_dict(p, meta)
    assert str(error.value) == (
        "load_state_dict: the state dict does not fit the container:\n"
        "  no data: weight is on the meta device in the state dict\n"
        "Names are mended with rename=, those that only one of them has are let pass by strict=False."
    )


def test_rename(device: torch.device) -> None:
    """Beginnings are replaced in whole parts, the longest one counts; a function does the rest."""
    p = make(device)
    tensors = {f"module.{name}": tensor for name, tensor in bridge.state_dict(p).items()}
    assert pn.tree.equal(bridge.load_state_dict(p, tensors, rename={"module": ""}), p)
    assert pn.tree.equal(bridge.load_state_dict(p, tensors, rename={"module.": "", "nothing": "x"}), p)
    assert pn.tree.equal(bridge.load_state_dict(p, tensors, rename=lambda name: name[7:]), p)
    assert pn.tree.equal(bridge.load_state_dict({"all": p}, bridge.state_dict(p), rename={"": "all"})["all"], p)
    layers = {"a1.weight": torch.ones(2, 3), "a1.bias": torch.ones(2), "a10.norm.w": torch.ones(1)}
    tree = bridge.load_state_dict(
        {"b": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, "c": {"w": torch.zeros(1)}},
        layers,
        rename={"a1": "b", "a10": "d", "a10.norm": "c"},
    )
    assert torch.equal(tree["c"]["w"], layers["a10.norm.w"])
    dropped = bridge.load_state_dict(
        Linear(torch.zeros(2, 3), None), layers, rename=lambda name: "weight" if name == "a1.weight" else None
    )
    assert torch.equal(dropped.weight, layers["a1.weight"])


def test_rename_into_what_convert_makes(device: torch.device) -> None:
    """The report of a module leads from its state dict into its native containers."""
    m = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))).to(device)
    other = copy.deepcopy(m)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    p = bridge.load_state_dict(bridge.convert(m), other.state_dict(), rename=bridge.report(m).paths)
    assert pn.tree.equal(p, bridge.convert(other))


def test_rename_errors() -> None:
    """Two tensors under one name, beginnings that nothing has, and functions that give no names are errors."""
    p = Linear.init(pn.random.key(0), 3, 2, bias=False)
    tensors = {"a.weight": p.weight, "b.weight": p.weight}
    with pytest.raises(CheckpointError) as error:
        bridge.load_state_dict(p, tensors, rename={"a": "", "b": "", "c": ""})
    assert str(error.value) == (
        "load_state_dict: the state dict does not fit the container:\n"
        "  renamed: a.weight and b.weight both become weight\n"
        "  rename: no name begins with 'c'\n"
        "Names are mended with rename=, those that only one of them has are let pass by strict=False."
    )
    wrong: Any = len
    with pytest.raises(CheckpointError) as error:
        bridge.load_state_dict(p, tensors, rename=wrong)
    assert str(error.value) == "load_state_dict: rename('a.weight') must be a name or None, got 8."
    for rename, text in (
        ({"a": 1}, "load_state_dict: rename must map names to names, got 'a': 1."),
        ("a", "load_state_dict: rename must be a dict of names or a function, got a str."),
    ):
        wrong = rename
        with pytest.raises(CheckpointError) as error:
            bridge.load_state_dict(p, tensors, rename=wrong)
        assert str(error.value) == text


def test_wrong_arguments() -> None:
    """Modules, and sources that are neither mappings nor paths, are refused."""
    wrong: Any = 3
    cases: list[Any] = [
        (
            lambda: bridge.state_dict(nn.Linear(3, 2)),
            "state_dict takes a container, got the module Linear: use its own .state_dict.",
        ),
        (
            lambda: bridge.load_state_dict(nn.Linear(3, 2), {}),
            "load_state_dict takes a container, got the module Linear: use its own .load_state_dict.",
        ),
        (
            lambda: bridge.load_state_dict(BatchNorm1d.init(2), wrong),
            "load_state_dict takes a state dict or the path of a file or folder, got int.",
        ),
    ]
    for act, message in cases:
        with pytest.raises(BridgeError) as error:
            act()
        assert str(error.value) == message
