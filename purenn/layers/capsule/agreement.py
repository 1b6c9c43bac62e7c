"""Dynamic routing of votes that are made elsewhere, such as those of a convolution; see `dynamic_routing`."""

from jaxtyping import Float
from torch import Tensor

from purenn.layers.capsule._votes import Routed, Votes, Windows, check_iterations, make_votes
from purenn.layers.capsule.readout import capsule_lengths
from purenn.ops import Memory, route_by_agreement, route_votes_by_agreement
from purenn.tree import Layer, applies, container, static


def agreement_routing(
    votes: Votes,
    activations: Float[Tensor, "*batch in_caps"] | None = None,
    *,
    iterations: int = 3,
    stop_gradient: bool = False,
    leaky: bool = False,
    memory: Memory = "auto",
) -> Routed:
    """Route by agreement, for one example or any batch.

    Args:
        votes: ``[*batch, out_caps, in_caps, out_dim]``, or the pair of a weight and capsules that they are made of,
            which needs less time and memory.
        activations: of the input capsules; they are not used, since a capsule's length is its activation.
        iterations: how often to route. Default: 3.
        stop_gradient: whether the couplings are constants. Default: False.
        leaky: whether a vote may go to no output capsule at all. Default: False.
        memory: see `dynamic_routing`; of no effect on votes that are given. Default: "auto".

    Returns:
        The output capsules and their lengths.

    Raises:
        ArgumentError: fewer than one iteration.
        ShapeError: the shapes do not fit.

    Source:
        Sabour, Frosst, Hinton: Dynamic Routing Between Capsules, 2017, procedure 1.
    """
    check_iterations("agreement_routing", iterations)
    options = {"iterations": iterations, "stop_gradient": stop_gradient, "leaky": leaky}
    if not isinstance(votes, Tensor) and votes[0].shape[1::2] == votes[1].shape[-2:]:
        poses = route_by_agreement(*votes, memory=memory, **options)
    else:
        poses = route_votes_by_agreement(make_votes("agreement_routing", votes, activations), **options)
    return Routed(poses, capsule_lengths(poses))


@container
class AgreementRouting(Layer):
    """The options of `agreement_routing`.

    Attributes:
        iterations: how often to route.
        stop_gradient: whether the couplings are constants.
        leaky: whether a vote may go to no output capsule at all.
        memory: which form serves.
    """

    iterations: int = static(default=3)
    stop_gradient: bool = static(default=False)
    leaky: bool = static(default=False)
    memory: Memory = static(default="auto")

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        return f"iterations={self.iterations}"


@applies(AgreementRouting)
def _agreement_routing(
    p: AgreementRouting, votes: Votes, activations: Tensor | None = None, *, windows: Windows | None = None
) -> Routed:
    return agreement_routing(
        votes,
        activations,
        iterations=p.iterations,
        stop_gradient=p.stop_gradient,
        leaky=p.leaky,
        memory=p.memory,
    )
