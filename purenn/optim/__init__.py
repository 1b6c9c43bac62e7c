"""Optimisers: pure functions of gradients, state and parameters."""

from purenn.optim._adam import AdamState, adam
from purenn.optim._ensemble import fit_ensemble
from purenn.optim._sgd import SgdState, sgd
from purenn.optim._transformation import GradientTransformation, apply_updates

__all__ = ["AdamState", "GradientTransformation", "SgdState", "adam", "apply_updates", "fit_ensemble", "sgd"]
