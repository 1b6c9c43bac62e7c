"""From a loss and a batch to the parts of every parameter's per-example gradient."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from purenn._dtypes import in_dtype
from purenn._modes import is_traced, without_autocast
from purenn.errors import GradientError
from purenn.random import strict
from purenn.transforms._batch import Batch, taken_apart
from purenn.transforms._grad import value_and_grad
from purenn.transforms._lean import outermost
from purenn.transforms._leaves import Argument, require_chosen, scalar_output, take_apart, versions
from purenn.transforms._translate import refuse_writes, translated
from purenn.transforms._vmap import vmap
from purenn.transforms.per_sample import (
    _attention,
    _contraction,
    _convolution,
    _embedding,
    _linear,
    _losses,
    _norm,
    _pooling,
    _recurrent,
)
from purenn.transforms.per_sample._handle import EscapedError, Handle, Node
from purenn.transforms.per_sample._joined import joined
from purenn.transforms.per_sample._part import Budget, Materialised, Part
from purenn.transforms.per_sample._pulled import Pulled
from purenn.transforms.per_sample._tape import Tape, Watching
from purenn.tree._checks import require_function
from purenn.tree._watch import is_watched, watching

NAME = "per_sample.record"
#: Importing them has registered them.
RULES = (_attention, _contraction, _convolution, _embedding, _linear, _losses, _norm, _pooling, _recurrent)


class Recorded(NamedTuple):
    """The losses of some examples, and what is known of their gradients.

    Attributes:
        argument: the parameters, taken apart.
        losses: ``[examples]``.
        parts: for every differentiated leaf its per-example gradient; None if the losses do not depend on it.
        has_inputs: whether the parts know what they were made of.
    """

    argument: Argument
    losses: Tensor
    parts: list[Part | None]
    has_inputs: bool = True

    @property
    def named(self) -> list[tuple[str, Tensor, Part | None]]:
        """Path, value and part of every differentiated leaf."""
        leaves, chosen = self.argument.structure.leaves, self.argument.chosen
        paths = [leaves[place].path for place in chosen]
        return list(zip(paths, self.argument.values, self.parts, strict=True))

    def norms(self, budget: Budget) -> dict[str, Tensor]:
        """The norm of each example's gradient, by leaf; as exact as the loss or the gradient, whatever is more."""
        losses, found = self.losses, {}
        with without_autocast():
            for path, _, part in self.named:
                norms = torch.zeros_like(losses) if part is None else part.norms(budget)
                found[path] = in_dtype(torch.promote_types(norms.dtype, losses.dtype), norms)
        return found

    def leaves(self, of_part: Callable[[str, Part], Tensor], *lead: int) -> list[Tensor]:
        """A tensor for every leaf: of its part, or zeros ``[*lead, *shape]`` if it has none."""
        # From the last to the first: a bias before its weight, whose product takes from the cache what both share.
        with without_autocast():
            found = [
                value.new_zeros((*lead, *value.shape)) if part is None else in_dtype(value.dtype, of_part(path, part))
                for path, value, part in reversed(self.named)
            ]
        return found[::-1]


def run(fn: Callable[..., Tensor], p: Any, batch: tuple, in_dims: Any, keys: Tensor | None) -> Recorded:
    """Record the loss of every example.

    Args:
        fn: the loss of one example, ``fn(p, *example)``.
        p: the parameters.
        batch: the arguments of all examples.
        in_dims: their axes, as in `pn.vmap`.
        keys: a key for every example, passed as ``key=``; None for none.
    """
    named = {} if keys is None else {"key": keys}
    require_function(NAME, fn)
    argument = take_apart(p)
    require_chosen(NAME, (0,), (argument,))
    examples = taken_apart(in_dims, batch, named)
    given = [leaf for leaf in (*argument.leaves, *examples.leaves) if isinstance(leaf, Tensor)]
    before = versions(given)
    if _is_recordable(argument, given, before):
        try:
            recorded = _by_recording(fn, argument, examples, given, before)
        except EscapedError:
            recorded = None
        if recorded is not None:
            return recorded
        # A function that has been run in vain uses its keys again, which is no fault of its own.
        with strict(enabled=False):
            return _by_transformations(fn, p, argument, batch, in_dims, named)
    return _by_transformations(fn, p, argument, batch, in_dims, named)


def _is_recordable(argument: Argument, given: list[Tensor], before: list[int]) -> bool:
    # Where somebody differentiates the result, or is in the middle of that, only the transformations themselves do.
    if not outermost() or (torch.is_grad_enabled() and any(x.requires_grad for x in given)):
        return False
    # They also take tensors without versions, made in inference mode, of which plain autograd can keep none.
    return -1 not in before and not any(value.is_complex() for value in argument.values)


def _by_recording(
    fn: Callable[..., Tensor], argument: Argument, examples: Batch, given: list[Tensor], before: list[int]
) -> Recorded | None:
    if not examples.size:
        # As a Poisson sample may turn out; nothing can run on it, and all sums over it are zero.
        return Recorded(argument, argument.values[0].new_zeros(0), [None] * len(argument.chosen))
    tape = Tape([argument.structure.leaves[place].path for place in argument.chosen], argument.values)
    model = argument.rebuilt([Handle(node) for node in tape.nodes])

    def loss(*example: Any, **key: Any) -> Tensor:
        with Watching(tape):
            value = fn(model, *example, **key)
        return scalar_output(NAME, value, hint="")

    with contextlib.closing(tape), torch.enable_grad(), _step_by_step():
        with translated("vmap"):
            losses = tape.losses(loss, examples)
        refuse_writes(NAME, ["0 or the batch"] * len(given), before, versions(given))
        if tape.is_left_by(losses):
            return None
        with translated(NAME), without_autocast():
            tape.backward(losses)
        return Recorded(argument, losses.detach(), _parts(tape))


def _step_by_step() -> contextlib.AbstractContextManager[None]:
    # Under pn.jit a loop's body is a program of its own, in which nothing can be recorded, unless layers are watched.
    return contextlib.nullcontext() if is_watched() or not is_traced() else watching(lambda _, output: output)


def _parts(tape: Tape) -> list[Part | None]:
    parts: list[list[Part]] = [list(node.parts) for node in tape.nodes]
    for node in tape.computed:
        if not node.parts:
            continue
        inner = joined(node.parts)
        for number in _parameters_of(node, tape):
            parts[number].append(Pulled(inner, node, tape.nodes[number]))
    return [joined(own) if own else None for own in parts]


def _parameters_of(node: Node, tape: Tape) -> list[int]:
    # From which parameters a node is computed: the leaves of its graph.
    numbers = {id(parameter.source): number for number, parameter in enumerate(tape.nodes)}
    found: dict[int, None] = {}
    todo, seen = [node.source.grad_fn], set()
    while todo:
        function = todo.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        variable = getattr(function, "variable", None)
        if variable is not None and id(variable) in numbers:
            found[numbers[id(variable)]] = None
        todo += [below for below, _ in function.next_functions]
    return sorted(found)


def _by_transformations(
    fn: Callable[..., Tensor], p: Any, argument: Argument, batch: tuple, in_dims: Any, named: dict
) -> Recorded:
    axes = tuple(in_dims) if isinstance(in_dims, (tuple, list)) else (in_dims,) * len(batch)
    both: Callable[..., Any] = vmap(value_and_grad(fn), (None, *axes))
    losses, gradients = both(p, *batch, **named)
    leaves = optree.tree_leaves(gradients)
    if len(leaves) != len(argument.chosen):
        raise GradientError(f"{NAME}: the gradients of the loss do not have the structure of the parameters.")
    return Recorded(argument, losses, [Materialised(leaf) for leaf in leaves], has_inputs=False)
