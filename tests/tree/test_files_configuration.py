"""Classes and options beside the tensors: what must be as it was when a tree is loaded."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import Box, Chain, Scale, make_affine
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bridge
import purenn as pn
from purenn.errors import CheckpointError
from purenn.layers import GELU, Conv2d, Lambda, Linear, ReLU, Sequential


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def differences(file: Path, saved: Any, like: Any) -> list[str]:
    """The lines of the error, without the first and last; none if there is no error."""
    pn.save(file, saved)
    try:
        pn.load(file, like=like)
    except CheckpointError as error:
        first, *lines, last = str(error).split("\n")
        assert first == f"load: {file} does not fit the tree:"
        assert last == "Give a tree of the structure that was saved."
        return [line.removeprefix("  ") for line in lines]
    return []


def box(mode: Any) -> Box:
    return Box(torch.ones(1), mode=mode)


def conv(stride: int) -> Sequential:
    return Sequential.of(Conv2d.init(pn.random.key(0), 1, 1, 3, stride=stride), ReLU())


def test_another_option(file: Path) -> None:
    """An option that differs is an error with its path and both values: the tensors alone would fit."""
    assert differences(file, conv(2), conv(2)) == []
    (line,) = differences(file, conv(2), conv(1))
    assert line == "different: layers.0.stride is (2, 2) in the file, (1, 1) in the tree"
    assert pn.tree.equal(bridge.load_state_dict(conv(1), file), conv(1))


def test_all_in_one_error(file: Path) -> None:
    """Options are listed with the leaves that are missing, unexpected or of other shapes."""
    x = torch.ones(2)
    assert differences(
        file, Chain((Scale(x, 2), Box({"a": x, "b": x}, size=5))), Chain((Scale(x), Box({"a": x[:1]})))
    ) == [
        "unexpected: layers.1.content.b f32[2]",
        "different: layers.1.content.a is f32[2] in the file, f32[1] in the tree",
        "different: layers.0.power is 2 in the file, 1 in the tree",
        "different: layers.1.size is 5 in the file, 3 in the tree",
    ]


def test_other_classes(file: Path) -> None:
    """A layer of another class is an error, without parameters too, and so is one more or less."""
    weight = Linear.init(pn.random.key(0), 2, 2)
    assert differences(file, Sequential.of(weight, ReLU()), Sequential.of(weight, GELU())) == [
        "different: 'layers.1' is ReLU in the file, GELU in the tree"
    ]
    assert differences(file, Sequential.of(weight, ReLU()), Sequential.of(weight)) == [
        "different: 'layers.1' is ReLU in the file, nothing in the tree"
    ]
    assert differences(file, Sequential.of(weight), Sequential.of(weight, ReLU())) == [
        "different: 'layers.1' is nothing in the file, ReLU in the tree"
    ]
    assert differences(file, ReLU(), GELU()) == ["different: the tree itself is ReLU in the file, GELU in the tree"]
    # The names of the leaves say it all.
    assert differences(file, {"a": weight, "b": weight}, {"a": weight}) == [
        "unexpected: b.bias f32[2]",
        "unexpected: b.weight f32[2,2]",
    ]
    assert differences(file, weight, dict(pn.tree.named_leaves(weight))) == []


def made() -> type:
    @pn.container
    class Scale(pn.Layer):
        factor: torch.Tensor
        power: int = pn.static(default=1)
        other: int = pn.static(default=7)

    return Scale


def test_classes_may_move(file: Path) -> None:
    """A class of the same name in another module, or with an option more, is taken for the same."""
    x = torch.ones(2)
    assert differences(file, made()(x, 3), Scale(x, 3)) == []
    assert differences(file, Scale(x, 3), made()(x, 3)) == []
    assert differences(file, made()(x, 3), Scale(x)) == ["different: power is 3 in the file, 1 in the tree"]


SAME: list[tuple[Any, Any]] = [
    (1, 1.0),
    (math.nan, math.nan),
    (None, None),
    ((1, (2.5, "a"), True), (1, (2.5, "a"), True)),
    (torch.bfloat16, torch.bfloat16),
    (1 + 2j, 1 + 2j),
    (frozenset({1, 2}), frozenset({2, 1})),
    (torch.relu, torch.relu),
    (Linear, Linear),
    (lambda x: x, lambda x: 2 * x),
    (functools.partial(torch.sum, dim=1), functools.partial(torch.sum, dim=2)),
]
OTHER: list[tuple[Any, Any, str]] = [
    (1, 2, "1 in the file, 2 in the tree"),
    ("same", "valid", "'same' in the file, 'valid' in the tree"),
    ((1,), (1, 1), "(1,) in the file, (1, 1) in the tree"),
    (None, 0.5, "None in the file, 0.5 in the tree"),
    (torch.float16, torch.bfloat16, "dtype float16 in the file, dtype bfloat16 in the tree"),
    (torch.relu, torch.tanh, "relu in the file, tanh in the tree"),
    (Linear, Conv2d, "Linear in the file, Conv2d in the tree"),
    (
        (torch.tanh, lambda x: x),
        (lambda x: x, torch.tanh),
        "(tanh, some function) in the file, (some function, tanh) in the tree",
    ),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_options(file: Path, one: Any, other: Any) -> None:
    """Numbers, text, tuples, dtypes and functions of modules are compared by value, all else by its class."""
    assert differences(file, box(one), box(other)) == []


@pytest.mark.parametrize(("one", "other", "text"), OTHER)
def test_different_options(file: Path, one: Any, other: Any, text: str) -> None:
    """Values of every kind are told in the error."""
    assert differences(file, box(one), box(other)) == [f"different: mode is {text}"]


def test_functions_by_name(file: Path) -> None:
    """A layer with a function of a module knows which one it was."""
    assert differences(file, Lambda(torch.sin), Lambda(torch.cos)) == [
        "different: function is sin in the file, cos in the tree"
    ]


def test_parts_are_compared_in_parts(file: Path) -> None:
    """Where only some leaves are loaded, only the containers there are compared."""
    x = torch.ones(2)
    pn.save(file, Chain((Scale(x, 2), Scale(x, 3)), name="saved"))
    like = Chain((Scale(x, 2), Scale(x, 1)))
    assert pn.load(file, like=like, paths="layers.0").layers[0].power == 2
    assert pn.load(file, like=like, paths="layers.1.factor").layers[1].power == 1
    with pytest.raises(CheckpointError, match=r"layers\.1\.power is 3 in the file, 1 in the tree"):
        pn.load(file, like=like, paths="layers.1")


def test_what_is_in_the_file(file: Path) -> None:
    """The configuration is JSON: the class of each container and its options by name. It is no part of the metadata."""
    pn.save(file, {"a": Scale(torch.ones(1), 3)}, metadata={"epoch": "3"})
    with safe_open(file, "pt") as opened:
        found = json.loads(opened.metadata()["purenn.configuration"])
    assert found == {"a": ["_models:Scale", {"power": 3}]}
    assert pn.tree.metadata(file) == {"epoch": "3"}


def test_files_without_a_configuration(file: Path) -> None:
    """What others have written has none, so nothing is compared."""
    pn.save(file, make_affine())
    save_file(load_file(file), file)
    assert pn.tree.equal(pn.load(file, like=make_affine()), make_affine())
