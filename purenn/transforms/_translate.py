"""Turning the failures of torch.func into errors that say what was wrong, where, and what to write instead."""

import linecache
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from purenn.errors import MutationError, PurennError
from purenn.transforms._failures import KNOWN

_OURS = (str(Path(__file__).parents[1]), os.path.dirname(torch.__file__))
_PYTHON = Path(os.__file__).parent


def place(error: BaseException) -> str:
    """The user's line on which an exception arose, as `` at model.py:12 (`x.add_(1)`)``; empty if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if frame.filename.startswith(_OURS) or frame.lineno is None or "optree" in file.parts or file.parent == _PYTHON:
            continue
        line = linecache.getline(frame.filename, frame.lineno).strip()
        if not line and frame.filename.startswith("<"):  # code that a library has made
            continue
        return f" at {os.path.basename(frame.filename)}:{frame.lineno}" + (f" (`{line}`)" if line else "")
    return ""


class translated:  # noqa: N801  # entered so often that what contextlib makes shows
    """Within this context torch's errors about transformations arrive as ours, with the original as their cause."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, (RuntimeError, AssertionError)) or isinstance(error, PurennError):
            return
        # The reason may be inside of an error that a tool has made of it.
        text = f"{error}\n{error.__cause__ or ''}"
        for pattern, ours, wrong, fix in KNOWN:
            found = re.search(pattern, text)
            if found:
                named = next((value for value in found.groupdict().values() if value), "")
                raise ours(f"{self._name}: {wrong.format(operation=named)}{place(error)}. {fix}") from error


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
