"""The step of an optimiser outside of transformations: fused and foreach kernels, on fresh or on donated storage.

For small models the work around the kernels is what takes the time. So what has been found out about parameters and
state is remembered with the state that a step returns: of the next step only the gradients are new.
"""

import itertools
import operator
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import optree
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.weak import WeakIdKeyDictionary

from purenn._modes import is_plain
from purenn.errors import ArgumentError
from purenn.optim._aligned import Aligned
from purenn.optim._hyperparameters import Values
from purenn.optim._kernels import Columns, run
from purenn.tree import is_container, replace
from purenn.tree._contiguous import Storage, kinds_of, remember, segments, storage_of, views_like
from purenn.tree._walk import quoted

if TYPE_CHECKING:
    from purenn.optim._rule import Rule

# Lists within `any` and `all` are on purpose: they take a third of the time of generators.


class _Known(NamedTuple):
    """What is known of parameters and a state that have passed all checks.

    Attributes:
        params: the parameters, a container.
        rule: which parts the state has, and whether their shapes have been checked.
        aligned: their leaves and those of the state.
        dtype: that of all these leaves if one kernel takes them as they are (see `run`), otherwise None.
        buffers: for the parameters and each slot the buffers in which the leaves lie, None if they are not contiguous.
        kinds: if they are, dtype, device and shape of each parameter.
        fixed: whether the trees cannot change, having no dicts and lists in them.
        written: the storages that a donated step writes to, None if it has not been asked yet.
    """

    params: "weakref.ref[Any] | None"
    rule: tuple[tuple[str, ...], bool]
    aligned: Aligned
    dtype: torch.dtype | None
    buffers: Columns | None
    kinds: tuple[Any, ...]
    fixed: bool
    written: frozenset[int] | None = None


# What a kernel takes on every device.
REAL = (torch.float32, torch.float64)

# Nodes that can be given other children.
CHANGEABLE = (
    optree.PyTreeKind.DICT,
    optree.PyTreeKind.ORDEREDDICT,
    optree.PyTreeKind.DEFAULTDICT,
    optree.PyTreeKind.LIST,
    optree.PyTreeKind.DEQUE,
)

T = TypeVar("T")

_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()


def fast_step(rule: "Rule", params: Any, grads: Any, state: Any, donate: bool) -> tuple[Any, Any] | None:
    """One step by kernels, None where plain operations must be used.

    Raises:
        StructureError: parameters, gradients and state do not fit together.
        ShapeError: a gradient or a part of the state has another shape than its parameter.
        DeviceError: they are on different devices.
        ArgumentError: something that is donated requires grad, or is there twice.
    """
    slots = rule.slots_of(state)
    values = _numbers(rule, state) if is_plain(state.count) and forward_ad._current_level < 0 else None
    if values is None:
        return None
    known = _recall(rule, params, state)
    joined = _joined(known, params, grads)
    if donate and known is not None and joined is not None:
        _write(rule, _apart(joined, known.written or _storages(joined)), state, values, known.dtype is not None)
        return params, state
    found = None if known is None else known.aligned.with_gradients(grads)
    if found is None:
        known, found = None, Aligned.of(rule.name, params, grads, slots)
    if not _fits(rule, found, donate, known is not None):
        return None
    if known is None:
        known = _examined(rule, found)
    buffers = joined or _buffers(known, found.columns[1])
    columns = found.columns if buffers is None else buffers
    alike = known.dtype is not None and {leaf.dtype for leaf in found.columns[1]} <= {known.dtype}
    if donate:
        written = known.written or _storages(columns)
        _write(rule, _apart(columns, written), state, values, alike)
        _remember(params, state, known._replace(written=written))
        return params, state
    with torch.no_grad():
        new = run(rule, columns, int(state.count) + 1, values, donate=False, alike=alike)
    leaves = new
    if buffers is not None:
        leaves = [views_like(column, like) for column, like in zip(new, _own(found.columns), strict=True)]
    result = found.with_results(leaves)
    params = result.tree(0)
    trees = [result.tree(number) for number in range(2, len(result.leaves))]
    scalars = {name: torch.tensor(values[name], dtype=torch.float64) for name in rule.carried}
    state = replace(state, count=state.count + 1, **scalars, **dict(zip(rule.slots, trees, strict=True)))
    if buffers is not None:
        for tree, column, joined in zip((params, *trees), leaves, new, strict=True):
            remember(tree, Storage(column, joined, known.kinds))
    buffers = None if buffers is None else new
    _remember(params, state, known._replace(aligned=result, buffers=buffers, written=None))
    return params, state


def _numbers(rule: "Rule", state: Any) -> Values | None:
    # The scalars of this step as Python numbers, None if one of them is differentiated or not known yet.
    values = rule.values(int(state.count), {name: getattr(state, name) for name in rule.carried})
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    if not tensors:
        return values
    if not is_plain(*tensors) or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return None
    return {name: value.item() if isinstance(value, Tensor) else value for name, value in values.items()}


def _fits(rule: "Rule", found: Aligned, donate: bool, known: bool) -> bool:
    # Whether kernels may run. What is known has passed before, but can have been made to require grad.
    columns = found.columns
    if not all({type(leaf) for leaf in column} <= {Tensor} for column in (columns[1:2] if known else columns)):
        return False
    if torch.is_grad_enabled() and any([leaf.requires_grad for column in columns for leaf in column]):  # noqa: C419
        if donate:
            _refuse_donation(rule, found)
        return False
    found.require_alike(shapes=rule.elementwise, gradients_only=known)
    if donate and not known:
        _require_distinct(rule, found)
    return True


def _examined(rule: "Rule", found: Aligned) -> _Known:
    columns = _own(found.columns)
    leaves = [leaf for column in columns for leaf in column]
    dtypes = {leaf.dtype for leaf in leaves} if rule.elementwise else set()
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    if dtype not in REAL or not all([leaf.is_cpu and leaf.is_contiguous() for leaf in leaves]):  # noqa: C419
        dtype = None
    buffers, kinds = _all_buffers(columns) if rule.elementwise else (None, ())
    fixed = all(map(_is_fixed, _own(found.specs)))
    # The gradients are not kept alive.
    return _Known(None, (rule.slots, rule.elementwise), found.with_results(columns), dtype, buffers, kinds, fixed)


def _is_fixed(spec: optree.PyTreeSpec) -> bool:
    return spec.kind not in CHANGEABLE and all(map(_is_fixed, spec.children()))


def _all_buffers(columns: Columns) -> tuple[Columns | None, tuple[Any, ...]]:
    # The buffers of all columns if all are contiguous in the same way.
    found = []
    for column in columns:
        buffers = segments(column)
        if buffers is None:
            return None, ()
        found.append(buffers)
    kinds = [kinds_of(column) for column in columns]
    return (found, kinds[0]) if all(kind == kinds[0] for kind in kinds) else (None, ())


def _joined(known: _Known | None, params: Any, grads: Any) -> Columns | None:
    # The buffers of all columns if it is remembered of the gradients that they are contiguous as well.
    if known is None or known.buffers is None or not known.fixed or type(grads) is not type(params):
        return None
    flat = storage_of(grads)
    if flat is None or (flat.shapes is not known.kinds and flat.shapes != known.kinds):
        return None
    if torch.is_grad_enabled() and any([buffer.requires_grad for buffer in flat.buffers]):  # noqa: C419
        return None
    return [known.buffers[0], flat.buffers, *known.buffers[1:]]


def _buffers(known: _Known, gradients: list[Tensor]) -> Columns | None:
    # The same by looking.
    if known.buffers is None:
        return None
    joined = segments(gradients)
    if joined is None or kinds_of(gradients) != known.kinds:
        return None
    return [known.buffers[0], joined, *known.buffers[1:]]


def _recall(rule: "Rule", params: Any, state: Any) -> _Known | None:
    known = _KNOWN.get(state)
    if known is None or known.params is None or known.params() is not params:
        return None
    if known.rule != (rule.slots, rule.elementwise):
        return None
    return known if known.fixed or _is_unchanged(rule, known.aligned, params, state) else None


def _is_unchanged(rule: "Rule", found: Aligned, params: Any, state: Any) -> bool:
    # Whether trees with dicts and lists in them have the leaves that they had.
    trees = [params, *rule.slots_of(state)]
    for tree, old, spec in zip(trees, _own(found.leaves), _own(found.specs), strict=True):
        leaves, now = optree.tree_flatten(tree)
        if now != spec or not all(map(operator.is_, leaves, old)):
            return False
    return True


def _own(columns: Sequence[T]) -> list[T]:
    # What belongs to the parameters and the state, without the gradients.
    return [columns[0], *columns[2:]]


def _remember(params: Any, state: Any, known: _Known) -> None:
    if is_container(params):  # whose own children cannot change
        _KNOWN[state] = known._replace(params=weakref.ref(params))


def _write(rule: "Rule", columns: Columns, state: Any, values: Values, alike: bool) -> None:
    # One step in place.
    with torch.no_grad():
        run(rule, columns, int(state.count) + 1, values, donate=True, alike=alike)
        state.count.add_(1)
        for name in rule.carried:
            getattr(state, name).fill_(values[name])


def _refuse_donation(rule: "Rule", found: Aligned) -> None:
    for column, what in ((0, "the parameter"), *[(2 + n, "the state of") for n in range(len(rule.slots))]):
        for path, leaf in zip(found.paths(), found.columns[column], strict=True):
            if leaf.requires_grad:
                raise ArgumentError(
                    f"{rule.name}: {what} {quoted(path)} is donated but requires grad; its old value is needed for the "
                    f"gradient. Leave donate=True out, or step under torch.no_grad()."
                )


def _require_distinct(rule: "Rule", found: Aligned) -> None:
    for column in _own(found.columns):
        places = sorted([(leaf.data_ptr(), number) for number, leaf in enumerate(column) if leaf.numel()])
        for (start, one), (following, other) in itertools.pairwise(places):
            first = column[one]
            if following == start or (following < start + first.nbytes and first.is_contiguous()):
                paths = found.paths()
                raise ArgumentError(
                    f"{rule.name}: {quoted(paths[one])} and {quoted(paths[other])} share their storage, so it cannot "
                    f"be donated: tie them with pn.tree.tie, or leave donate=True out."
                )
        for number, leaf in enumerate(column):
            if not leaf.is_contiguous() and any(s == 0 < n - 1 for s, n in zip(leaf.stride(), leaf.shape, strict=True)):
                raise ArgumentError(
                    f"{rule.name}: elements of {quoted(found.paths()[number])} share their place in memory (expand), "
                    f"so it cannot be donated: clone it, or leave donate=True out."
                )


def _storages(columns: Columns) -> frozenset[int]:
    # Where a donated step writes.
    return frozenset([leaf.untyped_storage()._cdata for column in _own(columns) for leaf in column])


def _apart(columns: Columns, written: frozenset[int]) -> Columns:
    # With copies of the gradients that the step would write over while it still reads them.
    gradients = columns[1]
    if written.isdisjoint([g.untyped_storage()._cdata for g in gradients]):
        return columns
    copies = [g.clone() if g.untyped_storage()._cdata in written else g for g in gradients]
    return [columns[0], copies, *columns[2:]]
