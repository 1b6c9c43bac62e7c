"""Several losses as one: with given weights, or with weights that are learned."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError
from purenn.tree import Layer, applies, container

Losses = Sequence[Float[Tensor, ""]] | Float[Tensor, " tasks"]


def multi_task_loss(losses: Losses, weights: Sequence[float] | Float[Tensor, " tasks"]) -> Float[Tensor, ""]:
    """``sum(weights * losses)``.

    Args:
        losses: the loss of each task: single numbers in a list or tuple, or a tensor ``[tasks]``.
        weights: as many factors.

    Raises:
        ShapeError: there are more or fewer weights than losses, or a loss is not a single number.
        ArgumentError: there are no losses.
    """
    stacked = _stacked("multi_task_loss", losses)
    if len(weights) != len(stacked):
        raise ShapeError(
            f"multi_task_loss: expected one weight for each loss, got {len(stacked)} losses and {len(weights)} weights."
        )
    factors = weights if isinstance(weights, Tensor) else stacked.new_tensor(weights)
    return (factors * stacked).sum()


@container
class UncertaintyWeights(Layer):
    """Weights of several losses that are learned with the model: see `uncertainty_weighted_loss`.

    Attributes:
        log_variances: logarithm of the noise variance of each task, ``[tasks]``.
    """

    log_variances: Float[Tensor, " tasks"]

    @classmethod
    def init(
        cls, tasks: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> "UncertaintyWeights":
        """Variances of 1, which weigh all tasks by a half; nothing is drawn.

        Args:
            tasks: how many losses there are.
            dtype: torch's default dtype if None.
            device: torch's default device if None.
        """
        return cls(torch.zeros(tasks, dtype=dtype or torch.get_default_dtype(), device=device))

    def extra_repr(self) -> str:
        """The number of tasks."""
        return f"tasks={self.log_variances.shape[-1]}"


@applies(UncertaintyWeights)
def uncertainty_weighted_loss(p: UncertaintyWeights, losses: Losses) -> Float[Tensor, ""]:
    """``sum(exp(-s) losses + s) / 2`` with ``s = p.log_variances``: the noisier a task, the less it weighs.

    It is the likelihood of several normal distributions. For a cross entropy the paper has twice the weight, which only
    shifts that task's s by ``log(2)`` and the loss by a constant.

    Args:
        p: the learned weights.
        losses: the loss of each task: single numbers in a list or tuple, or a tensor ``[tasks]``.

    Raises:
        ShapeError: there are more or fewer losses than weights, or a loss is not a single number.
        ArgumentError: there are no losses.

    Source:
        Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty to Weigh Losses, 2018, equation 7.
    """
    stacked = _stacked("uncertainty_weighted_loss", losses)
    if len(p.log_variances) != len(stacked):
        raise ShapeError(
            f"uncertainty_weighted_loss: expected one loss for each of the {len(p.log_variances)} tasks, got "
            f"{len(stacked)}."
        )
    return ((-p.log_variances).exp() * stacked + p.log_variances).sum() / 2


def _stacked(loss: str, losses: Losses) -> Tensor:
    if len(losses) == 0:
        raise ArgumentError(f"{loss}: expected at least one loss, got none.")
    if isinstance(losses, Tensor):
        return losses
    for number, each in enumerate(losses):
        if each.ndim > 0:
            raise ShapeError(
                f"{loss}: losses[{number}] must be a single number, got shape {list(each.shape)}. Reduce it first, for "
                f"example with .mean()."
            )
    return torch.stack(list(losses))
