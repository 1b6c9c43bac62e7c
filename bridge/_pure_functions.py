"""Other functions of torch that transformations cannot handle as they are: attention, tables of vectors, a loss."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bridge._pure_context import Context, Handler
from bridge._pure_questions import answer
from bridge._pure_values import is_unknown
from purenn import layers, losses, ops
from purenn._modes import is_plain

_torch: Any = torch


def _attention(
    context: Context,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Differentiable any number of times, and batched by plain operations."""
    drawn = context.next_key() if dropout_p else None
    tensors = (query, key, value, *(() if attn_mask is None else (attn_mask,)))
    if is_plain() and drawn is None and not any(tensor.requires_grad for tensor in tensors):
        options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, **options)
    return ops.scaled_dot_product_attention(
        query,
        key,
        value,
        mask=attn_mask,
        is_causal=is_causal,
        scale=scale,
        dropout=dropout_p,
        key=drawn,
        enable_gqa=enable_gqa,
    )


def _embedding(
    context: Context,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """With `max_norm` the vectors are shortened, the table stays as it is."""
    if is_plain() and max_norm is None:
        return F.embedding(input, weight, padding_idx, None, norm_type, scale_grad_by_freq, sparse)
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    return layers.embedding(layers.Embedding(weight, padding_idx, max_norm, norm_type, scale_grad_by_freq), input)


def _embedding_bag(
    context: Context,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: Any = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    differentiated = torch.is_grad_enabled() and weight.requires_grad
    if is_plain() and max_norm is None and not differentiated:
        options: dict[str, Any] = {"per_sample_weights": per_sample_weights, "padding_idx": padding_idx}
        return F.embedding_bag(
            input,
            weight,
            offsets,
            None,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            include_last_offset=include_last_offset,
            **options,
        )
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    p = layers.EmbeddingBag(
        weight, max_norm, float(norm_type), scale_grad_by_freq, mode, include_last_offset, padding_idx
    )
    return layers.embedding_bag(p, input, offsets, per_sample_weights)


def _gaussian_nll_loss(
    context: Context,
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: Any = "mean",
) -> Tensor:
    """Without the check that no variance is negative, which would have to look at them."""
    if is_plain():
        return F.gaussian_nll_loss(input, target, var, full, eps, reduction)
    return losses.gaussian_nll_loss(input, target, var, full=full, eps=eps, reduction=reduction)


def _from_inside(function: Any) -> Handler:
    return lambda context, *args, **kwargs: context.inside(function, *args, **kwargs)


def _question(kind: str, function: Any, convert: type | None = None) -> Handler:
    def run(context: Context, *args: Any, **kwargs: Any) -> Any:
        asked = (*args, *kwargs.values())
        if not any(isinstance(arg, Tensor) and is_unknown(arg) for arg in asked):
            return function(*args, **kwargs)
        given = answer(kind, asked, context.paths)
        return given if convert is None else convert(given)

    return run


def _format(context: Context, tensor: Tensor, spec: str) -> str:
    """In the text of an error that may never be raised; it is no question."""
    return f"<values of {list(tensor.shape)}>" if is_unknown(tensor) else Tensor.__format__(tensor, spec)


def _one_hot(context: Context, input: Tensor, num_classes: int = -1) -> Tensor:
    """Without the check that there are so many classes, which would have to look at the values."""
    if not is_unknown(input) or num_classes < 0:
        return F.one_hot(input, num_classes)
    return (input.unsqueeze(-1) == torch.arange(num_classes, device=input.device)).long()


def _shares_memory(context: Context, tensor: Tensor, other: Tensor) -> bool:
    """A module that casts a part of it while it runs puts new data into the same parameters."""
    return not is_plain() or _torch._has_compatible_shallow_copy_type(tensor, other)


def _never(context: Context, *args: Any) -> bool:
    """No nested tensors: torch's fast path for them is not taken within a mode anyway."""
    return False


HANDLERS: dict[Any, Handler] = {
    _torch._nested_tensor_from_mask_left_aligned: _never,
    F.scaled_dot_product_attention: _attention,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    F.gaussian_nll_loss: _gaussian_nll_loss,
    F.multi_head_attention_forward: _from_inside(F.multi_head_attention_forward),
    F.one_hot: _one_hot,
    _torch._has_compatible_shallow_copy_type: _shares_memory,
    F.gumbel_softmax: _from_inside(F.gumbel_softmax),
    Tensor.__bool__: _question("bool", Tensor.__bool__, bool),
    Tensor.__int__: _question("int", Tensor.__int__, int),
    Tensor.__float__: _question("float", Tensor.__float__, float),
    Tensor.__index__: _question("int", Tensor.__index__, int),
    Tensor.__format__: _format,
    Tensor.item: _question("item", Tensor.item),
    Tensor.tolist: _question("tolist", Tensor.tolist),
    torch.equal: _question("torch.equal", torch.equal),
    torch.allclose: _question("torch.allclose", torch.allclose),
}
