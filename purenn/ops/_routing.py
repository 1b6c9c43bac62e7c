"""Dynamic routing, in three ways that give the same: with all votes, with the weights folded in, and by tiles."""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from purenn._modes import is_plain
from purenn.errors import ArgumentError
from purenn.ops._routing_forms import Options, sum_folded, sum_given_votes, sum_of_votes
from purenn.ops._routing_op import sum_by_tiles
from purenn.ops._squash import squash

Memory = Literal["auto", "votes", "folded", "tiled"]


def route_by_agreement(
    W: Float[Tensor, "out_caps in_caps out_dim in_dim"],
    u: Float[Tensor, "*batch in_caps in_dim"],
    *,
    iterations: int = 3,
    stop_gradient: bool = False,
    leaky: bool = False,
    memory: Memory = "auto",
) -> Float[Tensor, "*batch out_caps out_dim"]:
    """Dynamic routing of a batch of examples; `purenn.layers.dynamic_routing` is the same for one, with all checks.

    Args:
        W: one matrix for every pair of capsules.
        u: the input capsules.
        iterations: how often to route. Default: 3.
        stop_gradient: whether the couplings are constants. Default: False.
        leaky: whether a vote may go to no output capsule at all. Default: False.
        memory: "votes" keeps the votes, "folded" never makes them, "tiled" keeps nothing but W, u and the outputs,
            "auto" chooses tiles for a batch of examples with many votes. Default: "auto".

    Raises:
        ArgumentError: an unknown `memory`.
    """
    options = Options(iterations, stop_gradient, leaky)
    if memory == "auto":
        many = W.shape[:3].numel() >= _MANY_VOTES
        memory = "tiled" if many and not (u.dim() == 2 and is_plain(W, u)) else "votes"
    if memory not in _FORMS:
        raise ArgumentError(f"dynamic_routing: memory must be 'auto', 'votes', 'folded' or 'tiled', got {memory!r}.")
    batch = u.shape[:-2]
    sums = _FORMS[memory](W, u if len(batch) < 2 else u.flatten(0, -3), options)
    return squash(sums if len(batch) < 2 else sums.unflatten(0, batch))


def route_votes_by_agreement(
    votes: Float[Tensor, "*batch out_caps in_caps out_dim"],
    *,
    iterations: int = 3,
    stop_gradient: bool = False,
    leaky: bool = False,
) -> Float[Tensor, "*batch out_caps out_dim"]:
    """`route_by_agreement` of votes that are given."""
    batch = votes.shape[:-3]
    flat = votes.flatten(0, -4) if len(batch) > 1 else votes
    poses = squash(sum_given_votes(flat, Options(iterations, stop_gradient, leaky)))
    return poses.unflatten(0, batch) if len(batch) > 1 else poses


# From this number of votes of an example on tiles are faster for a batch, and what they save is worth having.
_MANY_VOTES = 2**11

_FORMS: dict[str, Callable[[Tensor, Tensor, Options], Tensor]] = {
    "votes": sum_of_votes,
    "folded": sum_folded,
    "tiled": sum_by_tiles,
}
