"""Long graphs on the CPU, which are compiled as one C++ source: nothing but the time of compiling differs."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import purenn as pn
from purenn.transforms._one_source import has_many_loops


def chain(x: Tensor, count: int = 10) -> Tensor:
    """More loops between products than are compiled one by one, each of them another one."""
    for number in range(count):
        x = x @ x
        for _ in range(number):
            x = torch.tanh(x)
    return x


@pytest.mark.slow
def test_values_and_gradients(device: torch.device) -> None:
    """They are those of eager."""
    x = pn.random.normal(pn.random.key(0, device), (4, 4), dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return chain(x).square().sum()

    both = pn.value_and_grad(loss)
    found, expected = pn.jit(both)(x), both(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


@pytest.mark.slow
def test_exceptions_of_kernels(device: torch.device) -> None:
    """An error that one of torch's kernels raises keeps its text."""
    with pytest.raises(RuntimeError, match=r"linalg\.svd: The algorithm failed to converge"):
        pn.jit(lambda x: torch.linalg.svdvals(chain(x) / 0))(torch.zeros(4, 4, device=device))


def test_what_is_compiled_so(device: torch.device) -> None:
    """Graphs of many products with different loops between them; not of a few loops that many equal layers share."""

    def equal_layers(x: Tensor) -> Tensor:
        for _ in range(30):
            x = torch.tanh(x @ x)
        return x

    def lu(x: Tensor) -> Tensor:
        return chain(torch.linalg.lu_factor(x)[0])

    x = torch.zeros(4, 4, device=device)
    written = [make_fx(f, tracing_mode="fake")(x) for f in (lambda x: chain(x), equal_layers, lu)]
    assert [has_many_loops(graph) for graph in written] == [True, False, False]
