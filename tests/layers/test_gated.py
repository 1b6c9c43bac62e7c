"""Gated feed-forward layers: their formula, their names, and the shared table."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _reference import check_equals_module, numbers
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import purenn as pn
from purenn import layers

FORMS: dict[str, tuple[Any, Callable[..., Tensor], Callable[[Tensor], Tensor]]] = {
    "SwiGLU": (layers.SwiGLU, layers.swiglu, F.silu),
    "GEGLU": (layers.GEGLU, layers.geglu, F.gelu),
}


class Reference(nn.Module):
    """The formula as a module, with Llama's names."""

    def __init__(self, sizes: tuple[int, int, int], bias: bool, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        features, hidden, out = sizes
        self.gate_proj = nn.Linear(features, hidden, bias, dtype=torch.float64)
        self.up_proj = nn.Linear(features, hidden, bias, dtype=torch.float64)
        self.down_proj = nn.Linear(hidden, out, bias, dtype=torch.float64)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


@pytest.mark.parametrize("name", FORMS)
@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 3), bias=st.booleans(), batch=st.sampled_from([(), (0,), (3,), (2, 1, 3)])
)
def test_equals_formula(
    name: str, sizes: tuple[int, int, int], bias: bool, batch: tuple[int, ...], device: torch.device
) -> None:
    """Values and both derivatives are the formula's, and a module with these names is a valid container."""
    cls, function, activation = FORMS[name]
    p = cls.init(pn.random.key(0, device=device), sizes[0], sizes[1], out_features=sizes[2], bias=bias)
    module = Reference(sizes, bias, activation).to(device)
    check_equals_module(p, function, module, numbers(*batch, sizes[0], device=device))


@pytest.mark.parametrize("name", FORMS)
def test_defaults(name: str, device: torch.device) -> None:
    """By default the result has the input's size and there is no bias; the three maps differ; meta works."""
    cls, _, _ = FORMS[name]
    p = cls.init(pn.random.key(0, device=device), 4, 4)
    assert [path for path, _ in pn.tree.named_leaves(p)] == ["gate_proj.weight", "up_proj.weight", "down_proj.weight"]
    assert p(torch.ones(2, 4, device=device)).shape == (2, 4)
    assert not torch.equal(p.gate_proj.weight, p.up_proj.weight)
    assert cls.init(pn.random.key(0), 10**5, 10**5, device="meta", dtype=torch.bfloat16).up_proj.weight.is_meta


@pytest.mark.parametrize("name", FORMS)
def test_transformations(name: str, device: torch.device) -> None:
    """Both keep the promises of the shared table."""
    cls, function, _ = FORMS[name]
    check_transformations(
        lambda seed: cls.init(pn.random.key(seed, device=device), 3, 5, out_features=2, bias=True, dtype=torch.float64),
        function,
        numbers(3, 2, 3, device=device),
    )


@pytest.mark.parametrize("name", FORMS)
def test_errors(name: str) -> None:
    """An input of another size is refused by the first map."""
    cls, function, _ = FORMS[name]
    with pytest.raises(pn.errors.ShapeError) as caught:
        function(cls.init(pn.random.key(0), 3, 4), torch.zeros(2, 4))
    assert str(caught.value) == (
        "linear: the last dimension of x must be in_features=3, got shape [2, 4]. Flatten or transpose x so that its "
        "features come last."
    )
