"""First values of parameters: pure functions ``(key, shape, *, dtype, device, ...) -> tensor``."""

from purenn.initializers._drawn import normal, trunc_normal, uniform
from purenn.initializers._fans import calculate_gain, fan_in_and_fan_out
from purenn.initializers._fixed import constant, dirac, eye, ones, zeros
from purenn.initializers._matrices import orthogonal, sparse
from purenn.initializers._scaled import (
    fan_in_uniform,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
    variance_scaling,
    xavier_normal,
    xavier_uniform,
)

__all__ = [
    "calculate_gain",
    "constant",
    "dirac",
    "eye",
    "fan_in_and_fan_out",
    "fan_in_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "orthogonal",
    "sparse",
    "trunc_normal",
    "uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
