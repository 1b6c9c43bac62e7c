"""One step of many leaves on torch's kernels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from purenn.optim._hyperparameters import Values
from purenn.optim._private import kernels
from purenn.optim._tensor_list import TensorList
from purenn.tree._memory import spread

if TYPE_CHECKING:
    from purenn.optim._rule import Rule

Columns = list[list[Tensor]]

# Bytes from which on memory always comes new from the system, and is slow at first if it is in small pages.
ALWAYS_NEW = 32 << 20

# On the CPU the fused kernels of torch 2.11 to 2.13 are wrong in half precision: that of SGD does not write some of the
# parameters and reads the momentum as another dtype (pytorch issue 191763).
EXACT = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def run(rule: "Rule", columns: Columns, step: int, values: Values, *, donate: bool, alike: bool) -> Columns:
    """The new parameters and slots; to be called where no gradient is recorded.

    Args:
        rule: the optimiser's rule.
        columns: parameters, gradients, and the slots of the state.
        step: the number of this step, from 1.
        values: its scalars, Python numbers.
        donate: whether the old parameters and slots shall hold the new ones.
        alike: whether it is known that all leaves are of one dtype, float32 or float64, on the CPU, and that all but
            the gradients are contiguous.
    """
    groups = None if alike else _groups(columns)
    if groups is None:
        return _run_group(rule, columns, step, values, donate, alike)
    new = [list(columns[0]), *[list(column) for column in columns[2:]]]
    for numbers in groups:
        group = [[column[n] for n in numbers] for column in columns]
        for column, found in zip(new, _run_group(rule, group, step, values, donate, False), strict=True):
            for number, leaf in zip(numbers, found, strict=True):
                column[number] = leaf
    return new


def _groups(columns: Columns) -> list[list[int]] | None:
    # The leaves that one kernel can take, by dtypes and device; None if it can take all.
    found: dict[Any, list[int]] = {}
    for number, row in enumerate(zip(*columns, strict=True)):
        found.setdefault((row[0].device, *[leaf.dtype for leaf in row]), []).append(number)
    return None if len(found) <= 1 else list(found.values())


def _run_group(rule: "Rule", columns: Columns, step: int, values: Values, donate: bool, alike: bool) -> Columns:
    ws, gs, *slots = columns
    if not ws:
        return [ws, *slots]
    if not rule.elementwise:
        return _run_each(rule, columns, values, donate)
    kernel = rule.kernel if alike or _suits_kernel(rule, ws, gs, slots) else None
    if kernel is not None:
        if not donate:
            ws, *slots = [_cloned(column) for column in (ws, *slots)]
        # The kernels read memory as it lies, whatever the strides say.
        gs = [g if g.is_contiguous() else g.contiguous() for g in gs]
        kernel(_real(ws), _real(gs), [_real(column) for column in slots], step, values)
        return [ws, *slots]
    lists = [TensorList(_real(column)) for column in columns]
    direction, new_slots = rule.directed(lists[1], lists[0], tuple(lists[2:]), values)
    new = [part.tensors for part in (rule.stepped(direction, lists[0], values), *new_slots)]
    if donate:
        for old, column in zip((ws, *slots), new, strict=True):
            kernels._foreach_copy_(_real(old), column)
        return [ws, *slots]
    return [_as(old, column) for old, column in zip((ws, *slots), new, strict=True)]


def _run_each(rule: "Rule", columns: Columns, values: Values, donate: bool) -> Columns:
    rows = []
    for w, g, *slots in zip(*columns, strict=True):
        row = rule.apply(rule.stepped, g, w, slots, values)
        if donate:
            for old, value in zip((w, *slots), row, strict=True):
                old.copy_(value)
        rows.append([w, *slots] if donate else row)
    return [list(column) for column in zip(*rows, strict=True)]


def _suits_kernel(rule: "Rule", ws: list[Tensor], gs: list[Tensor], slots: Columns) -> bool:
    dtype, device = ws[0].dtype, ws[0].device.type
    if device not in rule.kernel_devices or (device == "cpu" and dtype not in EXACT):
        return False
    if any(column[0].dtype != dtype for column in (gs, *slots)):
        return False
    return all([leaf.is_contiguous() for column in (ws, *slots) for leaf in column])  # noqa: C419


def _cloned(leaves: list[Tensor]) -> list[Tensor]:
    if max([leaf.numel() for leaf in leaves]) * leaves[0].element_size() >= ALWAYS_NEW:
        return [spread(leaf) if leaf.nbytes >= ALWAYS_NEW else leaf.clone() for leaf in leaves]
    if hasattr(kernels, "_foreach_clone"):  # torch 2.13
        return list(kernels._foreach_clone(leaves))
    return [leaf.clone() for leaf in leaves]


def _real(leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    # Complex numbers are pairs of real ones, as for torch.optim.
    return [torch.view_as_real(leaf) for leaf in leaves] if leaves[0].is_complex() else leaves


def _as(old: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    if old[0].is_complex():
        return [torch.view_as_complex(leaf.contiguous()) for leaf in new]
    return [leaf.to(old[0].dtype) for leaf in new]
