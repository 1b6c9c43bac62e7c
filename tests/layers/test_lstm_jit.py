"""The LSTM under pn.jit in float32, where torch's kernel is an operation of the graph: all as it is without jit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn import layers

TOLERANCE = 1e-4  # of float32 and second derivatives of sums
BOTH_WAYS = {"bidirectional": True, "bias": False, "batch_first": True}


def loss(p: layers.LSTM, x: Tensor) -> Tensor:
    """One number, of all results."""
    y, (h, c) = layers.lstm(p, x)
    return y.sin().sum() + (h * c).sum()


def squares(tree: Any) -> Tensor:
    """The sum of the squares of all leaves."""
    return torch.stack([leaf.square().sum() for leaf in pn.tree.leaves(tree)]).sum()


def per_example(p: layers.LSTM, x: Tensor) -> Any:
    """The gradient of each example's loss."""
    return pn.vmap(pn.grad(loss), (None, 0))(p, x)


FUNCTIONS: dict[str, Callable[[Any, Any, Tensor], Any]] = {
    "forward": lambda p, _, x: layers.lstm(p, x[0]),
    "gradient": lambda p, _, x: pn.grad(loss, (0, 1))(p, x[0]),
    "examples": lambda p, _, x: pn.vmap(lambda x: layers.lstm(p, x))(x),
    "gradients of examples": lambda p, _, x: per_example(p, x),
    "gradients of an ensemble": lambda _, many, x: pn.vmap(pn.grad(loss), (0, None))(many, x[0]),
    "second derivative": lambda p, _, x: pn.grad(lambda p: squares(pn.grad(loss)(p, x[0])))(p),
    "gradient through gradients": lambda p, _, x: pn.grad(lambda p: squares(per_example(p, x)))(p),
    "forward mode": lambda p, _, x: pn.jvp(lambda x: loss(p, x), (x[0] + 0,), (x[1],)),
    "forward over reverse": lambda p, _, x: pn.jvp(lambda x: pn.grad(loss, 1)(p, x), (x[0] + 0,), (x[1],)),
}


def model(device: torch.device, options: dict[str, Any], seed: int = 0) -> layers.LSTM:
    """A small one in float32."""
    return layers.LSTM.init(pn.random.key(seed, device), 4, 3, **options)


CASES = [(name, {}) for name in FUNCTIONS] + [(name, BOTH_WAYS) for name in ("forward", "gradient")]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_jit_changes_nothing(name: str, options: dict[str, Any], device: torch.device) -> None:
    """Values and derivatives of every kind are those without jit."""
    p, many = model(device, options), pn.tree.stack([model(device, options, seed) for seed in (1, 2)])
    x = torch.randn(2, 5, 2, 4, generator=torch.Generator().manual_seed(0)).to(device)
    function = FUNCTIONS[name]
    found, expected = pn.jit(function, backend="eager")(p, many, x), function(p, many, x)
    assert pn.tree.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_gradients_from_outside(device: torch.device) -> None:
    """A jitted loss can be differentiated by autograd around it."""
    p = pn.tree.map(lambda leaf: leaf.requires_grad_(), model(device, BOTH_WAYS))
    x = torch.randn(5, 2, 4, device=device)
    jitted = pn.jit(loss, backend="aot_eager")
    found, expected = (torch.autograd.grad(call(p, x), pn.tree.leaves(p)) for call in (jitted, loss))
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_the_kernel_is_used_where_it_can_be(device: torch.device) -> None:
    """On the CPU in float32 the graph has the kernel; with lengths, projections, in float64 it has the loop."""
    p, x = model(device, {}), torch.randn(5, 2, 4, device=device)
    lengths = torch.tensor([3, 5], device=device)

    def operations(p: layers.LSTM, x: Tensor, **more: Any) -> set[str]:
        lowered = pn.jit(lambda p, x: layers.lstm(p, x, **more), backend="eager").lower(p, x)
        return {node.target.name() for node in lowered.graph.graph.nodes if hasattr(node.target, "namespace")}

    kernel = "purenn::lstm" if device.type == "cpu" else "purenn::scan"
    assert kernel in operations(p, x)
    assert "purenn::scan" in operations(p, x, lengths=lengths)
    assert "purenn::scan" in operations(pn.tree.to(p, torch.float64), x.double())
    assert "purenn::scan" in operations(model(device, {"proj_size": 2}), x)
