"""Comparing two trees, with the first difference named."""

from typing import Any

import attrs
import optree
import torch
from torch import Tensor

from purenn.tree._map import first_difference
from purenn.tree._walk import fits, short


@attrs.frozen
class Comparison:
    """The answer of `equal` and `allclose`: true or false, and why not.

    Attributes:
        same: whether nothing differs. The comparison itself is true exactly then.
        path: the dotted path of the first difference, empty if it is at the top, None if nothing differs.
        reason: what differs there; empty if nothing does.
    """

    same: bool
    path: str | None = None
    reason: str = ""

    def __bool__(self) -> bool:
        return self.same

    def __str__(self) -> str:
        return "no difference" if self.same else f"{self.path or 'the top'}: {self.reason}"


def equal(a: Any, b: Any) -> Comparison:
    """Whether two trees have the same structure, shapes, dtypes, devices and values (-0.0 is not 0.0, NaN is NaN)."""
    return _compare(a, b, None)


def allclose(a: Any, b: Any, *, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Comparison:
    """Whether two trees have the same structure and shapes and ``|a - b| <= atol + rtol |b|`` in every leaf.

    Dtypes and devices may differ: leaves are compared in the wider dtype, on the device of the first tree.
    """
    return _compare(a, b, (rtol, atol, equal_nan))


def _compare(a: Any, b: Any, tolerance: tuple[float, float, bool] | None) -> Comparison:
    if not fits(optree.tree_structure(a), optree.tree_structure(b)):
        where, reason = first_difference(a, b, ())
        return Comparison(False, where.strip("'") if where != "the top" else "", reason)
    for number, (x, y) in enumerate(zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True)):
        reason = _difference(x, y, tolerance)
        if reason:
            return Comparison(False, ".".join(map(str, optree.tree_paths(a)[number])), reason)
    return Comparison(True)


def _difference(x: Any, y: Any, tolerance: tuple[float, float, bool] | None) -> str:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return "" if type(x) is type(y) and x == y else f"{short(x)} against {short(y)}"
    if x.shape != y.shape or (tolerance is None and x.dtype != y.dtype):
        return f"{short(x)} against {short(y)}"
    if x.is_meta != y.is_meta or (tolerance is None and x.device != y.device):
        return f"device {x.device} against {y.device}"
    if x.is_meta:
        return ""
    if tolerance is None:
        wrong = ~_identical(x, y)
    else:
        rtol, atol, equal_nan = tolerance
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(x.device, dtype)
        wrong = ~torch.isclose(x, y, rtol=rtol, atol=atol, equal_nan=equal_nan)
    number = int(wrong.sum())
    if not number:
        return ""
    x, y = x.detach(), y.detach()
    wide = torch.complex128 if x.is_complex() else torch.float64
    apart = (x.to(wide) - y.to(wide)).abs()[wrong].nan_to_num(torch.inf, posinf=torch.inf).max()
    return f"{number} of {x.numel()} elements differ, by at most {float(apart):.3g}"


def _identical(x: Tensor, y: Tensor) -> Tensor:
    if x.is_complex():
        return _identical(torch.view_as_real(x.resolve_conj()), torch.view_as_real(y.resolve_conj())).all(-1)
    if not x.is_floating_point():
        return x == y
    x, y = x.double(), y.double()
    return ((x == y) & (x.signbit() == y.signbit())) | (x.isnan() & y.isnan())
