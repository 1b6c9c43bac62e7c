"""Self-routing: every input capsule decides from its own pose where its vote goes. There is no iteration."""

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import initializers
from purenn.errors import ArgumentError, ShapeError
from purenn.layers.capsule._votes import (
    Routed,
    Votes,
    Windows,
    make_votes,
    require_activations,
    require_shape,
    weighted_sum,
)
from purenn.ops import einsum2
from purenn.tree import Layer, applies, container


def self_routing(
    votes: Votes,
    activations: Float[Tensor, "*batch in_caps"] | None,
    logits: Float[Tensor, "*batch out_caps in_caps"],
    *,
    eps: float = 1e-8,
) -> Routed:
    """Share every vote by a softmax of its own logits, for one example or any batch.

    ``a_j = sum_i c_ij a_i / sum_i a_i`` and ``u_j = sum_i c_ij a_i votes_ij / sum_i c_ij a_i``.

    Args:
        votes: ``[*batch, out_caps, in_caps, out_dim]``, or the pair of a weight and capsules that they are made of.
        activations: how surely each input capsule is present.
        logits: where each input capsule sends its vote, before the softmax over the output capsules.
        eps: added to both divisors. Default: 1e-8.

    Raises:
        ArgumentError: no activations.
        ShapeError: the shapes do not fit.

    Source:
        Hahn, Pyeon, Kim: Self-Routing Capsule Networks, 2019, equations 5 to 7.
    """
    made = make_votes("self_routing", votes, activations)
    present = require_activations("self_routing", activations)
    require_shape("self_routing", "logits", logits, made.shape[-3:-1])
    weights = logits.softmax(-2) * present.unsqueeze(-2)
    mass = weights.sum(-1)
    poses = weighted_sum(weights, made) / (mass + eps).unsqueeze(-1)
    return Routed(poses, mass / (present.sum(-1, keepdim=True) + eps))


@container
class SelfRouting(Layer):
    """The small network of every input capsule that decides where its vote goes; see `self_routing`.

    Normalise the poses before, by batch normalisation as in the paper or by `purenn.ops.layer_norm`: logits of squashed
    poses, which are shorter than 1, grow too slowly. And let every input capsule see enough, since each decides alone.

    Attributes:
        weight: ``[out_caps, in_caps, in_dim]``.
        bias: ``[out_caps, in_caps]``.
    """

    weight: Float[Tensor, "out_caps in_caps in_dim"]
    bias: Float[Tensor, "out_caps in_caps"]

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_caps: int,
        out_caps: int,
        *,
        in_dim: int = 16,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "SelfRouting":
        """Draw the weights as a linear layer's; the bias is zero.

        Args:
            key: random key.
            in_caps: number of input capsules, in one window if they are seen from several positions.
            out_caps: number of output capsules.
            in_dim: components of an input capsule. Default: 16.
            dtype: of the parameters. Default: torch's default dtype.
            device: of the parameters. Default: the key's.
        """
        weight = initializers.fan_in_uniform(
            key, (out_caps, in_caps, in_dim), fan_in=in_dim, dtype=dtype, device=device
        )
        return cls(weight, torch.zeros_like(weight[..., 0]))


@applies(SelfRouting)
def _self_routing(
    p: SelfRouting, votes: Votes, activations: Tensor | None = None, *, windows: Windows | None = None
) -> Routed:
    if isinstance(votes, Tensor):
        raise ArgumentError("SelfRouting: expected the pair of a weight and input capsules, got votes.")
    u = votes[1]
    if u.dim() < 2 or u.shape[-2:] != p.weight.shape[1:]:
        raise ShapeError(
            f"SelfRouting: it was made for capsules of shape [*batch, {p.weight.shape[1]}, {p.weight.shape[2]}], got "
            f"{tuple(u.shape)}."
        )
    if u.dim() <= 3:
        n = "n" * (u.dim() - 2)
        logits = einsum2(f"oik,{n}ik->{n}oi", p.weight, u)
    else:
        logits = einsum2("oik,nik->noi", p.weight, u.flatten(0, -3)).unflatten(0, u.shape[:-2])
    return self_routing(votes, activations, logits + p.bias)
