"""Muon: matrices move by the orthogonal part of their momentum."""

import math
from typing import Any

import torch
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError
from purenn.optim._adam import adamw
from purenn.optim._hyperparameters import Hyperparameter, Values, require_fraction, require_not_negative
from purenn.optim._parts import Paths, Select, in_parts, selected_paths
from purenn.optim._rule import DECOUPLED, Rule, like, optimizer
from purenn.optim._tensor_list import toward
from purenn.optim._transformation import GradientTransformation
from purenn.tree import container, named_leaves, partition
from purenn.tree._walk import quoted, short


@container
class MuonState:
    """State of the matrices of `muon`.

    Attributes:
        count: number of steps done, an int64 scalar.
        velocity: running mean of the gradient, a tree like the matrices.
    """

    count: Tensor
    velocity: Any


def muon(
    learning_rate: Hyperparameter,
    *,
    weight_decay: Hyperparameter = 0.1,
    momentum: Hyperparameter = 0.95,
    nesterov: bool = True,
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    iterations: int = 5,
    eps: float = 1e-7,
    scaling: str = "original",
    dtype: torch.dtype | None = torch.bfloat16,
    matrices: Select | None = None,
    fallback: GradientTransformation | None = None,
) -> GradientTransformation:
    """Momentum made orthogonal by Newton-Schulz iterations, for matrices; the same numbers as `torch.optim.Muon`.

    Args:
        learning_rate: the step size; as other numbers here a float, a tensor without dimensions (which may be
            differentiated) or a schedule.
        weight_decay: the parameters shrink by this times the learning rate. Default: 0.1.
        momentum: how much of the running mean of the gradient is kept. Default: 0.95.
        nesterov: whether to mix the gradient into the running mean once more. Default: True.
        coefficients: of the odd polynomial of degree five that is iterated. Default: (3.4445, -4.7750, 2.0315).
        iterations: how often. Default: 5.
        eps: the smallest norm that a matrix is divided by. Default: 1e-7.
        scaling: "original": steps of an ``[m, n]`` matrix times ``sqrt(max(1, m / n))``; "match_rms_adamw": times
            ``0.2 sqrt(max(m, n))``, for learning rates and weight decay that suit AdamW. Default: "original".
        dtype: in which the iterations run, None for the parameter's own. Default: torch.bfloat16.
        matrices: which leaves: path patterns or a function of ``select(params)``; embeddings and the last layer are
            better left to the fallback. By default all leaves with two axes.
        fallback: the optimiser of all other leaves. Default: `adamw` with this learning rate and weight decay.

    Raises:
        ArgumentError: a negative number, a momentum outside [0, 1), or an unknown scaling.
        ShapeError: when initialised: `matrices` selects a leaf that is none.

    Source:
        Jordan et al.: Muon, an Optimizer for Hidden Layers in Neural Networks, 2024. Liu et al.: Muon is Scalable for
        LLM Training, 2025 (the second scaling).
    """
    require_fraction("muon", momentum=momentum)
    require_not_negative("muon", learning_rate=learning_rate, weight_decay=weight_decay, eps=eps)
    if scaling not in ("original", "match_rms_adamw"):
        raise ArgumentError(f"muon: scaling must be 'original' or 'match_rms_adamw', got {scaling!r}.")
    if iterations < 1:
        raise ArgumentError(f"muon: iterations must be at least 1, got {iterations}.")

    def direction(g: Tensor, w: Tensor, slots: tuple[Tensor, ...], values: Values) -> tuple[Tensor, tuple[Tensor, ...]]:
        velocity = toward(slots[0], g, 1 - values["momentum"])
        mixed = toward(g, velocity, values["momentum"]) if nesterov else velocity
        step = orthogonalized(mixed.to(dtype or mixed.dtype), coefficients, iterations, eps)
        m, n = w.shape
        scale = math.sqrt(max(1, m / max(1, n))) if scaling == "original" else 0.2 * math.sqrt(max(m, n))
        return step.to(g.dtype) * scale, (velocity,)

    def assign(params: Any) -> tuple[Paths, Paths]:
        leaves = dict(named_leaves(partition(params)[0]))
        if matrices is None:
            hit = [path for path, leaf in leaves.items() if leaf.dim() == 2 and not leaf.is_complex()]
        else:
            hit = selected_paths("muon", params, matrices)
            for path in hit:
                if leaves[path].dim() != 2 or leaves[path].is_complex():
                    raise ShapeError(
                        f"muon: {quoted(path)} is {short(leaves[path])} and no real matrix: leave it out of `matrices`."
                    )
        return tuple(hit), tuple([path for path in leaves if path not in set(hit)])

    of_matrices = optimizer(
        Rule(
            name="muon",
            state=MuonState,
            slots=("velocity",),
            begin=lambda w, _: (like(w),),
            direction=direction,
            hyperparameters={"rate": learning_rate, "momentum": momentum, "weight_decay": weight_decay},
            elementwise=False,
            decay=DECOUPLED,
        )
    )
    others = adamw(learning_rate, weight_decay=weight_decay) if fallback is None else fallback
    return in_parts("muon", [of_matrices, others], assign)


def orthogonalized(x: Tensor, coefficients: tuple[float, float, float], iterations: int, eps: float) -> Tensor:
    """A matrix with the singular vectors of `x` and singular values near 1.

    Each iteration applies ``a s + b s^3 + c s^5`` to the singular values, by matrix products alone.
    """
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
