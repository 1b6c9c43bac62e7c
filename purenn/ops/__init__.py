"""Parameter-free primitives that torch lacks, or whose torch form breaks under transformations."""

from purenn.ops._einsum2 import einsum2
from purenn.ops._squash import squash
from purenn.ops._statistics import batch_norm, group_norm, instance_norm, layer_norm, rms_norm, standardise

__all__ = [
    "batch_norm",
    "einsum2",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
    "squash",
    "standardise",
]
