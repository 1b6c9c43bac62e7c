"""Turning the failures of torch.func into errors that say what was wrong, where, and what to write instead."""

import contextlib
import linecache
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from purenn.errors import BatchingError, GradientError, MutationError, PurennError

_OURS = (str(Path(__file__).parents[1]), os.path.dirname(torch.__file__))


def place(error: BaseException) -> str:
    """The user's line on which an exception arose, as `` at model.py:12 (`x.add_(1)`)``; empty if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(_OURS) or frame.lineno is None or "optree" in Path(frame.filename).parts:
            continue
        line = linecache.getline(frame.filename, frame.lineno).strip()
        return f" at {os.path.basename(frame.filename)}:{frame.lineno}" + (f" (`{line}`)" if line else "")
    return ""


# What was wrong and what to do where a differentiated parameter is written to.
WRITTEN = (
    "the function writes in place into a parameter that is being differentiated",
    "Arguments are never changed: write `w = w + d` instead of `w.add_(d)` or `w += d`.",
)
# (what torch says, our exception, what was wrong, what to do)
_KNOWN: tuple[tuple[str, type[PurennError], str, str], ...] = (
    (
        r"leaf Variable that requires grad is being used in an in-place operation|"
        r"view of a leaf Variable that requires grad",
        MutationError,
        *WRITTEN,
    ),
    (
        r"vmap: It looks like you're attempting to use a Tensor in some data-dependent control flow|"
        r"vmap: It looks like you're calling \.item\(\) on a Tensor",
        BatchingError,
        "the function asks for the value of a batched tensor (`if`, `while`, bool(), int() or .item())",
        "The value differs from example to example: use torch.where(condition, a, b), or keep the number as a tensor.",
    ),
    (
        r"vmap: called random operation while in randomness error mode",
        BatchingError,
        "the function draws from torch's global generator, which vmap cannot split among the examples",
        "Draw from an explicit key: keys = pn.random.split(key, n), then vmap over the keys and use pn.random.normal, "
        "pn.random.bernoulli or a layer's key= option.",
    ),
    (
        r"vmap: inplace arithmetic\(self, \*extra_args\) is not possible|"
        r"vmap: .* is not possible because there exists a Tensor|"
        r"output with shape \[.*\] doesn't match the broadcast shape",
        MutationError,
        "the function writes in place a value larger than its target (a batched value into a tensor that is not)",
        "Write `y = x + b` instead of `x.add_(b)`; a tensor to be filled must be made from a batched one.",
    ),
    (
        r"Batching rule not implemented for (?P<operation>[\w:.]*\w)",
        BatchingError,
        "torch has no batching rule for {operation}",
        "Use the layer of purenn.layers for this operation, or write it in operations that have one.",
    ),
    (
        r"one of the variables needed for gradient computation has been modified by an inplace operation",
        MutationError,
        "the function overwrites in place a value that the gradient needs",
        "Write `y = f(x)` into a new name instead of changing x in place.",
    ),
    (
        r"derivative for (?P<operation>[\w:.]*\w) is not implemented|"
        r"the derivative for '(?P<other>[\w:.]*\w)' is not implemented|"
        r"derivative for '(?P<third>[\w:.]*\w)' is not implemented",
        GradientError,
        "torch has no derivative for {operation}",
        "Use the layer of purenn.layers for this operation, or write it in operations that have one.",
    ),
)


@contextlib.contextmanager
def translated(name: str) -> Iterator[None]:
    """Within this context torch's errors about transformations arrive as ours, with the original as their cause."""
    try:
        yield
    except PurennError:
        raise
    except RuntimeError as error:
        text = str(error)
        for pattern, kind, wrong, fix in _KNOWN:
            found = re.search(pattern, text)
            if found:
                named = next((value for value in found.groupdict().values() if value), "")
                raise kind(f"{name}: {wrong.format(operation=named)}{place(error)}. {fix}") from error
        raise


def refuse_writes(name: str, paths: Sequence[str], before: Sequence[int], after: Sequence[int]) -> None:
    """Raise if a tensor has been written to meanwhile.

    Raises:
        MutationError: naming the first such path.
    """
    for path, then, now in zip(paths, before, after, strict=True):
        if then != now:
            raise MutationError(
                f"{name}: the function has written in place into its argument {path}. Arguments are never changed: "
                f"return the new value instead, as pn.replace(p, running_mean=new)."
            )
