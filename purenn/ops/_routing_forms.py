"""Dynamic routing in plain operations, of one example or a batch: what every other way must equal.

The logits are linear in the outputs, ``b = <votes, V>`` with V the sum of all outputs so far, so V is the only state.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from purenn.ops._einsum2 import einsum2
from purenn.ops._squash import squash


class Options(NamedTuple):
    """How to route: see `route_by_agreement`."""

    iterations: int
    stop_gradient: bool
    leaky: bool


def sum_of_votes(W: Tensor, u: Tensor, options: Options) -> Tensor:
    """The last weighted sum, ``[*n, o, d]``, from all votes, made once: W is ``[o, i, d, k]``, u ``[*n, i, k]``."""
    n = "n" * (u.dim() - 2)
    return sum_given_votes(einsum2(f"oidk,{n}ik->{n}oid", W, u), options)


def sum_given_votes(votes: Tensor, options: Options) -> Tensor:
    """The last weighted sum from votes ``[*n, o, i, d]``."""
    n = "n" * (votes.dim() - 3)
    return _last_sum(
        votes.sum(-2) / (votes.shape[-3] + options.leaky),
        lambda state: einsum2(f"{n}oid,{n}od->{n}oi", votes, state),
        lambda couplings: einsum2(f"{n}oi,{n}oid->{n}od", couplings, votes),
        options,
    )


def sum_folded(W: Tensor, u: Tensor, options: Options) -> Tensor:
    """The same without votes: W is folded into the state, and multiplied with the weighted inputs."""
    n = "n" * (u.dim() - 2)
    return _last_sum(
        einsum2(f"oidk,{n}ik->{n}od", W, u) / (len(W) + options.leaky),
        lambda state: einsum2(f"{n}oik,{n}ik->{n}oi", einsum2(f"oidk,{n}od->{n}oik", W, state), u),
        lambda couplings: einsum2(f"{n}oik,oidk->{n}od", einsum2(f"{n}oi,{n}ik->{n}oik", couplings, u), W),
        options,
    )


def _last_sum(
    first: Tensor, agreement: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor], options: Options
) -> Tensor:
    # With all logits zero every output capsule gets an equal share: no softmax in the first iteration.
    total, state = first, None
    for _ in range(1, options.iterations):
        pose = squash(total)
        state = pose if state is None else state + pose
        couplings = _share(agreement(state), options.leaky)
        total = gather(couplings.detach() if options.stop_gradient else couplings)
    return total


def _share(logits: Float[Tensor, "*batch out_caps in_caps"], leaky: bool) -> Tensor:
    """The couplings: a softmax over the **output** capsules, and over a logit of zero if `leaky`."""
    if not leaky:
        return logits.softmax(-2)
    return torch.cat([torch.zeros_like(logits[..., :1, :]), logits], -2).softmax(-2)[..., 1:, :]
