"""The meta-gradients of `_meta_tasks.py` by higher, learn2learn and TorchOpt, as their guides write them."""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _meta_tasks import RATE, Problem, one_task


def _each(problem: Problem, module: torch.nn.Module, task_loss: Callable[..., Any]) -> Callable[[], Any]:
    count = len(problem.data[0][0])

    def gradient() -> Any:
        module.zero_grad()
        for number in range(count):
            (task_loss(*one_task(problem.data, number)) / count).backward()
        return [parameter.grad for parameter in module.parameters()]

    return gradient


def with_higher(problem: Problem, steps: int) -> Callable[[], Any]:
    """`higher.innerloop_ctx`, a loop over tasks."""
    import higher

    module = problem.module()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)

    def task_loss(support: Any, query: Any) -> Any:
        with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (adapted, steps_of):
            for _ in range(steps):
                steps_of.step(problem.criterion(adapted(support[0]), support[1]))
            return problem.criterion(adapted(query[0]), query[1])

    return _each(problem, module, task_loss)


def with_learn2learn(problem: Problem, steps: int) -> Callable[[], Any]:
    """`learn2learn.algorithms.MAML`, a loop over tasks."""
    from learn2learn.algorithms.maml import MAML

    module = problem.module()
    learner = MAML(module, lr=RATE)

    def task_loss(support: Any, query: Any) -> Any:
        clone = learner.clone()
        for _ in range(steps):
            clone.adapt(problem.criterion(clone(support[0]), support[1]))
        return problem.criterion(clone(query[0]), query[1])

    return _each(problem, module, task_loss)


def with_torchopt(problem: Problem, steps: int) -> Callable[[], Any]:
    """`torchopt.MetaSGD`, a loop over tasks."""
    import torchopt

    module = problem.module()

    def task_loss(support: Any, query: Any) -> Any:
        inner = torchopt.MetaSGD(module, lr=RATE)
        start = torchopt.extract_state_dict(module, by="reference")
        for _ in range(steps):
            inner.step(problem.criterion(module(support[0]), support[1]))
        loss = problem.criterion(module(query[0]), query[1])
        torchopt.recover_state_dict(module, start)
        return loss

    return _each(problem, module, task_loss)


_PEERS = {"higher": with_higher, "learn2learn": with_learn2learn, "torchopt": with_torchopt}


def peers(problem: Problem, steps: int) -> dict[str, Callable[[], Any]]:
    """The meta-gradients of the peers that are installed and can be imported."""
    found = {}
    for name, make in _PEERS.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed")
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = make(problem, steps)
        except ImportError as error:
            print(f"{name} cannot be imported: {error}")
    return found
