"""Random numbers in an opaque container: all from the key, and none without one."""

from collections.abc import Callable

import pytest
import torch
from _module_inputs import DOUBLE, randn
from torch import Tensor, distributions, nn

import bridge
import purenn as pn
from purenn.errors import BatchingError, BridgeError


class Stochastic(nn.Module):
    """Draws in every way that code has: dropout, RReLU, stochastic depth, noise."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.slope = nn.Dropout(0.5), nn.RReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.slope(self.drop(x))
        if self.training:
            y = y * y.new_empty(len(y), 1).bernoulli_(0.5) + torch.randn_like(y) + torch.rand(4, device=y.device)
        return y


def test_keys(device: torch.device) -> None:
    """One key gives the same in every call, and other keys something else, also those of vmap."""
    module = nn.Sequential(Stochastic(), nn.AlphaDropout(0.2), nn.LSTM(4, 4, 2, dropout=0.5)).to(device, DOUBLE)
    p, x = bridge.from_module(module), randn(device, 6, 4)
    keys = pn.random.split(pn.random.key(0, device), 3)
    alone = torch.stack([p(x, train=True, key=key)[0] for key in keys])
    generator = torch.get_rng_state()
    torch.testing.assert_close(pn.vmap(lambda key: p(x, train=True, key=key)[0])(keys), alone, rtol=0, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(not torch.equal(alone[i], alone[j]) for i in range(3) for j in range(i))
    same = pn.vmap(lambda x: p(x, train=True, key=keys[0])[0])(x.repeat(2, 1, 1))
    torch.testing.assert_close(same, alone[:1].repeat(2, 1, 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(p(x)[0], module.eval()(x)[0], rtol=0, atol=1e-12)


def test_dropout_keeps_the_share(device: torch.device) -> None:
    """Dropout of elements and of channels by a key is what it is in torch; without a key it does nothing."""
    x = torch.ones(50, 40, 3, 3, dtype=DOUBLE, device=device)
    for cls in (nn.Dropout, nn.Dropout2d):
        p = bridge.from_module(cls(0.25))
        y = p(x, train=True, key=pn.random.key(0, device))
        assert set(y.unique().tolist()) == {0.0, 1 / 0.75}
        assert abs((y == 0).double().mean().item() - 0.25) < 0.05
        assert (y.flatten(2).std(-1) == 0).all() == (cls is nn.Dropout2d)
        assert torch.equal(p(x, train=True), x)
        assert torch.equal(p(x, key=pn.random.key(0, device)), x)


def test_attention_drops_by_the_key(device: torch.device) -> None:
    """The weights of attention are dropped by the key, whether they are wanted or not."""
    p = bridge.from_module(nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True).to(device, DOUBLE))
    x, keys = randn(device, 2, 3, 4), pn.random.split(pn.random.key(0, device), 2)
    for need_weights in (True, False):
        one, again, other = (p(x, x, x, train=True, key=keys[n], need_weights=need_weights)[0] for n in (0, 0, 1))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)


def test_draws_need_a_key(device: torch.device) -> None:
    """Code that draws by itself is refused without a key, with the module's name."""
    p = bridge.from_module(nn.Sequential(nn.Tanh(), Stochastic()))
    with pytest.raises(BridgeError) as error:
        p(torch.ones(2, 4, device=device), train=True)
    assert str(error.value) == (
        "'1' (Stochastic) draws random numbers by Tensor.bernoulli_: give the container a key to draw from, "
        "p(..., key=pn.random.key(0))."
    )


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "poisson": lambda x: torch.poisson(9 * x),
    "binomial": lambda x: torch.binomial(torch.full_like(x, 50), x),
    "gamma": lambda x: distributions.Gamma(x + 1, x + 1).rsample(),
    "Dirichlet": lambda x: distributions.Dirichlet(x + 1).rsample(),
    "Student": lambda x: distributions.StudentT(x + 1).rsample(),
    "native_dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "dropout_": lambda x: torch.dropout_(x.clone(), 0.5, True),
    "alpha_dropout": lambda x: torch.alpha_dropout(x, 0.5, True),
    "feature_dropout": lambda x: torch.feature_dropout(x, 0.5, True),
    "rrelu": lambda x: torch.rrelu(x - 0.5, 0.1, 0.9, True),
    "rrelu_": lambda x: torch.rrelu_(x - 0.5, 0.1, 0.9, True),
    "init.uniform_": lambda x: nn.init.uniform_(torch.empty_like(x)),
    "init.normal_": lambda x: nn.init.normal_(torch.empty_like(x), 1, 2) + nn.init.constant_(torch.empty_like(x), 3),
    "init.kaiming_uniform_": lambda x: nn.init.kaiming_uniform_(torch.empty_like(x), a=1),
}


class Drawing(nn.Module):
    """Draws in one way."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.weight = name, nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return DRAWS[self.name](x * self.weight)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_of_torch(name: str, device: torch.device) -> None:
    """They come from the key, with torch's distribution, and never from the global generator."""
    module, (one, other) = Drawing(name).to(device), pn.random.split(pn.random.key(0, device), 2)
    p, x = bridge.from_module(module), torch.linspace(0.1, 0.9, 8, device=device).expand(1000, 8).contiguous()
    before = torch.get_rng_state()
    y = p(x, train=True, key=one)
    assert torch.equal(y, p(x, train=True, key=one))
    assert not torch.equal(y, p(x, train=True, key=other))
    assert torch.equal(torch.get_rng_state(), before)
    reference = module(x).detach()
    assert (y.shape, y.dtype) == (reference.shape, reference.dtype)
    quantiles = torch.tensor([0.25, 0.5, 0.75], device=device)
    torch.testing.assert_close(y.detach().quantile(quantiles), reference.quantile(quantiles), rtol=0.1, atol=0.1)


def test_draws_that_cannot_be_batched(device: torch.device) -> None:
    """What torch draws by a generator only is refused without a key, and under vmap."""
    p, x = bridge.from_module(Drawing("poisson").to(device)), torch.ones(8, device=device)
    with pytest.raises(BridgeError) as without:
        p(x)
    assert str(without.value) == (
        "the module (Drawing) draws random numbers by torch.poisson: give the container a key to draw from, "
        "p(..., key=pn.random.key(0))."
    )
    with pytest.raises(BatchingError) as batched:
        pn.vmap(lambda key: p(x, key=key))(pn.random.split(pn.random.key(0, device), 2))
    assert str(batched.value) == (
        "the module (Drawing) draws random numbers by torch.poisson, which torch can do from a generator only, one "
        "after another: under vmap and while tracing there is none. Draw in a loop, or before."
    )
