"""The table of all optimisers, with options, and what they train."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn import optim


class Case(NamedTuple):
    """An optimiser, and torch's if there is one."""

    make: Callable[[], optim.GradientTransformation]
    reference: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None


CASES = {
    "sgd": Case(lambda: optim.sgd(0.05), lambda ps: torch.optim.SGD(ps, 0.05)),
    "sgd momentum": Case(
        lambda: optim.sgd(0.02, momentum=0.9, dampening=0.3, weight_decay=0.1, maximize=True),
        lambda ps: torch.optim.SGD(ps, 0.02, momentum=0.9, dampening=0.3, weight_decay=0.1, maximize=True),
    ),
    "sgd nesterov": Case(
        lambda: optim.sgd(0.02, momentum=0.9, nesterov=True),
        lambda ps: torch.optim.SGD(ps, 0.02, momentum=0.9, nesterov=True),
    ),
    "asgd": Case(
        lambda: optim.asgd(0.05, decay=0.01, power=0.6, start=5, weight_decay=0.1),
        lambda ps: torch.optim.ASGD(ps, 0.05, lambd=0.01, alpha=0.6, t0=5, weight_decay=0.1),
    ),
    "asgd maximize": Case(
        lambda: optim.asgd(0.01, maximize=True), lambda ps: torch.optim.ASGD(ps, 0.01, maximize=True)
    ),
    "adam": Case(lambda: optim.adam(0.05), lambda ps: torch.optim.Adam(ps, 0.05)),
    "adam options": Case(
        lambda: optim.adam(0.05, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.1, amsgrad=True, maximize=True),
        lambda ps: torch.optim.Adam(
            ps, 0.05, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.1, amsgrad=True, maximize=True
        ),
    ),
    "adamw": Case(lambda: optim.adamw(0.05), lambda ps: torch.optim.AdamW(ps, 0.05)),
    "adamw options": Case(
        lambda: optim.adamw(0.05, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.2, amsgrad=True, maximize=True),
        lambda ps: torch.optim.AdamW(
            ps, 0.05, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.2, amsgrad=True, maximize=True
        ),
    ),
    "nadam": Case(
        lambda: optim.nadam(0.05, eps=1e-3, weight_decay=0.1, momentum_decay=0.01),
        lambda ps: torch.optim.NAdam(ps, 0.05, eps=1e-3, weight_decay=0.1, momentum_decay=0.01),
    ),
    "nadam decoupled": Case(
        lambda: optim.nadam(0.05, betas=(0.8, 0.9), weight_decay=0.1, decoupled_weight_decay=True, maximize=True),
        lambda ps: torch.optim.NAdam(
            ps, 0.05, betas=(0.8, 0.9), weight_decay=0.1, decoupled_weight_decay=True, maximize=True
        ),
    ),
    "radam": Case(
        lambda: optim.radam(0.05, eps=1e-3, weight_decay=0.1),
        lambda ps: torch.optim.RAdam(ps, 0.05, eps=1e-3, weight_decay=0.1),
    ),
    "radam decoupled": Case(
        lambda: optim.radam(0.05, betas=(0.8, 0.9), weight_decay=0.1, decoupled_weight_decay=True, maximize=True),
        lambda ps: torch.optim.RAdam(
            ps, 0.05, betas=(0.8, 0.9), weight_decay=0.1, decoupled_weight_decay=True, maximize=True
        ),
    ),
    "radam never trusted": Case(
        lambda: optim.radam(0.05, betas=(0.8, 0.6)), lambda ps: torch.optim.RAdam(ps, 0.05, betas=(0.8, 0.6))
    ),
    "adamax": Case(
        lambda: optim.adamax(0.05, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, maximize=True),
        lambda ps: torch.optim.Adamax(ps, 0.05, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, maximize=True),
    ),
    "adagrad": Case(
        lambda: optim.adagrad(0.1, learning_rate_decay=0.1, weight_decay=0.1, initial_total=0.2),
        lambda ps: torch.optim.Adagrad(ps, 0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.2),
    ),
    "adagrad maximize": Case(
        lambda: optim.adagrad(0.1, eps=1e-3, maximize=True),
        lambda ps: torch.optim.Adagrad(ps, 0.1, eps=1e-3, maximize=True),
    ),
    "rmsprop": Case(
        lambda: optim.rmsprop(0.02, decay=0.9, eps=0.1, weight_decay=0.1),
        lambda ps: torch.optim.RMSprop(ps, 0.02, alpha=0.9, eps=0.1, weight_decay=0.1),
    ),
    "rmsprop centered": Case(
        lambda: optim.rmsprop(0.02, momentum=0.5, centered=True, eps=1e-4, maximize=True),
        lambda ps: torch.optim.RMSprop(ps, 0.02, momentum=0.5, centered=True, eps=1e-4, maximize=True),
    ),
    "adadelta": Case(lambda: optim.adadelta(weight_decay=0.1), lambda ps: torch.optim.Adadelta(ps, weight_decay=0.1)),
    "adadelta options": Case(
        lambda: optim.adadelta(0.5, decay=0.8, eps=1e-4, maximize=True),
        lambda ps: torch.optim.Adadelta(ps, 0.5, rho=0.8, eps=1e-4, maximize=True),
    ),
    "rprop": Case(lambda: optim.rprop(0.01), lambda ps: torch.optim.Rprop(ps, 0.01)),
    "rprop options": Case(
        lambda: optim.rprop(0.01, etas=(0.3, 1.5), step_sizes=(1e-4, 0.1), maximize=True),
        lambda ps: torch.optim.Rprop(ps, 0.01, etas=(0.3, 1.5), step_sizes=(1e-4, 0.1), maximize=True),
    ),
    "adafactor": Case(lambda: optim.adafactor(0.02), lambda ps: torch.optim.Adafactor(ps, 0.02)),
    "adafactor options": Case(
        lambda: optim.adafactor(
            0.5, beta2_decay=-0.5, eps=(1e-5, 1e-2), clipping=1.5, weight_decay=0.01, maximize=True
        ),
        lambda ps: torch.optim.Adafactor(
            ps, 0.5, beta2_decay=-0.5, eps=(1e-5, 1e-2), d=1.5, weight_decay=0.01, maximize=True
        ),
    ),
    "lion": Case(lambda: optim.lion(0.01)),
    "lion options": Case(lambda: optim.lion(0.01, betas=(0.8, 0.9), weight_decay=0.1, maximize=True)),
    "lamb": Case(lambda: optim.lamb(0.01)),
    "lamb options": Case(lambda: optim.lamb(0.01, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.1, maximize=True)),
    "sophia": Case(lambda: optim.sophia(0.02)),
    "sophia options": Case(lambda: optim.sophia(0.01, momentum=0.5, scale=3.0, eps=0.2, maximize=True)),
    # Not in bfloat16, which no derivative can be checked in.
    "muon": Case(lambda: optim.muon(0.02, dtype=None)),
}


@pn.container
class Weights:
    """A scalar, a vector, a matrix and a stack of matrices to train, and a buffer to leave alone."""

    scalar: Tensor
    offset: Tensor = pn.buffer()
    vector: Tensor
    matrix: Tensor
    stack: Tensor


class Problem(NamedTuple):
    """Parameters in float64 and a loss."""

    params: Weights
    loss: Callable[[Any], Tensor]


def loss(p: Any) -> Tensor:
    """Smooth, of all parameters together."""
    x = torch.linspace(-1, 1, 12, dtype=torch.float64, device=p.matrix.device).view(4, 3)
    hidden = (x @ p.matrix.T + p.vector + p.offset).sin() * p.scalar
    return (hidden @ p.stack).cos().square().mean() + 0.1 * hidden.square().sum()


@pytest.fixture
def problem(device: torch.device) -> Problem:
    """What the optimisers are tried on."""
    keys = pn.random.split(pn.random.key(0), 5)
    shapes = [(), (), (5,), (5, 3), (2, 5, 4)]
    leaves = [pn.random.normal(k, s, dtype=torch.float64).to(device) for k, s in zip(keys, shapes, strict=True)]
    return Problem(Weights(*leaves), loss)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Every optimiser of the table."""
    return CASES[request.param]


@pytest.fixture(params=[name for name, case in CASES.items() if case.reference])
def torch_case(request: pytest.FixtureRequest) -> Case:
    """Every optimiser of the table that torch has."""
    return CASES[request.param]


@pytest.fixture
def precise() -> Iterator[None]:
    """torch.optim keeps some scalars in the default dtype: in float64 while the test runs."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
