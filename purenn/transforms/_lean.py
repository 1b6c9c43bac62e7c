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
import functools
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import attrs
import optree
import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.autograd.graph import _engine_run_backward
from torch.overrides import has_torch_function

from purenn._modes import nothing_differentiated_again
from purenn.errors import MutationError
from purenn.transforms._leaves import Problem, detached, scalar_output, split_aux, tensors_in
from purenn.transforms._translate import WRITTEN_OUTSIDE


class _Inside(threading.local):
    depth = 0
    alone = False
    graph = False


_inside = _Inside()


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Within this context a lean gradient, or one within it, runs its function."""
    _inside.depth += 1
    try:
        yield
    finally:
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


class Closures:
    """What is known of the tensors that one function closes over."""

    def __init__(self) -> None:
        self._known: dict[Any, bool] = {}

    def signature(self, problem: Problem) -> Any:
        """What must be unchanged for the answer of an earlier search to hold; None if that cannot be told."""
        found: list[Any] = []
        if not _note(problem.fn, found, set()):
            return None
        return tuple([argument.structure.spec for argument in problem.arguments]), tuple(found)

    def known(self, signature: Any) -> bool | None:
        """Whether the function is free of foreign tensors that require grad; None if not yet searched."""
        return None if signature is None else self._known.get(signature)

    def learn(self, signature: Any, free: bool) -> None:
        """Remember the result of a search."""
        if signature is not None:
            if len(self._known) >= 64:
                self._known.clear()
            self._known[signature] = free


_LIBRARIES = frozenset({"purenn", "bridge", "torch", "optree", "attrs", "functools"})
_WITHOUT_TENSORS = (
    *(type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, types.BuiltinFunctionType),
    *(torch.dtype, torch.device, torch.Size, Closures),
)


def _note(item: Any, found: list[Any], seen: set[int]) -> bool:
    """Note which of the tensors that are reached from a captured value require grad.

    Returns:
        Whether all of them are known. An object of a class that is not can hold tensors where nobody sees them.
    """
    if isinstance(item, Tensor):
        found.append((id(item), item.requires_grad))
        return True
    if isinstance(item, _WITHOUT_TENSORS) or id(item) in seen:
        return True
    seen.add(id(item))
    if isinstance(item, types.FunctionType):
        inner = _captured_by(item)
    elif isinstance(item, types.MethodType):
        inner = [item.__self__, item.__func__]
    elif isinstance(item, functools.partial):
        inner = [item.func, *item.args, *item.keywords.values()]
    elif isinstance(item, nn.Module):
        inner = [*item.parameters(), *item.buffers()]
    elif not optree.tree_is_leaf(item):
        inner = optree.tree_leaves(item)
    elif attrs.has(type(item)):
        inner = [getattr(item, field.name) for field in attrs.fields(type(item))]
    elif hasattr(item, "__wrapped__"):
        inner = [item.__wrapped__]
    else:
        return False
    return all(_note(part, found, seen) for part in inner)


def _captured_by(fn: types.FunctionType) -> list[Any]:
    captured = []
    for cell in fn.__closure__ or ():
        try:  # in a hot path, where contextlib.suppress shows
            captured.append(cell.cell_contents)
        except ValueError:  # a variable that is not yet assigned
            continue
    space = fn.__globals__
    # What the libraries name in their own modules are their own tools.
    if space.get("__name__", "").partition(".")[0] not in _LIBRARIES:
        captured += [space[name] for name in _global_names(fn.__code__) if name in space]
    return captured


@functools.lru_cache(maxsize=512)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return tuple(dict.fromkeys((*code.co_names, *(name for c in inner for name in _global_names(c)))))


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
        found = _gradients(value, tuple(leaves)) if value.requires_grad else [None] * len(leaves)
    gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(values, found, strict=True)]
    return value.detach(), detached(aux), gradients


def _gradients(value: Tensor, leaves: tuple[Tensor, ...]) -> Sequence[Tensor | None]:
    if has_torch_function(leaves):
        return torch.autograd.grad(value, leaves, allow_unused=True)
    # All that torch.autograd.grad does beyond this call is to look at every leaf twice.
    return _engine_run_backward((value,), (torch.ones_like(value),), False, False, leaves, True, accumulate_grad=False)


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
