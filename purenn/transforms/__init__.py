"""Transformations of pure functions: derivatives and batching, with whole models as arguments."""

from purenn.transforms import per_sample
from purenn.transforms._capture import capture, intervene, perturb
from purenn.transforms._check_grads import check_grads
from purenn.transforms._check_numerics import check_numerics
from purenn.transforms._control import cond, fori_loop, while_loop
from purenn.transforms._custom_jvp import custom_jvp
from purenn.transforms._custom_vjp import custom_vjp
from purenn.transforms._derivatives import hessian, jacfwd, jacrev, jvp, vjp
from purenn.transforms._ensemble import ensemble, soup
from purenn.transforms._explain import Explanation, explain
from purenn.transforms._grad import grad, value_and_grad
from purenn.transforms._jit import CacheInfo, Jitted, Lowered, assert_max_traces, jit
from purenn.transforms._remat import remat
from purenn.transforms._scan import scan
from purenn.transforms._vmap import vmap

__all__ = [
    "CacheInfo",
    "Explanation",
    "Jitted",
    "Lowered",
    "assert_max_traces",
    "capture",
    "check_grads",
    "check_numerics",
    "cond",
    "custom_jvp",
    "custom_vjp",
    "ensemble",
    "explain",
    "fori_loop",
    "grad",
    "hessian",
    "intervene",
    "jacfwd",
    "jacrev",
    "jit",
    "jvp",
    "per_sample",
    "perturb",
    "remat",
    "scan",
    "soup",
    "value_and_grad",
    "vjp",
    "vmap",
    "while_loop",
]
