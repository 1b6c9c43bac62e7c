"""What the tests of all losses share: comparing with torch, and one table of promises for every case."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from _reference import same, weights_like
from _transformations import check_transformations
from hypothesis import strategies as st
from torch import Tensor, nn

import bridge
from purenn import losses

TOLERANCE = 1e-12
REDUCTIONS = st.sampled_from(["mean", "sum", "none"])
SHAPES = st.sampled_from([(), (4,), (0, 3), (2, 3), (2, 3, 4)])
SEEDS = st.integers(0, 999)


def check_equals(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    *inputs: Tensor,
    second_order: bool = True,
    tolerance: float = TOLERANCE,
) -> None:
    """Check that two losses agree in value, gradient and second derivative with respect to all inputs."""
    given = [x.clone().requires_grad_() for x in inputs]
    found = []
    for loss in (ours, theirs):
        value = loss(*given)
        total = (torch.sin(value) * weights_like(value)).sum()
        first = torch.autograd.grad(total, given, create_graph=second_order, allow_unused=True, materialize_grads=True)
        second: tuple[Tensor, ...] = ()
        if second_order:
            again = sum((g * weights_like(g)).sum() for g in first)
            if again.requires_grad:
                second = torch.autograd.grad(again, given, allow_unused=True, materialize_grads=True)
        if not second:
            second = tuple(torch.zeros_like(x) for x in given)
        found.append((value, first, second))
    same(found[0], found[1], tolerance=tolerance)


class Case(NamedTuple):
    """A loss with example arguments.

    Attributes:
        loss: ``loss(prediction, *rest)``.
        prediction: three predictions, stacked.
        rest: the other arguments, by a number that varies them.
    """

    loss: Callable[..., Tensor]
    prediction: Tensor
    rest: Callable[[int], tuple[Tensor, ...]]


def check_case(case: Case, device: torch.device, *, compile: bool = False) -> None:
    """Check transformations of all kinds with respect to every argument, and that half precision is kept."""

    def rest(seed: int) -> tuple[Tensor, ...]:
        return tuple(value.to(device) for value in case.rest(seed))

    prediction = case.prediction.to(device)
    check_transformations(rest, lambda p, x: case.loss(x, *p), prediction, compile=compile)
    half = [value.bfloat16() if value.is_floating_point() else value for value in (prediction[0], *rest(0))]
    exact = case.loss(*(value.double() if value.is_floating_point() else value for value in half))
    got = case.loss(*half)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=0.05, atol=0.05)


def check_container(name: str, *inputs: Tensor, **options: Any) -> None:
    """Check that the container of a class of torch.nn has its options, defaults and value, compiled or as a module."""
    cls, module = getattr(losses, name), getattr(nn, name)
    default = module()
    for field in inspect.signature(cls).parameters:
        assert hasattr(default, field), field
        if name != "TripletMarginWithDistanceLoss" or field != "distance_function":
            assert getattr(cls(), field) == getattr(default, field), field
    p, reference = cls(**options), module(**options)
    expected = reference(*inputs)
    same(p(*inputs), expected, tolerance=TOLERANCE)
    torch.compiler.reset()
    same(torch.compile(lambda p, *x: p(*x), fullgraph=True, backend="eager")(p, *inputs), expected, tolerance=TOLERANCE)
    carried = bridge.to_module(p)
    same(carried(*inputs), expected, tolerance=TOLERANCE)
    assert list(carried.state_dict()) == list(reference.state_dict())
