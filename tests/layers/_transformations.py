"""The table of promises that every layer keeps under function transformations, shared by all families.

`check_transformations` holds torch's transformations against a loop of plain autograd, in float64. The tests turn
warnings into errors, so an operation that has no batching rule fails here as well.
"""

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

TOLERANCE = 1e-9
Function = Callable[..., Tensor]


def check_transformations(
    make: Callable[[int], Any], apply: Callable[[Any, Tensor], Tensor], inputs: Tensor, *, compile: bool = True
) -> None:
    """Check purity, vmap, vmap(grad), grad(vmap(grad)), jvp, forward over reverse, tracing and compilation.

    Args:
        make: gives a model for a number, with float64 tensors; the models of all numbers have the same structure.
        apply: the layer's function, or what makes one float64 tensor of its result.
        inputs: as many inputs as there shall be models, stacked. Whole numbers are not differentiated.
        compile: whether to check `torch.compile` as well.
    """
    models = [make(seed) for seed in range(len(inputs))]
    leaves, structure = zip(*map(optree.tree_flatten, models), strict=True)

    def call(x: Tensor, *leaves: Tensor) -> Tensor:
        return apply(optree.tree_unflatten(structure[0], leaves), x)

    check_purity(apply, models[0], inputs[0])
    stacked = (inputs, *(torch.stack(same) for same in zip(*leaves, strict=True)))
    one = tuple(value[0] for value in stacked)
    models_only, inputs_only = (None, *(0 for _ in one[1:])), (0, *(None for _ in one[1:]))
    for axes in [inputs_only, models_only, tuple(0 for _ in one)] if one[1:] else [inputs_only]:
        args = tuple(value if axis == 0 else value[0] for value, axis in zip(stacked, axes, strict=True))
        _check_batching(call, args, axes)
    _check_forward_mode(call, one)
    _same([make_fx(call, tracing_mode="fake")(*one)(*one)], [call(*one)])
    if compile:
        torch.compiler.reset()
        _same([torch.compile(apply, fullgraph=True, backend="aot_eager")(models[0], inputs[0])], [call(*one)])


def check_purity(apply: Callable[..., Any], *args: Any) -> None:
    """Check that a call changes no bit of its arguments, and that a second call gives the same result."""
    before = [leaf.clone() for leaf in optree.tree_leaves(args)]
    first, second = apply(*args), apply(*args)
    for old, new in zip(before, optree.tree_leaves(args), strict=True):
        assert torch.equal(old, new)
    for one, other in zip(optree.tree_leaves(first), optree.tree_leaves(second), strict=True):
        assert torch.equal(one, other)


def _check_batching(call: Function, args: tuple[Tensor, ...], axes: tuple[int | None, ...]) -> None:
    size = next(len(value) for value, axis in zip(args, axes, strict=True) if axis == 0)

    def parts(args: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        return [
            tuple(value[i] if axis == 0 else value for value, axis in zip(args, axes, strict=True)) for i in range(size)
        ]

    floats = _floats(args)
    inner = grad(_loss(call), argnums=floats)
    _same([vmap(call, in_dims=axes)(*args)], [torch.stack([call(*part) for part in parts(args)])])
    by_loop = [_gradient(call, part) for part in parts(args)]
    _same(vmap(inner, in_dims=axes)(*args), [torch.stack(same) for same in zip(*by_loop, strict=True)])

    def outer(*args: Tensor) -> Tensor:
        return sum(_scalar(value) for value in vmap(inner, in_dims=axes)(*args))  # type: ignore[return-value]

    def outer_by_loop(*args: Tensor) -> Tensor:
        return sum(
            _scalar(torch.stack(same)) for same in zip(*(_gradient(call, part) for part in parts(args)), strict=True)
        )  # type: ignore[return-value]

    _same(grad(outer, argnums=floats)(*args), _plain_gradient(outer_by_loop, args))


def _check_forward_mode(call: Function, args: tuple[Tensor, ...]) -> None:
    floats = _floats(args)
    tangents = tuple(_direction(args[i]) for i in floats)
    primals = tuple(args[i] for i in floats)

    def of_floats(*values: Tensor) -> Tensor:
        given = list(args)
        for i, value in zip(floats, values, strict=True):
            given[i] = value
        return call(*given)

    # <u, J v> = <J^T u, v>, and the same for the derivative of the gradient.
    y, along = jvp(of_floats, primals, tangents)
    pulled = _plain_gradient(lambda *v: (of_floats(*v) * _direction(y)).sum(), primals)
    _same([(along * _direction(y)).sum()], [_inner(pulled, tangents)])
    argnums = tuple(range(len(floats)))
    _, along = jvp(grad(_loss(of_floats), argnums=argnums), primals, tangents)
    pulled = _plain_gradient(lambda *v: _inner(_gradient(of_floats, v), tangents), primals)
    _same(along, pulled)
    copies = tuple(torch.stack((value, value)) for value in (*primals, *tangents))
    batched = vmap(lambda *v: jvp(of_floats, v[: len(floats)], v[len(floats) :])[1])(*copies)
    _same([batched[1]], [jvp(of_floats, primals, tangents)[1]])


def _loss(call: Function) -> Function:
    return lambda *args: _scalar(call(*args))


def _scalar(y: Tensor) -> Tensor:
    # Neither symmetric nor constant on normalised values, and curved, so that no derivative vanishes by accident.
    return (torch.sin(y) * _direction(y)).sum()


def _direction(value: Tensor) -> Tensor:
    return torch.linspace(1, 2, value.numel(), dtype=value.dtype, device=value.device).reshape(value.shape)


def _floats(args: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(i for i, value in enumerate(args) if value.is_floating_point())


def _gradient(call: Function, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # By plain autograd, with a graph, so that it can be differentiated again.
    given = [
        value if value.requires_grad or not value.is_floating_point() else value.detach().requires_grad_()
        for value in args
    ]
    wanted = [value for value in given if value.is_floating_point()]
    found = torch.autograd.grad(_loss(call)(*given), wanted, create_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True))


def _plain_gradient(function: Function, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    given = [value.detach().requires_grad_() if value.is_floating_point() else value for value in args]
    wanted = [value for value in given if value.is_floating_point()]
    value = function(*given)
    if not value.requires_grad:
        return tuple(torch.zeros_like(x) for x in wanted)
    found = torch.autograd.grad(value, wanted, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True))


def _inner(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> Tensor:
    return sum((a * b).sum() for a, b in zip(left, right, strict=True))  # type: ignore[return-value]


def _same(got: Any, expected: Any) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE, check_device=False)
