"""Differentially private training: sampling, noise, and what a run costs."""

from purenn.privacy._accounting import epsilon, noise_multiplier
from purenn.privacy._mechanism import GaussianMechanismState, gaussian_mechanism
from purenn.privacy._sampling import PaddedSample, poisson_sample

__all__ = [
    "GaussianMechanismState",
    "PaddedSample",
    "epsilon",
    "gaussian_mechanism",
    "noise_multiplier",
    "poisson_sample",
]
