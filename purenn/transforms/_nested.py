"""Gradients that are differentiated again, by plain autograd that records their graph.

Inside a lean gradient, and where somebody outside wants a graph, plain autograd with ``create_graph`` gives the numbers
of `torch.func.grad` in half the time: there is no level of functorch between an operation and its kernel. It needs that
no such level is around, with one exception. Under a vmap over tasks whose parameters are all stacked, the gradient of
each task's loss is the gradient of the sum of all of them, so it is taken below the vmap, of ordinary tensors.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor
from torch._C._functorch import (
    CVmapInterpreterPtr,
    TransformType,
    _add_batch_dim,
    _remove_batch_dim,
    is_batchedtensor,
    maybe_current_level,
    peek_interpreter_stack,
)
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._functorch.vmap import vmap_increment_nesting
from torch.autograd.graph import GradientEdge

from purenn._modes import differentiated_again, is_traced
from purenn.errors import MutationError
from purenn.transforms._at_once import AtOnce
from purenn.transforms._at_once_functions import Tasks
from purenn.transforms._at_once_loss import Forward
from purenn.transforms._failures import WRITTEN
from purenn.transforms._lean import NESTED, by_plain_autograd, is_alone, pulled_back, running
from purenn.transforms._leaves import detached, scalar_output, split_aux, take_apart, tensors_in
from purenn.tree._walk import Structure


class Known(NamedTuple):
    """How a loss has been computed of all tasks.

    Attributes:
        loss: the loss.
        structure: that of its parameters.
        args: its other arguments.
        forward: how.
    """

    loss: Callable[..., Any]
    structure: Structure
    args: tuple
    forward: Forward


class _Stacked(threading.local):
    active = False
    known: Known | None = None


_stacked = _Stacked()


@contextlib.contextmanager
def stacked_tasks(active: bool = True) -> Iterator[None]:
    """Within this context, gradients directly under one vmap are those of the sum over its examples."""
    before = _stacked.active, _stacked.known
    _stacked.active, _stacked.known = active, None
    try:
        yield
    finally:
        _stacked.active, _stacked.known = before


def remember(known: Known) -> None:
    """Note how a loss has been computed, until another is or `stacked_tasks` ends."""
    _stacked.known = known


def value_as_before(loss: Callable[..., Any], params: Any, *args: Any) -> Tensor | None:
    """The value of a loss as it has just been computed of arguments that are alike; None if it has not."""
    known = _stacked.known
    if known is None or known.loss is not loss or not _stacked.active or not is_below_transformations():
        return None
    argument, examples = take_apart(params), Examples.around()
    if known.structure is not argument.structure or not _are_alike(known.args, args):
        return None
    leaves, data = examples.out_of(argument.values), examples.all_in(args)
    if any(x.requires_grad for x in data):
        return None
    return examples.into(known.forward(leaves, [data], [], not is_alone())[0])[0]


def _are_alike(one: Any, other: Any) -> bool:
    # Whether a loss does the same with these arguments: tensors with other numbers, and otherwise equal.
    leaves, spec = optree.tree_flatten(one)
    others, other_spec = optree.tree_flatten(other)
    return spec == other_spec and all(_is_alike(x, y) for x, y in zip(leaves, others, strict=True))


def _is_alike(x: Any, y: Any) -> bool:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return x is y or (type(x) is type(y) and isinstance(x, (int, float, str)) and x == y)
    about_x, about_y = [(z.shape, z.dtype, z.device, is_batchedtensor(z)) for z in (x, y)]
    return about_x == about_y and (x is y or is_batchedtensor(x))


def is_below_transformations() -> bool:
    """Whether plain autograd sees what is computed here, or the tasks of `stacked_tasks`."""
    if not by_plain_autograd():
        return False
    level = maybe_current_level()
    return level is None or (_stacked.active and level == 1 and peek_interpreter_stack().key() == TransformType.Vmap)


def can_nest() -> bool:
    """Whether plain autograd can take a gradient here that is differentiated again."""
    return (torch.is_grad_enabled() or is_alone()) and is_below_transformations()


def nested_value_and_grad(
    name: str, call: Callable[[list[Tensor]], Any], values: list[Tensor], has_aux: bool
) -> tuple[Tensor, Any, list[Tensor]]:
    """Value, auxiliary output and gradients of a function, with their graphs if somebody may want them."""
    examples = Examples.around()
    total, aux, gradients = examples.value_and_grad(name, call, examples.out_of(values), has_aux)
    return examples.into([total])[0], aux, examples.into(gradients)


def pulled(
    roots: Sequence[Tensor] | Sequence[GradientEdge],
    leaves: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    recorded: bool,
) -> list[Tensor]:
    """Gradients by plain autograd, below all transformations; zeros for leaves that no root depends on."""
    with temporarily_clear_interpreter_stack():
        if not roots:
            return [torch.zeros_like(leaf) for leaf in leaves]
        found = pulled_back(roots, cotangents, leaves, recorded=recorded)
        # torch's own zeros would require grad, as leaves of somebody's graph.
        return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def fresh(values: Sequence[Tensor]) -> list[Tensor]:
    """Tensors to differentiate with respect to, in the graphs of some values if they have one.

    Not the values themselves: a function may close over one, which it is then not differentiated by.
    """
    if _require_grad(values):
        return [value.view_as(value) for value in values]
    with temporarily_clear_interpreter_stack():
        return [value.view_as(value) if value.requires_grad else _leaf(value) for value in values]


def _require_grad(values: Sequence[Tensor]) -> bool:
    return all([value.requires_grad for value in values])  # noqa: C419


def _leaf(value: Tensor) -> Tensor:
    leaf = value.detach().requires_grad_()
    setattr(leaf, NESTED, True)
    return leaf


class Examples:
    """The tasks of the vmap around, if there is one: in and out of its level.

    Attributes:
        level: that of the vmap, 0 if there is none.
        size: the number of tasks.
    """

    def __init__(self, level: int, size: int) -> None:
        self.level, self.size = level, size

    @classmethod
    def around(cls) -> "Examples":
        level = maybe_current_level()
        return cls(0, 0) if level is None else cls(level, CVmapInterpreterPtr(peek_interpreter_stack()).batchSize())

    def out_of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of all tasks, the first axis theirs."""
        level, size = self.level, self.size
        return [_remove_batch_dim(tensor, level, size, 0) for tensor in tensors] if level else list(tensors)

    def all_in(self, *trees: Any) -> list[Tensor]:
        """The tensors in some trees that are not the same for all tasks, of all tasks."""
        return self.out_of([tensor for tensor in tensors_in(*trees) if is_batchedtensor(tensor)])

    def into(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of one task."""
        level = self.level
        return [_add_batch_dim(tensor, 0, level) for tensor in tensors] if level else list(tensors)

    def apart(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[bool]]:
        """Tensors of which some are the same for all tasks, the others out of the level, and which these are."""
        own = [self.level > 0 and is_batchedtensor(tensor) for tensor in tensors]
        pairs = zip(tensors, own, strict=True)
        return [self.out_of([tensor])[0] if each else tensor for tensor, each in pairs], own

    def together(self, tensors: Sequence[Tensor], own: Sequence[bool]) -> list[Tensor]:
        """Such tensors in the level again."""
        if not self.level:
            return list(tensors)
        return [self.into([tensor])[0] if each else tensor for tensor, each in zip(tensors, own, strict=True)]

    def value_and_grad(
        self,
        name: str,
        call: Callable[[list[Tensor]], Any],
        given: list[Tensor],
        has_aux: bool = False,
        *,
        private: bool = False,
        rate: float | None = None,
        known: AtOnce | None = None,
    ) -> tuple[Tensor, Any, list[Tensor]]:
        """As `nested_value_and_grad`, by the tensors of all tasks, and with their values.

        Args:
            name: of the transformation, for errors.
            call: the function of one task.
            given: the tensors of all tasks.
            has_aux: whether the function has an auxiliary output.
            private: whether nobody else has these tensors, so that they need no views. Default: False.
            rate: if given, not the gradients are returned, but the tensors less this multiple of them. Default: None.
            known: what `at_once` has made, to be asked about this call afterwards. Default: None.
        """
        recorded = not is_alone()
        with torch.enable_grad():
            leaves = given if private and _require_grad(given) else fresh(given)
            before = [leaf._version for leaf in leaves]
            known = known or self.at_once()
            if known:
                known.begin(leaves)
            with running(), differentiated_again(), known or contextlib.nullcontext():
                value, aux = split_aux(name, call(self.into(leaves)), has_aux)
            (total,) = self.out_of([scalar_output(name, value)])
            if [leaf._version for leaf in leaves] != before:
                wrong, fix = WRITTEN
                raise MutationError(f"{name}: {wrong}. {fix}")
            found = known.gradients(total, recorded=recorded, rate=rate) if known else None
            if found is None:
                roots = [total] if total.requires_grad else []
                found = pulled(roots, leaves, [torch.ones_like(root) for root in roots], recorded)
                if rate is not None:
                    found = [torch.add(x, g, alpha=-rate) for x, g in zip(given, found, strict=True)]
        if not recorded:
            total, aux = total.detach(), detached(aux)
        # A tensor that the value does not depend on has no gradient, and stays as it is.
        pairs = zip(given, found, strict=True)
        gradients = [(torch.zeros_like(x) if rate is None else x) if new is None else new for x, new in pairs]
        return total, aux, gradients

    @contextlib.contextmanager
    def again(self) -> Iterator["Examples"]:
        """Within this context there are the same tasks under a vmap of its own."""
        if not self.level:
            yield self
            return
        with vmap_increment_nesting(self.size, "error") as level, stacked_tasks():
            yield Examples(level, self.size)

    def at_once(self) -> AtOnce | None:
        """A context in which some functions are computed of all tasks at once."""
        return AtOnce(Tasks(self.level, self.size), is_traced=is_traced()) if self.level else None


def at_once() -> contextlib.AbstractContextManager[Any]:
    """As the method of `Examples`, of the tasks of `stacked_tasks`."""
    known = Examples.around().at_once() if _stacked.active and is_below_transformations() else None
    return known or contextlib.nullcontext()
