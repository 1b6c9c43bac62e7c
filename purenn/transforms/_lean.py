"""The lean gradient: plain autograd on detached leaves.

`torch.func.grad` records a second graph so that its result can be differentiated again; that costs more than twice the
time and memory. At the outermost level nobody differentiates the result, so plain autograd gives the same numbers
for less. Four things would make it wrong, and each of them sends the call to `torch.func`:

- a functorch level is active (the call runs inside vmap, jvp, another grad of torch.func);
- a lean gradient runs around it (`_inside`, a marker): see `_nested`;
- an argument requires grad, so somebody outside wants a graph;
- the function closes over a tensor that requires grad. The graph is searched for one the first time that a function
  meets a structure, again whenever something that it reaches has changed, and every time if it reaches objects that
  may hide tensors.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, _engine_run_backward
from torch.overrides import has_torch_function

from purenn._modes import nothing_differentiated_again
from purenn.errors import MutationError
from purenn.transforms._closures import Closures
from purenn.transforms._failures import WRITTEN_OUTSIDE
from purenn.transforms._leaves import Problem, detached, scalar_output, split_aux, tensors_in


class _Inside(threading.local):
    depth = 0
    alone = False
    graph = False


_inside = _Inside()


class running:  # noqa: N801  # entered so often that what contextlib makes shows
    """Within this context a lean gradient, or one within it, runs its function."""

    def __enter__(self) -> None:
        _inside.depth += 1

    def __exit__(self, *_: object) -> None:
        _inside.depth -= 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within this context nobody outside differentiates what is computed: it is as the outermost level."""
    before = _inside.depth, _inside.alone
    _inside.depth, _inside.alone = 0, True
    try:
        with nothing_differentiated_again():
            yield
    finally:
        _inside.depth, _inside.alone = before


@contextlib.contextmanager
def graph_is_differentiated(yes: bool = True) -> Iterator[None]:
    """Within this context a graph is traced that is differentiated afterwards.

    Plain autograd leaves detached tensors in it, which would end the derivatives there.
    """
    before, _inside.graph = _inside.graph, yes
    try:
        yield
    finally:
        _inside.graph = before


def surroundings() -> Callable[[], AbstractContextManager[None]]:
    """What makes contexts in which gradients are taken as they would be here, for a function that runs again later."""
    here = vars(_inside).copy()

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        before = vars(_inside).copy()
        vars(_inside).clear()
        vars(_inside).update(here)
        try:
            yield
        finally:
            vars(_inside).clear()
            vars(_inside).update(before)

    return again


def is_graph_differentiated() -> bool:
    """Whether a graph is traced that is differentiated afterwards."""
    return _inside.graph


def by_plain_autograd() -> bool:
    """Whether plain autograd may take gradients of what is computed here."""
    # In inference mode it records nothing, whatever its own switch says; torch.func does.
    elsewhere = forward_ad._current_level >= 0 or torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
    return not (_inside.graph or elsewhere)


def is_alone() -> bool:
    """Whether `alone` says that no graph of the present call's result is asked for."""
    return _inside.alone and _inside.depth == 0


def lean_depth() -> int:
    """How many lean gradients run around the present call."""
    return _inside.depth


def outermost() -> bool:
    """Whether no transformation runs around the present call."""
    return _inside.depth == 0 and peek_interpreter_stack() is None and by_plain_autograd()


def wants_outer_graph(problem: Problem, rest: list[Tensor]) -> bool:
    """Whether an argument requires grad while grad mode is on, so that the result must be differentiable.

    Args:
        problem: the call.
        rest: the tensors in its arguments that are not differentiated.
    """
    if not torch.is_grad_enabled():
        return False
    for argument in problem.arguments:
        for leaf in argument.leaves:
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                return True
    return any(tensor.requires_grad for tensor in rest)


def lean_value_and_grad(
    name: str, problem: Problem, has_aux: bool, closures: Closures
) -> tuple[Tensor, Any, list[Tensor]] | bool:
    """Value, auxiliary output and gradients by plain autograd.

    If the function closes over a foreign graph, whether it was run to find that out.
    """
    search = torch.is_grad_enabled()
    signature = closures.signature(problem) if search else None
    known = closures.known(signature) if search else True
    if known is False:
        return False
    values = problem.values
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in values]
        with running():
            value, aux = split_aux(name, problem.call(leaves), has_aux)
        scalar_output(name, value)
        if known is None:
            _require_untouched(name, signature, closures.signature(problem))
            free = not reaches_others([value, *tensors_in(aux)], leaves)
            closures.learn(signature, free)
            if not free:
                return True
        used = value.requires_grad
        found = pulled_back([value], [torch.ones_like(value)], leaves, recorded=False) if used else [None] * len(leaves)
    gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(values, found, strict=True)]
    return value.detach(), detached(aux), gradients


def pulled_back(
    roots: Sequence[Tensor] | Sequence[GradientEdge],
    cotangents: Sequence[Tensor],
    leaves: Sequence[Tensor] | Sequence[GradientEdge],
    *,
    recorded: bool,
) -> Sequence[Tensor | None]:
    """What `torch.autograd.grad` gives, None for leaves that are not used.

    Args:
        roots: what is differentiated.
        cotangents: the gradients by them.
        leaves: those by which.
        recorded: whether the result can be differentiated.
    """
    if has_torch_function((*leaves, *cotangents)):
        return torch.autograd.grad(roots, leaves, cotangents, create_graph=recorded, allow_unused=True)
    # All that it does beyond this call is to look at every leaf three times.
    given = tuple(roots), tuple(cotangents), recorded, recorded, tuple(leaves), True
    return _engine_run_backward(*given, accumulate_grad=False)


def _require_untouched(name: str, before: Any, after: Any) -> None:
    # A tensor from outside that requires grad now has been given the graph of this gradient, which would stay with it.
    if before is None or after is None:
        return
    required = dict(before[1])
    if any(requires and required.get(number) is False for number, requires in after[1]):
        wrong, fix = WRITTEN_OUTSIDE
        raise MutationError(f"{name}: {wrong}. {fix}")


# The attribute by which a leaf that a gradient within this one has made is known in a graph.
NESTED = "_purenn_nested"


def reaches_others(roots: list[Tensor], leaves: list[Tensor]) -> bool:
    """Whether the graph below some tensors holds a leaf that is none of ours."""
    ours = {id(leaf) for leaf in leaves}
    if any(root.requires_grad and root.grad_fn is None and id(root) not in ours for root in roots):
        return True
    todo = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        functions = node.next_functions
        variable = None if functions else getattr(node, "variable", None)
        if variable is not None and id(variable) not in ours and not hasattr(variable, NESTED):
            return True
        for below, _ in functions:
            if below is not None and below not in seen:
                seen.add(below)
                todo.append(below)
    return False
