"""Random trees for property tests."""

from typing import Any

import torch
from _models import Affine, Box, Chain, Count, Scale
from hypothesis import strategies as st
from torch import Tensor

import purenn as pn

SHAPES = st.lists(st.integers(0, 3), max_size=2).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
KEYS = st.one_of(st.sampled_from(["a", "b", "weight", "x_1", "Ä"]), st.integers(-2, 12))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Small tensors of all kinds of dtypes with whole numbers in them."""
    shape, dtype, start = draw(SHAPES), draw(DTYPES), draw(st.integers(-3, 3))
    size = int(torch.tensor(shape).prod()) if shape else 1
    return torch.arange(start, start + size).reshape(shape).to(dtype)


def _containers(children: st.SearchStrategy) -> st.SearchStrategy:
    modes = st.one_of(st.none(), st.integers(0, 2), st.sampled_from(["plain", (1, 2), torch.relu]))
    return st.one_of(
        st.builds(Affine, children, children),
        st.builds(Scale, children, power=st.integers(0, 2)),
        st.builds(Count, children, children),
        st.builds(Chain, st.lists(children, max_size=3)),
        st.builds(Box, children, state=children, mode=modes),
    )


@st.composite
def _frozen(draw: st.DrawFn, containers: st.SearchStrategy) -> Any:
    p = draw(containers)
    paths = [path for path, _ in pn.tree.named_leaves(p)]
    return pn.tree.freeze(p, draw(st.sampled_from(paths))) if paths else p


def trees(leaves: st.SearchStrategy | None = None, *, holes: bool = True) -> st.SearchStrategy:
    """Random nested containers, tuples and dicts, with absent children and holes."""
    empty = [st.none(), *([st.just(pn.tree.HOLE)] if holes else [])]
    base = st.one_of(tensors() if leaves is None else leaves, *empty)

    def extend(children: st.SearchStrategy) -> st.SearchStrategy:
        containers = _containers(children)
        dicts = st.dictionaries(KEYS, children, max_size=3)
        return st.one_of(containers, _frozen(containers), st.lists(children, max_size=3).map(tuple), dicts)

    return st.recursive(base, extend, max_leaves=8)
