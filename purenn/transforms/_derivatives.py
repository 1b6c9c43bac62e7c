"""Directional derivatives and whole Jacobians with respect to models."""

import functools
from collections.abc import Callable
from typing import Any

import optree
import torch
import torch.nn.functional as F
from torch import Tensor

from purenn.errors import ArgumentError, GradientError, StructureError
from purenn.transforms._leaves import Argument, Problem, problem, split_aux
from purenn.transforms._loss_formulas import with_formulas
from purenn.transforms._norm_formulas import with_right_norms
from purenn.transforms._translate import translated
from purenn.transforms._vmap import check_chunk_size
from purenn.tree._holes import HOLE
from purenn.tree._map import filled, first_difference, flatten_with_holes
from purenn.tree._walk import fits, short


class _Flat:
    """A call as a function from tensors to tensors, which remembers the structure of its results."""

    def __init__(self, name: str, call: Problem, has_aux: bool, *, real: bool = False) -> None:
        self.name, self.call, self.has_aux, self.real = name, call, has_aux, real
        self.spec: Any = None
        self.rest: tuple[Any, list[Any]] = (None, [])

    def __call__(self, values: list[Tensor]) -> Any:
        out, aux = split_aux(self.name, with_right_norms(self.call, values), self.has_aux)
        leaves, self.spec = optree.tree_flatten(out)
        if not leaves:
            raise GradientError(f"{self.name}: the function must return floating-point tensors, got none in {out!r}.")
        for leaf, path in zip(leaves, optree.tree_paths(out), strict=True):
            if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or (leaf.is_complex() and not self.real)):
                where = f" at {'.'.join(map(str, path))!r}" if path else ""
                complex_ = isinstance(leaf, Tensor) and leaf.is_complex()
                raise GradientError(
                    f"{self.name}: the function must return floating-point tensors, got {short(leaf)}{where}. Return "
                    f"everything else with has_aux=True, as (output, auxiliary)."
                    + (" A complex z can be returned as torch.view_as_real(z)." if complex_ else "")
                )
        if not self.has_aux:
            return leaves
        extra, spec = optree.tree_flatten(aux)
        self.rest = spec, [None if isinstance(leaf, Tensor) else leaf for leaf in extra]
        return leaves, [leaf for leaf in extra if isinstance(leaf, Tensor)]

    def out(self, leaves: Any) -> Any:
        return optree.tree_unflatten(self.spec, list(leaves))

    def aux(self, tensors: Any) -> Any:
        spec, leaves = self.rest
        remaining = iter(tensors)
        return optree.tree_unflatten(spec, [next(remaining) if leaf is None else leaf for leaf in leaves])


def vjp(fn: Callable[..., Any], *primals: Any, has_aux: bool = False) -> tuple[Any, ...]:
    """The value of a function and its vector-Jacobian product, with respect to all of its arguments.

    Args:
        fn: a function of the primals that returns a tree of floating-point tensors.
        *primals: the arguments; trees and tensors. Leaves that are not differentiated (see `pn.grad`) are constants.
        has_aux: whether `fn` returns ``(output, auxiliary)``.

    Returns:
        ``(output, pull)``, with `has_aux` ``(output, pull, auxiliary)``. ``pull(cotangent)`` takes a tree like the
        output and returns the gradient for one primal, the tuple of them for several.

    Raises:
        GradientError: nothing to differentiate, or an output that has no derivative.
        StructureError: a cotangent does not look like the output.
    """
    call = problem("vjp", fn, primals, {}, tuple(range(len(primals))) if len(primals) != 1 else 0)
    flat = _Flat("vjp", call, has_aux)
    with translated("vjp"):
        leaves, pull_flat, *extra = torch.func.vjp(flat, call.values, has_aux=has_aux)
    spec = flat.spec
    output = flat.out(leaves)

    def pull(cotangent: Any) -> Any:
        given, got = optree.tree_flatten(cotangent)
        if not fits(got, spec):
            where, reason = first_difference(output, cotangent, ())
            raise StructureError(
                f"vjp: the cotangent must have the structure of the output; they differ at {where}: {reason}."
            )
        for path, leaf, item in zip(optree.tree_paths(output), leaves, given, strict=True):
            if not _is_direction(item, leaf):
                where = f" at {'.'.join(map(str, path))!r}" if path else ""
                raise StructureError(
                    f"vjp: the cotangent{where} must look like the output, {short(leaf)}, got {short(item)}."
                )
        with translated("vjp"):
            (gradients,) = pull_flat(given)
        return call.derivative(gradients)

    return (output, pull, flat.aux(extra[0])) if has_aux else (output, pull)


def jvp(
    fn: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...], *, has_aux: bool = False
) -> tuple[Any, ...]:
    """The value of a function and its directional derivative.

    Args:
        fn: a function of the primals that returns a tree of floating-point tensors.
        primals: the arguments; trees and tensors.
        tangents: for each argument a tree like it that holds the direction, with `pn.tree.HOLE` in the place of leaves
            that are not differentiated (as in ``pn.tree.partition(p)[0]``); None for an argument that is constant.
        has_aux: whether `fn` returns ``(output, auxiliary)``.

    Returns:
        ``(output, tangent of the output)``, with `has_aux` also the auxiliary output.

    Raises:
        ArgumentError: not as many tangents as primals.
        StructureError: a tangent does not look like its primal.
    """
    if not isinstance(primals, tuple) or not isinstance(tangents, tuple) or len(primals) != len(tangents):
        raise ArgumentError(
            f"jvp: primals and tangents must be tuples of the same length, one tangent for each argument, got "
            f"{_length(primals)} and {_length(tangents)}."
        )
    chosen = tuple(position for position, tangent in enumerate(tangents) if tangent is not None)
    if not chosen:
        raise ArgumentError("jvp: all tangents are None, so there is no direction.")
    call = problem("jvp", fn, primals, {}, chosen)
    flat = _Flat("jvp", call, has_aux)
    with translated("jvp"):
        directions = [
            direction
            for position, argument in zip(chosen, call.arguments, strict=True)
            for direction in _directions(position, argument, primals[position], tangents[position])
        ]
        values = (_apart(call.values),)
        leaves, moved, *extra = with_formulas(lambda: torch.func.jvp(flat, values, (directions,), has_aux=has_aux))
    results = flat.out(leaves), flat.out(moved)
    return (*results, flat.aux(extra[0])) if has_aux else results


def _apart(values: list[Tensor]) -> list[Tensor]:
    # A tangent lies in memory as its primal does, and could not be written where elements share a place (expand).
    return [value.contiguous() if 0 in value.stride() else value for value in values]


def _is_direction(item: Any, like: Tensor) -> bool:
    if not isinstance(item, Tensor) or item.shape != like.shape:
        return False
    return item.is_floating_point() or (item.is_complex() and like.is_complex())


def _length(value: Any) -> str:
    return f"{len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


def _directions(position: int, argument: Argument, primal: Any, tangent: Any) -> list[Tensor]:
    (own, spec), (places, other) = flatten_with_holes(primal), flatten_with_holes(tangent)
    if not fits(spec, other):
        where, reason = first_difference(filled(primal), filled(tangent), ())
        raise StructureError(
            f"jvp: the tangent of argument {position} must have the argument's structure; they differ at {where}: "
            f"{reason}."
        )
    pairs = list(zip(own, places, strict=True))
    if any(mine is HOLE and place is not HOLE for mine, place in pairs):
        raise StructureError(
            f"jvp: the tangent of argument {position} has a leaf where the argument has a hole: put pn.tree.HOLE there."
        )
    places = [place for mine, place in pairs if mine is not HOLE]
    wanted = set(argument.chosen)
    for number, (leaf, place, value) in enumerate(zip(argument.structure.leaves, places, argument.leaves, strict=True)):
        where = f"argument {position}{f', {leaf.path!r}' if leaf.path else ''}"
        if number not in wanted and place is not HOLE:
            raise StructureError(
                f"jvp: {where} is not differentiated and cannot have a tangent: put pn.tree.HOLE there, as "
                f"pn.tree.partition(p)[0] does."
            )
        if number in wanted and not _is_direction(place, value):
            raise StructureError(f"jvp: the tangent of {where} must look like {short(value)}, got {short(place)}.")
    return [places[number] for number in argument.chosen]


def jacrev(
    fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, has_aux: bool = False, chunk_size: int | None = None
) -> Callable[..., Any]:
    """The Jacobian by reverse mode: best where there are fewer outputs than parameters.

    Args:
        fn: returns a tree of floating-point tensors, with `has_aux` ``(output, auxiliary)``.
        argnums: the positional argument to differentiate, or several.
        has_aux: whether `fn` returns an auxiliary output.
        chunk_size: how many rows to compute at a time; all by default.

    Returns:
        A function of the same arguments. It returns the output's tree with, in the place of every tensor, a tree like
        the argument whose leaves have shape ``[*output.shape, *leaf.shape]`` (a tuple of trees for several arguments).

    Raises:
        GradientError: nothing to differentiate, or an output that has no derivative.
    """
    check_chunk_size("jacrev", chunk_size)
    return _jacobian("jacrev", functools.partial(_by_rows, chunk_size=chunk_size), fn, argnums, has_aux)


def jacfwd(fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0, *, has_aux: bool = False) -> Callable[..., Any]:
    """The Jacobian by forward mode: best where there are fewer parameters than outputs. Otherwise as `jacrev`."""
    return _jacobian("jacfwd", _by_columns, fn, argnums, has_aux)


def _jacobian(
    name: str,
    blocks_of: Callable[[_Flat], tuple[Any, ...]],
    fn: Callable[..., Any],
    argnums: int | tuple[int, ...],
    has_aux: bool,
) -> Callable[..., Any]:
    @functools.wraps(fn)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        call = problem(name, fn, args, kwargs, argnums)
        _require_real(name, call)
        flat = _Flat(name, call, has_aux, real=True)
        with translated(name):
            blocks, *extra = blocks_of(flat)
        tree = flat.out([call.derivative(row) for row in blocks])
        return (tree, flat.aux(extra[0])) if has_aux else tree

    return jacobian


def _require_real(name: str, call: Problem) -> None:
    for position, argument in zip(call.positions, call.arguments, strict=True):
        for number in argument.chosen:
            path, value = argument.structure.leaves[number].path, argument.leaves[number]
            if value.is_complex():
                raise GradientError(
                    f"{name}: argument {position}{f', {path!r},' if path else ''} is {short(value)}, but Jacobians are "
                    f"of real tensors: pass torch.view_as_real(z), and make it complex again in the function."
                )


# The two functions below return, for every output, the derivatives with respect to every value, and the tensors of the
# auxiliary output if there is one. They do what torch.func.jacrev and jacfwd do, whose unit vectors torch 2.11 cannot
# trace.


def _by_rows(flat: _Flat, chunk_size: int | None) -> tuple[Any, ...]:
    values = flat.call.values
    outputs, pull, *extra = torch.func.vjp(flat, values, has_aux=flat.has_aux)
    rows = torch.func.vmap(lambda unit: pull(unit)[0], chunk_size=chunk_size)(_unit_vectors(outputs))
    sizes = [output.numel() for output in outputs]
    columns = [
        [block.reshape(output.shape + value.shape) for output, block in zip(outputs, row.split(sizes), strict=True)]
        for value, row in zip(values, rows, strict=True)
    ]
    return [list(blocks) for blocks in zip(*columns, strict=True)], *extra


def _by_columns(flat: _Flat) -> tuple[Any, ...]:
    values = _apart(flat.call.values)

    def push(unit: list[Tensor]) -> tuple[Any, ...]:
        return torch.func.jvp(flat, (values,), (unit,), has_aux=flat.has_aux)[1:]

    moved, *extra = with_formulas(lambda: torch.func.vmap(push)(_unit_vectors(values)))
    sizes = [value.numel() for value in values]
    blocks = [
        [
            block.reshape(block.shape[:-1] + value.shape)
            for value, block in zip(values, along.movedim(0, -1).split(sizes, -1), strict=True)
        ]
        for along in moved
    ]
    return blocks, *([tensor[0] for tensor in tensors] for tensors in extra)


def _unit_vectors(tensors: list[Tensor]) -> list[Tensor]:
    """Each element's direction: for every tensor [number of all elements, *its shape]."""
    total, start, parts = sum(tensor.numel() for tensor in tensors), 0, []
    for tensor in tensors:
        size = tensor.numel()
        unit = torch.eye(size, dtype=tensor.dtype, device=tensor.device)
        parts.append(F.pad(unit, (0, 0, start, total - start - size)).reshape((total, *tensor.shape)))
        start += size
    return parts


def hessian(fn: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """The matrix of second derivatives, forward mode over reverse mode.

    Args:
        fn: returns a real scalar tensor (or a tree of tensors: then one Hessian for each of their elements).
        argnums: the positional argument to differentiate, or several.

    Returns:
        A function of the same arguments. For a scalar and one argument the result is a tree like the argument whose
        leaves are again such trees; the inner leaves have shape ``[*outer.shape, *inner.shape]``.
    """
    return jacfwd(jacrev(fn, argnums), argnums)
