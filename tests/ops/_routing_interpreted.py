"""The kernels of dynamic routing in Triton's interpreter; run by test_routing_kernels.py in a process of its own."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from purenn.ops import route_by_agreement

DOUBLE = torch.float64
OPTIONS = [{"iterations": 1}, {"leaky": True, "iterations": 2}, {"stop_gradient": True}]


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What kernels ran, at sizes at which a program has several input capsules and the last one fewer."""
    from purenn.ops import _routing_op as op

    monkeypatch.setattr("purenn.ops._routing_triton._PROGRAMS", 2)
    found: list[str] = []
    for name in ("sums_by_kernels", "gradients_by_kernels"):
        run = getattr(op, name)
        monkeypatch.setattr(op, name, lambda *args, name=name, run=run: found.append(name) or run(*args))
    return found


def draw(*sizes: int, count: int, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    W = 0.5 * torch.randn(*sizes, generator=generator, dtype=DOUBLE)
    return W.to(dtype), torch.randn(count, sizes[1], sizes[3], generator=generator, dtype=DOUBLE).to(dtype)


def loss(route: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda W, u: route(W, u).sin().sum()


TRANSFORMED: dict[str, Callable[..., object]] = {
    "grad": lambda f, W, u: (f(W, u), *grad(loss(f), (0, 1))(W, u)),
    "per-sample gradients": lambda f, W, u: vmap(grad(loss(f), (0, 1)), (None, 0))(W, u),
    "gradients of groups": lambda f, W, u: vmap(grad(loss(f), (0, 1)), (None, 0))(W, u.unflatten(0, (2, -1))),
    "vmap over models": lambda f, W, u: vmap(grad(loss(f)), (0, None))(torch.stack([W, -W]), u[:2]),
    "grad of grad": lambda f, W, u: grad(lambda u: grad(loss(f))(W, u).sin().sum())(u[:2]),
}


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in TRANSFORMED), *(("grad", options) for options in OPTIONS)]
)
def test_transformed(name: str, options: dict, calls: list[str]) -> None:
    """Gradients, of every example and group and model as well, as from all votes.

    There are more examples than a program takes, and sizes that are no powers of two.
    """
    W, u = draw(3, 3, 5, 2, count=18)
    run, route = TRANSFORMED[name], functools.partial(route_by_agreement, **options)
    got, expected = (run(functools.partial(route, memory=form), W, u) for form in ("tiled", "votes"))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert {"sums_by_kernels", "gradients_by_kernels"} == set(calls)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precision(dtype: torch.dtype) -> None:
    """Values and gradients keep the dtype and agree with float64 within its precision."""
    W, u = draw(3, 3, 5, 2, count=2, dtype=dtype)
    f = functools.partial(route_by_agreement, memory="tiled")
    results = (f(W, u), *grad(lambda W, u: f(W, u).float().sum(), (0, 1))(W, u))
    W, u = W.double(), u.double()
    expected = (f(W, u), *grad(lambda W, u: f(W, u).sum(), (0, 1))(W, u))
    for got, right in zip(results, expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), right, rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_zeros_and_saturation() -> None:
    """Votes of zero and very long ones have finite gradients, the same as by tiles."""
    for scale in (0.0, 1e5):
        W, u = draw(2, 2, 3, 2, count=2, dtype=torch.float32)
        got, expected = (
            grad(loss(functools.partial(route_by_agreement, memory=form)), (0, 1))(scale * W, u)
            for form in ("tiled", "folded")
        )
        for one, other in zip(got, expected, strict=True):
            assert one.isfinite().all()
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_capsules_that_do_not_stay_on_the_chip(calls: list[str]) -> None:
    """Many large output capsules go by tiles."""
    W, u = draw(33, 2, 16, 8, count=2)
    torch.testing.assert_close(
        route_by_agreement(W, u, memory="tiled"), route_by_agreement(W, u, memory="votes"), rtol=0, atol=1e-12
    )
    assert not calls
