"""Normalisation under transformations: statistics are pure, and second derivatives through vmap are right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _norms import NORMS, numbers, randomised
from _reference import same, weights_like
from _transformations import check_purity, check_transformations
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import purenn as pn
from purenn import layers


@pytest.mark.parametrize("name", NORMS)
def test_transformations(name: str, device: torch.device) -> None:
    """Every norm is right under vmap, vmap(grad), grad(vmap(grad)), jvp, tracing and compilation, buffers included."""
    make, apply, shape = NORMS[name]
    check_transformations(
        lambda seed: pn.tree.to(randomised(make(), seed), device), apply, numbers(3, *shape, device=device)
    )


def meta_learning(name: str, device: torch.device, *, steps: int) -> tuple[Callable, Callable, tuple[Tensor, ...]]:
    """Inner gradient steps of three tasks on a linear map before a norm and on all of the norm's floating leaves.

    Returns:
        The meta-gradient by grad of vmap of grad, the same by plain autograd and a loop, and the arguments of both.
    """
    make, apply, shape = NORMS[name]
    p = pn.tree.to(randomised(make()), device)
    floats = {name: leaf for name, leaf in pn.tree.named_leaves(p) if leaf.is_floating_point()}
    whole = {name: leaf for name, leaf in pn.tree.named_leaves(p) if name not in floats}
    start = (numbers(shape[-1], shape[-1], seed=7, device=device) / 10, *floats.values())
    tasks = numbers(3, *shape, device=device) / 5

    def loss(values: tuple[Tensor, ...], x: Tensor, whole: dict[str, Tensor]) -> Tensor:
        mix, *given = values
        y = apply(pn.replace(p, **dict(zip(floats, given, strict=True)), **whole), x @ mix)
        return (torch.sin(y) * weights_like(y)).sum()

    def adapted(
        gradient: Callable[..., Any], values: tuple[Tensor, ...], x: Tensor, whole: dict[str, Tensor]
    ) -> Tensor:
        for _ in range(steps):
            values = tuple(v - 0.05 * g for v, g in zip(values, gradient(values, x, whole), strict=True))
        return loss(values, x, whole)

    def by_transformations(start: tuple[Tensor, ...], tasks: Tensor, whole: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return grad(lambda v: vmap(lambda x: adapted(grad(loss), v, x, whole))(tasks).sum())(start)

    def by_autograd(values: tuple[Tensor, ...], x: Tensor, whole: dict[str, Tensor]) -> tuple[Tensor, ...]:
        value = loss(values, x, whole)
        return torch.autograd.grad(value, values, create_graph=True, allow_unused=True, materialize_grads=True)

    def by_loop(start: tuple[Tensor, ...], tasks: Tensor, whole: dict[str, Tensor]) -> tuple[Tensor, ...]:
        watched = tuple(value.detach().requires_grad_() for value in start)
        total = sum(adapted(by_autograd, watched, x, whole) for x in tasks)
        return torch.autograd.grad(total, watched, allow_unused=True, materialize_grads=True)

    return by_transformations, by_loop, (start, tasks, whole)


@pytest.mark.parametrize("name", NORMS)
def test_meta_gradient_equals_a_loop(name: str, device: torch.device) -> None:
    """The gradient through two inner gradient steps of many tasks under vmap is that of a loop of plain autograd."""
    by_transformations, by_loop, args = meta_learning(name, device, steps=2)
    same(by_transformations(*args), by_loop(*args), tolerance=1e-9)


@pytest.mark.parametrize("name", NORMS)
def test_meta_gradient_traces(name: str, device: torch.device) -> None:
    """The same gradient is right when it is traced into a graph."""
    by_transformations, by_loop, args = meta_learning(name, device, steps=1)
    graph = make_fx(by_transformations, tracing_mode="fake")(*args)
    same(graph(*args), by_loop(*args), tolerance=1e-9)


@pytest.mark.parametrize("name", ["batch, training", "instance, averages", "layer", "group"])
def test_meta_gradient_compiles(name: str, device: torch.device) -> None:
    """The same gradient is right in a compiled function."""
    by_transformations, by_loop, args = meta_learning(name, device, steps=1)
    torch.compiler.reset()
    same(torch.compile(by_transformations, fullgraph=True, backend="aot_eager")(*args), by_loop(*args), tolerance=1e-9)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NORMS)
def test_half_precision(name: str, half: torch.dtype, device: torch.device) -> None:
    """Inputs of half precision give outputs of half precision, computed in float32, under vmap as without it."""
    make, apply, shape = NORMS[name]
    p = pn.tree.to(make(), device)
    x = (numbers(2, *shape, device=device) / 4).to(half)
    function = apply if not name.startswith(("batch", "instance", "running")) else _output_only(name)
    eager = torch.stack([function(p, example) for example in x])
    exact = torch.stack([function(p, example.float()) for example in x])
    batched = vmap(lambda x: function(p, x))(x)
    same(batched.float(), eager.float(), tolerance=0.02)
    same(eager.float(), exact, tolerance=0.02)
    assert batched.dtype == eager.dtype


def _output_only(name: str) -> Callable[[Any, Tensor], Tensor]:
    function = {"b": layers.batch_norm, "i": layers.instance_norm, "r": layers.running_norm}[name[0]]
    return lambda p, x: function(p, x, train="evaluation" not in name)[0]


@pytest.mark.parametrize("name", NORMS)
def test_purity(name: str, device: torch.device) -> None:
    """No argument changes, and the same arguments give the same result and the same new buffers."""
    make, _, shape = NORMS[name]
    p = pn.tree.to(randomised(make()), device)
    options = {"train": True} if pn.is_stateful(p) else {}
    check_purity(lambda p, x: p(x, **options), p, numbers(*shape, device=device))


def test_an_ensemble_has_statistics_of_its_own(device: torch.device) -> None:
    """vmap over stacked models returns a stack of new containers, one per model."""
    models = [randomised(layers.BatchNorm1d.init(3, device=device), seed) for seed in range(3)]
    x = numbers(3, 4, 3, device=device)
    y, new = vmap(lambda p, x: layers.batch_norm(p, x, train=True))(pn.tree.stack(models), x)
    for i, p in enumerate(models):
        expected, one = layers.batch_norm(p, x[i], train=True)
        same(y[i], expected)
        same(new.running_var[i], one.running_var)
        assert new.num_batches_tracked[i] == 1
