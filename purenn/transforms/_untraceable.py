"""What a function cannot do while it is traced, in words of ours."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode

from purenn.errors import PurennError, TraceError
from purenn.transforms._failures import LAYOUTS, NOT_DENSE
from purenn.transforms._translate import place


class _PrintedError(Exception):
    """A traced tensor was written as text."""


class Unreadable(TorchFunctionMode):
    """Refuses to write a traced tensor as text, which would show no value, and to say where it lies in memory: at 0."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is Tensor.data_ptr and not _asking_for_data().startswith(_TORCH):
            raise RuntimeError("a data pointer of a traced tensor is asked for")
        if func in _WRITING:
            # Who asked for it: torch itself may, in a message of its own.
            frame, outermost = sys._getframe(1), None
            while frame is not None and frame.f_code.co_filename.startswith(_TORCH):
                outermost = frame if frame.f_code in _WRITING.values() else outermost
                frame = frame.f_back
            if outermost is not None and outermost.f_back is frame:
                raise _PrintedError
        return func(*args, **(kwargs or {}))


def _asking_for_data() -> str:
    # The file; between it and here are other modes of torch.
    frame: Any = sys._getframe(2)
    while frame.f_code.co_name == Unreadable.__torch_function__.__name__:
        frame = frame.f_back
    return frame.f_code.co_filename


_WRITING = {method: method.__code__ for method in (Tensor.__repr__, Tensor.__format__)}
_TORCH = os.path.dirname(torch.__file__)


_VALUE = (
    "the function asks for the value of a traced tensor (`if`, `while`, bool(), int(), .item() or .tolist())",
    "While it is traced there are no values: choose with torch.where(condition, a, b), keep the number as a tensor, or "
    "pass it as a Python number, which is traced for each value anew.",
)
_SHAPE = (
    "the shape of a result depends on values (a boolean mask as an index, nonzero, unique)",
    "Use torch.where(mask, x, 0), or a fixed number of results.",
)
_PRINTED = (
    "the function prints a traced tensor, or makes a text of it",
    "While it is traced there are no values: return the tensor and print the result, or call the function without jit.",
)
_UNSUPPORTED = (
    "the function uses an operation that cannot be traced",
    "Call it outside, or write it in other operations.",
)
# (what torch says, what was wrong, what to do)
_KNOWN = (
    (r"must be .*, not FakeTensor", *_VALUE),
    (
        r"\.numpy\(\) is not supported|data pointer",
        "the function asks for the data of a traced tensor (.numpy() or a pointer)",
        "While it is traced there are no values: compute with torch, or call numpy outside.",
    ),
    (
        r"but its data is not allocated yet",
        "the function makes a tensor of the values of traced ones (torch.tensor([a, b]))",
        "While it is traced there are no values: use torch.stack([a, b]).",
    ),
    (LAYOUTS, *NOT_DENSE),
    (
        r"_apply\(\): Couldn't swap",
        "the function converts an nn.Module (.to(), .double()) that it traces",
        "Convert it outside, or make it pure with bridge.from_module.",
    ),
    (
        r"Can't (pickle|get) local object|_share_fd_|elem\.device\.type must be 'meta'",
        "the function copies, pickles or saves a traced tensor (copy.copy, torch.save)",
        "While it is traced there are no values: copy by x.clone(), and save the result.",
    ),
    (
        r"FX to symbolically trace a dynamo-optimized function",
        "the function calls one that torch.compile has made",
        "Call the function that it was made of: it is compiled along.",
    ),
)


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Within this context, failures of tracing arrive as ours."""
    try:
        yield
    except PurennError:
        raise
    except (RuntimeError, TypeError, AttributeError, AssertionError, _PrintedError) as error:
        found = _reason(error)
        if found is None:
            raise
        wrong, fix = found
        raise TraceError(f"{name}: {wrong}{place(error)}. {fix}") from error


def _reason(error: BaseException) -> tuple[str, str] | None:
    kinds = (
        (_PrintedError, _PRINTED),
        (DataDependentOutputException, _VALUE),
        (DynamicOutputShapeException, _SHAPE),
        (UnsupportedOperatorException, _UNSUPPORTED),
    )
    for kind, reason in kinds:
        if isinstance(error, kind):
            return reason
    text = str(error)
    found = next(((wrong, fix) for pattern, wrong, fix in _KNOWN if re.search(pattern, text)), None)
    # A tool of torch may have made another error of it.
    return _reason(error.__cause__) if found is None and error.__cause__ is not None else found
