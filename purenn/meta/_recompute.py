"""A function that keeps its arguments only, and is computed again when its gradient is asked for.

`pn.remat` does the same with torch's checkpoint, which cannot run within transformations. Here it is an operation of
its own, whose gradient runs the function anew: within gradients of gradients, vmap, and vmap over tasks alike.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import attrs
import optree
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, unwrap_if_dead
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd.graph import get_gradient_edge

from purenn._modes import differentiated_again
from purenn.errors import GradientError
from purenn.random import strict
from purenn.transforms._captured import rebuilt
from purenn.transforms._lean import alone, reaches_others, running
from purenn.transforms._nested import Examples, fresh, is_below_transformations, pulled, stacked_tasks
from purenn.transforms._operation import differentiable
from purenn.tree._walk import unflatten

P = ParamSpec("P")
R = TypeVar("R")


def recomputed(fn: Callable[P, R]) -> Callable[P, R]:
    """A pure function of trees as one operation that keeps nothing but its arguments and what it closes over."""
    captured: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.requires_grad or is_functorch_wrapped_tensor(tensor):
            captured[id(tensor)] = tensor
        return tensor

    rebuilt(fn, note, {})
    outer = list(captured.values())

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves, spec = optree.tree_flatten((args, kwargs))  # pyright: ignore[reportArgumentType]
        tensors = [*outer, *[leaf for leaf in leaves if isinstance(leaf, Tensor)]]
        rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        examples = Examples.around() if is_below_transformations() else Examples(0, 0)
        given, own = examples.apart(tensors)
        call = _Call(fn, list(captured), rest, spec, examples, own)
        with temporarily_clear_interpreter_stack() if examples.level else contextlib.nullcontext():
            found = _Recomputed.apply(call, *given)
        results = iter(examples.together(found, call.outcome["own"]))
        outputs = [next(results) if leaf is None else leaf for leaf in call.outcome["leaves"]]
        return unflatten(call.outcome["spec"], outputs)

    return run


@attrs.frozen(eq=False)
class _Call:
    """One call: what is not a tensor.

    Attributes:
        fn: the function.
        captured: the ids of the tensors that it closes over and that come first among the operation's.
        leaves: the leaves of its arguments, with None for tensors.
        spec: their structure.
        examples: the tasks, if the function is that of one and the operation's tensors are those of all.
        own: which of the operation's tensors are different for each task.
        outcome: structure of the result, its leaves with None for tensors, and which of these differ.
    """

    fn: Callable[..., Any]
    captured: list[int]
    leaves: list[Any]
    spec: optree.PyTreeSpec
    examples: Examples
    own: list[bool]
    outcome: dict[str, Any] = attrs.field(factory=dict)

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of the result."""
        with self.examples.again() as examples:
            results, self.outcome["own"] = examples.apart(self._of_one(examples.together(tensors, self.own)))
        return results

    def _of_one(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        count = len(self.captured)
        outer, given = dict(zip(self.captured, tensors[:count], strict=True)), iter(tensors[count:])
        fn = rebuilt(self.fn, lambda t: outer.get(id(t), t), {}) if outer else self.fn
        tree = unflatten(self.spec, [next(given) if leaf is None else leaf for leaf in self.leaves])
        leaves, self.outcome["spec"] = optree.tree_flatten(fn(*tree[0], **tree[1]))
        self.outcome["leaves"] = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        with alone():
            results = call(tensors)
        # An argument returned as it is would be a view of an input.
        return tuple([result.detach().clone() if any(result is t for t in tensors) else result for result in results])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        places = set(differentiable(output))
        ctx.mark_non_differentiable(*[result for n, result in enumerate(output) if n not in places])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        # A level of transformation that was there when they were saved can have ended since.
        tensors = [unwrap_if_dead(tensor) for tensor in ctx.saved_tensors]
        wanted = [n for n in differentiable(tensors) if ctx.needs_input_grad[n + 1]]
        given = {n: cotangent for n, cotangent in enumerate(cotangents) if cotangent is not None}
        gradients: list[Tensor | None] = [None] * len(tensors)
        if wanted and given:
            with strict(enabled=False), stacked_tasks(False):  # the tasks are those of the call
                found = (_pull if is_below_transformations() else _pull_by_functorch)(ctx.call, tensors, wanted, given)
            for place, gradient in zip(wanted, found, strict=True):
                gradients[place] = gradient
        return (None, *gradients)


def _pull(call: _Call, tensors: Sequence[Tensor], wanted: list[int], given: dict[int, Tensor]) -> list[Tensor]:
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [tensors[n] for n in wanted]
        leaves = fresh(leaves if recorded else [leaf.detach() for leaf in leaves])
        again = differentiated_again() if recorded else contextlib.nullcontext()
        with running(), again:
            results = call(_filled(tensors, wanted, leaves))
        outputs = {n: results[n] for n in given if results[n].requires_grad}
        if not recorded and reaches_others([*outputs.values()], leaves):
            raise GradientError(
                "inner_loop: with remat or unroll='vjp', the loss or the optimiser reaches a tensor that requires grad "
                "through a global variable or an object's attribute, where it cannot be found. Pass it as an argument, "
                "or refer to it by a local variable of the surrounding function."
            )
        edges = [get_gradient_edge(output) for output in outputs.values()]
        cotangents = [given[n] for n in outputs]
        del results, outputs  # as large as the arguments, and of no use any more
        return pulled(edges, leaves, cotangents, recorded)


def _pull_by_functorch(
    call: _Call, tensors: Sequence[Tensor], wanted: list[int], given: dict[int, Tensor]
) -> list[Tensor]:
    def of(*values: Tensor) -> tuple[Tensor, ...]:
        results = call(_filled(tensors, wanted, values))
        return tuple([results[n] for n in given])

    return list(torch.func.vjp(of, *[tensors[n] for n in wanted])[1](tuple(given.values())))


def _filled(tensors: Sequence[Tensor], places: list[int], values: Sequence[Tensor]) -> list[Tensor]:
    full = list(tensors)
    for place, value in zip(places, values, strict=True):
        full[place] = value
    return full
