"""Recurrent cells: equal to torch.nn's in all derivatives, batched or not, with or without a state."""

from typing import Any

import pytest
import torch
from _reference import check_equals_module, numbers, same
from _transformations import check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap

import bridge
import purenn as pn
from purenn import layers

# name -> the function, and how many parts its state has.
CELLS: dict[str, tuple[Any, int]] = {
    "RNNCell": (layers.rnn_cell, 1),
    "LSTMCell": (layers.lstm_cell, 2),
    "GRUCell": (layers.gru_cell, 1),
}


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


def joined(result: Any) -> Tensor:
    """All parts of the next state as one tensor, so that every one of them is differentiated."""
    return torch.cat(result, -1) if isinstance(result, tuple) else result


def as_hx(states: tuple[Tensor, ...]) -> Any:
    """What a cell takes as its state."""
    return (states if len(states) > 1 else states[0]) if states else None


def joining(function: Any) -> Any:
    """The function with the parts of the state as arguments of their own."""
    return lambda p, x, *states: joined(function(p, x, as_hx(states)))


def module(name: str, *args: Any, **options: Any) -> nn.Module:
    """torch's cell, called in the same way."""
    cls = getattr(nn, name)

    class Joining(cls):
        def forward(self, x: Tensor, *states: Tensor) -> Tensor:
            return joined(super().forward(x, as_hx(states)))

    return Joining(*args, dtype=torch.float64, **options)


@given(
    name=st.sampled_from(list(CELLS)),
    input_size=st.integers(1, 4),
    hidden_size=st.integers(1, 4),
    bias=st.booleans(),
    nonlinearity=st.sampled_from(["tanh", "relu"]),
    batch=st.sampled_from([(), (0,), (3,)]),
    with_state=st.booleans(),
)
def test_equals_torch(
    name: str,
    input_size: int,
    hidden_size: int,
    bias: bool,
    nonlinearity: str,
    batch: tuple[int, ...],
    with_state: bool,
    device: torch.device,
) -> None:
    """Next states, gradients and second derivatives are torch's, for all options."""
    function, parts = CELLS[name]
    options: dict[str, Any] = {"bias": bias, **({"nonlinearity": nonlinearity} if name == "RNNCell" else {})}
    p = getattr(layers, name).init(key(device), input_size, hidden_size, **options)
    reference = module(name, input_size, hidden_size, device=device, **options)
    assert repr(p) == repr(getattr(nn, name)(input_size, hidden_size, **options))
    assert (p.input_size, p.hidden_size, p.bias) == (input_size, hidden_size, bias)
    states = [numbers(*batch, hidden_size, seed=part, device=device) for part in range(parts if with_state else 0)]
    x = numbers(*batch, input_size, seed=9, device=device)
    check_equals_module(p, joining(function), reference, x, *states, tolerance=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in CELLS), ("RNNCell", {"nonlinearity": "relu"})])
def test_transformations(
    name: str, options: dict[str, Any], batch: tuple[int, ...], bias: bool, device: torch.device
) -> None:
    """Every cell keeps the promises of the shared table, for its state as for its parameters."""
    function, parts = CELLS[name]

    def make(seed: int) -> Any:
        p = getattr(layers, name).init(key(device, seed), 2, 3, bias=bias, dtype=torch.float64, **options)
        return p, [numbers(*batch, 3, seed=20 + seed + part, device=device) for part in range(parts)]

    def apply(both: Any, x: Tensor) -> Tensor:
        return joined(function(both[0], x, as_hx(tuple(both[1]))))

    check_transformations(make, apply, numbers(3, *batch, 2, device=device), compile=bool(batch) and bias)


@pytest.mark.parametrize("name", CELLS)
def test_states_are_batched_as_well(name: str, device: torch.device) -> None:
    """Vmapped over states, the cell gives what the batched call gives; without a state it starts at zeros."""
    function, parts = CELLS[name]
    p = getattr(layers, name).init(key(device), 2, 3, dtype=torch.float64)
    x, states = numbers(5, 2, device=device), [numbers(5, 3, seed=part, device=device) for part in range(parts)]
    call = joining(function)
    same(vmap(lambda x, *states: call(p, x, *states))(x, *states), call(p, x, *states), tolerance=1e-12)
    same(vmap(lambda *states: call(p, x[0], *states))(*states), call(p, x[:1].expand(5, 2), *states), tolerance=1e-12)
    assert torch.equal(call(p, x), call(p, x, *[torch.zeros_like(h) for h in states]))


@pytest.mark.parametrize("name", CELLS)
def test_round_trip(name: str, device: torch.device) -> None:
    """As a module the cell has torch's state_dict keys and gives the same states; and back it is what it was."""
    function, _ = CELLS[name]
    p = getattr(layers, name).init(key(device), 2, 3, device=device)
    reference = getattr(nn, name)(2, 3, device=device)
    carried = bridge.to_module(p)
    assert list(carried.state_dict()) == list(reference.state_dict())
    reference.load_state_dict(carried.state_dict())
    x = numbers(4, 2, device=device).float()
    same(joined(carried(x)), joined(reference(x)), tolerance=1e-6)
    assert torch.equal(joined(carried(x)), joined(function(p, x)))
    assert pn.tree.equal(bridge.from_module(carried), p)


@pytest.mark.parametrize("name", CELLS)
def test_init(name: str, device: torch.device) -> None:
    """Parameters are uniform up to 1 / sqrt(hidden_size), as torch's; on meta nothing is drawn."""
    p = getattr(layers, name).init(key(device), 30, 100, dtype=torch.float64)
    for leaf in pn.tree.leaves(p):
        assert 0.09 < leaf.abs().max() <= 0.1
        assert abs(leaf.mean()) < 0.02
    assert not torch.equal(p.bias_ih, p.bias_hh)
    shapes = [leaf.shape for leaf in pn.tree.leaves(p)]
    on_meta = pn.tree.leaves(getattr(layers, name).init(key(device), 30, 100, device="meta"))
    assert [leaf.shape for leaf in on_meta] == shapes
    assert all(leaf.is_meta for leaf in on_meta)


def test_torch_compiles_a_loop_of_cells(device: torch.device) -> None:
    """A loop of your own over a cell, by scan, compiles as one graph."""
    p = layers.LSTMCell.init(key(device), 2, 3, dtype=torch.float64)
    xs, zeros = numbers(4, 5, 2, device=device), torch.zeros(5, 3, dtype=torch.float64, device=device)

    def last(p: layers.LSTMCell, xs: Tensor) -> Tensor:
        def body(state: Any, x: Tensor) -> Any:
            return layers.lstm_cell(p, x, state), None

        return pn.scan(body, (zeros, zeros), xs)[0][0]

    expected = last(p, xs)
    same(pn.jit(last, backend="eager")(p, xs), expected, tolerance=1e-12)
    torch.compiler.reset()
    same(torch.compile(last, fullgraph=True, backend="eager")(p, xs), expected, tolerance=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda key: layers.RNNCell.init(key, 3, 2)(torch.zeros(4, 5, 3)),
            pn.errors.ShapeError,
            "rnn_cell: expected x of shape [batch, 3], or [3] for one example, got shape [4, 5, 3].",
        ),
        (
            lambda key: layers.GRUCell.init(key, 3, 2)(torch.zeros(4, 2)),
            pn.errors.ShapeError,
            "gru_cell: expected x of shape [batch, 3], or [3] for one example, got shape [4, 2].",
        ),
        (
            lambda key: layers.GRUCell.init(key, 3, 2)(torch.zeros(4, 3), torch.zeros(1, 2)),
            pn.errors.ShapeError,
            "gru_cell: h must be of shape [4, 2], like x with hidden_size features, got shape [1, 2].",
        ),
        (
            lambda key: layers.LSTMCell.init(key, 3, 2)(torch.zeros(3), (torch.zeros(2), torch.zeros(3))),
            pn.errors.ShapeError,
            "lstm_cell: c must be of shape [2], like x with hidden_size features, got shape [3].",
        ),
        (
            lambda key: layers.LSTMCell.init(key, 3, 2)(torch.zeros(3), torch.zeros(2)),
            pn.errors.ArgumentError,
            "lstm_cell: hx must be a pair (h, c) or None, got a Tensor.",
        ),
        (
            lambda key: layers.RNNCell.init(key, 3, 2)(torch.zeros(3), (torch.zeros(2), torch.zeros(2))),
            pn.errors.ArgumentError,
            "rnn_cell: hx must be a tensor or None, got a tuple of 2.",
        ),
        (
            lambda key: layers.RNNCell.init(key, 3, 2, nonlinearity="sigmoid"),
            pn.errors.ArgumentError,
            "RNNCell: nonlinearity must be 'tanh' or 'relu', got 'sigmoid'.",
        ),
        (
            lambda key: layers.LSTMCell.init(key, 3, 0),
            pn.errors.ArgumentError,
            "LSTMCell.init: hidden_size must be at least 1, got 0.",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    """Wrong shapes, states and options are refused with a text that says what was expected."""
    with pytest.raises(error) as caught:
        call(pn.random.key(0))
    assert str(caught.value) == text
