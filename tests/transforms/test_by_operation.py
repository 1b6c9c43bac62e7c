"""`pn.jit(backend="eager")`: torch's own kernels, without repeated views and with results where operands were."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import purenn as pn
from purenn.layers import LayerNorm, Linear
from purenn.transforms._by_operation import by_operation

_silent_view = torch.ops.aten._unsafe_view  # its schema does not say that it is one


def jitted(fn: Callable[..., Any]) -> tuple[Callable[..., Any], list[str]]:
    """The function as ``backend="eager"`` makes it, and, once it has been called, the names of what it runs."""
    names: list[str] = []

    def backend(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        run = by_operation(graph, inputs)
        targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        names.extend([getattr(target, "_opname", getattr(target, "__name__", "")) for target in targets])
        return run

    return pn.jit(fn, backend=backend), names


def test_repeated_views(device: torch.device) -> None:
    """A view that shows what an earlier one shows, or what the whole shows, is not taken."""
    x, w = torch.randn(4, 3, device=device), torch.randn(3, 2, device=device)
    f, names = jitted(lambda x, w: x[:, None].view(4, 3).detach().mm(w) + x.mm(w.t().t()) + x.t().mT.sum(1)[:, None])
    torch.testing.assert_close(f(x, w), 2 * (x @ w) + x.sum(1, keepdim=True))
    assert names == ["mm", "mm", "add_", "sum", "unsqueeze", "add_"]


def test_views_that_differ(device: torch.device) -> None:
    """Equal shapes are no equal views: pieces, several results of one operation, and places of as_strided."""

    def f(x: Tensor) -> tuple[Tensor, ...]:
        one, other = x.chunk(2)
        _, mean, inverse = torch.native_layer_norm(x, [3], None, None, 1e-5)
        return one * other, mean - inverse, x.as_strided((3,), (1,), 3) + x[1]

    x, _ = torch.randn(7, 3, device=device).split((4, 3))
    run = pn.jit(f, backend="eager")
    torch.testing.assert_close(run(x), f(x), rtol=0, atol=0)
    # Where an argument lies in its memory is not part of the key, but as_strided counts from there.
    later = torch.randn(7, 3, device=device)[2:6]
    torch.testing.assert_close(run(later), f(later), rtol=0, atol=0)


def test_over_operands(device: torch.device) -> None:
    """A result is written over an operand that nobody needs any more, whichever of the two summands it is."""
    x = torch.randn(4, 4, device=device)
    f, names = jitted(lambda x: (x + (x.mm(x) * 2)).relu())
    torch.testing.assert_close(f(x), (x + (x.mm(x) * 2)).relu())
    assert names == ["mm", "mul_", "add_", "relu_"]


@pytest.mark.parametrize(
    ("fn", "operations"),
    [
        (lambda x: x * 2, ["mul"]),  # an argument
        (lambda x: x.t().mul(2), ["t", "mul"]),  # a view of one
        (lambda x: (y := x.mm(x), y * 2), ["mm", "mul"]),  # a result
        (lambda x: (y := x.mm(x), y.t(), y * 2)[1:], ["mm", "t", "mul"]),  # what a result is a view of
        (lambda x: (y := x.mm(x)).mul(2).mm(y), ["mm", "mul", "mm"]),  # needed later
        (lambda x: (y := x.mm(x)).mul(2) + y.t(), ["mm", "mul", "t", "add_"]),  # by a view of it
        (lambda x: (y := x.mm(x)) * y, ["mm", "mul"]),  # read twice
        (lambda x: (y := x.mm(x)) - y.t(), ["mm", "t", "sub"]),  # read at other places, too
        (lambda x: x.sum(0).expand(4, 4) * x, ["sum", "expand", "mul"]),  # one number for many
        (lambda x: x.mm(x) > 0, ["mm", "gt"]),  # of another dtype
        (lambda x: x.mm(x).sum(0) + x, ["mm", "sum", "add"]),  # of another shape
        (lambda x: torch.where(x > 0, x.mm(x), x).cumsum(0), ["gt", "mm", "where", "cumsum_"]),
        (
            lambda x: torch.ops.aten._unsafe_view(y := x.mm(x), [16]).mul(2).sum() - y,
            ["mm", "_unsafe_view", "mul", "sum", "sub"],
        ),
    ],
)
def test_operands_that_are_needed(device: torch.device, fn: Callable[[Tensor], Any], operations: list[str]) -> None:
    """Nothing is written over that somebody still sees, or that has another layout; arguments never."""
    x = torch.randn(4, 4, device=device)
    before = x.clone()
    f, names = jitted(fn)
    for _ in range(2):
        torch.testing.assert_close(f(x), fn(x))
        torch.testing.assert_close(x, before, rtol=0, atol=0)
    assert names == operations


def test_results_are_tensors_of_their_own(device: torch.device) -> None:
    """A result that shows what an argument shows is another tensor, as it is without `pn.jit`."""
    x = torch.randn(3, device=device)
    f = pn.jit(lambda x: (x.detach(), x.view(3)), backend="eager")
    one, other = f(x)
    assert len({id(x), id(one), id(other)}) == 3
    assert one.data_ptr() == other.data_ptr() == x.data_ptr()


def test_differentiated_from_outside(device: torch.device) -> None:
    """Where an argument requires grad, the graph runs as it was traced, and autograd sees it."""
    w = torch.randn(3, 3, device=device, dtype=torch.float64, requires_grad=True)

    def f(w: Tensor) -> Tensor:
        return (w.mm(w).relu() * w.detach()).sum()

    found, wanted = (torch.autograd.grad(fn(w), w) for fn in (pn.jit(f, backend="eager"), f))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_writes_of_the_function(device: torch.device) -> None:
    """What a function writes into tensors of its own is seen by all their views, before and after."""

    def f(x: Tensor) -> tuple[Tensor, ...]:
        y = x.mm(x)
        before = y.view(16).sum()
        y[0].add_(1)
        row = y.t()[:, 0] * 3
        y.mul_(2)
        rows = torch.tensor([1, 1], device=x.device)
        return before, row, y.view(16).clone(), torch.zeros(4, 4, device=x.device).index_add(0, rows, y[:2])

    x = torch.randn(4, 4, device=device)
    torch.testing.assert_close(pn.jit(f, backend="eager")(x), f(x), rtol=0, atol=0)


def test_sparse_tensors(device: torch.device) -> None:
    """Nothing is written over tensors that have no strides."""

    def f(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return y + x * 2, y * 2 + x, (x * 2).to_dense() * y, (x + x) * 3

    x, y = torch.tensor([0.0, 1.0, 2.0, 3.0], device=device).to_sparse(), torch.randn(4, device=device)
    torch.testing.assert_close(pn.jit(f, backend="eager")(x, y), f(x, y))


def test_per_sample(device: torch.device) -> None:
    """A clipped sum runs the products and passes that it consists of, and few views."""
    k = pn.random.split(pn.random.key(0, device), 3)
    p = {"norm": LayerNorm.init(6), "in": Linear.init(k[0], 6, 8), "out": Linear.init(k[1], 8, 1)}
    p = pn.tree.to(p, torch.float64, device=device)
    x = pn.random.normal(k[2], (5, 3, 6), dtype=torch.float64)

    def loss(p: dict[str, Any], x: Tensor) -> Tensor:
        return p["out"](p["in"](p["norm"](x)).relu()).square().sum()

    clipped = pn.per_sample.clipped_grad(loss, 0.5)
    f, names = jitted(clipped)
    assert pn.tree.allclose(f(p, (x,)), clipped(p, (x,)), rtol=0, atol=1e-12)
    assert "detach" not in names
    assert names.count("addmm") == 2
