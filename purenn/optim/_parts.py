"""Transformations of some of the leaves."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from purenn.errors import SelectionError
from purenn.optim._transformation import EmptyState, GradientTransformation, holes_like, with_state
from purenn.tree import HOLE, Selection, combine, container, partition, static
from purenn.tree._partition import selected_leaves
from purenn.tree._select import chosen
from purenn.tree._walk import flatten, quoted, unflatten

Select = str | Sequence[str] | Callable[[Selection], Selection]
Paths = tuple[str, ...]


@container
class PartsState:
    """State of `multi_transform`, `masked` and `muon`.

    Attributes:
        states: the state of each transformation.
        paths: the dotted paths of the leaves that each transformation has.
    """

    states: tuple[Any, ...]
    paths: tuple[Paths, ...] = static()


def multi_transform(
    parts: Iterable[tuple[Select, GradientTransformation]], *, default: GradientTransformation | None = None
) -> GradientTransformation:
    """Another transformation for each part of the model.

    Args:
        parts: pairs of a selection (path patterns, or a function of ``select(params)``) and the transformation of the
            leaves that it hits. Leaves that are not trained are left alone whatever hits them.
        default: the transformation of all other leaves; without it there must be none. `set_to_zero` leaves them as
            they are. Default: None.

    Raises:
        SelectionError: when initialised: a selection hits nothing, two of them hit the same leaf, or a leaf is left.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear
        >>> p = Linear.init(pn.random.key(0), 3, 2)
        >>> optimizer = pn.optim.multi_transform([("bias", pn.optim.sgd(0.1))], default=pn.optim.adamw(1e-3))
        >>> optimizer.init(p).paths
        (('bias',), ('weight',))
    """
    pairs = list(parts)

    def assign(params: Any) -> tuple[Paths, ...]:
        taken: dict[str, int] = {}
        for number, (selection, _) in enumerate(pairs):
            for path in selected_paths("multi_transform", params, selection):
                if path in taken:
                    raise SelectionError(
                        f"multi_transform: {quoted(path)} is hit by the selections {taken[path]} and {number}: make "
                        f"them disjoint."
                    )
                taken[path] = number
        trained = flatten(partition(params)[0])[1].paths
        left = [path for path in trained if path not in taken]
        if left and default is None:
            raise SelectionError(
                f"multi_transform: no selection hits {quoted(left[0])}"
                + (f" and {len(left) - 1} other leaves" if len(left) > 1 else "")
                + ": give a transformation for them as default."
            )
        found = [tuple([path for path in trained if taken.get(path) == number]) for number in range(len(pairs))]
        return (*found, tuple(left)) if default is not None else tuple(found)

    transforms = [transform for _, transform in pairs] + ([] if default is None else [default])
    return in_parts("multi_transform", transforms, assign)


def masked(transform: GradientTransformation, selection: Select) -> GradientTransformation:
    """A transformation of some leaves; the updates of all others pass unchanged.

    Args:
        transform: what happens to the selected leaves.
        selection: path patterns, or a function of ``select(params)``.

    Raises:
        SelectionError: when initialised: nothing is selected.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear
        >>> decay = pn.optim.masked(pn.optim.add_decayed_weights(1e-2), "**.weight")
        >>> optimizer = pn.optim.chain(decay, pn.optim.sgd(0.1))
    """
    return multi_transform([(selection, transform)], default=identity())


def identity() -> GradientTransformation:
    """The transformation that leaves the updates as they are."""
    return GradientTransformation(lambda params: EmptyState(), lambda grads, state, params: (grads, state))


def set_to_zero() -> GradientTransformation:
    """The transformation that takes all updates away: leaves that get it stay the same objects."""

    def step(params: Any, grads: Any, state: Any, donate: bool) -> tuple[Any, Any]:
        return params, state

    return GradientTransformation(
        lambda params: EmptyState(), lambda grads, state, params: (holes_like(grads), state), step
    )


def in_parts(
    name: str, transforms: Sequence[GradientTransformation], assign: Callable[[Any], tuple[Paths, ...]]
) -> GradientTransformation:
    """Transformations side by side; ``assign(params)`` gives the paths of the leaves of each."""

    def init(params: Any) -> PartsState:
        paths = assign(params)
        parts = zip(transforms, paths, strict=True)
        return PartsState(tuple([t.init(part(params, mine)) for t, mine in parts]), paths)

    def update(grads: Any, state: PartsState, params: Any) -> tuple[Any, PartsState]:
        found, states = [], []
        for transform, inner, paths in zip(transforms, state.states, state.paths, strict=True):
            updates, inner = transform.update(part(grads, paths), inner, part(params, paths))
            found.append(updates)
            states.append(inner)
        return combine(*found), PartsState(tuple(states), state.paths)

    def step(params: Any, grads: Any, state: PartsState, donate: bool) -> tuple[Any, PartsState]:
        found, states = [], []
        for transform, inner, paths in zip(transforms, state.states, state.paths, strict=True):
            new, inner = transform.step(part(params, paths), part(grads, paths), inner, donate=donate)
            found.append(new)
            states.append(inner)
        everything = {path for paths in state.paths for path in paths}
        values, structure = flatten(params)
        rest = [HOLE if p in everything else value for p, value in zip(structure.paths, values, strict=True)]
        return combine(structure.rebuild(rest), *found), PartsState(tuple(states), state.paths)

    return with_state(name, PartsState, init, update, step)


def part(tree: Any, paths: Iterable[str]) -> Any:
    """A tree with holes in the place of all leaves but those at some paths."""
    wanted = set(paths)
    values, structure = flatten(tree)
    pairs = zip(structure.paths, values, strict=True)
    return unflatten(structure.spec, [value if path in wanted else HOLE for path, value in pairs])


def selected_paths(name: str, params: Any, selection: Select) -> list[str]:
    """The paths of the trained leaves that a selection hits.

    Raises:
        SelectionError: it hits nothing.
    """
    structure = flatten(params)[1]
    hits = selected_leaves(params, structure, chosen(name, params, selection))
    trained = set(flatten(partition(params)[0])[1].paths)
    return [path for path, hit in zip(structure.paths, hits, strict=True) if hit and path in trained]
