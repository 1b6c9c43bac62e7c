"""What all routings take, check and return."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError
from purenn.ops import einsum2

#: Votes ``[*batch, out_caps, in_caps, out_dim]``, or what they are made of: see `make_votes`.
Votes = Tensor | tuple[Tensor, Tensor]


class Routed(NamedTuple):
    """What a routing returns.

    Attributes:
        poses: the output capsules, ``[*batch, out_caps, out_dim]``.
        activations: how surely each is present, ``[*batch, out_caps]``.
    """

    poses: Tensor
    activations: Tensor


class Windows(NamedTuple):
    """Which input capsules the output capsules at each position see, where several positions see the same ones.

    Attributes:
        children: the numbers of the input capsules in each position's window, ``[positions, in_caps]``.
        total: how many input capsules there are.
    """

    children: Int[Tensor, "positions in_caps"]
    total: int


def make_votes(name: str, votes: Votes, activations: Tensor | None = None) -> Tensor:
    """The votes for each output capsule: given, or every input capsule multiplied by a matrix.

    Args:
        name: of the routing, for errors.
        votes: ``[*batch, out_caps, in_caps, out_dim]``, or a pair of a weight and input capsules: ``[out_caps, in_caps,
            out_dim, in_dim]`` and ``[*batch, in_caps, in_dim]``, or, for capsules that are themselves matrices,
            ``[out_caps, in_caps, n, m]`` and ``[*batch, in_caps, n * n]``, which are multiplied from the right.
        activations: ``[*batch, in_caps]``, checked if given.

    Raises:
        ShapeError: the shapes do not fit.
    """
    made = votes if isinstance(votes, Tensor) else _multiplied(name, *votes)
    expected = (*made.shape[:-3], *made.shape[-2:-1])
    if made.dim() < 3 or (activations is not None and activations.shape != expected):
        got = "none" if activations is None else str(tuple(activations.shape))
        raise ShapeError(
            f"{name}: expected votes [*batch, out_caps, in_caps, out_dim] and activations [*batch, in_caps], got votes "
            f"{tuple(made.shape)} and activations {got}."
        )
    return made


def _multiplied(name: str, weight: Tensor, u: Tensor) -> Tensor:
    batch, n = u.shape[:-2], "n" if u.dim() > 2 else ""
    flat = u.flatten(0, -3) if u.dim() > 3 else u
    if weight.dim() == 4 and u.dim() > 1 and u.shape[-2] == weight.shape[1]:
        if u.shape[-1] == weight.shape[3]:
            votes = einsum2(f"oidk,{n}ik->{n}oid", weight, flat)
            return votes.unflatten(0, batch) if len(batch) > 1 else votes
        if u.shape[-1] == weight.shape[2] ** 2:
            matrices = flat.unflatten(-1, (weight.shape[2], -1))
            votes = einsum2(f"{n}ipq,oiqr->{n}oipr", matrices, weight).flatten(-2)
            return votes.unflatten(0, batch) if len(batch) > 1 else votes
    raise ShapeError(
        f"{name}: expected a weight [out_caps, in_caps, out_dim, in_dim] and capsules [*batch, in_caps, in_dim], or a "
        f"weight [out_caps, in_caps, n, m] and matrices [*batch, in_caps, n * n], got {tuple(weight.shape)} and "
        f"{tuple(u.shape)}."
    )


def require_activations(name: str, activations: Tensor | None) -> Tensor:
    """The activations; ArgumentError if there are none."""
    if activations is None:
        raise ArgumentError(f"{name}: this routing needs the activations of the input capsules, [*batch, in_caps].")
    return activations


def require_shape(name: str, what: str, tensor: Tensor | None, expected: tuple[int, ...]) -> None:
    """Raise ShapeError if a tensor is there whose last axes are not `expected`."""
    if tensor is not None and tensor.shape[-len(expected) :] != expected:
        got = tuple(tensor.shape)
        raise ShapeError(f"{name}: expected {what} of shape {tuple(expected)} for these votes, got {got}.")


def check_iterations(name: str, iterations: int) -> None:
    """Raise ArgumentError for fewer than one iteration."""
    if not isinstance(iterations, int):
        raise ArgumentError(f"{name}: iterations must be a whole number, got {iterations!r}.")
    if iterations < 1:
        raise ArgumentError(f"{name}: iterations must be at least 1, got {iterations}.")


def weighted_sum(
    couplings: Float[Tensor, "*batch out_caps in_caps"], votes: Float[Tensor, "*batch out_caps in_caps out_dim"]
) -> Float[Tensor, "*batch out_caps out_dim"]:
    """The sum of the votes for each output capsule."""
    return (couplings.unsqueeze(-2) @ votes).squeeze(-2)


def share_among_parents(
    logits: Float[Tensor, "*batch out_caps in_caps"], windows: Windows | None
) -> Float[Tensor, "*batch out_caps in_caps"]:
    """A softmax over **all** output capsules that an input capsule votes for.

    Args:
        logits: ``[*batch, out_caps, in_caps]``, with a last batch axis of positions if there are windows.
        windows: which input capsules these are; those of one number share their vote among several positions.
    """
    if windows is None:
        return logits.softmax(-2)
    shape = logits.shape[-3:]
    flat = logits.flatten(-3)
    index = windows.children.unsqueeze(-2).expand(shape).flatten().expand(flat.shape)
    empty = flat.new_full((*flat.shape[:-1], windows.total), -torch.inf)
    largest = empty.scatter_reduce(-1, index, flat.detach(), "amax")
    exponentials = (flat - largest.gather(-1, index)).exp()
    sums = torch.zeros_like(empty).scatter_add(-1, index, exponentials)
    return (exponentials / sums.gather(-1, index)).unflatten(-1, shape)


def in_single(x: Tensor) -> Tensor:
    """Half precision as float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
