"""The table of a model."""

import resource
from typing import Any

import pytest
import torch
from _models import Box, Chain, Count, make_affine, make_tied
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import bridge
import purenn as pn
from purenn.errors import ContainerError, ShapeError
from purenn.layers import BatchNorm2d, Conv2d, Flatten, Linear, ReLU, Sequential, Stack, TransformerEncoderLayer, linear
from purenn.models import GPT2, ResNet


@pn.container
class Twice(pn.Layer):
    """A layer that is applied twice, and one that is not."""

    used: Linear
    left: Linear


@pn.applies(Twice)
def twice(p: Twice, x: Tensor) -> Tensor:
    """The first layer after itself."""
    return linear(p.used, linear(p.used, x))


def make_all_roles(device: torch.device) -> Chain:
    x = torch.ones(1000, 2, device=device)
    first = pn.tree.freeze(make_affine(device=device), "bias")
    return Chain((first, Count(x, x[0]), Box({"ids": x[0].long(), "rate": 0.5})))


ALL_ROLES = """\
path                   in      tensor       elements  role
---------------------  ------  -----------  --------  -----------
layers.0.weight        Affine  f32[2,3]            6  trained
layers.0.bias          Affine  f32[2]              2  frozen
layers.1.gain          Count   f32[1000,2]     2,000  trained
layers.1.calls         Count   f32[2]              2  buffer
layers.2.content.ids   Box     i64[2]              2  not trained
layers.2.content.rate  Box     0.5                 -  not trained
2,010 parameters, 2,006 trained, 2 elements in buffers"""

TIED = """\
path                      in      tensor    elements  role
------------------------  ------  --------  --------  -------
layers.0.layers.0.weight  Affine  f32[3,3]         9  trained
layers.0.layers.0.bias    Affine  f32[3]           3  trained
layers.0.layers.1.bias    Affine  f32[3]           3  trained
layers.0.layers.1.weight = layers.0.layers.0.weight (tied)
15 parameters, 15 trained, 0 elements in buffers"""

LEAF = """\
path               in  tensor  elements  role
-----------------  --  ------  --------  -------
(the leaf itself)  -   f32[2]         2  trained
2 parameters, 2 trained, 0 elements in buffers"""

EMPTY = """\
path  in  tensor  elements  role
----  --  ------  --------  ----
0 parameters, 0 trained, 0 elements in buffers"""


def test_summary(device: torch.device) -> None:
    """A row for every leaf with path, class, shape, number of elements and role; below it the totals."""
    assert pn.summary(make_all_roles(device)) == ALL_ROLES


def test_summary_of_other_trees(device: torch.device) -> None:
    """Ties are listed once with their aliases; bare leaves, empty trees and parts have tables as well."""
    tied = Chain((make_tied(device=device), Box(pn.tree.HOLE)))
    cases: list[Any] = [(tied, TIED), (torch.ones(2, device=device), LEAF), ((), EMPTY), (None, EMPTY)]
    for tree, expected in cases:
        assert pn.summary(tree) == expected


TWICE = """\
path       layer   in        out       parameters  trained  bytes  FLOPs
---------  ------  --------  --------  ----------  -------  -----  -----
-          Twice   f32[4,3]  f32[4,3]           0        0      0    144
used (x2)  Linear  f32[4,3]  f32[4,3]          12       12     48    144
left       Linear  -         -                 12       12     48      -
24 parameters, 24 trained, 0 elements in buffers
96 bytes, 144 FLOPs"""

CALLS = """\
path      layer        in            out           parameters  trained  bytes  FLOPs
--------  -----------  ------------  ------------  ----------  -------  -----  -----
-         Sequential   f32[2,3,5,5]  f32[2,8]               0        0      0  5,040
layers.0  Conv2d       f32[2,3,5,5]  f32[2,4,3,3]         112      108    448  3,888
layers.1  BatchNorm2d  f32[2,4,3,3]  f32[2,4,3,3]           8        8     72      0
layers.2  ReLU         f32[2,4,3,3]  f32[2,4,3,3]           0        0      0      0
layers.3  Flatten      f32[2,4,3,3]  f32[2,36]              0        0      0      0
layers.4  Linear       f32[2,36]     f32[2,8]             296      296  1,184  1,152
416 parameters, 412 trained, 9 elements in buffers
1,704 bytes, 5,040 FLOPs"""


def test_summary_of_calls(device: torch.device) -> None:
    """With an example, a row for every layer: shapes, own parameters, bytes, operations; nothing is computed."""
    keys = pn.random.split(pn.random.key(0, device), 3)
    conv = pn.tree.freeze(Conv2d.init(keys[0], 3, 4, 3), "bias")
    p = Sequential.of(conv, BatchNorm2d.init(4, device=device), ReLU(), Flatten(), Linear.init(keys[1], 36, 8))
    table = pn.summary(p, torch.empty(2, 3, 5, 5, device="meta"), train=True)
    assert table == CALLS
    assert (table.parameters, table.flops) == (416, 3888 + 1152)
    assert repr(table) == str(table)
    x = torch.ones(2, 3, 5, 5, device=device)
    assert pn.summary(bridge.to_module(p), x) == pn.summary(p, x)


OPAQUE = """\
path      in      tensor        elements  role
--------  ------  ------------  --------  -------
0.weight  Opaque  f32[4,3,3,3]       108  frozen
0.bias    Opaque  f32[4]               4  trained
3.weight  Opaque  f32[8,36]          288  trained
3.bias    Opaque  f32[8]               8  trained
408 parameters, 300 trained, 0 elements in buffers"""


def test_foreign_modules() -> None:
    """Modules of another make have the operations that torch counts, carried as they are or converted by layers."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8))
    module[0].weight.requires_grad_(False)
    x = torch.ones(2, 3, 5, 5)
    with FlopCounterMode(display=False) as counter:
        module(x)
    carried, converted = bridge.from_module(module), bridge.convert(module)
    for p in (carried, converted):
        table = pn.summary(p, x)
        assert table.flops == counter.get_total_flops() == 5040
        assert table.parameters == 408
        assert "408 parameters, 300 trained" in table
    assert "\n3     Linear      f32[2,36]     f32[2,8] " in pn.summary(carried, x)
    assert pn.summary(carried) == OPAQUE
    assert "layers.3  Linear      f32[2,36]     f32[2,8]" in pn.summary(converted, x)


def test_published_counts() -> None:
    """Parameters and operations of ResNet-50 and of GPT-2's smallest model, from shapes alone."""
    key = pn.random.key(0)
    resnet = ResNet.init(key, (3, 4, 6, 3), bottlenecks=True, device="meta")
    table = pn.summary(resnet, torch.empty(1, 3, 224, 224))
    assert table.parameters == 25_557_032
    assert table.flops == pytest.approx(2 * 4.089e9, rel=0.01)  # multiply-adds of the usual tools, twice
    gpt2 = GPT2.init(key, device="meta")
    length, dim, depth, words = 1024, 768, 12, 50257
    by_hand = 2 * length * (depth * (12 * dim * dim + 2 * length * dim) + words * dim)
    table = pn.summary(gpt2, torch.zeros(1, length, dtype=torch.int64))
    assert table.parameters == 124_439_808
    assert table.flops == pytest.approx(by_hand, rel=0.01)
    assert "lm_head.weight = transformer.wte.weight (tied)" in table


def test_more_than_a_machine_holds() -> None:
    """The table of a transformer of seventy billion parameters takes no memory of note: nothing is allocated."""
    dim, hidden, depth, length = 8192, 28672, 96, 4096

    def block(key: Tensor) -> TransformerEncoderLayer:
        return TransformerEncoderLayer.init(key, dim, 64, dim_feedforward=hidden, device="meta")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = pn.summary(Stack.init(pn.random.key(0), depth, block), torch.empty(length, 1, dim, device="meta"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert table.parameters == depth * (4 * dim * dim + 2 * dim * hidden + 9 * dim + hidden)
    by_hand = 2 * length * depth * (4 * dim * dim + 2 * dim * hidden + 2 * length * dim)
    assert table.flops == pytest.approx(by_hand, rel=0.01)


def test_layers_applied_twice(device: torch.device) -> None:
    """A layer's operations are those of all its calls; one that is not applied has no shapes and no operations."""
    p = Twice(Linear.init(pn.random.key(0, device), 3, 3), Linear.init(pn.random.key(1, device), 3, 3))
    table = pn.summary(p, torch.ones(4, 3, device=device))
    assert table == TWICE


def test_errors(device: torch.device) -> None:
    """Only what has a function can be applied."""
    with pytest.raises(ContainerError) as caught:
        pn.summary({"w": torch.ones(2, device=device)}, torch.ones(2))
    assert str(caught.value) == (
        "summary: a dict has no function to apply to inputs. Give a layer or a model, or no inputs."
    )
    with pytest.raises(ContainerError) as caught:
        pn.summary(torch.nn.Linear(2, 2))
    assert str(caught.value) == (
        "summary: a Linear is no container and was not made of one: give bridge.from_module(m), or bridge.convert(m) "
        "to see the layers within it."
    )
    with pytest.raises(ShapeError):
        pn.summary(Linear.init(pn.random.key(0, device), 3, 3), torch.ones(4, 5))
