"""Sampling, noise and accounting of private training."""

import math
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import purenn as pn
from purenn.errors import ArgumentError, MissingExtraError, PurennError

D = torch.float64


def refused(kind: type[PurennError], text: str, call: Callable[[], Any]) -> None:
    """Require an error with the whole text."""
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        call()


def test_sample_sizes_are_binomial(device: torch.device) -> None:
    """Numbers and positions of what is drawn are those of independent draws."""
    keys = pn.random.split(pn.random.key(0, device), 400)
    samples = [pn.privacy.poisson_sample(key, 50, 0.3) for key in keys]
    sizes = torch.tensor([len(sample) for sample in samples], dtype=D)
    # Four deviations of the mean, and of the variance, of 400 binomial numbers.
    assert abs(sizes.mean() - 15) < 4 * (10.5 / 400) ** 0.5
    assert abs(sizes.var() - 10.5) < 4 * 10.5 * (2 / 400) ** 0.5
    counts = torch.bincount(torch.cat(samples), minlength=50).double() / 400
    assert (counts - 0.3).abs().max() < 5 * (0.21 / 400) ** 0.5
    assert all(torch.equal(sample, sample.unique()) for sample in samples)


def test_sample_is_a_function_of_the_key(device: torch.device) -> None:
    """The same key draws the same examples, padded or not."""
    key = pn.random.key(3, device)
    drawn = pn.privacy.poisson_sample(key, 40, 0.5)
    padded = pn.privacy.poisson_sample(key, 40, 0.5, capacity=40)
    assert torch.equal(padded.indices[padded.mask], drawn)
    assert padded.indices.shape == padded.mask.shape == (40,)
    assert int(padded.indices[~padded.mask].abs().sum()) == 0
    assert len(pn.privacy.poisson_sample(key, 40, 0.0)) == 0


def test_sample_errors(device: torch.device) -> None:
    """Rates are probabilities, and nothing that is drawn is left out."""
    key = pn.random.key(0, device)
    refused(
        ArgumentError,
        "poisson_sample: rate is a probability and must be from 0 to 1, got 1.5.",
        lambda: pn.privacy.poisson_sample(key, 10, 1.5),
    )
    refused(
        ArgumentError,
        "poisson_sample: 10 examples were drawn, but capacity is 4; to leave some out would void the privacy "
        "accounting. Set it to 35 or more.",
        lambda: pn.privacy.poisson_sample(key, 10, 1.0, capacity=4),
    )


def test_noise_has_the_deviation_that_is_accounted_for(device: torch.device) -> None:
    """The mechanism adds noise of max_norm * noise_multiplier to the sum, new in every step, and divides."""
    p = {"a": torch.zeros(200, 200, dtype=D, device=device), "b": torch.zeros(10_000, dtype=D, device=device)}
    noisy = pn.privacy.gaussian_mechanism(pn.random.key(0, device), max_norm=2.0, noise_multiplier=1.5, batch_size=4)
    first, state = noisy.update(p, noisy.init(p), p)
    second, _ = noisy.update(p, state, p)
    again, _ = noisy.update(p, noisy.init(p), p)
    for leaf in pn.tree.leaves(first):
        assert abs(leaf.std() * 4 / 3 - 1) < 4 / (2 * leaf.numel()) ** 0.5
    assert torch.equal(first["a"], again["a"])
    assert abs(float((first["b"] * second["b"]).mean())) < 4 * (3 / 4) ** 2 / 100
    assert abs(float((first["a"].flatten()[:10_000] * first["b"]).mean())) < 4 * (3 / 4) ** 2 / 100


def test_noise_of_complex_numbers(device: torch.device) -> None:
    """It is that of their two parts, also where they are conjugates that are not written out."""
    total = torch.randn(3, 50, dtype=torch.complex128, device=device).conj()
    mechanism = pn.privacy.gaussian_mechanism(
        pn.random.key(5, device), max_norm=2.0, noise_multiplier=1.5, batch_size=10
    )
    found, _ = mechanism.update({"w": total}, mechanism.init({}), None)
    parts = {"w": torch.view_as_real(total.resolve_conj())}
    expected, _ = mechanism.update(parts, mechanism.init({}), None)
    assert torch.equal(torch.view_as_real(found["w"]), expected["w"])


def test_mechanism_before_an_optimiser(device: torch.device) -> None:
    """Frozen leaves stay as they are, and without noise the step is that of the mean."""
    p = {"w": torch.ones(3, dtype=D, device=device), "n": torch.tensor(1, device=device)}
    sums = pn.per_sample.clipped_grad(lambda p, x: (p["w"] * x).sum(), 1.0)(p, (torch.eye(3, dtype=D, device=device),))
    mechanism = pn.privacy.gaussian_mechanism(
        pn.random.key(0, device), max_norm=1.0, noise_multiplier=0.0, batch_size=2
    )
    optimizer = pn.optim.chain(mechanism, pn.optim.sgd(0.1))
    new, _ = optimizer.step(p, sums, optimizer.init(p))
    assert torch.allclose(new["w"], torch.full((3,), 0.95, dtype=D, device=device))
    assert torch.equal(new["n"], p["n"])


def test_mechanism_errors() -> None:
    """Numbers out of range are refused by name."""
    key = pn.random.key(0)
    numbers = {"max_norm": 1.0, "noise_multiplier": 1.0, "batch_size": 1}

    def make(**changes: Any) -> Any:
        return pn.privacy.gaussian_mechanism(key, **{**numbers, **changes})

    refused(ArgumentError, "gaussian_mechanism: max_norm must be positive, got 0.", lambda: make(max_norm=0))
    refused(ArgumentError, "gaussian_mechanism: batch_size must be positive, got -1.", lambda: make(batch_size=-1))
    refused(
        ArgumentError,
        "gaussian_mechanism: noise_multiplier must not be negative, got -1.",
        lambda: make(noise_multiplier=-1),
    )


def gaussian_delta(epsilon: float, noise: float) -> float:
    """The delta of one Gaussian mechanism, in closed form (Balle and Wang, 2018)."""

    def below(x: Any) -> Any:
        return 0.5 * math.erfc(-x / 2**0.5)

    return below(0.5 / noise - epsilon * noise) - math.exp(epsilon) * below(-0.5 / noise - epsilon * noise)


@pytest.mark.parametrize("steps", [1, 16])
def test_epsilon_without_subsampling(steps: int) -> None:
    """For full batches the accountant agrees with the closed form, and is never below it."""
    found = pn.privacy.epsilon(noise_multiplier=4.0, sampling_rate=1.0, steps=steps, delta=1e-4)
    assert gaussian_delta(found, 4.0 / steps**0.5) <= 1e-4
    assert gaussian_delta(0.99 * found - 0.01, 4.0 / steps**0.5) > 1e-4


def test_epsilon_of_one_subsampled_step() -> None:
    """With subsampling it agrees with the divergence of the two mixtures, integrated numerically."""
    noise, rate, delta = 1.0, 0.2, 1e-3
    found = pn.privacy.epsilon(noise_multiplier=noise, sampling_rate=rate, steps=1, delta=delta)
    x = torch.linspace(-12, 13, 200_001, dtype=D)

    def density(mean: Any) -> Any:
        return torch.exp(-((x - mean) ** 2) / (2 * noise**2)) / (noise * (2 * math.pi) ** 0.5)

    without, mixed = density(0.0), (1 - rate) * density(0.0) + rate * density(1.0)

    def beyond(epsilon: float) -> float:
        pairs = (mixed, without), (without, mixed)
        return max(torch.trapezoid((p - math.exp(epsilon) * q).clamp_min(0), x).item() for p, q in pairs)

    assert beyond(found) <= delta * 1.001
    assert beyond(found - 0.02) > delta


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_noise_for_a_given_epsilon(accountant: Any) -> None:
    """The noise found has the epsilon asked for, and a little less of it has more."""
    run = {"sampling_rate": 0.02, "steps": 200, "delta": 1e-5, "accountant": accountant}
    noise = pn.privacy.noise_multiplier(epsilon=2.0, **run)
    assert pn.privacy.epsilon(noise_multiplier=noise, **run) <= 2.0
    assert pn.privacy.epsilon(noise_multiplier=noise - 0.01, **run) > 2.0
    assert pn.privacy.epsilon(noise_multiplier=0.0, **run) == math.inf


def test_accounting_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers out of range are refused by name, and a missing library is named with the way to install it."""
    run: dict[str, Any] = {"noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 10, "delta": 1e-5}
    for change, text in (
        ({"sampling_rate": 0}, "sampling_rate must be above 0 and at most 1, got 0."),
        ({"steps": 0}, "steps must be at least 1, got 0."),
        ({"delta": 1.0}, "delta must be between 0 and 1, got 1.0."),
        ({"accountant": "gdp"}, "accountant must be 'pld' or 'rdp', got 'gdp'."),
        ({"noise_multiplier": -1.0}, "noise_multiplier must not be negative, got -1.0."),
    ):
        refused(ArgumentError, f"epsilon: {text}", lambda change=change: pn.privacy.epsilon(**{**run, **change}))
    refused(
        ArgumentError,
        "noise_multiplier: epsilon must be positive, got 0.0.",
        lambda: pn.privacy.noise_multiplier(epsilon=0.0, sampling_rate=0.1, steps=10, delta=1e-5),
    )
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    refused(
        MissingExtraError,
        "epsilon: privacy is accounted for by the library dp-accounting, which is not installed: pip install "
        "'purenn[privacy]'.",
        lambda: pn.privacy.epsilon(**run),
    )
