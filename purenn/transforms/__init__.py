"""Transformations of pure functions: derivatives and batching, with whole models as arguments."""

from purenn.transforms._derivatives import hessian, jacfwd, jacrev, jvp, vjp
from purenn.transforms._grad import grad, value_and_grad
from purenn.transforms._jit import CacheInfo, Jitted, Lowered, assert_max_traces, jit
from purenn.transforms._remat import remat
from purenn.transforms._vmap import vmap

__all__ = [
    "CacheInfo",
    "Jitted",
    "Lowered",
    "assert_max_traces",
    "grad",
    "hessian",
    "jacfwd",
    "jacrev",
    "jit",
    "jvp",
    "remat",
    "value_and_grad",
    "vjp",
    "vmap",
]
