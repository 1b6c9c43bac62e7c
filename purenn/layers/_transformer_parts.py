"""What the layers of a Transformer are made of: residual blocks around attention and feed-forward maps."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError, ContainerError
from purenn.layers.activation import ReLU
from purenn.layers.activation_smooth import GELU
from purenn.layers.attention import MultiheadAttention, multihead_attention
from purenn.layers.dropout import Dropout, dropout
from purenn.layers.linear import linear
from purenn.layers.norm import LayerNorm, layer_norm
from purenn.layers.shape import Lambda
from purenn.tree import Layer, is_container, is_stateful
from purenn.tree._applies import binding_of

Activation = str | Callable[[Tensor], Tensor] | Layer


def residual(p: Any, norm: LayerNorm, x: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
    """A block around which its input passes, normalised before it or after the sum."""
    return x + block(layer_norm(norm, x)) if p.norm_first else layer_norm(norm, x + block(x))


def attended(
    attention: MultiheadAttention,
    drop: Dropout,
    key: Tensor | None,
    memory: Tensor | None,
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    is_causal: bool,
    x: Tensor,
) -> Tensor:
    """The attention within `x`, or to `memory`, and the dropout of its result."""
    weights_key, result_key = split_keys(key, 2)
    y, _ = multihead_attention(
        attention,
        x,
        memory,
        attn_mask=attn_mask,
        key_padding_mask=key_padding_mask,
        need_weights=False,
        is_causal=is_causal,
        key=weights_key,
    )
    return dropout(drop, y, key=result_key)


def feed_forward(p: Any, drop: Dropout, key: Tensor | None, x: Tensor) -> Tensor:
    """Map, activation, map back, with their dropouts."""
    activation_key, hidden_key, result_key = split_keys(key, 3)
    hidden = linear(p.linear1, x)
    binding = None if activation_key is None else binding_of(p.activation)
    draws = binding is not None and "key" in binding.takes
    hidden = p.activation(hidden, key=activation_key) if draws else p.activation(hidden)
    y = linear(p.linear2, dropout(p.dropout, hidden, key=hidden_key))
    return dropout(drop, y, key=result_key)


def split_keys(key: Tensor | None, n: int) -> Any:
    """So many keys, or so many times None."""
    return (None,) * n if key is None else random.split(key, n)


def activation_layer(cls: type, activation: Activation) -> Layer:
    """An activation as a layer.

    Raises:
        ArgumentError: an unknown name.
        ContainerError: the activation updates buffers.
    """
    if isinstance(activation, str):
        if activation not in ("relu", "gelu"):
            raise ArgumentError(
                f"{cls.__name__}.init: activation must be 'relu', 'gelu', a container or a function, got "
                f"{activation!r}."
            )
        return ReLU() if activation == "relu" else GELU()
    layer: Any = activation if is_container(activation) else Lambda(activation)
    if is_stateful(layer):
        raise ContainerError(
            f"{cls.__name__}.init: activation must return a tensor alone, but {type(layer).__name__} returns its new "
            f"state as well."
        )
    return layer


def matching_norm(d_model: int, eps: float, bias: bool, like: Tensor) -> LayerNorm:
    """A normalisation with the dtype and the device of a tensor."""
    return LayerNorm.init(d_model, eps=eps, bias=bias, dtype=like.dtype, device=like.device)
