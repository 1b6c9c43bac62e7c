"""Explicit random keys and the draws from them: same key, same numbers, on every device and in every transform."""

from purenn.random._discrete import categorical, permutation
from purenn.random._draws import bernoulli, bits, normal, truncated_normal, uniform
from purenn.random._integers import randint
from purenn.random._keys import fold_in, key, split
from purenn.random._philox import philox
from purenn.random._strict import strict

__all__ = [
    "bernoulli",
    "bits",
    "categorical",
    "fold_in",
    "key",
    "normal",
    "permutation",
    "philox",
    "randint",
    "split",
    "strict",
    "truncated_normal",
    "uniform",
]
