"""Recurrent layers: equal to torch.nn's in all derivatives and options, for whole sequences and for shorter ones."""

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import optree
import pytest
import torch
from _reference import check_equals_module, numbers, same
from _transformations import check_purity, check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bridge
import purenn as pn
from purenn import layers

FUNCTIONS: dict[str, Any] = {"RNN": layers.rnn, "LSTM": layers.lstm, "GRU": layers.gru}
WIDE: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


def made(name: str, device: torch.device, *sizes: int, seed: int = 0, **options: Any) -> Any:
    """A recurrent layer in float64, from 3 features to 4 if no sizes are given."""
    return getattr(layers, name).init(key(device, seed), *(sizes or (3, 4)), **{**DOUBLE, **options})


def joined(result: Any) -> Tensor:
    """The output and all parts of the last state as one vector, so that every one of them is differentiated."""
    y, last = result
    return torch.cat([part.flatten() for part in (y, *(last if isinstance(last, tuple) else (last,)))])


def as_hx(states: tuple[Tensor, ...]) -> Any:
    """What a layer takes as its first state."""
    return (states if len(states) > 1 else states[0]) if states else None


def joining(function: Any) -> Any:
    """The function with the parts of the first state as arguments of their own."""
    return lambda p, x, *states, **options: joined(function(p, x, as_hx(states), **options))


def reference(name: str, *sizes: int, **options: Any) -> nn.Module:
    """torch's layer, called in the same way; with lengths it is given packed sequences."""
    cls = getattr(nn, name)

    class Joining(cls):
        def forward(self, x: Tensor, *states: Tensor, lengths: Tensor | None = None) -> Tensor:
            if lengths is None:
                return joined(super().forward(x, as_hx(states)))
            first = self.batch_first
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=first, enforce_sorted=False)
            y, last = super().forward(packed, as_hx(states))
            steps = x.shape[1 if first else 0]
            return joined((pad_packed_sequence(y, batch_first=first, total_length=steps)[0], last))

    return Joining(*sizes, **{**DOUBLE, **options})


def first_states(p: Any, batch: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """A first state that fits a layer."""
    rows = p.num_layers * (2 if p.bidirectional else 1)
    sizes = [p.hidden_size] if not isinstance(p, layers.LSTM) else [p.proj_size or p.hidden_size, p.hidden_size]
    return [numbers(rows, *batch, size, seed=20 + part, device=device) for part, size in enumerate(sizes)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, tuple[int, int], dict[str, Any]]:
    """A layer: its class, its sizes and its options."""
    name = draw(st.sampled_from(list(FUNCTIONS)))
    input_size, hidden_size = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    options: dict[str, Any] = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if name == "LSTM":
        options["proj_size"] = draw(st.integers(0, hidden_size - 1))
    if name == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    return name, (input_size, hidden_size), options


@given(case=cases(), steps=st.integers(1, 4), batch=st.sampled_from([(), (1,), (3,)]), with_state=st.booleans())
def test_equals_torch(case: Any, steps: int, batch: tuple[int, ...], with_state: bool, device: torch.device) -> None:
    """Outputs, last states, and first and second derivatives in everything are torch's, for all options."""
    name, sizes, options = case
    p, module = made(name, device, *sizes, **options), reference(name, *sizes, device=device, **options)
    written = repr(p).replace("nonlinearity=relu, ", "").replace(", nonlinearity=relu", "")
    assert written == repr(getattr(nn, name)(*sizes, **options))
    x = numbers(*((*batch, steps) if p.batch_first else (steps, *batch)), sizes[0], device=device)
    states = first_states(p, batch, device) if with_state else []
    check_equals_module(p, joining(FUNCTIONS[name]), module, x, *states, tolerance=1e-12)


@given(case=cases(), data=st.data(), with_state=st.booleans())
def test_lengths_equal_packed_sequences(case: Any, data: st.DataObject, with_state: bool, device: torch.device) -> None:
    """With lengths, everything is what torch gives for packed sequences, also where all of them are whole."""
    name, sizes, options = case
    steps = data.draw(st.integers(1, 4))
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, steps), min_size=1, max_size=3)), device=device)
    p, module = made(name, device, *sizes, **options), reference(name, *sizes, device=device, **options)
    x = numbers(*((len(lengths), steps) if p.batch_first else (steps, len(lengths))), sizes[0], device=device)
    states = first_states(p, (len(lengths),), device) if with_state else []
    check_equals_module(p, joining(FUNCTIONS[name]), module, x, *states, tolerance=1e-12, lengths=lengths)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_padding_has_no_influence(name: str, device: torch.device) -> None:
    """What stands behind a sequence's end, even a NaN, reaches neither results nor gradients; outputs there are 0."""
    p, lengths = made(name, device, **WIDE), torch.tensor([2, 4, 0], device=device)
    x = numbers(4, 3, 3, device=device)
    after = (torch.arange(4, device=device)[:, None] >= lengths)[:, :, None]
    function = joining(FUNCTIONS[name])

    def derivatives(x: Tensor) -> tuple[Tensor, Any]:
        grads = pn.grad(lambda both: function(both[0], both[1], lengths=lengths).sin().sum())((p, x))
        return function(p, x, lengths=lengths), pn.tree.leaves(grads)

    clean = derivatives(torch.where(after, 0.0, x))
    same(derivatives(torch.where(after, torch.nan, x)), clean, tolerance=0)
    assert not clean[1][-1][after.expand_as(x)].any()
    y, _ = FUNCTIONS[name](p, x, lengths=lengths)
    assert not y[after.expand_as(y)].any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_sequence_of_length_zero_keeps_its_state(name: str, device: torch.device) -> None:
    """Without steps that count, the last state is the first one."""
    p = made(name, device, **WIDE)
    states = first_states(p, (2,), device)
    _, last = FUNCTIONS[name](
        p, numbers(3, 2, 3, device=device), as_hx(tuple(states)), lengths=torch.tensor([0, 3]).to(device)
    )
    for before, after in zip(states, last if name == "LSTM" else (last,), strict=True):
        assert torch.equal(after[:, 0], before[:, 0])
        assert not torch.equal(after[:, 1], before[:, 1])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lengths_of_single_sequences(name: str, device: torch.device) -> None:
    """Vmapped over sequences and their lengths, one number each, the layer gives what it gives for the batch."""
    p, lengths = made(name, device, **WIDE), torch.tensor([2, 4, 1], device=device)
    x = numbers(4, 3, 3, device=device)
    y, last = FUNCTIONS[name](p, x, lengths=lengths)
    got = vmap(lambda x, n: FUNCTIONS[name](p, x, lengths=n), (1, 0), 1)(x, lengths)
    same(got, (y, last), tolerance=1e-12)
    same(FUNCTIONS[name](p, x[:, 0], lengths=lengths[0])[0], y[:, 0], tolerance=1e-12)


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RNN", {}),
        ("RNN", {"nonlinearity": "relu", "bias": False}),
        ("LSTM", {}),
        ("LSTM", {**WIDE, "proj_size": 2}),
        ("GRU", {"bidirectional": True, "bias": False}),
    ],
)
def test_transformations(name: str, options: dict[str, Any], with_lengths: bool, device: torch.device) -> None:
    """Every layer keeps the promises of the shared table, for its first state as for its parameters."""

    def make(seed: int) -> Any:
        p = made(name, device, 2, 3, seed=seed, **options)
        lengths = [torch.tensor([2, 3], device=device)] if with_lengths else []
        return p, first_states(p, (2,), device), lengths

    def apply(model: Any, x: Tensor) -> Tensor:
        p, states, lengths = model
        return joined(FUNCTIONS[name](p, x, as_hx(tuple(states)), lengths=lengths[0] if lengths else None))

    compile = not options or ("proj_size" in options and with_lengths)
    check_transformations(make, apply, numbers(2, 3, 2, 2, device=device), compile=compile)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ensembles_and_gradients_of_each_example(name: str, device: torch.device) -> None:
    """pn.vmap over models and pn.vmap of gradients over examples give what loops give."""
    models = [made(name, device, seed=seed, **WIDE) for seed in range(3)]
    x, function = numbers(4, 2, 3, device=device), joining(FUNCTIONS[name])
    stacked = pn.tree.stack(models)
    assert repr(stacked) == repr(models[0])
    same(pn.vmap(function, (0, None))(stacked, x), torch.stack([function(p, x) for p in models]), tolerance=1e-12)

    def loss(p: Any, x: Tensor) -> Tensor:
        return function(p, x).sin().sum()

    got = pn.vmap(pn.grad(loss), (None, 1))(models[0], x)
    assert pn.tree.allclose(
        got, pn.tree.stack([pn.grad(loss)(models[0], x[:, n]) for n in range(2)]), rtol=1e-12, atol=1e-12
    )


def derivatives(function: Any, p: Any, x: Tensor) -> list[Tensor]:
    """Value, gradients and second derivatives of a layer by plain autograd."""
    values, structure = optree.tree_flatten((p, x))
    values = [value.clone().requires_grad_() for value in values]
    y = joining(function)(*optree.tree_unflatten(structure, values))
    first = torch.autograd.grad(y.sin().sum(), values, create_graph=True)
    total = torch.stack([gradient.square().sum() for gradient in first]).sum()
    return [y, *first, *torch.autograd.grad(total, values)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_single_precision(name: str, device: torch.device) -> None:
    """In float32, where torch has other kernels, values and derivatives are right to 1e-5, and nothing warns."""
    options = {**WIDE, **({"proj_size": 2} if name == "LSTM" else {})}
    for chosen in ({}, options):
        p = made(name, device, **chosen)
        single, x = pn.tree.to(p, torch.float32), numbers(5, 2, 3, device=device)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = derivatives(FUNCTIONS[name], single, x.float())
        for one, other in zip(got, derivatives(FUNCTIONS[name], p, x), strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_autocast(name: str, device: torch.device) -> None:
    """Under autocast steps have another dtype than the state, with and without kernels and lengths."""
    p = getattr(layers, name).init(pn.random.key(0, device), 3, 4)
    x = pn.random.normal(pn.random.key(1, device), (2, 5, 3))
    lengths = torch.tensor([5, 3, 4], device=device)

    def value(p: Any, x: Tensor, **options: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            y, last = p(x[:, None].expand(-1, 3, -1) if options else x, **options)
        return y.float().square().sum() + sum(h.float().sum() for h in pn.tree.leaves(last))

    for options in ({}, {"lengths": lengths}):
        found = pn.vmap(pn.grad(lambda p, x, options=options: value(p, x, **options)), (None, 0))(p, x)
        expected = pn.tree.stack([pn.grad(lambda p, x=one, o=options: value(p, x, **o))(p) for one in x])
        for one, other in zip(pn.tree.leaves(found), pn.tree.leaves(expected), strict=True):
            assert (one - other).norm() < 0.03 * other.norm()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dropout_between_layers(name: str, device: torch.device) -> None:
    """With a key, what a layer hands on has zeros and the rest is scaled; without one nothing happens."""
    function = FUNCTIONS[name]
    p = made(name, device, 3, 40, num_layers=2, dropout=0.5)
    x = numbers(5, 3, 3, device=device)
    whole = function(p, x)
    module = getattr(nn, name)(3, 40, 2, **DOUBLE, device=device)
    module.load_state_dict(dict(pn.tree.named_leaves(p)))
    same(whole, module(x), tolerance=1e-12)
    dropped = function(p, x, key=key(device))
    same(function(p, x, key=key(device)), dropped, tolerance=0)
    assert not torch.equal(dropped[0], whole[0])
    assert not torch.equal(function(p, x, key=key(device, 1))[0], dropped[0])
    one = made(name, device, 3, 40, dropout=0.5)
    same(function(one, x, key=key(device)), function(one, x), tolerance=0)
    # The formulas are used here, kernels above; the zeros are the same.
    whole_lengths = torch.full((3,), 5, device=device)
    same(function(p, x, key=key(device), lengths=whole_lengths), dropped, tolerance=1e-12)
    # All zeros: the second layer sees nothing of x.
    blind = pn.replace(p, dropout=1.0)
    same(blind(x, key=key(device))[0], blind(x + 1, key=key(device))[0], tolerance=0)
    parts = split_layers(name, p)
    first, _ = function(parts[0], x)
    kept = layers.dropout(layers.Dropout(0.5), first, key=pn.random.split(key(device), 1)[0])
    same(function(parts[1], kept)[0], dropped[0], tolerance=1e-12)


def split_layers(name: str, p: Any) -> list[Any]:
    """Two layers as a network each."""
    leaves = dict(pn.tree.named_leaves(p))
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [getattr(layers, name)(*(leaves[f"{part}_l{n}"] for part in names)) for n in range(2)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_purity(name: str, device: torch.device) -> None:
    """No argument is changed, and a second call gives the same."""
    p = made(name, device, **WIDE)
    states, x = as_hx(tuple(first_states(p, (2,), device))), numbers(4, 2, 3, device=device)
    check_purity(FUNCTIONS[name], p, x, states)
    check_purity(lambda *args: FUNCTIONS[name](*args, lengths=torch.tensor([1, 3], device=device)), p, x, states)


@given(case=cases())
def test_round_trip(case: Any, device: torch.device) -> None:
    """As a module the layer has torch's state_dict keys in torch's order; and back it is what it was."""
    name, sizes, options = case
    p, module = made(name, device, *sizes, **options), getattr(nn, name)(*sizes, **options, **DOUBLE, device=device)
    carried = bridge.to_module(p)
    assert list(carried.state_dict()) == list(module.state_dict()) == [path for path, _ in pn.tree.named_leaves(p)]
    assert repr(carried) == repr(p)
    module.load_state_dict(carried.state_dict())
    x = numbers(3, 2, sizes[0], device=device)
    same(carried(x), module(x), tolerance=1e-12)
    assert pn.tree.equal(bridge.from_module(carried), p)
    same(FUNCTIONS[name](bridge.to_module(p), x), p(x), tolerance=1e-12)


def test_as_a_module_it_drops_while_training(device: torch.device) -> None:
    """The module draws its zeros from torch's generator in training mode only."""
    carried = bridge.to_module(made("GRU", device, 3, 20, num_layers=2, dropout=0.5))
    x = numbers(3, 2, 3, device=device)
    first, second = carried(x)[0], carried(x)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    first = carried(x)[0]
    torch.manual_seed(0)
    assert torch.equal(carried(x)[0], first)
    carried.eval()
    assert torch.equal(carried(x)[0], carried(x)[0])


def test_it_is_a_container_like_any_other(tmp_path: Path, device: torch.device) -> None:
    """replace, select, freeze, partition, tie, save and load, copy, pickle and jit work on several layers as on one."""
    p, x = made("LSTM", device, 4, 4, **WIDE), numbers(3, 2, 4, device=device)
    assert isinstance(p, layers.LSTM)
    assert type(p) is type(made("LSTM", device, 5, 6, **WIDE))
    assert type(type(p).init(key(device), 2, 2)) is layers.LSTM
    changed = pn.replace(p, bias_hh_l1_reverse=p.bias_hh_l1_reverse + 1)
    assert torch.equal(changed.bias_hh_l1_reverse, p.bias_hh_l1_reverse + 1)
    doubled = pn.tree.select(p).paths("weight_ih_l1*").apply(lambda w: 2 * w)
    assert torch.equal(doubled.weight_ih_l1_reverse, 2 * p.weight_ih_l1_reverse)
    assert torch.equal(doubled.weight_ih_l0, p.weight_ih_l0)
    frozen = pn.tree.freeze(p, "weight_hh_l0*")
    grads = dict(pn.tree.named_leaves(pn.grad(lambda p: joined(p(x)).sum())(frozen)))
    assert len(grads) == 14
    assert "weight_hh_l0_reverse" not in grads
    assert not bridge.to_module(frozen).weight_hh_l0.requires_grad
    assert pn.tree.equal(pn.tree.combine(*pn.tree.partition(p, paths="bias*")), p)
    tied = pn.tree.tie(p, {"weight_hh_l0_reverse": "weight_hh_l0"})
    assert len(pn.tree.leaves(tied)) == 15
    same(joined(tied(x)), joined(pn.replace(p, weight_hh_l0_reverse=p.weight_hh_l0)(x)), tolerance=0)
    pn.save(tmp_path / "file", p)
    assert pn.tree.equal(pn.load(tmp_path / "file", like=made("LSTM", device, 4, 4, seed=1, **WIDE)), p)
    for again in (copy.deepcopy(p), pickle.loads(pickle.dumps(p)), copy.copy(p)):
        assert type(again) is type(p)
        assert pn.tree.equal(again, p)
    assert pickle.loads(pickle.dumps(type(made("GRU", device, bidirectional=True)))).bidirectional
    carried = pickle.loads(pickle.dumps(bridge.to_module(p)))
    same(carried(x), p(x), tolerance=1e-12)
    jitted = pn.jit(lambda p, x: joined(p(x)), backend="eager")
    same(jitted(p, x), joined(p(x)), tolerance=1e-12)


def test_constructor_takes_the_fields(device: torch.device) -> None:
    """One layer can be built from its parts, and a layer of several is refused where one is meant."""
    p = made("GRU", device)
    again = layers.GRU(p.weight_ih_l0, p.weight_hh_l0, p.bias_ih_l0, p.bias_hh_l0, batch_first=True)
    assert pn.tree.equal(pn.replace(again, batch_first=False), p)
    with pytest.raises(pn.errors.StructureError):
        pn.tree.stack([p, made("GRU", device, num_layers=2)])
    with pytest.raises(AttributeError, match="has no attribute 'GRU_0'"):
        _ = layers.recurrent.GRU_0


def test_subclasses_grow_as_well(device: torch.device) -> None:
    """A subclass of a recurrent container keeps its own fields and function with several layers."""

    @pn.container
    class Scaled(layers.GRU):
        scale: Tensor = pn.buffer(default=None)

    p = Scaled.init(key(device), 3, 4, num_layers=2)
    assert isinstance(p, Scaled)
    assert p.num_layers == 2
    assert p(torch.ones(3, 3, device=device))[0].shape == (3, 4)


def test_init(device: torch.device) -> None:
    """Parameters are uniform up to 1 / sqrt(hidden_size), and drawn independently; on meta nothing is drawn."""
    p = layers.LSTM.init(key(device), 30, 100, num_layers=2, bidirectional=True, proj_size=25)
    for leaf in pn.tree.leaves(p):
        assert 0.095 < leaf.abs().max() <= 0.1
        assert abs(leaf.mean()) < 0.02
    assert len({leaf.flatten()[0].item() for leaf in pn.tree.leaves(p)}) == 20
    assert (p.input_size, p.hidden_size, p.proj_size, p.bias) == (30, 100, 25, True)
    on_meta = layers.LSTM.init(key(device), 30, 100, num_layers=2, bidirectional=True, proj_size=25, device="meta")
    assert [leaf.shape for leaf in pn.tree.leaves(on_meta)] == [leaf.shape for leaf in pn.tree.leaves(p)]
    assert all(leaf.is_meta for leaf in pn.tree.leaves(on_meta))
    keys = pn.random.split(key(device), 2)
    drawn = vmap(lambda key: layers.GRU.init(key, 3, 2, num_layers=2))(keys)
    assert pn.tree.allclose(drawn, pn.tree.stack([layers.GRU.init(key, 3, 2, num_layers=2) for key in keys]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_traces_one_step(name: str, device: torch.device) -> None:
    """Under pn.jit the graph is as long for 50 steps as for 5, and so it is with its gradient."""
    p, function = made(name, device), joining(FUNCTIONS[name])
    sizes = []
    for steps in (5, 50):
        loss = pn.jit(pn.grad(lambda p, x: function(p, x).sum()), backend="eager")
        x = numbers(steps, 2, 3, device=device)
        lowered = loss.lower(p, x)
        sizes.append([len(graph.graph.nodes) for graph in (lowered.graph, *lowered.programs.values())])
    assert sizes[0] == sizes[1]
    assert pn.tree.allclose(loss(p, x), pn.grad(lambda p, x: function(p, x).sum())(p, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_compiles_it_whole(name: str, device: torch.device) -> None:
    """torch.compile makes one graph of it, with lengths as without."""
    p, x, function = made(name, device, bidirectional=True), numbers(2, 2, 3, device=device), joining(FUNCTIONS[name])
    lengths = torch.tensor([2, 1], device=device)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    same(compiled(p, x), function(p, x), tolerance=1e-12)
    same(compiled(p, x, lengths=lengths), function(p, x, lengths=lengths), tolerance=1e-12)


@pytest.mark.slow
def test_inductor(device: torch.device) -> None:
    """Compiled for real, the results are those of eager."""
    p, x, lengths = made("LSTM", device), numbers(6, 2, 3, device=device), torch.tensor([6, 3], device=device)
    got = pn.jit(layers.lstm)(p, x, lengths=lengths)
    same(got, layers.lstm(p, x, lengths=lengths), tolerance=1e-12)


def whole(name: str = "LSTM", **options: Any) -> Any:
    """A layer from 3 features to 4, on the CPU in float32."""
    return getattr(layers, name).init(pn.random.key(0), 3, 4, **options)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: whole()(torch.zeros(3)),
            pn.errors.ShapeError,
            "lstm: expected x of shape [length, batch, 3], or [length, 3] for one sequence, got shape [3].",
        ),
        (
            lambda: whole("GRU", batch_first=True)(torch.zeros(2, 5, 4)),
            pn.errors.ShapeError,
            "gru: expected x of shape [batch, length, 3], or [length, 3] for one sequence, got shape [2, 5, 4].",
        ),
        (
            lambda: whole("RNN", batch_first=True)(torch.zeros(2, 0, 3)),
            pn.errors.ShapeError,
            "rnn: the sequences must have at least one step, got x of shape [2, 0, 3].",
        ),
        (
            lambda: whole("GRU", num_layers=2)(torch.zeros(5, 2, 3), torch.zeros(1, 2, 4)),
            pn.errors.ShapeError,
            "gru: h must be of shape [2, 2, 4], [layers * directions, batch, features], got shape [1, 2, 4].",
        ),
        (
            lambda: whole(proj_size=2)(torch.zeros(5, 3), (torch.zeros(1, 2), torch.zeros(1, 2))),
            pn.errors.ShapeError,
            "lstm: c must be of shape [1, 4], [layers * directions, features], got shape [1, 2].",
        ),
        (
            lambda: whole()(torch.zeros(5, 3), torch.zeros(1, 4)),
            pn.errors.ArgumentError,
            "lstm: hx must be a pair (h, c) or None, got a Tensor.",
        ),
        (
            lambda: whole("RNN")(torch.zeros(5, 3), (torch.zeros(1, 4),)),
            pn.errors.ArgumentError,
            "rnn: hx must be a tensor or None, got a tuple of 1.",
        ),
        (
            lambda: whole()(pack_padded_sequence(torch.zeros(5, 2, 3), torch.tensor([5, 3]))),
            pn.errors.ArgumentError,
            "lstm: x is a PackedSequence; give the padded sequences and their lengths instead: x, lengths = "
            "torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=False), then lstm(p, x, lengths=lengths).",
        ),
        (
            lambda: whole()(torch.zeros(5, 2, 3), lengths=torch.tensor([5, 3, 2])),
            pn.errors.ShapeError,
            "lstm: lengths must be of shape [2], one number for each sequence, got shape [3].",
        ),
        (
            lambda: whole()(torch.zeros(5, 3), lengths=torch.tensor([5])),
            pn.errors.ShapeError,
            "lstm: lengths must be of shape [], one number, because x is one sequence, got shape [1].",
        ),
        (
            lambda: whole()(torch.zeros(5, 2, 3), lengths=torch.tensor([6, 3])),
            pn.errors.ArgumentError,
            "lstm: lengths must be from 0 to 5, the number of steps in x, got 3 to 6.",
        ),
        (
            lambda: whole()(torch.zeros(5, 2, 3), lengths=torch.tensor([-1, 3])),
            pn.errors.ArgumentError,
            "lstm: lengths must be from 0 to 5, the number of steps in x, got -1 to 3.",
        ),
        (
            lambda: whole()(torch.zeros(5, 2, 3), lengths=torch.tensor([5.0, 3.0])),
            pn.errors.ArgumentError,
            "lstm: lengths must be a tensor of whole numbers, got torch.float32.",
        ),
        (
            lambda: whole()(torch.zeros(5, 2, 3), lengths=[5, 3]),
            pn.errors.ArgumentError,
            "lstm: lengths must be a tensor of whole numbers, got list.",
        ),
        (
            lambda: whole(proj_size=4),
            pn.errors.ArgumentError,
            "LSTM.init: proj_size must be less than hidden_size=4, or 0 for no projection, got 4.",
        ),
        (
            lambda: whole("GRU", dropout=1.5, num_layers=2),
            pn.errors.ArgumentError,
            "GRU: dropout is the probability of a zero and must be from 0 to 1, got 1.5.",
        ),
        (
            lambda: whole("RNN", nonlinearity="gelu"),
            pn.errors.ArgumentError,
            "RNN: nonlinearity must be 'tanh' or 'relu', got 'gelu'.",
        ),
        (
            lambda: whole(num_layers=0),
            pn.errors.ArgumentError,
            "LSTM.init: num_layers must be at least 1, got 0.",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    """Wrong shapes, states, lengths and options are refused with a text that says what was expected."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
