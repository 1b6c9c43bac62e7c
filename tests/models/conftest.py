"""What all models promise, as two checks that the tests are given: equality with a module, and transformations."""

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from _reference import numbers, same
from _transformations import check_transformations
from torch import Tensor, nn

import bridge
import purenn as pn

TOLERANCE = 1e-10


def equals_module(p: Any, module: nn.Module, *inputs: Any, tolerance: float = TOLERANCE) -> None:
    """A float64 model and a module have the same names, outputs, gradients and, after training steps, buffers.

    Args:
        p: the model; its tensors are overwritten with the module's.
        module: the reference, whose parameters are overwritten with numbers that hide nothing.
        *inputs: arguments of both; the last one's gradient is compared if it is floating.
        tolerance: largest difference, relative or absolute.
    """
    fill(module)
    carried = bridge.to_module(p)
    # Strict: it fails unless names and shapes are the same. Tied parameters have all their names in both.
    assert carried.load_state_dict(module.state_dict()) is not None
    assert {name: leaf.dtype for name, leaf in carried.state_dict().items()} == {
        name: leaf.dtype for name, leaf in module.state_dict().items()
    }
    stateful = pn.is_stateful(p)
    same(first(p(*inputs)), module.eval()(*inputs), tolerance=tolerance)
    same(carried.eval()(*inputs), module(*inputs), tolerance=tolerance)
    if stateful:
        module.train()
    options = {"train": True} if stateful else {}
    got = pn.grad(lambda p: weighed(first(p(*inputs, **options))))(p)
    parameters = dict(module.named_parameters())
    expected = torch.autograd.grad(weighed(module(*inputs)), list(parameters.values()))
    same(dict(pn.tree.named_leaves(got)), dict(zip(parameters, expected, strict=True)), tolerance=tolerance * 100)
    if stateful:
        # The reference has made one training step by now.
        for step in range(2):
            y, p = p(*inputs, train=True)
            if step:
                same(y, module(*inputs), tolerance=tolerance)
        same(bridge.to_module(p).state_dict(), module.state_dict(), tolerance=tolerance)


def keeps_promises(make: Callable[[int], Any], inputs: Tensor, *, table: bool = True) -> None:
    """A tiny float64 model is pure, batched and differentiated as a loop says, compiled whole, and carried by a module.

    Args:
        make: gives a model for a seed.
        inputs: two inputs, stacked.
        table: whether to check the whole shared table of transformations, and not batched gradients alone.
    """
    p, x = make(0), inputs[0]
    options = {"train": True} if pn.is_stateful(p) else {}

    def apply(p: Any, x: Tensor) -> Tensor:
        y = first(p(x, **options))
        return y if isinstance(y, Tensor) else torch.cat([part.flatten() for part in y])

    if table:
        check_transformations(make, apply, inputs, compile=False)
    gradient = pn.grad(lambda p, x: weighed(apply(p, x)))
    rows = pn.vmap(gradient, (None, 0))(p, inputs)
    assert pn.tree.allclose(rows, pn.tree.stack([gradient(p, x) for x in inputs]), rtol=1e-9, atol=1e-9)
    torch.compiler.reset()
    compiled = torch.compile(lambda p, x: p(x, **options), fullgraph=True, backend="eager")
    same(optree.tree_leaves(compiled(p, x)), optree.tree_leaves(p(x, **options)), tolerance=1e-12)
    carried = bridge.to_module(p)
    names = [path for path, _ in pn.tree.named_leaves(p)]
    assert set(carried.state_dict()) >= set(names)
    assert {name for name, _ in carried.named_parameters()} <= set(names)
    assert pn.tree.equal(bridge.from_module(carried), p)
    with torch.no_grad():
        same(carried.train(bool(options))(x), first(p(x, **options)), tolerance=0)


def fill(module: nn.Module) -> None:
    """Numbers that are neither constant nor large in all parameters and running averages."""
    with torch.no_grad():
        for seed, (name, value) in enumerate(module.state_dict().items()):
            if not value.is_floating_point():
                continue
            drawn = numbers(*value.shape, seed=seed).to(value)
            if value.dim() > 1:
                value.copy_(drawn / (value.numel() / len(value)) ** 0.5)
            else:
                value.copy_(0.1 * drawn if name.endswith(("bias", "mean")) else 1 + 0.1 * drawn.tanh())


def first(out: Any) -> Any:
    """The output of a model, without its new container."""
    return out[0] if isinstance(out, tuple) and len(out) == 2 and pn.tree.is_container(out[1]) else out


def weighed(y: Tensor) -> Tensor:
    """A curved function of all elements that treats no two alike."""
    return (torch.sin(y) * torch.linspace(1, 2, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)).sum()


@pytest.fixture
def check_equals_module() -> Callable[..., None]:
    """The function `equals_module`."""
    return equals_module


@pytest.fixture
def check_promises() -> Callable[..., None]:
    """The function `keeps_promises`."""
    return keeps_promises
