"""Per-example gradients: norms, clipped sums, Gram matrices and Fisher information from one backward pass."""

from purenn.transforms.per_sample._explain import Explanation, LeafExplanation
from purenn.transforms.per_sample._functions import clipped_grad, grads, norms
from purenn.transforms.per_sample._functions import grads as per_sample_grads
from purenn.transforms.per_sample._functions import norms as per_sample_norms
from purenn.transforms.per_sample._kronecker import KroneckerFactors
from purenn.transforms.per_sample._record import NoiseScale, Record
from purenn.transforms.per_sample._recording import record

__all__ = [
    "Explanation",
    "KroneckerFactors",
    "LeafExplanation",
    "NoiseScale",
    "Record",
    "clipped_grad",
    "grads",
    "norms",
    "per_sample_grads",
    "per_sample_norms",
    "record",
]
