"""Draws for which torch has no uniform or normal numbers to start from: its own, by a generator that the key seeds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bridge._pure_context import Context, Handler
from bridge._pure_questions import running
from bridge._pure_values import is_unknown
from purenn.errors import BatchingError

_hidden: Any = torch


def _seeded(name: str, function: Callable[..., Tensor]) -> Handler:
    def run(context: Context, *args: Any, generator: Any = None, **kwargs: Any) -> Tensor:
        key = context.required_key(name)
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if any(map(is_unknown, (key, *given))):
            raise BatchingError(
                f"{running(context.paths)} draws random numbers by {name}, which torch can do from a generator only, "
                f"one after another: under vmap and while tracing there is none. Draw in a loop, or before."
            )
        first, second = key.tolist()
        seeded = torch.Generator(given[0].device).manual_seed(first << 32 | second)
        return function(*args, **kwargs, generator=seeded)

    return run


HANDLERS: dict[Any, Handler] = {
    torch.poisson: _seeded("torch.poisson", torch.poisson),
    torch.binomial: _seeded("torch.binomial", torch.binomial),
    # What torch.distributions draws from, for the gamma, beta, Dirichlet and Student's distributions.
    _hidden._standard_gamma: _seeded("torch.distributions", _hidden._standard_gamma),
    _hidden._sample_dirichlet: _seeded("torch.distributions", _hidden._sample_dirichlet),
}
