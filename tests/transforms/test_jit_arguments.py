"""`pn.jit`: every way to write into an argument is refused, and what a graph is found by tells arguments apart."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _transform_models import Net, inputs, make
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, MutationError, TraceError


def text_of(call: Callable[[], object], kind: type[Exception]) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


WRITERS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "out=": (lambda x: torch.add(x, 1, out=x), "aten.add.out"),
    "several out=": (
        lambda x: torch.max(x * 2, 0, out=(x[0], torch.zeros(3, dtype=torch.int64, device=x.device))),
        "aten.max.dim_max",
    ),
    "a list": (lambda x: torch._foreach_mul_([x * 1, x], 2.0), "aten._foreach_mul_.Scalar"),
    "a chunk": (lambda x: x.chunk(2)[1].add_(1), "aten.add_.Tensor"),
    "a row of a loop": (lambda x: [row.add_(1) for row in x], "aten.add_.Tensor"),
    "a part of a part": (lambda x: x.T.split(2)[0].unbind()[1].mul_(2), "aten.mul_.Tensor"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_writes_are_refused(name: str, device: torch.device) -> None:
    """By out=, through lists and through the views that split makes, before anything is changed."""
    write, operation = WRITERS[name]
    x = inputs(device)
    before = x.clone()

    def f(x: Tensor) -> Tensor:
        write(x)
        return x * 1

    assert text_of(lambda: pn.jit(f, backend="eager")(x), MutationError) == (
        f"jit: the function writes in place into argument 0 ({operation}). Arguments are never changed: write "
        f"`w = w + d` instead of `w.add_(d)`, or let the result take the argument's place with donate_argnums."
    )
    assert torch.equal(x, before)
    fresh = pn.jit(lambda x: f(x * 1), backend="eager")
    assert torch.equal(fresh(x), f(x * 1))


def test_autocast_dtypes_are_told_apart(device: torch.device) -> None:
    """A graph for one dtype of autocast is not used for another."""
    product = pn.jit(lambda a: a @ a, backend="aot_eager")
    a = torch.eye(2, device=device)
    assert product(a).dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
        with torch.autocast(device.type, dtype):
            assert product(a).dtype == dtype
    assert product.cache_info() == (1, 3, 3)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_autocast_that_the_function_leaves(device: torch.device, backend: str) -> None:
    """What a function computes without autocast stays so where it is called under autocast."""

    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, enabled=False):
            exact = x @ x
        return exact, x @ x

    x = torch.randn(5, 5, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        exact, rounded = pn.jit(f, backend=backend)(x)
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(exact, x @ x)


def test_a_tensor_in_the_place_of_a_number(device: torch.device) -> None:
    """It is another kind of argument, and so is the number after it."""
    scaled = pn.jit(lambda x, n: x * n, backend="eager")
    x = inputs(device)
    for n in (3, x[0], 3.0, x[0] + 1, 3):
        assert torch.equal(scaled(x, n), x * n)
    assert scaled.cache_info() == (2, 3, 3)


def test_what_cannot_be_compared_is_refused(device: torch.device) -> None:
    """Arrays of numpy, and tensors that are declared static, are no part of a key."""
    x = inputs(device)
    text = (
        "jit: {what}, and whether two of them are equal is no single yes or no, so the graph for it would not be found "
        "again: pass it as a tensor that is not static."
    )
    for jitted, values, what in (
        (pn.jit(lambda x, n: x * n, backend="eager"), np.ones(3), "argument 1 is a ndarray"),
        (pn.jit(lambda x, n: x * n, backend="eager"), {"a": np.ones(3)}, "argument 1, 'a' is a ndarray"),
        (
            pn.jit(lambda x, n: x * n, backend="eager", static_argnames="n"),
            torch.ones(3),
            "the static argument 'n' is a Tensor",
        ),
        (
            pn.jit(lambda x, n: x * n[0], backend="eager", static_argnames="n"),
            (torch.ones(3),),
            "the static argument 'n' is a tuple",
        ),
    ):
        assert text_of(lambda jitted=jitted, values=values: jitted(x, values), ArgumentError) == text.format(what=what)


def _changes(p: Net) -> dict[str, tuple[tuple[Any, ...], str]]:
    second = pn.replace(p.second, power=3)
    with_bias = pn.replace(p.second, bias=p.first.bias)
    return {
        "static field": (
            (pn.replace(p, second=second),),
            "argument 0, 'second': the static field 'power': 1 against 3",
        ),
        "absent": ((pn.replace(p, second=with_bias),), "argument 0, 'second.bias': None against a Tensor"),
        "frozen": (
            (pn.tree.unfreeze(p),),
            "argument 0, 'first': the marks of frozen and tied leaves: Marks(frozen={bias}, tied=False) against None",
        ),
        "class": ((p.first,), "argument 0: a Net against an Affine"),
        "more": ((p, p), "the positional arguments: the children [0] against [0, 1]"),
    }


@pytest.mark.parametrize("name", ["static field", "absent", "frozen", "class", "more"])
def test_the_changed_structure_is_named(name: str, device: torch.device) -> None:
    """One trace too many: the argument, the path in it and the field that has changed."""
    p = make(device)
    jitted = pn.assert_max_traces(1)(pn.jit(lambda *args: pn.tree.leaves(args)[0] * 2, backend="eager"))
    jitted(p)
    changed, what = _changes(p)[name]
    assert text_of(lambda: jitted(*changed), TraceError) == (
        f"jit: <lambda> is traced for the 2nd time, assert_max_traces allows 1. Changed since the last trace: the "
        f"structure of {what}."
    )
