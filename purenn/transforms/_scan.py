"""Loops over the leading axis of trees, written once and compiled once."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError, TransformError
from purenn.transforms._carry import is_alike, require_alike, require_tensors
from purenn.transforms._close import close
from purenn.transforms._graph import fake_mode
from purenn.transforms._like import Like
from purenn.transforms._operation import empty
from purenn.transforms._program import Tracing, current_tracing, tracing_for, writes_programs
from purenn.transforms._remat import remat as rematerialised
from purenn.transforms._scan_op import scan_tensors
from purenn.tree._checks import require_function
from purenn.tree._walk import Structure, flatten, quoted, same_structure, short, unflatten

C = TypeVar("C")
Body = Callable[[C, Any], tuple[C, Any]]


def scan(
    body: Body[C],
    carry: C,
    xs: Any = None,
    length: int | None = None,
    *,
    reverse: bool = False,
    remat: bool = False,
    unroll: bool | int = False,
) -> tuple[C, Any]:
    """Run a body over the leading axis of a tree, handing a value on from step to step.

    It is ``for x in xs: carry, y = body(carry, x)`` with the results ``y`` stacked. In eager it is just that loop.
    Under `pn.jit` the body is traced and compiled once, however many steps there are.

    Args:
        body: ``body(carry, x) -> (carry, y)``. The new carry must look like the old one; ``y`` is any tree of tensors
            or None. It may close over tensors and whole models, which are differentiated and batched as well.
        carry: the first value, a tree of tensors.
        xs: a tree whose tensors share the length of their leading axis (other leaves go to every step as they are), or
            None.
        length: the number of steps; only needed if `xs` has no tensors.
        reverse: whether to go from the last entry to the first. The stacked results stay in the order of `xs`.
        remat: whether gradients keep only the carry of each step and compute the rest again: always under `pn.jit`, in
            eager where `pn.remat` does.
        unroll: how many steps `pn.jit` writes out to one that it compiles, or True for all: longer to compile, and
            faster where steps are small. Default: False, one.

    Returns:
        The last carry and the stacked results.

    Raises:
        ShapeError: the leading axes differ, or a tensor has none.
        StructureError: the new carry does not look like the old one, or a result not like that of the first step.
        ArgumentError: there is nothing that says how many steps there are, `unroll` is no number of steps, or another
            option is no bool.
        TransformError: the body returns no pair.

    Example:
        >>> import torch, purenn as pn
        >>> pn.scan(lambda total, x: (total + x, total), torch.tensor(0), torch.arange(1, 5))
        (tensor(10), tensor([0, 1, 3, 6]))
    """
    require_function("scan", body)
    require_tensors("scan", carry)
    for option, value in (("reverse", reverse), ("remat", remat)):
        if not isinstance(value, bool):
            raise ArgumentError(f"scan: {option} must be True or False, got {value!r}.")
    leaves, structure = flatten(xs)
    steps = _length(leaves, structure, length)
    group = _group(unroll)
    if not steps or (writes_programs() and group == 1):
        return _as_operation(body, carry, leaves, structure, steps, reverse=reverse, remat=remat)
    if writes_programs() and group < steps:
        return _in_groups(body, carry, leaves, structure, steps, int(group), reverse=reverse, remat=remat)
    step = rematerialised(body) if remat else body
    rows = [leaf.unbind(0) if isinstance(leaf, Tensor) else [leaf] * steps for leaf in leaves]
    start = carry
    results: list[tuple[list[Any], Any]] = []
    for n in range(steps - 1, -1, -1) if reverse else range(steps):
        carry, y = _pair(step(carry, structure.rebuild([row[n] for row in rows])))
        if not results:
            _require_alike(start, carry)
        results.append(optree.tree_flatten(y))
        _require_same_kind(results[0], results[-1])
    _require_alike(start, carry)
    _, spec = results[0]
    columns = zip(*[values for values, _ in (reversed(results) if reverse else results)], strict=True)
    stacked = [torch.stack(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    return carry, unflatten(spec, stacked)


def _require_same_kind(one: tuple[list[Any], Any], other: tuple[list[Any], Any]) -> None:
    if not same_structure(one[1], other[1]) or not all(map(is_alike, one[0], other[0])):
        first, second = (unflatten(spec, values) for values, spec in (one, other))
        require_alike("scan", first, second, "that of its first step", "what the body collects")


def _group(unroll: bool | int) -> float:
    if not isinstance(unroll, int) or (unroll < 1 and unroll is not False):
        raise ArgumentError(f"scan: unroll must be True, False or a number of steps of at least 1, got {unroll!r}.")
    return math.inf if unroll is True else max(unroll, 1)


def _in_groups(
    body: Body[C],
    carry: C,
    leaves: list[Any],
    structure: Structure,
    length: int,
    size: int,
    *,
    reverse: bool,
    remat: bool,
) -> tuple[C, Any]:
    # As many steps as make whole groups are a loop over groups that are written out, those that remain are written out.
    groups, others = divmod(length, size)

    def part(start: int, count: int, *shape: int) -> Any:
        parts = [x.narrow(0, start, count) if isinstance(x, Tensor) else x for x in leaves]
        return structure.rebuild([x.unflatten(0, shape) if shape and isinstance(x, Tensor) else x for x in parts])

    def group(carry: C, rows: Any) -> tuple[C, Any]:
        return scan(body, carry, rows, size, reverse=reverse, unroll=True)

    def whole(carry: C) -> tuple[C, Any]:
        xs = part(0, groups * size, groups, size)
        carry, ys = scan(group, carry, xs, groups, reverse=reverse, remat=remat)
        return carry, optree.tree_map(lambda y: y.flatten(0, 1) if isinstance(y, Tensor) else y, ys)

    def remaining(carry: C) -> tuple[C, Any]:
        return scan(body, carry, part(groups * size, others), others, reverse=reverse, remat=remat, unroll=True)

    stages, results = [whole, remaining] if others else [whole], []
    for stage in reversed(stages) if reverse else stages:
        carry, ys = stage(carry)
        results.append(ys)
    if not others:
        return carry, results[0]
    first, last = reversed(results) if reverse else results
    return carry, optree.tree_map(lambda a, b: torch.cat([a, b]) if isinstance(a, Tensor) else a, first, last)


def _as_operation(
    body: Body[Any], carry: Any, leaves: list[Any], structure: Structure, length: int, *, reverse: bool, remat: bool
) -> tuple[Any, Any]:
    first, carry_spec = optree.tree_flatten(carry)
    xs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    outcome: dict[str, Any] = {}

    def step(state: list[Tensor], rows: list[Tensor], _: list[Tensor]) -> list[Tensor]:
        entries = iter(rows)
        x = structure.rebuild([next(entries) if isinstance(leaf, Tensor) else leaf for leaf in leaves])
        before = unflatten(carry_spec, state)
        new, y = _pair(body(before, x))
        _require_alike(before, new)
        results, outcome["spec"] = optree.tree_flatten(y)
        outcome["constants"] = [None if isinstance(leaf, Tensor) else leaf for leaf in results]
        return [*optree.tree_leaves(new), *(leaf for leaf in results if isinstance(leaf, Tensor))]

    if current_tracing() is None:
        # No step, in eager: what the results would be like is found by tracing one.
        with tracing_for(Tracing(fake_mode(), lambda graph, _: graph, "")):
            made, _ = close(
                "scan",
                lambda *t: step(list(t[: len(first)]), list(t[len(first) :]), []),
                [*map(Like.of, first), *map(Like.row, xs)],
            )
        last: list[Tensor] = first
        stacked = [empty(result, 0) for result in made.results[len(first) :]]
    else:
        last, stacked = scan_tensors(step, first, xs, [], length, reverse=reverse, remat=remat)
    remaining = iter(stacked)
    results = [next(remaining) if leaf is None else leaf for leaf in outcome["constants"]]
    return unflatten(carry_spec, last), unflatten(outcome["spec"], results)


def _length(leaves: list[Any], structure: Structure, length: int | None) -> int:
    if not isinstance(length, int | torch.SymInt | None):
        raise ArgumentError(f"scan: length must be an int, got {short(length)}.")
    sizes: dict[int, str] = {} if length is None else {length: f"length={length}"}
    for path, leaf in zip(structure.paths, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.is_nested:
            raise ShapeError(f"scan: {quoted(path)} of xs is nested, its entries differ in shape: pad and mask them.")
        if not leaf.dim():
            raise ShapeError(f"scan: {quoted(path)} of xs is {short(leaf)} and has no leading axis to loop over.")
        sizes.setdefault(len(leaf), f"{quoted(path)} of xs is {short(leaf)}")
        if len(sizes) > 1:
            raise ShapeError(f"scan: the numbers of steps differ: {' but '.join(sizes.values())}.")
    if not sizes:
        raise ArgumentError("scan: nothing says how many steps there are: give xs with tensors, or length.")
    (steps,) = sizes
    if steps < 0:
        raise ArgumentError(f"scan: length must be at least 0, got {steps}.")
    return steps


def _pair(result: Any) -> tuple[Any, Any]:
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TransformError(
            f"scan: the body must return a pair (carry, y), got a {type(result).__name__}. Return (carry, None) if "
            f"there is nothing to collect."
        )
    return result


def _require_alike(before: Any, after: Any) -> None:
    require_alike("scan", before, after, "the one that it gets", "the carry that the body returns")
