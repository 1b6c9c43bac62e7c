"""One cell of the matrix."""

import torch
from _columns import COLUMNS
from _exceptions import reason
from _rows import cases


class CellError(AssertionError):
    """A promise that is not kept without a reason, or kept in spite of one."""


def check_cell(row: str, column: str, device: torch.device) -> None:
    """Check a promise for all cases of a row.

    Raises:
        CellError: a case fails and has no reason, or passes although it has one. (Reasons are those of the CPU: other
            devices may do better.)
    """
    promise, known = COLUMNS[column], reason(row, column)
    passed, expected = [], []
    for case in cases(row, promise.samples, awkward=promise.awkward):
        name = case.sample.name
        has_reason = known is not None and (known.samples is None or name in known.samples)
        try:
            promise.check(case if device.type == "cpu" else case.moved(device))
            passed += [name] if has_reason else []
        # Whatever goes wrong in a cell is its result.
        except Exception as error:
            if not has_reason:
                text = f"{type(error).__name__}: {error}"
                raise CellError(f"{row}, {column}, sample {name!r}: {text}") from error
            expected.append(name)
    if known is not None and device.type == "cpu" and (passed or not expected):
        raise CellError(f"{row}, {column}: the reason is out of date, no sample fails of {passed or known.samples}")
