"""Parameter-free primitives that torch lacks, or whose torch form breaks under transformations."""

from purenn.ops._attention import attention_weights, scaled_dot_product_attention
from purenn.ops._einsum2 import einsum2
from purenn.ops._masks import causal_mask, sliding_window_mask
from purenn.ops._routing import Memory, route_by_agreement, route_votes_by_agreement
from purenn.ops._squash import squash, squash_exponential
from purenn.ops._statistics import batch_norm, group_norm, instance_norm, layer_norm, rms_norm, standardise

__all__ = [
    "Memory",
    "attention_weights",
    "batch_norm",
    "causal_mask",
    "einsum2",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
    "route_by_agreement",
    "route_votes_by_agreement",
    "scaled_dot_product_attention",
    "sliding_window_mask",
    "squash",
    "squash_exponential",
    "standardise",
]
