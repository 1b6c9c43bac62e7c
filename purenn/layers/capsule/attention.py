"""Routing by self-attention: a vote counts as much as it agrees with all votes for the same output capsule."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from purenn.layers.capsule._votes import Routed, Votes, Windows, make_votes, require_shape, weighted_sum
from purenn.layers.capsule.readout import capsule_lengths
from purenn.ops import squash_exponential
from purenn.tree import Layer, applies, container


def attention_routing(
    votes: Votes,
    activations: Float[Tensor, "*batch in_caps"] | None = None,
    bias: Float[Tensor, "out_caps in_caps"] | None = None,
) -> Routed:
    """Weigh the votes by their products with each other, for one example or any batch. There is no iteration.

    The couplings are a softmax over the output capsules of ``sum_j <votes_i, votes_j> / sqrt(out_dim)``, plus a bias;
    since that is the product with the sum of all votes, no matrix of all pairs is made.

    Args:
        votes: ``[*batch, out_caps, in_caps, out_dim]``, or the pair of a weight and capsules that they are made of.
        activations: of the input capsules; they are not used, since a capsule's length is its activation.
        bias: added to the couplings, None for none.

    Returns:
        The output capsules, squashed by `squash_exponential`, and their lengths.

    Raises:
        ShapeError: the shapes do not fit.

    Source:
        Mazzia, Salvetti, Chiaberge: Efficient-CapsNet, 2021, section 3.3.
    """
    made = make_votes("attention_routing", votes, activations)
    require_shape("attention_routing", "a bias", bias, made.shape[-3:-1])
    logits = (made @ made.sum(-2).unsqueeze(-1)).squeeze(-1) / math.sqrt(made.shape[-1])
    couplings = logits.softmax(-2)
    poses = squash_exponential(weighted_sum(couplings if bias is None else couplings + bias, made))
    return Routed(poses, capsule_lengths(poses))


@container
class AttentionRouting(Layer):
    """The prior of `attention_routing`.

    Attributes:
        bias: added to the couplings, ``[out_caps, in_caps]``.
    """

    bias: Float[Tensor, "out_caps in_caps"]

    @classmethod
    def init(
        cls,
        in_caps: int,
        out_caps: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "AttentionRouting":
        """A bias of zero.

        Args:
            in_caps: number of input capsules.
            out_caps: number of output capsules.
            dtype: of the bias. Default: torch's default dtype.
            device: of the bias. Default: the CPU.
        """
        return cls(torch.zeros(out_caps, in_caps, dtype=dtype, device=device))


@applies(AttentionRouting)
def _attention_routing(
    p: AttentionRouting, votes: Votes, activations: Tensor | None = None, *, windows: Windows | None = None
) -> Routed:
    return attention_routing(votes, activations, p.bias)
