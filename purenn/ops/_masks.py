"""Boolean masks for attention: True where a query may look at a key."""

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from purenn.errors import ArgumentError


def causal_mask(
    queries: int, keys: int | None = None, *, offset: int = 0, device: torch.device | str | None = None
) -> Bool[Tensor, "queries keys"]:
    """A mask in which every query sees its own position and those before it: key j for query i if ``j <= i + offset``.

    Args:
        queries: number of queries.
        keys: number of keys. Default: as many as queries.
        offset: position of the first query, counted from the first key. Default: 0. For queries that are the last of
            all keys it is ``keys - queries``.
        device: of the mask. Default: torch's default device.

    Example:
        >>> from purenn.ops import causal_mask
        >>> causal_mask(2, 3).int()
        tensor([[1, 0, 0],
                [1, 1, 0]], dtype=torch.int32)
    """
    return _distances(queries, keys, offset, device) >= 0


def sliding_window_mask(
    queries: int,
    keys: int | None = None,
    *,
    window: int,
    causal: bool = True,
    offset: int = 0,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "queries keys"]:
    """A mask in which every query sees the positions that are less than `window` away from its own.

    Args:
        queries: number of queries.
        keys: number of keys. Default: as many as queries.
        window: how many positions a query sees, its own among them; if not `causal`, that many to each side.
        causal: whether it sees no later positions. Default: True.
        offset: position of the first query, counted from the first key. Default: 0.
        device: of the mask. Default: torch's default device.

    Raises:
        ArgumentError: `window` is not positive.

    Source:
        Beltagy, Peters, Cohan: Longformer, 2020.
    """
    if window < 1:
        raise ArgumentError(f"sliding_window_mask: window must be at least 1, a query's own position, got {window}.")
    distances = _distances(queries, keys, offset, device)
    return (distances < window) & (distances >= 0 if causal else distances > -window)


def both(one: Tensor, other: Tensor) -> Tensor:
    """A mask in which two hold together; each is boolean (True takes part) or floating (added to the scores)."""
    if one.dtype == other.dtype == torch.bool:
        return one & other
    if torch.bool not in (one.dtype, other.dtype):
        return one + other
    allowed, added = (one, other) if one.dtype == torch.bool else (other, one)
    return torch.where(allowed, added, -math.inf)


def _distances(queries: int, keys: int | None, offset: int, device: torch.device | str | None) -> Tensor:
    rows = torch.arange(offset, offset + queries, device=device)
    return rows.unsqueeze(-1) - torch.arange(queries if keys is None else keys, device=device)
