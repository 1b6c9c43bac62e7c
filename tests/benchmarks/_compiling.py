"""What benchmarks of compilers need: one thread for all of them, and first calls that find nothing in a cache."""

import importlib.util
import os
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

import purenn as pn


def one_thread(device: torch.device) -> None:
    """Bind this process to one core, compilers and JAX included. Call it first: they look at this when they start.

    With a GPU nothing is bound, since there only compilation would suffer.
    """
    torch.set_num_threads(1)
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    # Otherwise JAX takes most of a GPU's memory for itself.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if device.type == "cpu":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        # Workers would only take turns with this process.
        torch._inductor.config.compile_threads = 1


def jax_side(device: torch.device) -> ModuleType | None:
    """The module `_jax_models`, or None where the extra `bench` is not installed or JAX does not know the device."""
    if importlib.util.find_spec("equinox") is None:
        return None
    import _jax_models

    return _jax_models if _jax_models.runs_on(device.type) else None


def warm_up(device: torch.device) -> None:
    """Compile something small in both ways, so that no first call pays for imports and precompiled headers."""

    def loss(x: Tensor) -> Tensor:
        return pn.grad(lambda x: (x @ x).tanh().sum())(x)

    x = torch.ones(4, 4, device=device)
    first_call(pn.jit(loss), x)
    first_call(torch.compile(loss, fullgraph=True), x)


def first_call(fn: Callable[..., Any], *args: Any) -> float:
    """Seconds of a call that traces and compiles, with an empty inductor cache.

    Bound to one core these are CPU seconds, of this process and of the compilers that it runs, which do not depend on
    what else the machine does. Otherwise they are seconds on the clock.
    """
    seconds = _cpu_seconds if len(os.sched_getaffinity(0)) == 1 else time.perf_counter
    torch._dynamo.reset()
    with fresh_cache():
        start = seconds()
        fn(*args)
        return seconds() - start


def _cpu_seconds() -> float:
    user, system, of_children, system_of_children, _ = os.times()
    return user + system + of_children + system_of_children
