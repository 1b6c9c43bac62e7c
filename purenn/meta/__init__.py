"""Learning to learn: inner loops and what is differentiated through or around them."""

from purenn.meta._choice import Choice, choose
from purenn.meta._evolution import (
    PersistentEvolution,
    PersistentState,
    evolution_gradient,
    persistent_evolution,
)
from purenn.meta._implicit import implicit
from purenn.meta._implicit_maml import implicit_inner_loop, implicit_maml
from purenn.meta._inner_loop import inner_loop
from purenn.meta._learned_lstm import LSTMOptimizer, LSTMOptimizerState, lstm_optimizer
from purenn.meta._learned_mlp import MLPOptimizer, MLPOptimizerState, mlp_optimizer
from purenn.meta._maml import MetaSGD, cavia, maml, meta_sgd, reptile
from purenn.meta._task_gradient import grad, value_and_grad

__all__ = [
    "Choice",
    "LSTMOptimizer",
    "LSTMOptimizerState",
    "MLPOptimizer",
    "MLPOptimizerState",
    "MetaSGD",
    "PersistentEvolution",
    "PersistentState",
    "cavia",
    "choose",
    "evolution_gradient",
    "grad",
    "implicit",
    "implicit_inner_loop",
    "implicit_maml",
    "inner_loop",
    "lstm_optimizer",
    "maml",
    "meta_sgd",
    "mlp_optimizer",
    "persistent_evolution",
    "reptile",
    "value_and_grad",
]
