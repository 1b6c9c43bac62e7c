"""Some steps of an optimiser as a differentiable function of the parameters that it starts from."""

import itertools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import attrs
import optree
import torch
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError
from purenn.meta._entries import entry
from purenn.meta._recompute import recomputed
from purenn.meta._row import steps_in_a_row
from purenn.meta._step import Step
from purenn.optim import GradientTransformation
from purenn.optim._parts import Select, selected_paths
from purenn.transforms import scan
from purenn.transforms._leaves import tensors_in
from purenn.transforms._program import writes_programs
from purenn.tree import combine, partition
from purenn.tree._walk import flatten, short, unflatten

M = TypeVar("M")
Unroll = Literal["python", "scan", "vjp"] | int


def inner_loop(
    loss: Callable[..., Any],
    optimizer: GradientTransformation,
    steps: int,
    *,
    first_order: bool = False,
    remat: bool = False,
    unroll: Unroll = "python",
    truncate: int | None = None,
    select: Select | None = None,
    batches: bool = False,
    stateful: bool = False,
    resumable: bool = False,
) -> Callable[..., Any]:
    """Adapt parameters by some steps of an optimiser, in a way that can be differentiated.

    The result is a pure function ``adapt(params, *args, **kwargs) -> (adapted, losses)``. Under `pn.grad` (or
    `meta.grad`, for many tasks) derivatives go through all steps: to the parameters at the start, to tensors among the
    other arguments, and to tensors that the loss or the optimiser closes over, such as a learning rate.

    Args:
        loss: ``loss(params, *args, **kwargs)`` returns a scalar.
        optimizer: as `pn.optim.sgd`; its state starts anew with every call.
        steps: how many steps.
        first_order: whether gradients count as constants: second derivatives are left out, and adapting costs what it
            costs without a gradient around. The derivative of the adapted parameters with respect to those at the start
            is then the identity (for a plain `sgd`). Default: False.
        remat: whether a gradient keeps the parameters and the optimiser's state of each step only, and computes the
            rest again. Default: False.
        unroll: "python" writes the steps out and calls the loss for each; "scan" has `pn.jit` compile one step,
            whatever their number, and elsewhere may repeat what the loss has done in the first step, without calling it
            again (see the note); a number is "scan" with so many steps written out to the one that is compiled, which
            takes longer to compile and may take less time to run; "vjp" is "python" with remat that keeps only about
            sqrt(2 steps) of what remat keeps, and computes the steps between them once more. Default: "python".
        truncate: if given, gradients of all but this many steps at the end count as constants. Default: None.
        select: if given, only these leaves are adapted: path patterns, or a function of ``pn.tree.select(params)``.
            Default: all.
        batches: whether every tensor among the positional arguments has a leading axis with an entry for each step.
            Default: False, each step gets the same.
        stateful: whether the loss returns ``(scalar, new params)``, whose new buffers are kept. Default: False.
        resumable: whether ``adapt`` takes the optimiser's state as ``state=`` and returns ``(adapted, losses, state)``,
            for unrolls that go on in windows. Default: False.

    Returns:
        The function. Its losses are ``[steps]``, each before its step.

    Note:
        What a gradient holds at one time, if A is the memory of one step with its second derivatives and C the size of
        parameters and state: about ``steps A`` plainly, ``A + steps C`` with remat, ``A + sqrt(2 steps) C`` by "vjp".
        Where C is small beside A, as in convolutional networks, many steps take hardly more memory than one; where it
        is not, no way of keeping carries is independent of the number of steps, unless each step is computed again
        from the first one on.

        In eager, "scan" repeats the first step for stacked tasks (``how="sum"`` of `meta.grad`), if parameters and data
        go through nothing but linear maps, relu, gelu, tanh, sigmoid, differences, squares, means, squared errors and
        cross-entropy, and the optimiser is one that steps each number alone by plain hyper-parameters, such as `sgd` or
        `adam`; with neither `first_order` nor `remat`. The loss is called for every step otherwise.

    Raises:
        ArgumentError: a negative number of steps, more truncated ones than there are, an unknown `unroll`, or both
            `select` and `stateful`.
        ShapeError: when called: a leading axis of `batches` is not as long as there are steps.
        SelectionError: when called: nothing is selected.

    Source:
        Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, 2017, equation 1. Shaban et al.: Truncated Back-propagation
        for Bilevel Optimization, 2019.

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda p, target: (p["w"] - target).square()
        >>> adapt = pn.meta.inner_loop(loss, pn.optim.sgd(0.25), steps=2)
        >>> adapt({"w": torch.tensor(4.0)}, torch.tensor(0.0))
        ({'w': tensor(1.)}, tensor([16.,  4.]))
        >>> pn.grad(lambda p: adapt(p, torch.tensor(0.0))[0]["w"])({"w": torch.tensor(4.0)})
        {'w': tensor(0.2500)}
    """
    if steps < 0:
        raise ArgumentError(f"inner_loop: steps must be at least 0, got {steps}.")
    if truncate is not None and not 0 <= truncate <= steps:
        raise ArgumentError(f"inner_loop: truncate must be between 0 and the {steps} steps, got {truncate}.")
    grouped = isinstance(unroll, int) and not isinstance(unroll, bool) and unroll > 0
    if unroll not in ("python", "scan", "vjp") and not grouped:
        raise ArgumentError(
            f"inner_loop: unroll must be 'python', 'scan', 'vjp' or a number of steps of at least 1, got {unroll!r}."
        )
    if stateful and select is not None:
        raise ArgumentError("inner_loop: a stateful loss adapts all leaves; give select or stateful, not both.")
    constant = steps if first_order else 0 if truncate is None else steps - truncate
    by_vjp = unroll == "vjp"
    group = unroll if isinstance(unroll, int) else 1 if unroll == "scan" else None
    loop = _Loop(Step.of(loss, optimizer, stateful), group, remat or by_vjp, by_vjp, batches)

    def adapt(params: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        state = kwargs.pop("state", None) if resumable else None
        if batches:
            _require_steps(args, steps)
        inner, rest = (params, None) if select is None else _selected(params, select)
        carry = inner, optimizer.init(inner) if state is None else state
        losses: list[Tensor] = []
        for numbers, is_constant in ((range(constant), True), (range(constant, steps), False)):
            if numbers:
                carry, values = loop.run(carry, rest, args, kwargs, numbers, is_constant)
                losses.append(values)
        adapted = carry[0] if rest is None else combine(carry[0], rest)
        values = losses[0] if len(losses) == 1 else torch.cat(losses) if losses else torch.zeros(0)
        return (adapted, values, carry[1]) if resumable else (adapted, values)

    return adapt


Carry = tuple[Any, Any]


@attrs.frozen(eq=False)
class _Loop:
    """How steps are repeated; by a compiled loop, of how many steps its body is made."""

    step: Step
    group: int | None
    remat: bool
    sparse: bool
    batches: bool

    def run(
        self, carry: Carry, rest: Any, args: tuple, kwargs: dict[str, Any], numbers: range, constant: bool
    ) -> tuple[Carry, Tensor]:
        """The carry after some of the steps, and their losses."""
        step = self.step.constant if constant else self.step.differentiable
        if self.group is not None and writes_programs():
            return self._compiled(step, carry, rest, args, kwargs, numbers, self.group)
        if constant or not self.remat:
            given = self.step, carry, rest, self._data(args), kwargs, numbers
            done = None if constant else steps_in_a_row(*given, repeats=self.group is not None)
            return done or self._in_turn(step, carry, rest, args, kwargs, numbers)

        def piece(carry: Carry, rest: Any, args: tuple, kwargs: dict[str, Any], part: range) -> tuple[Carry, Tensor]:
            # Made here, as the piece is computed, so that it sees what takes the place of closed-over tensors.
            each = recomputed(step) if len(part) > 1 else step
            return self._in_turn(each, carry, rest, args, kwargs, part)

        again, losses = recomputed(piece), []
        for part in _pieces(numbers, 1 if self.sparse else 0):
            carry, values = again(carry, rest, args, kwargs, part)
            losses.append(values)
        return carry, torch.cat(losses)

    def _in_turn(
        self,
        step: Callable[..., tuple[Carry, Tensor]],
        carry: Carry,
        rest: Any,
        args: tuple,
        kwargs: dict[str, Any],
        numbers: range,
    ) -> tuple[Carry, Tensor]:
        losses, data = [], self._data(args)
        for number in numbers:
            carry, value = step(carry, rest, data(number), kwargs)
            losses.append(value)
        return carry, torch.stack(losses)

    def _data(self, args: tuple) -> Callable[[int], tuple]:
        return (lambda number: entry(args, number)) if self.batches else lambda _: args

    def _compiled(
        self,
        step: Callable[..., tuple[Carry, Tensor]],
        carry: Carry,
        rest: Any,
        args: tuple,
        kwargs: dict[str, Any],
        numbers: range,
        group: int,
    ) -> tuple[Carry, Tensor]:
        leaves, spec = optree.tree_flatten(carry)  # pyright: ignore[reportArgumentType]
        # Without the tensors: a body that closes over them would have a gradient for them in every step.
        constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def with_tensors(tensors: list[Tensor]) -> Any:
            given = iter(tensors)
            return unflatten(spec, [next(given) if leaf is None else leaf for leaf in constants])

        def body(tensors: list[Tensor], entry: Any) -> tuple[list[Tensor], Tensor]:
            after, value = step(with_tensors(tensors), rest, entry if self.batches else args, kwargs)
            return tensors_in(after), value

        xs = entry(args, slice(numbers.start, numbers.stop)) if self.batches else None
        last, losses = scan(body, tensors_in(carry), xs, len(numbers), remat=self.remat, unroll=group)
        return with_tensors(last), losses


def _pieces(numbers: range, growth: int) -> list[range]:
    # From the end, where gradients begin, each piece is longer than the one before: by then that many are done with,
    # and their carries free. So no more carries are held at one time than there are pieces.
    cuts, length = [numbers.stop], 1
    while cuts[-1] > numbers.start:
        cuts.append(max(numbers.start, cuts[-1] - length))
        length += growth
    return [range(start, stop) for stop, start in itertools.pairwise(cuts)][::-1]


def _selected(params: M, select: Select) -> tuple[M, M]:
    paths = selected_paths("inner_loop", params, select)
    return partition(params, paths=paths)


def _require_steps(args: tuple, steps: int) -> None:
    for position, argument in enumerate(args, 1):
        leaves, structure = flatten(argument)
        for path, leaf in zip(structure.paths, leaves, strict=True):
            if isinstance(leaf, Tensor) and (not leaf.dim() or len(leaf) != steps):
                where = f"argument {position}{f', {path!r},' if path else ''}"
                raise ShapeError(
                    f"inner_loop: with batches=True {where} must have a leading axis with an entry for each of the "
                    f"{steps} steps, got {short(leaf)}."
                )
