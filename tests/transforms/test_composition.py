"""All transformations nested two deep, in every order, against loops and plain autograd written by hand."""

import pytest
import torch
from _operators import BY_HAND, OPERATORS, numbers_of, scan_of, with_numbers
from _transform_models import make, net
from torch import Tensor

import purenn as pn

NAMES = list(OPERATORS)
PAIRS = [(outer, inner) for outer in NAMES for inner in NAMES]


def _x(device: torch.device) -> Tensor:
    return torch.tensor([0.3, -0.7, 0.5], dtype=torch.float64, device=device)


def _expected(p, x: Tensor, *names: str) -> Tensor:
    def by_hand(numbers: Tensor, x: Tensor) -> Tensor:
        return net(with_numbers(p, numbers), x)

    for name in reversed(names):
        by_hand = BY_HAND[name](by_hand)
    return by_hand(numbers_of(p), x).detach()


def _agree(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("outer", "inner"), PAIRS, ids=["-of-".join(pair) for pair in PAIRS])
def test_two_deep(outer: str, inner: str, device: torch.device) -> None:
    """Any transformation of any transformation gives what loops and plain autograd give."""
    p, x = make(device), _x(device)
    _agree(OPERATORS[outer](OPERATORS[inner](net))(p, x), _expected(p, x, outer, inner))


@pytest.mark.parametrize("other", NAMES)
@pytest.mark.parametrize("scan_is", ["inside", "outside"])
def test_compiled_loops(other: str, scan_is: str, device: torch.device) -> None:
    """Under jit, where a loop is one operation, every transformation of it and every one in it gives the same."""
    names = (other, "scan") if scan_is == "inside" else ("scan", other)
    p, x = make(device), _x(device)
    composed = pn.jit(OPERATORS[names[0]](OPERATORS[names[1]](net)), backend="eager")
    _agree(composed(p, x), _expected(p, x, *names))
    # One loop, and nothing of its steps, in the graph of the whole function.
    assert "purenn.scan" in str(composed.lower(p, x))


@pytest.mark.parametrize("outer", NAMES)
@pytest.mark.parametrize("middle", ["grad", "jvp", "vmap"])
@pytest.mark.parametrize("remat", [False, True])
def test_loops_three_deep_under_jit(outer: str, middle: str, remat: bool, device: torch.device) -> None:
    """Derivatives and batched forms of derivatives and batched forms of a compiled loop are right as well."""
    p, x = make(device), _x(device)
    composed = pn.jit(OPERATORS[outer](OPERATORS[middle](scan_of(net, remat=remat))), backend="eager")
    _agree(composed(p, x), _expected(p, x, outer, middle, "scan"))


RAW = {
    "grad": (
        lambda f: lambda n: torch.func.grad(lambda n: f(n).sin().sum())(n),
        lambda f: lambda n: torch.autograd.grad(f(n).sin().sum(), n, materialize_grads=True)[0],
    ),
    "vmap": (
        lambda f: lambda n: torch.func.vmap(f)(torch.stack([n, n * 1.1])).flatten(),
        lambda f: lambda n: torch.cat([f(n), f(n * 1.1)]),
    ),
    "jacrev": (
        lambda f: lambda n: torch.func.jacrev(f)(n).flatten(),
        lambda f: (
            lambda n: torch.stack(
                [torch.autograd.grad(y, n, retain_graph=True, materialize_grads=True)[0] for y in f(n)]
            ).flatten()
        ),
    ),
    "jvp": (
        lambda f: lambda n: torch.func.jvp(f, (n,), (n.cos(),))[1],
        lambda f: (
            lambda n: (
                torch.stack([torch.autograd.grad(y, n, retain_graph=True, materialize_grads=True)[0] for y in f(n)])
                @ n.cos()
            )
        ),
    ),
}


@pytest.mark.parametrize("inner", NAMES)
@pytest.mark.parametrize("outer", list(RAW))
def test_inside_raw_torch_func(outer: str, inner: str, device: torch.device) -> None:
    """torch.func's own transformations of ours give what plain autograd gives."""
    p, x = make(device), _x(device)
    numbers = numbers_of(p).requires_grad_()

    def by_hand(numbers: Tensor, x: Tensor) -> Tensor:
        return net(with_numbers(p, numbers), x)

    ours, theirs = RAW[outer]
    expected = theirs(lambda n: BY_HAND[inner](by_hand)(n, x))(numbers).detach()
    transformed = OPERATORS[inner](net)
    _agree(ours(lambda n: transformed(with_numbers(p, n), x))(numbers.detach()), expected)
