"""An optimiser from the rule for one leaf.

A rule says what state a leaf has and in which direction it goes. What all optimisers share is here: the learning rate
and other hyper-parameters, weight decay, maximizing, complex numbers, and the two ways to run the rule: leaf by leaf in
plain differentiable operations, and for many leaves at once on torch's kernels (see `_fast`).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import optree
import torch
from torch import Tensor

from purenn._dtypes import in_dtype
from purenn._modes import is_plain
from purenn.errors import ArgumentError
from purenn.optim._fast import fast_step
from purenn.optim._hyperparameters import Hyperparameter, Values, is_zero, values_at
from purenn.optim._row import Finish, Row
from purenn.optim._tensor_list import V, plus
from purenn.optim._transformation import GradientTransformation, require_state
from purenn.tree import contiguous, named_leaves, partition
from purenn.tree._contiguous import segments
from purenn.tree._memory import LARGE, spread
from purenn.tree._walk import quoted, short

if TYPE_CHECKING:
    from purenn.transforms._leaves import Argument

COUPLED, DECOUPLED, OWN = "coupled", "decoupled", "own"


def nothing_more(done: Any, values: Values) -> Values:
    """The scalars of a rule that has none."""
    return {}


@attrs.frozen(eq=False)
class Rule:
    """How an optimiser treats one leaf.

    Attributes:
        name: the optimiser's name, for errors.
        state: the container class of the state: ``count`` (steps done, an int64 scalar), the scalars that `carried`
            names, and the trees that `slots` names.
        slots: names of the parts of the state that hold one tensor for each leaf.
        begin: ``begin(parameter, values) -> slots``, the state of one leaf before the first step.
        direction: ``direction(gradient, parameter, slots, values) -> (direction, slots)``. The parameter goes by
            ``-values["rate"]`` times the direction. Written with operators, so that it runs on tensors and, if it is
            `elementwise`, on `TensorList`.
        scalars: ``scalars(number of this step, values) -> more values``; may replace ``rate``. What all leaves share.
        carried: names of scalars that are kept from step to step, 1 at first.
        elementwise: whether leaves can be joined into one without changing the result.
        takes_complex: whether complex leaves are treated as pairs of real ones, or refused.
        kernel: ``kernel(parameters, gradients, slots, step, values)`` on lists of tensors of one dtype and device, in
            place; None if torch has no fused kernel for the rule.
        kernel_devices: where torch has that kernel.
        decay: what weight decay is: "coupled" (added to the gradient), "decoupled" (from the parameter, times the
            learning rate), or the rule's "own" business.
        maximize: whether to go uphill.
        plain: whether the direction is the gradient itself.
        hyperparameters: ``rate`` and the others, by name.
    """

    name: str
    state: type
    slots: tuple[str, ...]
    begin: Callable[[Tensor, Values], tuple[Tensor, ...]]
    direction: Callable[[Any, Any, tuple[Any, ...], Values], tuple[Any, tuple[Any, ...]]]
    hyperparameters: dict[str, Hyperparameter]
    scalars: Callable[[Any, Values], Values] = nothing_more
    carried: tuple[str, ...] = ()
    elementwise: bool = True
    takes_complex: bool = True
    kernel: Callable[..., None] | None = None
    kernel_devices: tuple[str, ...] = ("cpu", "cuda")
    decay: str = COUPLED
    maximize: bool = False
    plain: bool = False

    @property
    def decays(self) -> bool:
        """Whether there is weight decay outside of the rule's direction."""
        return self.decay != OWN and not is_zero(self.hyperparameters.get("weight_decay", 0))

    def slots_of(self, state: Any) -> list[Any]:
        """The trees of the state.

        Raises:
            ArgumentError: it is the state of something else, or of many models.
        """
        require_state(self.name, self.state, state)
        if state.count.dim():
            raise ArgumentError(
                f"{self.name}: the state is that of {len(state.count)} models (its count has the shape "
                f"{list(state.count.shape)}): make the step under pn.vmap."
            )
        return [getattr(state, name) for name in self.slots]

    def values(self, done: Any, carried: Values) -> Values:
        """All scalars of the step that comes after `done` ones."""
        values = {**values_at(self.hyperparameters, done), **carried}
        if self.decays:
            values["decay"] = values["rate"] * values["weight_decay"]
        return {**values, **self.scalars(done + 1, values)}

    def directed(self, g: V, w: V, slots: tuple[V, ...], values: Values) -> tuple[V, tuple[V, ...]]:
        """The direction of a parameter, or of many, with coupled weight decay, and the new slots."""
        if self.maximize:
            g = -g
        if "decay" in values and self.decay == COUPLED:
            g = plus(g, w, values["weight_decay"])
        return self.direction(g, w, slots, values)

    def changed(self, direction: V, w: V, values: Values) -> V:
        """The change of a parameter that goes in a direction."""
        change = direction * -values["rate"]
        if "decay" in values and self.decay == DECOUPLED:
            change = plus(change, w, -values["decay"])
        return change

    def stepped(self, direction: V, w: V, values: Values) -> V:
        """The parameter after it: `w` plus what `changed` gives, with fewer operations."""
        if "decay" in values and self.decay == DECOUPLED:
            w = plus(w, w, -values["decay"])
        return plus(w, direction, -values["rate"])

    def apply(self, finish: Finish, g: Tensor, w: Tensor, slots: list[Tensor], values: Values) -> list[Tensor]:
        """What `finish` makes of one leaf, which may be complex, and its new slots, in the dtypes that they had."""
        if w.is_complex():  # a pair of real numbers, as for torch.optim
            pairs = [torch.view_as_real(x) for x in (g, w, *slots)]
            direction, new = self.directed(pairs[0], pairs[1], tuple(pairs[2:]), values)
            row = (finish(direction, pairs[1], values), *new)
            return [torch.view_as_complex(x.contiguous()) for x in row]
        direction, new = self.directed(g, w, tuple(slots), values)
        # A leaf without dimensions would take the dtype of the scalars.
        row = zip((finish(direction, w, values), *new), (w, *slots), strict=True)
        return [in_dtype(old.dtype, x) for x, old in row]


def optimizer(rule: Rule) -> GradientTransformation:
    """The optimiser that follows a rule."""

    def init(params: Any) -> Any:
        scalars = {name: torch.ones((), dtype=torch.float64) for name in rule.carried}
        count = torch.zeros((), dtype=torch.int64)
        return rule.state(count=count, **scalars, **(_slots(rule, params) if rule.slots else {}))

    def row(params: Any, argument: "Argument", state: Any) -> Row:
        slots = rule.slots_of(state)
        if slots:
            return Row.of(rule, params, argument.derivative(argument.values), state)
        return Row(rule, [argument.values], state)

    def stepped_once(finish: Finish, params: Any, grads: Any, state: Any) -> Row:
        one = Row.of(rule, params, grads, state)
        one.step(one.gradients, finish)
        return one

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        done = stepped_once(rule.changed, params, grads, state)
        return done.updates(), done.state()

    def step(params: Any, grads: Any, state: Any, donate: bool) -> tuple[Any, Any]:
        fast = fast_step(rule, params, grads, state, donate)
        if fast is not None:
            return fast
        done = stepped_once(rule.stepped, params, grads, state)
        return done.params(), done.state()

    return GradientTransformation(init, update, step, row)


def _slots(rule: Rule, params: Any) -> dict[str, Any]:
    # The trees of a new state.
    trained = partition(params)[0]
    leaves, spec = optree.tree_flatten(trained)
    if not rule.takes_complex:
        _refuse_complex(rule, trained)
    values = values_at(rule.hyperparameters, 0)
    rows = [_begun(rule, leaf.detach(), values) for leaf in leaves]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(rule.slots)
    joined = rule.elementwise and segments(leaves) is not None
    rows.clear()  # so that no more than one part of the state is there twice
    trees = {}
    for name in rule.slots:
        column = columns.pop(0)
        if joined or _in_large_pages(column):
            trees[name] = contiguous(optree.tree_unflatten(spec, column))
        else:
            trees[name] = optree.tree_unflatten(spec, [spread(leaf) for leaf in column])
    return trees


def _in_large_pages(leaves: Sequence[Tensor]) -> bool:
    # Whether they are looked up sooner in one buffer (see `purenn.tree._memory`).
    if not is_plain(*leaves) or not all([leaf.is_cpu and leaf.is_contiguous() for leaf in leaves]):  # noqa: C419
        return False
    return sum([leaf.nbytes for leaf in leaves]) >= LARGE


def _refuse_complex(rule: Rule, trained: Any) -> None:
    for path, leaf in named_leaves(trained):
        if leaf.is_complex():
            raise ArgumentError(
                f"{rule.name}: {quoted(path)} is {short(leaf)}, but complex parameters have no root mean square here; "
                f"use adam for them."
            )


def _begun(rule: Rule, leaf: Tensor, values: Values) -> tuple[Tensor, ...]:
    if not leaf.is_complex():
        return rule.begin(leaf, values)
    return tuple([torch.view_as_complex(slot) for slot in rule.begin(torch.view_as_real(leaf), values)])


def like(w: Tensor, value: Any = 0.0) -> Tensor:
    """A state of the shape of a parameter, filled with a number."""
    if isinstance(value, Tensor):
        return torch.ones_like(w) * value.to(w.device, w.dtype)
    return torch.full_like(w, value)
