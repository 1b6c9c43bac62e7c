"""Loops over the leading axis of trees, written once and compiled once."""

from collections.abc import Callable
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError, TransformError
from purenn.transforms._carry import require_alike, require_tensors
from purenn.transforms._graph import fake_mode
from purenn.transforms._operation import empty
from purenn.transforms._program import Like, Tracing, close, current_tracing, tracing_for, writes_programs
from purenn.transforms._remat import remat as rematerialised
from purenn.transforms._scan_op import scan_tensors
from purenn.tree._walk import Structure, flatten, quoted, short, unflatten

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
    unroll: bool = False,
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
        unroll: whether `pn.jit` shall write all steps out: longer to compile, faster for a few small steps.

    Returns:
        The last carry and the stacked results.

    Raises:
        ShapeError: the leading axes differ, or a tensor has none.
        StructureError: the new carry does not look like the old one.
        ArgumentError: there is nothing that says how many steps there are.
        TransformError: the body returns no pair.

    Example:
        >>> import torch, purenn as pn
        >>> pn.scan(lambda total, x: (total + x, total), torch.tensor(0), torch.arange(1, 5))
        (tensor(10), tensor([0, 1, 3, 6]))
    """
    require_tensors("scan", carry)
    leaves, structure = flatten(xs)
    steps = _length(leaves, structure, length)
    if not steps or (writes_programs() and not unroll):
        return _as_operation(body, carry, leaves, structure, steps, reverse=reverse, remat=remat)
    step = rematerialised(body) if remat else body
    rows = [leaf.unbind(0) if isinstance(leaf, Tensor) else [leaf] * steps for leaf in leaves]
    results: list[list[Any]] = []
    spec: Any = None
    for n in range(steps - 1, -1, -1) if reverse else range(steps):
        before = carry
        carry, y = _pair(step(carry, structure.rebuild([row[n] for row in rows])))
        if spec is None:
            _require_alike(before, carry)
        values, spec = optree.tree_flatten(y)
        results.append(values)
    columns = zip(*(reversed(results) if reverse else results), strict=True)
    stacked = [torch.stack(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    return carry, unflatten(spec, stacked)


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
    sizes: dict[int, str] = {} if length is None else {length: f"length={length}"}
    for path, leaf in zip(structure.paths, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            continue
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
