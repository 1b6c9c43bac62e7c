"""Functional neural networks on PyTorch: pure functions over immutable parameter trees."""

from purenn import errors, initializers, layers, losses, models, ops, optim, random, transforms, tree
from purenn._version import __version__
from purenn.transforms import (
    assert_max_traces,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jit,
    jvp,
    remat,
    value_and_grad,
    vjp,
    vmap,
)
from purenn.tree import Layer, applies, buffer, container, is_stateful, load, replace, save, static, summary

__all__ = [
    "Layer",
    "__version__",
    "applies",
    "assert_max_traces",
    "buffer",
    "container",
    "errors",
    "grad",
    "hessian",
    "initializers",
    "is_stateful",
    "jacfwd",
    "jacrev",
    "jit",
    "jvp",
    "layers",
    "load",
    "losses",
    "models",
    "ops",
    "optim",
    "random",
    "remat",
    "replace",
    "save",
    "static",
    "summary",
    "transforms",
    "tree",
    "value_and_grad",
    "vjp",
    "vmap",
]
