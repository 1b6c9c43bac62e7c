"""An operation that marks results with a derivative rule of their own, in a graph that knows nothing of rules.

A traced graph holds what a function has computed, so a gradient of the graph would be that of the computation, whatever
rule there was. The results go through an operation that says so instead of giving another derivative.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import attrs
import torch
from torch import Tensor, library

from purenn.errors import GradientError
from purenn.transforms._operation import LIBRARY, Operation, Tensors, differentiable


def marked(name: str, results: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Results whose derivative is an error.

    Args:
        name: of what has the rule, for the error.
        results: what it returned.
        given: the tensors that it depends on.
    """
    inputs = [given[n] for n in differentiable(given)]
    places = set(differentiable(results))
    return [torch.ops.purenn.ruled(x, inputs, name) if n in places else x for n, x in enumerate(results)]


# Whose functions have the derivatives of what they compute, or mark their results themselves.
_KNOWN = ("purenn.", "bridge.", "torch.")


def marked_if_foreign(results: list[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Results of a function that is traced, marked if they come from an autograd.Function of the user's."""
    name = _foreign_rule(results)
    return results if name is None else marked(name, results, given)


def _foreign_rule(results: Sequence[Tensor]) -> str | None:
    todo = [result.grad_fn for result in results if result.grad_fn is not None]
    seen = set(todo)
    while todo:
        node: Any = todo.pop()
        rule: Any = getattr(type(node), "_forward_cls", None)
        if rule is not None and not rule.__module__.startswith(_KNOWN):
            return f"autograd.Function {rule.__qualname__}"
        below = {node for node, _ in node.next_functions if node is not None} - seen
        seen |= below
        todo += below
    return None


class LostRuleError(Exception):
    """The graph of a loop's or a branch's body was to be differentiated, and its rule is not in it."""


@attrs.frozen(eq=False)
class _Marked:
    """The operation as transformations see it in a body's graph."""

    name: str
    kept: tuple[int, ...] = ()

    def call(self, tensors: Tensors) -> Tensors:
        return [torch.ops.purenn.ruled(tensors[0], list(tensors[1:]), self.name)]

    def pull(self, *_: Any) -> NoReturn:
        raise LostRuleError(self.name)

    def push(self, *_: Any) -> NoReturn:
        raise LostRuleError(self.name)

    def batched(self, size: int, in_dims: tuple, tensors: Tensors) -> tuple[tuple[Tensor, ...], tuple[int | None]]:
        return tuple(self.call(tensors)), in_dims[:1]


def applied(x: Tensor, given: list[Tensor], name: str) -> Tensor:
    """The operation in a form that transformations can see through."""
    return Operation.apply(_Marked(name), x, *given)[0]


def _copied(x: Tensor, given: list[Tensor], name: str) -> Tensor:
    return x.clone()


def _batched(info: Any, in_dims: tuple, x: Tensor, given: list[Tensor], name: str) -> tuple[Tensor, int | None]:
    return torch.ops.purenn.ruled(x, given, name), in_dims[0]


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.name = inputs[2]


def _refuse(ctx: Any, gradient: Tensor) -> NoReturn:
    raise GradientError(
        f"{ctx.name}: a compiled function that uses this one is differentiated from outside, but the rule is not in "
        f"the compiled graph: compile the gradient instead, pn.jit(pn.grad(f))."
    )


LIBRARY.define("ruled(Tensor x, Tensor[] given, str name) -> Tensor")
LIBRARY.impl("ruled", _copied, "CompositeExplicitAutograd")
library.register_fake("purenn::ruled", lambda x, given, name: torch.empty_like(x), lib=LIBRARY)
library.register_vmap("purenn::ruled", _batched, lib=LIBRARY)
library.register_autograd("purenn::ruled", _refuse, setup_context=_remember, lib=LIBRARY)
