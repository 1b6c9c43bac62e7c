"""Optimisers: pure functions of gradients, state and parameters."""

from purenn.optim._accumulate import AccumulateState, accumulate
from purenn.optim._adafactor import AdafactorState, adafactor
from purenn.optim._adam import AdamState, adam, adamw
from purenn.optim._adam_relatives import AdamaxState, NadamState, adamax, nadam, radam
from purenn.optim._adaptive import AdadeltaState, AdagradState, RmspropState, adadelta, adagrad, rmsprop
from purenn.optim._averages import EmaState, LookaheadState, ema, lookahead
from purenn.optim._chain import ChainState, chain
from purenn.optim._curvature import gauss_newton_bartlett, hutchinson_diagonal
from purenn.optim._ensemble import fit_ensemble
from purenn.optim._inject import InjectState, inject_hyperparams
from purenn.optim._lamb import lamb
from purenn.optim._muon import MuonState, muon
from purenn.optim._parts import PartsState, identity, masked, multi_transform, set_to_zero
from purenn.optim._sam import SharpnessAware, sam
from purenn.optim._schedules import (
    constant_schedule,
    cosine_schedule,
    exponential_schedule,
    join_schedules,
    linear_schedule,
    one_cycle_schedule,
    piecewise_schedule,
    polynomial_schedule,
)
from purenn.optim._sgd import AsgdState, SgdState, asgd, sgd
from purenn.optim._signs import LionState, RpropState, lion, rprop
from purenn.optim._simple import (
    CountState,
    adaptive_grad_clip,
    add_decayed_weights,
    clip_by_global_norm,
    clip_by_value,
    global_norm,
    scale,
    scale_by_schedule,
)
from purenn.optim._sophia import SophiaState, observe_curvature, sophia
from purenn.optim._transformation import EmptyState, GradientTransformation, apply_updates

__all__ = [
    "AccumulateState",
    "AdadeltaState",
    "AdafactorState",
    "AdagradState",
    "AdamState",
    "AdamaxState",
    "AsgdState",
    "ChainState",
    "CountState",
    "EmaState",
    "EmptyState",
    "GradientTransformation",
    "InjectState",
    "LionState",
    "LookaheadState",
    "MuonState",
    "NadamState",
    "PartsState",
    "RmspropState",
    "RpropState",
    "SgdState",
    "SharpnessAware",
    "SophiaState",
    "accumulate",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "apply_updates",
    "asgd",
    "chain",
    "clip_by_global_norm",
    "clip_by_value",
    "constant_schedule",
    "cosine_schedule",
    "ema",
    "exponential_schedule",
    "fit_ensemble",
    "gauss_newton_bartlett",
    "global_norm",
    "hutchinson_diagonal",
    "identity",
    "inject_hyperparams",
    "join_schedules",
    "lamb",
    "linear_schedule",
    "lion",
    "lookahead",
    "masked",
    "multi_transform",
    "muon",
    "nadam",
    "observe_curvature",
    "one_cycle_schedule",
    "piecewise_schedule",
    "polynomial_schedule",
    "radam",
    "rmsprop",
    "rprop",
    "sam",
    "scale",
    "scale_by_schedule",
    "set_to_zero",
    "sgd",
    "sophia",
]
