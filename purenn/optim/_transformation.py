"""What an optimiser is: pure functions of gradients, state and parameters."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from purenn._dtypes import in_dtype
from purenn.errors import ArgumentError
from purenn.tree import HOLE, container, partition
from purenn.tree import map as tree_map

if TYPE_CHECKING:
    from purenn.optim._row import Row

T = TypeVar("T")


@container
class EmptyState:
    """State of transformations that have none."""


class GradientTransformation(NamedTuple):
    """An optimiser as pure functions; the state is a container.

    Attributes:
        init: ``init(params) -> state``.
        update: ``update(grads, state, params) -> (updates, state)``; `apply_updates` adds the updates to the
            parameters.
        stepper: ``stepper(params, grads, state, donate) -> (params, state)``, what `step` does if that is faster than
            `update` and `apply_updates`. Default: None.
        row: ``row(params, argument, state)`` begins several steps, for inner loops; `argument` is `params` taken apart.
            See `purenn.optim._row`. Default: None.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]
    stepper: Callable[[Any, Any, Any, bool], tuple[Any, Any]] | None = None
    row: "Callable[[Any, Any, Any], Row] | None" = None

    def step(self, params: T, grads: Any, state: Any, *, donate: bool = False) -> tuple[T, Any]:
        """One step: the new parameters and the new state, the fast way.

        The numbers are those of `update` and `apply_updates`. Outside of transformations the optimisers run torch's
        fused and foreach kernels, on a `pn.tree.contiguous` tree one kernel for all leaves; within `grad`, `vmap` and
        `jit`, and where a gradient is recorded, they run plain differentiable operations.

        Args:
            params: the parameters.
            grads: their gradients.
            state: from `init`, or from the last step.
            donate: whether the storage of `params` and `state` may be reused for the result. The old trees must not be
                used afterwards, nor anything that shares their storage. Ignored within transformations.

        Raises:
            StructureError: parameters, gradients and state do not fit together.
            ShapeError: a gradient or a part of the state has another shape than its parameter.
            ArgumentError: something that is donated requires grad, or is there twice.

        Example:
            >>> import torch, purenn as pn
            >>> optimizer = pn.optim.sgd(0.1)
            >>> params, grads = {"w": torch.tensor(1.0)}, {"w": torch.tensor(2.0)}
            >>> optimizer.step(params, grads, optimizer.init(params))[0]
            {'w': tensor(0.8000)}
        """
        if self.stepper is not None:
            return self.stepper(params, grads, state, donate)
        updates, state = self.update(grads, state, params)
        return apply_updates(params, updates), state


def apply_updates(params: T, updates: Any) -> T:
    """The parameters plus the updates, in their own dtypes.

    Leaves without an update (buffers, frozen ones) stay as they are.
    """
    return tree_map(lambda value, update: in_dtype(value.dtype, value + update), params, updates)


def require_state(name: str, kind: type, state: Any) -> None:
    """Refuse the state of something else.

    Raises:
        ArgumentError: it is one.
    """
    if type(state) is not kind:
        raise ArgumentError(
            f"{name}: the state must be the {kind.__name__} that init(params) makes, got a {type(state).__name__}."
        )


def with_state(
    name: str,
    kind: type,
    init: Callable[[Any], Any],
    update: Callable[[Any, Any, Any], tuple[Any, Any]],
    step: Callable[[Any, Any, Any, bool], tuple[Any, Any]] | None = None,
) -> GradientTransformation:
    """A transformation that refuses the state of something else."""

    def checked_update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        require_state(name, kind, state)
        return update(grads, state, params)

    def checked_step(params: Any, grads: Any, state: Any, donate: bool) -> tuple[Any, Any]:
        require_state(name, kind, state)
        assert step is not None
        return step(params, grads, state, donate)

    return GradientTransformation(init, checked_update, None if step is None else checked_step)


def zeros_like(params: T) -> T:
    """Zeros for every trainable leaf, holes elsewhere."""
    return tree_map(lambda value: value.detach().new_zeros(value.shape), partition(params)[0])


def holes_like(tree: Any) -> Any:
    """A tree of holes only, which as updates leave everything as it is."""
    return tree_map(lambda _: HOLE, tree)
