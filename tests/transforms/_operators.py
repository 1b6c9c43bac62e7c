"""Every transformation as an operator on functions ``(model, x) -> vector``, and the same written by hand.

All functions return vectors, so any two operators can be nested. What is written by hand works on the vector of the
model's trainable numbers: loops, and `torch.autograd` with one backward pass for each row.
"""

from collections.abc import Callable

import optree
import torch
from _transform_models import DOUBLE, Net
from torch import Tensor

import purenn as pn

Function = Callable[[Net, Tensor], Tensor]
ByHand = Callable[[Tensor, Tensor], Tensor]


def _weights(n: int, like: Tensor) -> Tensor:
    return torch.cos(torch.arange(n, dtype=DOUBLE, device=like.device))


def _number(y: Tensor) -> Tensor:
    # One number of a vector, with a second derivative.
    return (_weights(len(y), y) * y).sum() + 0.1 * (y * y).sum()


def _flat(tree: object, rows: int = 0) -> Tensor:
    # The leaves of a gradient (or of a Jacobian with some leading axes) in one vector.
    return torch.cat([leaf.flatten(rows) for leaf in optree.tree_leaves(tree)], rows).flatten()


def _shifted(x: Tensor) -> Tensor:
    return torch.stack([x, x + 0.3])


def _direction(p: Net, x: Tensor) -> Net:
    trained = pn.tree.partition(p)[0]
    sizes = [leaf.numel() for leaf in optree.tree_leaves(trained)]
    parts = iter(_weights(sum(sizes), x).split(sizes))
    return pn.tree.map(lambda leaf: next(parts).reshape(leaf.shape), trained)


def _value_and_grad(f: Function) -> Function:
    both = pn.value_and_grad(lambda p, x: _number(f(p, x)))

    def run(p: Net, x: Tensor) -> Tensor:
        value, gradient = both(p, x)
        return torch.cat([value[None], _flat(gradient)])

    return run


def _vjp(f: Function) -> Function:
    def run(p: Net, x: Tensor) -> Tensor:
        y, pull = pn.vjp(lambda p: f(p, x), p)
        return torch.cat([y, _flat(pull(_weights(len(y), y)))])

    return run


def _jvp(f: Function) -> Function:
    return lambda p, x: torch.cat(pn.jvp(lambda p: f(p, x), (p,), (_direction(p, x),)))


def _hessian(f: Function) -> Function:
    def run(p: Net, x: Tensor) -> Tensor:
        blocks = pn.hessian(lambda p: _number(f(p, x)))(p)
        # Every leaf of the outer tree is a tree of [*outer, *inner].
        rows: list[Net] = []
        optree.tree_map(rows.append, blocks, is_leaf=lambda node: isinstance(node, Net) and node is not blocks)
        trained = optree.tree_leaves(pn.tree.partition(p)[0])
        return torch.cat([_flat_rows(row, leaf.dim()) for row, leaf in zip(rows, trained, strict=True)]).flatten()

    return run


def _flat_rows(tree: Net, dims: int) -> Tensor:
    parts = [leaf.flatten(0, dims - 1).flatten(1) for leaf in optree.tree_leaves(tree)]
    return torch.cat(parts, 1)


def scan_of(f: Function, *, remat: bool = False) -> Function:
    """The values of a function for two inputs, by a loop."""

    def run(p: Net, x: Tensor) -> Tensor:
        total, rows = pn.scan(lambda total, x: (total + x.sum(), f(p, x)), x.new_zeros(()), _shifted(x), remat=remat)
        return torch.cat([total[None], rows.flatten()])

    return run


OPERATORS: dict[str, Callable[[Function], Function]] = {
    "grad": lambda f: lambda p, x: _flat(pn.grad(lambda p: _number(f(p, x)))(p)),
    "value_and_grad": _value_and_grad,
    "vjp": _vjp,
    "jvp": _jvp,
    "jacrev": lambda f: lambda p, x: _flat(pn.jacrev(f)(p, x), 1),
    "jacfwd": lambda f: lambda p, x: _flat(pn.jacfwd(f)(p, x), 1),
    "hessian": _hessian,
    "vmap": lambda f: lambda p, x: pn.vmap(f, in_dims=(None, 0))(p, _shifted(x)).flatten(),
    "jit": lambda f: pn.jit(f, backend="eager"),
    "remat": lambda f: pn.remat(f),
    "scan": scan_of,
}

# By hand, on the vector of trainable numbers.


def _gradient(value: Tensor, at: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(at)
    return torch.autograd.grad(value, at, create_graph=True, materialize_grads=True)[0]


def _fresh(numbers: Tensor) -> Tensor:
    # A point to differentiate at, connected to the outer one.
    return numbers * 1 if numbers.requires_grad else numbers.requires_grad_()


def _gradient_by_hand(f: ByHand) -> ByHand:
    def run(numbers: Tensor, x: Tensor) -> Tensor:
        at = _fresh(numbers)
        return _gradient(_number(f(at, x)), at)

    return run


def _rows_by_hand(f: ByHand) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def run(numbers: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        at = _fresh(numbers)
        y = f(at, x)
        return y, torch.stack([_gradient(entry, at) for entry in y])

    return run


def _value_and_grad_by_hand(f: ByHand) -> ByHand:
    gradient = _gradient_by_hand(f)
    return lambda n, x: torch.cat([_number(f(n, x))[None], gradient(n, x)])


def _vjp_by_hand(f: ByHand) -> ByHand:
    def run(numbers: Tensor, x: Tensor) -> Tensor:
        y, rows = _rows_by_hand(f)(numbers, x)
        return torch.cat([y, _weights(len(y), y) @ rows])

    return run


def _jvp_by_hand(f: ByHand) -> ByHand:
    def run(numbers: Tensor, x: Tensor) -> Tensor:
        y, rows = _rows_by_hand(f)(numbers, x)
        return torch.cat([y, rows @ _weights(len(numbers), y)])

    return run


def _looped(f: ByHand) -> ByHand:
    return lambda n, x: torch.cat([f(n, row) for row in _shifted(x)])


def _jacobian_by_hand(f: ByHand) -> ByHand:
    return lambda n, x: _rows_by_hand(f)(n, x)[1].flatten()


BY_HAND: dict[str, Callable[[ByHand], ByHand]] = {
    "grad": _gradient_by_hand,
    "value_and_grad": _value_and_grad_by_hand,
    "vjp": _vjp_by_hand,
    "jvp": _jvp_by_hand,
    "jacrev": _jacobian_by_hand,
    "jacfwd": _jacobian_by_hand,
    "hessian": lambda f: _jacobian_by_hand(_gradient_by_hand(f)),
    "vmap": _looped,
    "jit": lambda f: f,
    "remat": lambda f: f,
    "scan": lambda f: lambda n, x: torch.cat([_shifted(x).sum()[None], _looped(f)(n, x)]),
}


def numbers_of(p: Net) -> Tensor:
    """The trainable numbers of a model as a vector."""
    return torch.cat([leaf.flatten() for leaf in optree.tree_leaves(pn.tree.partition(p)[0])])


def with_numbers(p: Net, numbers: Tensor) -> Net:
    """The model with other trainable numbers."""
    trained, rest = pn.tree.partition(p)
    leaves, spec = optree.tree_flatten(trained)
    parts = numbers.split([leaf.numel() for leaf in leaves])
    new = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return pn.tree.combine(optree.tree_unflatten(spec, new), rest)
