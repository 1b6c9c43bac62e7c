"""Routing by inverted dot-product attention: the output capsules compete for the attention of every input capsule."""

import torch
from jaxtyping import Float
from torch import Tensor

from purenn.layers.capsule._votes import (
    Routed,
    Votes,
    Windows,
    check_iterations,
    make_votes,
    require_shape,
    weighted_sum,
)
from purenn.layers.capsule.readout import capsule_lengths
from purenn.layers.linear import Linear, linear
from purenn.layers.norm import LayerNorm
from purenn.ops import layer_norm
from purenn.tree import Layer, applies, container, static


def inverted_attention_routing(
    votes: Votes,
    activations: Float[Tensor, "*batch in_caps"] | None = None,
    weight: Float[Tensor, " out_dim"] | None = None,
    bias: Float[Tensor, " out_dim"] | None = None,
    *,
    poses: Float[Tensor, "*batch out_caps out_dim"] | None = None,
    iterations: int = 2,
    eps: float = 1e-5,
) -> Routed:
    """Update the output capsules by the votes that attend to them, for one example or any batch.

    An input capsule divides its attention among the output capsules by a softmax over **them** of ``<votes, poses>``;
    the new poses are the normalised (`layer_norm`) sums of the votes.

    Args:
        votes: ``[*batch, out_caps, in_caps, out_dim]``, or the pair of a weight and capsules that they are made of.
        activations: of the input capsules; they are not used.
        weight: the scale of the normalisation, None for none.
        bias: the shift of the normalisation, None for none.
        poses: the output capsules so far, for networks whose layers are updated all at once. Default: None, equal
            attention in the first iteration.
        iterations: how often to route. Default: 2.
        eps: of the normalisation. Default: 1e-5.

    Returns:
        The output capsules and their lengths.

    Raises:
        ArgumentError: fewer than one iteration.
        ShapeError: the shapes do not fit.

    Source:
        Tsai, Srivastava, Goh, Salakhutdinov: Capsules with Inverted Dot-Product Attention Routing, 2020, algorithm 1.
    """
    check_iterations("inverted_attention_routing", iterations)
    made = make_votes("inverted_attention_routing", votes, activations)
    out_caps, _, out_dim = made.shape[-3:]
    for what, given, shape in (
        ("a weight", weight, (out_dim,)),
        ("a bias", bias, (out_dim,)),
        ("poses", poses, (out_caps, out_dim)),
    ):
        require_shape("inverted_attention_routing", what, given, shape)
    for _ in range(iterations):
        if poses is None:
            gathered = made.sum(-2) / made.shape[-3]
        else:
            gathered = weighted_sum((made @ poses.unsqueeze(-1)).squeeze(-1).softmax(-2), made)
        poses = layer_norm(gathered, gathered.shape[-1:], weight, bias, eps=eps)
    assert poses is not None
    return Routed(poses, capsule_lengths(poses))


@container
class InvertedAttentionRouting(Layer):
    """The normalisation of `inverted_attention_routing`, and a linear classifier that all output capsules share.

    Attributes:
        norm: of the poses.
        classifier: makes the activation of an output capsule, a logit, from its pose; None for lengths instead.
        iterations: how often to route.
    """

    norm: LayerNorm
    classifier: Linear | None
    iterations: int = static(default=2)

    @classmethod
    def init(
        cls,
        key: Tensor,
        out_dim: int,
        *,
        iterations: int = 2,
        classifier: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "InvertedAttentionRouting":
        """Draw the classifier.

        Args:
            key: random key.
            out_dim: components of an output capsule.
            iterations: how often to route. Default: 2.
            classifier: whether there is a classifier. Default: True. Normalised poses are all about as long, so the
                activations of the last layer should be logits.
            dtype: of the parameters. Default: torch's default dtype.
            device: of the parameters. Default: the key's.

        Raises:
            ArgumentError: fewer than one iteration.
        """
        check_iterations("InvertedAttentionRouting", iterations)
        device = key.device if device is None else device
        made = Linear.init(key, out_dim, 1, dtype=dtype, device=device) if classifier else None
        return cls(LayerNorm.init(out_dim, dtype=dtype, device=device), made, iterations)

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        return f"iterations={self.iterations}"


@applies(InvertedAttentionRouting)
def _inverted_attention_routing(
    p: InvertedAttentionRouting, votes: Votes, activations: Tensor | None = None, *, windows: Windows | None = None
) -> Routed:
    poses, lengths = inverted_attention_routing(
        votes, activations, p.norm.weight, p.norm.bias, iterations=p.iterations, eps=p.norm.eps
    )
    return Routed(poses, lengths if p.classifier is None else linear(p.classifier, poses).squeeze(-1))
