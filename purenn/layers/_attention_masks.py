"""The masks of torch's attention layers, in which True is left out, as masks of `purenn.ops`."""

from functools import reduce

import torch
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError
from purenn.ops._masks import both


def torch_masks(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, heads: torch.Size, targets: int, sources: int
) -> Tensor | None:
    """Both masks as one in which True takes part.

    Args:
        attn_mask: see `multihead_attention`.
        key_padding_mask: see there.
        heads: the leading dimensions of the scores, ``[batch, heads]``, or ``[heads]`` for one example.
        targets: number of queries.
        sources: number of keys.

    Returns:
        A mask that broadcasts to ``[*heads, targets, sources]``; None without masks.

    Raises:
        ShapeError: a mask does not fit.
        ArgumentError: a mask is neither boolean nor floating.
    """
    masks = []
    for name, mask in (("attn_mask", attn_mask), ("key_padding_mask", key_padding_mask)):
        if mask is None:
            continue
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ArgumentError(
                f"multihead_attention: {name} must be boolean (True is left out) or floating (added to the scores), "
                f"got {mask.dtype}. Write {name}.bool()."
            )
        fitting = (_per_head if name == "attn_mask" else _per_source)(mask, heads, targets, sources)
        masks.append(~fitting if mask.dtype == torch.bool else fitting)
    return reduce(both, masks) if masks else None


def _per_head(mask: Tensor, heads: torch.Size, targets: int, sources: int) -> Tensor:
    if mask.shape[-2:] == (targets, sources):
        if mask.dim() == 2:
            return mask
        if mask.dim() == 3 and mask.shape[0] == heads.numel():
            return mask.unflatten(0, heads)
        if mask.dim() == 3 and len(heads) == 2 and mask.shape[0] in (1, heads[0]):
            return mask.unsqueeze(1)
        if mask.dim() == 4 and len(heads) == 2 and mask.shape[0] in (1, heads[0]) and mask.shape[1] in (1, heads[1]):
            return mask
    pair = f"{targets}, {sources}]"
    several = f"[{pair} for all, "
    if len(heads) == 2:
        several += f"[{heads[0]}, {pair} for each example, [{heads[0]}, {heads[1]}, {pair} "
    raise ShapeError(
        f"multihead_attention: attn_mask must have one of the shapes {several}or [{heads.numel()}, {pair} for each head"
        f"{' of each example' if len(heads) == 2 else ''}, got {list(mask.shape)}."
    )


def _per_source(mask: Tensor, heads: torch.Size, targets: int, sources: int) -> Tensor:
    if mask.shape != (*heads[:-1], sources):
        raise ShapeError(
            f"multihead_attention: key_padding_mask must have the shape {[*heads[:-1], sources]}, a number for every "
            f"source position, got {list(mask.shape)}."
        )
    return mask.unsqueeze(-2).unsqueeze(-2)
