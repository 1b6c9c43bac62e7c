"""Adafactor: the running square of a matrix kept as the product of a column and a row."""

from typing import Any

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.optim._hyperparameters import Hyperparameter, Values, require_not_negative, where
from purenn.optim._lamb import norm
from purenn.optim._rule import DECOUPLED, Rule, optimizer
from purenn.optim._tensor_list import toward
from purenn.optim._transformation import GradientTransformation
from purenn.tree import container


@container
class AdafactorState:
    """State of `adafactor`.

    Attributes:
        count: number of steps done, an int64 scalar.
        rows: running mean square of each row, ``[..., rows, 1]``, of leaves with at least two axes; empty for others.
        columns: the same of each column, ``[..., 1, columns]``.
        square: running square of leaves with at most one axis; empty for others.
    """

    count: Tensor
    rows: Any
    columns: Any
    square: Any


def adafactor(
    learning_rate: Hyperparameter,
    *,
    beta2_decay: Hyperparameter = -0.8,
    eps: tuple[Hyperparameter | None, Hyperparameter] = (None, 1e-3),
    clipping: Hyperparameter = 1.0,
    weight_decay: Hyperparameter = 0.0,
    maximize: bool = False,
) -> GradientTransformation:
    """Adaptive steps with little memory; the same numbers as `torch.optim.Adafactor`.

    Steps are in proportion to the root mean square of the parameter, but for small ones.

    Args:
        learning_rate: the largest relative step size; step ``t`` takes at most ``1 / sqrt(t)``.
        beta2_decay: step ``t`` enters the running squares with the weight ``t ** beta2_decay``. Default: -0.8.
        eps: the smallest root of a square (None for the dtype's precision) and the smallest root mean square of a
            parameter. Default: (None, 0.001).
        clipping: torch's ``d``: the largest root mean square of a step, before scaling. Default: 1.
        weight_decay: the parameters shrink by this times the learning rate. Default: 0.
        maximize: whether to go uphill. Default: False.

    Raises:
        ArgumentError: a negative number, a positive `beta2_decay`; when initialised, a complex leaf.

    Source:
        Shazeer, Stern: Adafactor, Adaptive Learning Rates with Sublinear Memory Cost, 2018, algorithms 4 and 5.
    """
    smallest, least = eps
    require_not_negative(
        "adafactor", learning_rate=learning_rate, eps=least, clipping=clipping, weight_decay=weight_decay
    )
    if smallest is not None:
        require_not_negative("adafactor", eps=smallest)
    if isinstance(beta2_decay, (int, float)) and beta2_decay > 0:
        raise ArgumentError(f"adafactor: beta2_decay must not be positive, got {beta2_decay}.")
    given: dict[str, Hyperparameter] = {
        "rate": learning_rate,
        "beta2_decay": beta2_decay,
        "least": least,
        "clipping": clipping,
        "weight_decay": weight_decay,
    }
    if smallest is not None:
        given["smallest"] = smallest

    def begin(w: Tensor, values: Values) -> tuple[Tensor, ...]:
        if w.dim() < 2:
            return w.new_zeros(0), w.new_zeros(0), torch.zeros_like(w)
        return w.new_zeros(*w.shape[:-1], 1), w.new_zeros(*w.shape[:-2], 1, w.shape[-1]), w.new_zeros(0)

    def scalars(step: Any, values: Values) -> Values:
        bound = 1 / step**0.5
        rate = values["rate"]
        return {"rate": where(rate < bound, rate, bound), "share": step ** values["beta2_decay"]}

    def direction(g: Tensor, w: Tensor, slots: tuple[Tensor, ...], values: Values) -> tuple[Tensor, tuple[Tensor, ...]]:
        floor = values.get("smallest", torch.finfo(w.dtype).eps)
        rows, columns, square = slots
        if w.dim() < 2:
            spread = square = toward(square, g * g, values["share"])
        else:
            rows = toward(rows, (g * g).mean(-1, keepdim=True), values["share"])
            columns = toward(columns, (g * g).mean(-2, keepdim=True), values["share"])
            spread = at_least(rows @ columns / at_least(rows.mean(-2, keepdim=True), floor), 0.0)
        step = at_least(spread, floor * floor).rsqrt() * g
        step = step / at_least(_mean_root(step) / values["clipping"], 1.0)
        return step * at_least(_mean_root(w), values["least"]), (rows, columns, square)

    return optimizer(
        Rule(
            name="adafactor",
            state=AdafactorState,
            slots=("rows", "columns", "square"),
            begin=begin,
            direction=direction,
            hyperparameters=given,
            scalars=scalars,
            elementwise=False,
            takes_complex=False,
            decay=DECOUPLED,
            maximize=maximize,
        )
    )


def at_least(x: Tensor, bound: float | Tensor) -> Tensor:
    """`x`, but not below a bound."""
    return torch.where(x < bound, bound, x)


def _mean_root(x: Tensor) -> Tensor:
    return norm(x) / x.numel() ** 0.5
