"""The table of a model."""

from typing import Any

import torch
from _models import Box, Chain, Count, make_affine, make_tied

import purenn as pn


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
