"""Dynamic routing, in three ways that give the same: with all votes, with the weights folded in, and by tiles."""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from purenn._modes import is_autocast, is_plain
from purenn.errors import ArgumentError, ShapeError
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
    """Dynamic routing of a batch of examples; `purenn.layers.dynamic_routing` is the same for one.

    Args:
        W: one matrix for every pair of capsules.
        u: the input capsules.
        iterations: how often to route. Default: 3.
        stop_gradient: whether the couplings are constants. Default: False.
        leaky: whether a vote may go to no output capsule at all. Default: False.
        memory: "votes" keeps the votes, "folded" never makes them, "tiled" keeps nothing but W, u and the outputs,
            "auto" chooses tiles for a batch of examples with many votes, on every device: how many was measured on a
            CPU. Default: "auto".

    Raises:
        ArgumentError: an unknown `memory`, fewer than one iteration, or dtypes that differ, but for autocast.
        ShapeError: the shapes do not fit.
    """
    _require_fitting(W, u)
    options = _options(iterations, stop_gradient, leaky)
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
    """`route_by_agreement` of votes that are given.

    Raises:
        ArgumentError: fewer than one iteration.
    """
    batch = votes.shape[:-3]
    flat = votes.flatten(0, -4) if len(batch) > 1 else votes
    poses = squash(sum_given_votes(flat, _options(iterations, stop_gradient, leaky)))
    return poses.unflatten(0, batch) if len(batch) > 1 else poses


def _options(iterations: int, stop_gradient: bool, leaky: bool) -> Options:
    if not isinstance(iterations, int):
        raise ArgumentError(f"dynamic_routing: iterations must be a whole number, got {iterations!r}.")
    if iterations < 1:
        raise ArgumentError(f"dynamic_routing: iterations must be at least 1, got {iterations}.")
    return Options(iterations, stop_gradient, leaky)


def _require_fitting(W: Tensor, u: Tensor) -> None:
    # Tiles would run over the input capsules that both have.
    if W.dim() != 4 or u.dim() < 2 or (W.shape[1], W.shape[3]) != u.shape[-2:]:
        raise ShapeError(
            f"dynamic_routing: expected W [out_caps, in_caps, out_dim, in_dim] and u [*batch, in_caps, in_dim], got W "
            f"{tuple(W.shape)} and u {tuple(u.shape)}."
        )
    if W.dtype != u.dtype and not is_autocast(u):
        raise ArgumentError(
            f"dynamic_routing: W is {W.dtype} and u is {u.dtype}; cast one of them, as with u.to(W.dtype)."
        )


# From this number of votes of an example on tiles are faster for a batch, and what they save is worth having.
_MANY_VOTES = 2**11

_FORMS: dict[str, Callable[[Tensor, Tensor, Options], Tensor]] = {
    "votes": sum_of_votes,
    "folded": sum_folded,
    "tiled": sum_by_tiles,
}
