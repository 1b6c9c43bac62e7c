"""Tracing functions of tensors to programs that close over nothing."""

import contextlib
import functools
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

from purenn.errors import GradientError, TraceError
from purenn.transforms._captured import rebuilt
from purenn.transforms._graph import fake_mode, graph_of, lift_constants, refuse_mutations
from purenn.transforms._lean import graph_is_differentiated
from purenn.transforms._like import Like
from purenn.transforms._program import Program, Tracing, current_tracing, registered
from purenn.transforms._recorded import EscapedError, Recorded
from purenn.transforms._rule_op import LostRuleError, marked_if_foreign
from purenn.transforms._translate import place, translated
from purenn.transforms._untraceable import explained


def close(
    name: str,
    fn: Callable[..., Sequence[Tensor]],
    like: Sequence[Like],
    *,
    kept: tuple[int, ...] = (),
    back: Program | None = None,
    is_body: bool = False,
) -> tuple[Program, list[Tensor]]:
    """Trace a function of tensors to a program.

    Args:
        name: of the transformation, for errors.
        fn: the function; it may close over tensors at any level of transformation.
        like: what its arguments are like.
        kept: see `Program`.
        back: see `Program`.
        is_body: whether it is the user's, and may have derivative rules that a graph would lose.

    Returns:
        The program, which takes the arguments and then what the function closes over; and the latter.
    """
    tracing = _tracing()
    outer: list[Tensor] = []
    places: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        # Only tensors of transformations around: others are found in the graph, as constants.
        if is_functorch_wrapped_tensor(tensor) and id(tensor) not in places:
            places[id(tensor)] = len(outer)
            outer.append(tensor)
        return tensor

    rebuilt(fn, note, {})
    closed = fn
    given_like = [*like, *map(Like.of, outer)]

    def flat(*tensors: Tensor) -> list[Tensor]:
        own, given = tensors[: len(like)], tensors[len(like) :]
        inner = rebuilt(closed, lambda t: given[places[id(t)]] if id(t) in places else t, {}) if outer else closed
        results = marked_if_foreign(list(inner(*own)), tensors)
        # A result that is an argument, or a view of one, would share storage with it from step to step.
        inputs = {StorageWeakRef(tensor.untyped_storage()) for tensor in tensors}
        seen: set[StorageWeakRef] = set()
        for number, result in enumerate(results):
            storage = StorageWeakRef(result.untyped_storage())
            if storage in inputs or storage in seen:
                results[number] = result.clone(memory_format=torch.contiguous_format)
            else:
                results[number] = result.contiguous()
                seen.add(storage)
        return results

    with translated(name), _found(name), explained(name), graph_is_differentiated(), _outside(tracing):
        examples = [tensor.example(differentiated=is_body) for tensor in given_like]
        with Recorded():
            graph = graph_of(flat, examples, torch.ops.purenn.constant.default)
    constants = lift_constants(graph)
    labels = [f"its argument {number}" for number in range(len(like))]
    refuse_mutations(name, graph, [*labels, *["a tensor that it closes over"] * (len(outer) + len(constants))])
    returned: Any = graph.graph.output_node().args[0]
    results = [node.meta["val"] for node in returned]
    kind = f"{tracing.kind} {kept} {back.name if back else None}"
    return registered(graph, kind, results, kept, back, tracing.compiler), [*outer, *constants]


def has_no_gradient(node: fx.Node) -> bool:
    """Whether a value in a graph is one of an operation's results that never has a gradient: a norm's statistics."""
    if node.target is not operator.getitem:
        return False
    with _outside(_tracing()), torch.enable_grad():
        part = _differentiated(node.args[0])[node.args[1]]
    return Like.of(part).is_differentiable and not part.requires_grad


def _differentiated(node: Any) -> Any:
    # The results of a graph's operation when all of its arguments require grad that may.
    constants: set[int] = set()

    def example(given: fx.Node, place: int | None = None) -> Any:
        value = given.meta["val"]
        like = Like.of(value) if isinstance(value, Tensor) else None
        return value if like is None else like.example(differentiated=place not in constants)

    while True:
        args = [fx.map_arg(value, functools.partial(example, place=n)) for n, value in enumerate(node.args)]
        try:
            return node.target(*args, **fx.map_arg(node.kwargs, example))
        except RuntimeError as error:
            refused = re.search(r"not differentiable with respect to argument '(\w+)'", str(error))
            if refused is None:
                raise
            constants.add([argument.name for argument in node.target._schema.arguments].index(refused[1]))


def _tracing() -> Tracing:
    # Without a trace an operation itself is differentiated, in a graph that no compiler has changed.
    return current_tracing() or Tracing(fake_mode(), lambda graph, _: graph, "as it is")


@contextlib.contextmanager
def _outside(tracing: Tracing) -> Iterator[None]:
    with temporarily_clear_interpreter_stack(), _disable_current_modes(), tracing.mode:
        yield


@contextlib.contextmanager
def _found(name: str) -> Iterator[None]:
    try:
        yield
    except LostRuleError as error:
        raise GradientError(
            f"{name}: the body uses {error}, which has a derivative rule of its own, and a compiled loop's gradient is "
            f"that of the traced body, which does not know it. Write the rule with pn.custom_vjp or pn.custom_jvp, "
            f"which graphs know, write the loop in Python, or do not compile it."
        ) from None
    except (RuntimeError, EscapedError) as error:
        text = f"{error} {error.__cause__}"
        if not isinstance(error, EscapedError) and "escaped from inside a function being vmapped" not in text:
            raise
        raise TraceError(
            f"{name}: the body reaches a tensor of a transformation around it through a global variable or an object's "
            f"attribute, where it cannot be found{place(error)}. Pass it as a part of the carry, or refer to it by a "
            f"local variable of the surrounding function."
        ) from error
