"""Weight normalisation: equal to torch's parametrization, in the place of any layer."""

from typing import Any

import pytest
import torch
from _reference import numbers, same, weights_like
from _transformations import check_purity, check_transformations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import bridge
import purenn as pn
from purenn import layers
from purenn.layers import WeightNorm

DOUBLE = torch.float64

# Layer, the torch module of the same options, shape of an input.
CASES: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "linear": (lambda k: layers.Linear.init(k, 4, 3, dtype=DOUBLE), lambda: nn.Linear(4, 3, dtype=DOUBLE), (2, 4)),
    "no bias": (
        lambda k: layers.Linear.init(k, 4, 3, bias=False, dtype=DOUBLE),
        lambda: nn.Linear(4, 3, bias=False, dtype=DOUBLE),
        (4,),
    ),
    "conv1d": (
        lambda k: layers.Conv1d.init(k, 2, 3, 3, padding="same", padding_mode="reflect", dtype=DOUBLE),
        lambda: nn.Conv1d(2, 3, 3, padding="same", padding_mode="reflect", dtype=DOUBLE),
        (2, 2, 5),
    ),
    "conv2d": (
        lambda k: layers.Conv2d.init(k, 4, 2, (3, 2), stride=2, groups=2, dtype=DOUBLE),
        lambda: nn.Conv2d(4, 2, (3, 2), stride=2, groups=2, dtype=DOUBLE),
        (2, 4, 5, 5),
    ),
    "conv_transpose2d": (
        lambda k: layers.ConvTranspose2d.init(k, 2, 3, 3, dtype=DOUBLE),
        lambda: nn.ConvTranspose2d(2, 3, 3, dtype=DOUBLE),
        (2, 2, 4, 4),
    ),
}


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


def wrapped(case: str, dim: int | None, device: torch.device, seed: int = 0) -> WeightNorm:
    """A wrapped layer whose magnitudes are not those of its directions."""
    p = WeightNorm.of(CASES[case][0](key(device, seed)), dim=dim)
    return pn.replace(p, original0=p.original0 * 1.5 + 0.1 * numbers(*p.original0.shape, seed=seed, device=device))


def parametrized(case: str, p: WeightNorm, device: torch.device) -> nn.Module:
    """torch's module with the values of a wrapped layer."""
    module = parametrizations.weight_norm(CASES[case][1]().to(device), dim=p.dim)
    state = {"parametrizations.weight.original0": p.original0, "parametrizations.weight.original1": p.original1}
    module.load_state_dict(state | ({} if p.bias is None else {"bias": p.bias}))
    return module


def gradients(y: Tensor, of: list[Tensor]) -> tuple[Tensor, ...]:
    """Derivatives of a weighted sum of sines."""
    return torch.autograd.grad((torch.sin(y) * weights_like(y)).sum(), of)


@given(case=st.sampled_from(list(CASES)), dim=st.sampled_from([None, 0, 1]), seed=st.integers(0, 9))
def test_equals_torch(case: str, dim: int | None, seed: int, device: torch.device) -> None:
    """Values and gradients are those of torch's parametrization, along any dimension."""
    p = pn.tree.map(lambda leaf: leaf.detach().requires_grad_(), wrapped(case, dim, device, seed))
    module = parametrized(case, p, device)
    x = numbers(*CASES[case][2], seed=seed, device=device).requires_grad_()
    originals = module.parametrizations.weight  # type: ignore[union-attr]
    ours, theirs = layers.weight_norm(p, x), module(x)
    same(ours, theirs)
    of_ours = [x, p.original0, p.original1, *([] if p.bias is None else [p.bias])]
    of_theirs = [x, originals.original0, originals.original1, *([] if p.bias is None else [module.bias])]
    same(gradients(ours, of_ours), gradients(theirs, of_theirs))


@pytest.mark.parametrize("dim", [None, 0, 1])
def test_second_derivatives(dim: int | None, device: torch.device) -> None:
    """Second derivatives agree with finite differences; those of torch 2.13 do not, along the first and last dim."""
    p = wrapped("linear", dim, device)

    def value(magnitude: Tensor, direction: Tensor) -> Tensor:
        return pn.replace(p, original0=magnitude, layer=pn.replace(p.layer, weight=direction)).value()

    assert torch.autograd.gradgradcheck(value, (p.original0.requires_grad_(), p.original1.requires_grad_()))


@pytest.mark.parametrize("dim", [None, 0, 1])
@pytest.mark.parametrize("case", CASES)
def test_wrapping_changes_nothing(case: str, dim: int | None, device: torch.device) -> None:
    """A freshly wrapped layer computes what it did, with torch's magnitudes; folded it is the plain layer again."""
    layer = CASES[case][0](key(device))
    x = numbers(*CASES[case][2], device=device)
    p = WeightNorm.of(layer, "weight", dim)
    same(p(x), layer(x))
    expected = torch.norm_except_dim(layer.weight, 2, -1 if dim is None else dim)
    same(p.original0, expected)
    assert p.original1 is layer.weight
    folded = p.folded()
    assert type(folded) is type(layer)
    assert pn.tree.allclose(folded, layer, atol=1e-14)


def test_recurrent_weight(device: torch.device) -> None:
    """Any tensor of a layer can be chosen, and the layer's inputs and outputs are its own."""
    layer = layers.LSTM.init(key(device), 3, 4, dtype=DOUBLE)
    p = WeightNorm.of(layer, "weight_hh_l0")
    module = parametrizations.weight_norm(nn.LSTM(3, 4, dtype=DOUBLE), "weight_hh_l0").to(device)
    with torch.no_grad():
        for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(module, name).copy_(getattr(layer, name))
        originals = module.parametrizations.weight_hh_l0  # type: ignore[union-attr]
        originals.original0.copy_(2 * p.original0)
        originals.original1.copy_(p.original1)
    p = pn.replace(p, original0=2 * p.original0)
    x, state = numbers(5, 2, 3, device=device), (numbers(1, 2, 4, device=device), numbers(1, 2, 4, device=device))
    same(p(x, state), module(x, state))
    same(p.value(), module.weight_hh_l0)


def test_is_read_like_the_layer(device: torch.device) -> None:
    """The functions of plain layers take the container, and compute the same."""
    for case, function in (("linear", layers.linear), ("conv1d", layers.conv1d), ("conv2d", layers.conv2d)):
        p, x = wrapped(case, 0, device), numbers(*CASES[case][2], device=device)
        same(function(p, x), p(x))
    p, x = wrapped("conv_transpose2d", 1, device), numbers(2, 2, 4, 4, device=device)
    same(layers.conv_transpose2d(p, x), p(x))
    assert not hasattr(wrapped("linear", 0, device), "stride")


def test_a_layer_that_draws(device: torch.device) -> None:
    """Key and options are passed on to the layer."""
    layer = layers.LinearActivation.init(key(device), 4, 3, activation=layers.RReLU(), dtype=DOUBLE)
    p, x = WeightNorm.of(layer), numbers(2, 4, device=device)
    same(p(x, key=key(device, 1)), layer(x, key=key(device, 1)))
    assert not torch.equal(p(x, key=key(device, 1)), p(x, key=key(device, 2)))


@pytest.mark.parametrize(("case", "dim"), [("linear", 0), ("linear", None), ("conv2d", 1)])
def test_transformations(case: str, dim: int | None, device: torch.device) -> None:
    """Wrapped layers keep the promises of the shared table."""
    check_transformations(
        lambda seed: wrapped(case, dim, device, seed), layers.weight_norm, numbers(3, *CASES[case][2], device=device)
    )


def test_through_the_bridge(device: torch.device) -> None:
    """As a module it has the same results and gradients, hooks fire on the layer inside, and keys are the paths."""
    p, x = wrapped("conv2d", 0, device), numbers(2, 4, 5, 5, device=device)
    m = bridge.to_module(p)
    assert sorted(m.state_dict()) == ["layer.bias", "layer.weight", "original0"]
    seen = []
    m.layer.register_forward_hook(lambda module, args, output: seen.append(output))  # type: ignore[union-attr]
    y = m(x)
    same(y, p(x), tolerance=0)
    assert seen[0] is y
    y.square().sum().backward()
    expected = pn.grad(lambda p: p(x).square().sum())(p)
    for name, leaf in pn.tree.named_leaves(expected):
        same(m.get_parameter(name).grad, leaf)
    # A key is passed on in training only, as in every module.
    drawing = bridge.to_module(
        WeightNorm.of(layers.LinearActivation.init(key(device), 4, 3, activation=layers.RReLU()))
    )
    x = numbers(2, 4, device=device).float()
    assert not torch.equal(drawing(x), drawing(x))
    assert torch.equal(drawing.eval()(x), drawing(x))


def test_in_a_model(device: torch.device) -> None:
    """All layers of a model are wrapped by surgery; the model is jitted, applied and purely so."""
    k1, k2 = pn.random.split(key(device))
    base = layers.Sequential.of(
        layers.Linear.init(k1, 4, 5, dtype=DOUBLE), layers.Tanh(), layers.Linear.init(k2, 5, 3, dtype=DOUBLE)
    )
    p = pn.tree.select(base).instances(layers.Linear).apply(WeightNorm.of)
    x = numbers(2, 4, device=device)
    same(p(x), base(x))
    same(pn.jit(layers.sequential, backend="eager")(p, x), base(x))
    check_purity(layers.sequential, p, x)
    plain = pn.tree.select(p).instances(WeightNorm).apply(WeightNorm.folded)
    assert pn.tree.allclose(plain, base, atol=1e-14)


def test_on_meta(device: torch.device) -> None:
    """On the meta device shapes are right and nothing is allocated."""
    p = WeightNorm.of(layers.Linear.init(key(device), 10**6, 10**6, device="meta"))
    assert p.original0.is_meta
    assert p.original0.shape == (10**6, 1)


def test_repr(device: torch.device) -> None:
    """What is normalised is printed above the layer."""
    assert repr(WeightNorm.of(layers.Linear.init(key(device), 4, 3))) == (
        "WeightNorm(name='weight', dim=0\n  (layer): Linear(in_features=4, out_features=3, bias=True)\n)"
    )


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda layer: WeightNorm.of(nn.Linear(2, 2)),
            pn.errors.ContainerError,
            "WeightNorm.of: expected a container with a function, such as Linear.init(...), got a Linear.",
        ),
        (
            lambda layer: WeightNorm.of(layers.Sequential.of(layer, layers.BatchNorm1d.init(3))),
            pn.errors.ContainerError,
            "WeightNorm.of: Sequential updates buffers, so it cannot be wrapped as a whole: wrap the layers in it, "
            "with pn.tree.select(p).instances(Linear).apply(...).",
        ),
        (
            lambda layer: WeightNorm.of(layer, "kernel"),
            pn.errors.ArgumentError,
            "WeightNorm.of: Linear has no floating tensor 'kernel'; it has weight, bias. Wrap the layer whose own "
            "field it is.",
        ),
        (
            lambda layer: WeightNorm.of(layers.Sequential.of(layer)),
            pn.errors.ArgumentError,
            "WeightNorm.of: Sequential has no floating tensor 'weight'; it has none. Wrap the layer whose own field "
            "it is.",
        ),
        (
            lambda layer: WeightNorm.of(layer, dim=-1),
            pn.errors.ArgumentError,
            "WeightNorm.of: dim must lie between 0 and 1 for a weight of shape [3, 2], got -1. Count from the front.",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str, device: torch.device) -> None:
    """What cannot be wrapped is refused with a text that says what to do."""
    with pytest.raises(error) as caught:
        call(layers.Linear.init(key(device), 2, 3))
    assert str(caught.value) == text
