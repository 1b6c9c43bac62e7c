"""Routing by expectation maximisation: output capsules are Gaussians, fitted to the votes that they explain."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from purenn.layers.capsule._votes import (
    Routed,
    Votes,
    Windows,
    check_iterations,
    in_single,
    make_votes,
    require_activations,
    require_shape,
    share_among_parents,
    weighted_sum,
)
from purenn.tree import Layer, applies, container, static

_LOG_2_PI = math.log(2 * math.pi)


def em_routing(
    votes: Votes,
    activations: Float[Tensor, "*batch in_caps"] | None,
    beta_use: Float[Tensor, " out_caps"],
    beta_activation: Float[Tensor, " out_caps"],
    *,
    iterations: int = 3,
    inverse_temperature: float = 0.01,
    eps: float = 1e-6,
    windows: Windows | None = None,
) -> Routed:
    """Fit the output capsules to the votes by expectation maximisation, for one example or any batch.

    An output capsule is active where the cost of describing its votes by its Gaussian is below what it costs to do
    without it: ``sigmoid(lambda (beta_activation - sum_h (beta_use + log sigma_h) sum_i R_i))``. The inverse
    temperature lambda grows with the iterations, ``inverse_temperature (1 - 0.95^t)``.

    Args:
        votes: ``[*batch, out_caps, in_caps, out_dim]``, or the pair of a weight and capsules that they are made of.
        activations: how surely each input capsule is present.
        beta_use: the cost of a vote, but for its entropy.
        beta_activation: the cost of not activating an output capsule.
        iterations: how often to fit. Default: 3.
        inverse_temperature: what lambda tends to. Default: 0.01.
        eps: added to the variances, and to the mass of votes that they are divided by. Default: 1e-6.
        windows: for output capsules at several positions, the last batch axis, that see the same input capsules: a vote
            is then shared among the output capsules of all positions that see it.

    Returns:
        The means and the activations, in the dtype of the votes. Half precision is computed in float32.

    Raises:
        ArgumentError: fewer than one iteration, or no activations.
        ShapeError: the shapes do not fit.

    Source:
        Hinton, Sabour, Frosst: Matrix capsules with EM routing, 2018, procedure 1; the temperatures are those that its
        authors gave in the review.
    """
    check_iterations("em_routing", iterations)
    given = make_votes("em_routing", votes, activations)
    made, present = in_single(given), in_single(require_activations("em_routing", activations))
    for what, costs in (("beta_use", beta_use), ("beta_activation", beta_activation)):
        require_shape("em_routing", what, costs, (made.shape[-3],))
    couplings = share_among_parents(torch.zeros_like(made[..., 0]), windows)
    mean, active = made, present
    for iteration in range(1, iterations + 1):
        weights = couplings * present.unsqueeze(-2)
        mass = weights.sum(-1)
        divisor = (mass + eps).unsqueeze(-1)
        mean = weighted_sum(weights, made) / divisor
        deviations = (made - mean.unsqueeze(-2)).square()
        variance = weighted_sum(weights, deviations) / divisor + eps
        cost = ((beta_use.unsqueeze(-1) + 0.5 * variance.log()) * mass.unsqueeze(-1)).sum(-1)
        active = inverse_temperature * (1 - 0.95**iteration) * (beta_activation - cost)
        if iteration < iterations:
            densities = -0.5 * (deviations / variance.unsqueeze(-2) + (variance.log() + _LOG_2_PI).unsqueeze(-2)).sum(
                -1
            )
            couplings = share_among_parents(logsigmoid(active).unsqueeze(-1) + densities, windows)
    return Routed(mean.to(given.dtype), active.sigmoid().to(given.dtype))


@container
class EMRouting(Layer):
    """The costs and options of `em_routing`.

    Attributes:
        beta_use: the cost of a vote, ``[out_caps]``.
        beta_activation: the cost of not activating an output capsule, ``[out_caps]``.
        iterations: how often to fit.
        inverse_temperature: what lambda tends to.
    """

    beta_use: Float[Tensor, " out_caps"]
    beta_activation: Float[Tensor, " out_caps"]
    iterations: int = static(default=3)
    inverse_temperature: float = static(default=0.01)

    @classmethod
    def init(
        cls,
        out_caps: int,
        *,
        iterations: int = 3,
        inverse_temperature: float = 0.01,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "EMRouting":
        """Costs of zero.

        Args:
            out_caps: number of output capsules, or of their types if they are at several positions.
            iterations: how often to fit. Default: 3.
            inverse_temperature: what lambda tends to. Default: 0.01.
            dtype: of the costs. Default: torch's default dtype.
            device: of the costs. Default: the CPU.

        Raises:
            ArgumentError: fewer than one iteration.
        """
        check_iterations("EMRouting", iterations)
        costs = torch.zeros(2, out_caps, dtype=dtype, device=device)
        return cls(costs[0].clone(), costs[1].clone(), iterations, inverse_temperature)

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        return f"iterations={self.iterations}, inverse_temperature={self.inverse_temperature}"


@applies(EMRouting)
def _em_routing(
    p: EMRouting, votes: Votes, activations: Tensor | None = None, *, windows: Windows | None = None
) -> Routed:
    return em_routing(
        votes,
        activations,
        p.beta_use,
        p.beta_activation,
        iterations=p.iterations,
        inverse_temperature=p.inverse_temperature,
        windows=windows,
    )
