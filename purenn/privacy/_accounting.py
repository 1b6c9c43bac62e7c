"""How much privacy a training run costs, by the accountants of the library dp-accounting."""

from collections.abc import Callable
from typing import Any, Literal

from purenn._extras import imported
from purenn.errors import ArgumentError

Accountant = Literal["pld", "rdp"]


def epsilon(
    *, noise_multiplier: float, sampling_rate: float, steps: int, delta: float, accountant: Accountant = "pld"
) -> float:
    """The epsilon of (epsilon, delta)-differential privacy that a run of DP-SGD has.

    Two data sets are neighbours if one has one example more than the other. It holds for Poisson samples
    (`poisson_sample`) and the Gaussian mechanism (`gaussian_mechanism`).

    Args:
        noise_multiplier: the standard deviation of the noise in units of the clipping bound.
        sampling_rate: the probability with which an example takes part in a step.
        steps: how many steps there are.
        delta: the probability that may remain outside; well below one over the number of examples.
        accountant: "pld" composes privacy loss distributions, which is tight; "rdp" goes by Renyi divergences, which
            is faster and never below.

    Returns:
        Epsilon; infinite without noise.

    Raises:
        ArgumentError: a number is out of range.
        MissingExtraError: dp-accounting is not installed.

    Source:
        Sommer, Meiser, Mohammadi: Privacy Loss Classes, 2019; Mironov, Talwar, Zhang: Renyi Differential Privacy of the
        Sampled Gaussian Mechanism, 2019. The accountants are those of https://github.com/google/differential-privacy.

    Example:
        >>> import purenn as pn
        >>> round(pn.privacy.epsilon(noise_multiplier=1.0, sampling_rate=0.01, steps=1000, delta=1e-5), 2)
        1.83
    """
    _check("epsilon", sampling_rate, steps, delta, accountant)
    if noise_multiplier < 0:
        raise ArgumentError(f"epsilon: noise_multiplier must not be negative, got {noise_multiplier}.")
    if not noise_multiplier:
        return float("inf")
    spent = _new_accountant("epsilon", accountant)()
    spent.compose(_run(_library("epsilon"), noise_multiplier, sampling_rate, steps))
    return float(spent.get_epsilon(delta))


def noise_multiplier(
    *, epsilon: float, sampling_rate: float, steps: int, delta: float, accountant: Accountant = "pld"
) -> float:
    """The smallest noise with which a run has a given (epsilon, delta): the inverse of `epsilon`.

    Args:
        epsilon: what the run may cost.
        sampling_rate: as in `epsilon`.
        steps: as in `epsilon`.
        delta: as in `epsilon`.
        accountant: as in `epsilon`.

    Returns:
        The noise multiplier, to within 0.001 and never too small.

    Raises:
        ArgumentError: a number is out of range.
        MissingExtraError: dp-accounting is not installed.
    """
    name = "noise_multiplier"
    _check(name, sampling_rate, steps, delta, accountant)
    if not epsilon > 0:
        raise ArgumentError(f"{name}: epsilon must be positive, got {epsilon}.")
    library = _library(name)
    found = library.calibrate_dp_mechanism(
        _new_accountant(name, accountant),
        lambda noise: _run(library, noise, sampling_rate, steps),
        epsilon,
        delta,
        library.LowerEndpointAndGuess(0.0, 1.0),
        tol=1e-3,
    )
    return float(found)


def _run(library: Any, noise: float, rate: float, steps: int) -> Any:
    step = library.PoissonSampledDpEvent(rate, library.GaussianDpEvent(noise))
    return library.SelfComposedDpEvent(step, steps)


def _check(name: str, rate: float, steps: int, delta: float, accountant: str) -> None:
    if not 0 < rate <= 1:
        raise ArgumentError(f"{name}: sampling_rate must be above 0 and at most 1, got {rate}.")
    if steps < 1:
        raise ArgumentError(f"{name}: steps must be at least 1, got {steps}.")
    if not 0 < delta < 1:
        raise ArgumentError(f"{name}: delta must be between 0 and 1, got {delta}.")
    if accountant not in ("pld", "rdp"):
        raise ArgumentError(f"{name}: accountant must be 'pld' or 'rdp', got {accountant!r}.")


def _library(name: str) -> Any:
    return imported("dp_accounting", name, "privacy is accounted for by", "dp-accounting", "privacy")


def _new_accountant(name: str, accountant: str) -> Callable[[], Any]:
    _library(name)
    if accountant == "rdp":
        from dp_accounting import rdp

        return rdp.RdpAccountant
    from dp_accounting import pld

    # Coarser than its default, which makes a run of thousands of steps a matter of a second.
    return lambda: pld.PLDAccountant(value_discretization_interval=1e-3)
