"""The states of a training in a folder: saved while it runs, restored when it starts again."""

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from torch import Tensor

from purenn.errors import ArgumentError, CheckpointError
from purenn.tree._files import load, metadata, save
from purenn.tree._map import map as map_leaves
from purenn.tree._shards import remove, shard_pattern

T = TypeVar("T")

_STEP = r"step_(\d{10,})"
_NAME = re.compile(rf"{_STEP}\.safetensors(?:\.index\.json)?")
_LEFTOVER = re.compile(rf"\.{_NAME.pattern}\.[0-9a-f]{{8}}")
_SHARD = shard_pattern(_STEP)


class Checkpointer:
    """Keeps the newest states of a training in a folder, a safetensors file for each, or several if it is large.

    A state is any tree of tensors: put everything into it that the training needs to go on, such as parameters,
    buffers, the optimiser's state, keys and the position in the data. Then a process that is killed at any moment and
    started again ends with the same bits as one that was not.

    A file appears whole or not at all, and older ones are removed only after a newer one is safe on the disk. One
    process at a time may write to a folder.

    Args:
        folder: where the files are; made if it is not there.
        keep: how many of the newest states stay. Default: 3.
        asynchronous: whether `save` copies the state and returns, while a thread writes it. A failure to write is then
            raised by the next `save` or by `wait`. Default: False.
        max_shard_size: the most bytes of tensors in one file, as in `pn.save`. Default: 5 GB.

    Raises:
        ArgumentError: `keep` or `max_shard_size` is less than 1.
        CheckpointError: `folder` is a file.

    Example:
        >>> import tempfile, torch, purenn as pn
        >>> checkpoints = pn.Checkpointer(tempfile.mkdtemp(), keep=2)
        >>> state = {"weight": torch.zeros(3)}
        >>> for step in range(5):
        ...     state = {"weight": state["weight"] + 1}
        ...     checkpoints.save(step, state)
        >>> checkpoints.steps()
        [3, 4]
        >>> checkpoints.restore(like=state)
        (4, {'weight': tensor([5., 5., 5.])})
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 3,
        asynchronous: bool = False,
        max_shard_size: int = 5_000_000_000,
    ) -> None:
        for name, number in (("keep", keep), ("max_shard_size", max_shard_size)):
            if number < 1:
                raise ArgumentError(f"Checkpointer: {name} must be at least 1, got {number}.")
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(f"Checkpointer: {self.folder} is a file; give a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keep, self.asynchronous, self.max_shard_size = keep, asynchronous, max_shard_size
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None

    def steps(self) -> list[int]:
        """The steps whose states are in the folder, the oldest first."""
        return self._steps(_NAME)

    def path(self, step: int) -> Path:
        """The file of a step's state; if there are several, what their names begin with."""
        return self.folder / f"step_{step:010d}.safetensors"

    def save(self, step: int, state: Any, *, metadata: Mapping[str, str] | None = None) -> None:
        """Write a state.

        Args:
            step: its number, not negative. A state of the same number is replaced.
            state: a tree of tensors.
            metadata: text to keep beside it.

        Raises:
            ArgumentError: `step` is negative, or there is a state of a later step.
            CheckpointError: the state cannot be stored, as in `pn.save`.
        """
        if step < 0:
            raise ArgumentError(f"Checkpointer.save: step must not be negative, got {step}.")
        self.wait()
        newest = max(self.steps(), default=step)
        if newest > step:
            raise ArgumentError(
                f"Checkpointer.save: {self.folder} has a state of step {newest} already, which would be taken for "
                f"newer than step {step}: go on from that one, or give this course of the training a folder of its own."
            )
        if not self.asynchronous:
            self._write(step, state, metadata)
            return
        # The training may write into its tensors while the thread writes the file.
        copied = map_leaves(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, state)
        self._writer = threading.Thread(target=self._write_later, args=(step, copied, metadata))
        self._writer.start()

    def restore(self, like: T, *, step: int | None = None) -> tuple[int, T] | None:
        """Read the newest state, or that of a step.

        Args:
            like: a tree of the same structure, as in `pn.load`.
            step: whose state; that of the last one if None.

        Returns:
            The step and its state; None if `step` is None and there is no state.

        Raises:
            CheckpointError: there is no state of this step, or its file is damaged or does not fit `like`.
        """
        self.wait()
        there = self.steps()
        if step is None and not there:
            return None
        step = there[-1] if step is None else step
        if step not in there:
            raise CheckpointError(f"Checkpointer.restore: {self.folder} has no state of step {step}, only of {there}.")
        return step, load(self.path(step), like=like)

    def metadata(self, step: int) -> dict[str, str]:
        """The text that was saved with a state.

        Raises:
            CheckpointError: there is no such file, or it is damaged.
        """
        self.wait()
        return metadata(self.path(step))

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
            BaseException: what went wrong in the thread that wrote.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.wait()

    def _write_later(self, step: int, state: Any, text: Mapping[str, str] | None) -> None:
        try:
            self._write(step, state, text)
        except BaseException as error:  # handed over to the thread that waits
            self._failure = error

    def _write(self, step: int, state: Any, text: Mapping[str, str] | None) -> None:
        save(self.path(step), state, metadata=text, max_shard_size=self.max_shard_size)
        for number in self.steps()[: -self.keep]:
            remove(self.path(number))
        # Of a process that was killed while it wrote or removed.
        for number in set(self._steps(_SHARD)) - set(self.steps()):
            remove(self.path(number))
        for name in os.listdir(self.folder):
            if _LEFTOVER.fullmatch(name):
                (self.folder / name).unlink()

    def _steps(self, pattern: re.Pattern[str]) -> list[int]:
        found = (pattern.fullmatch(name) for name in os.listdir(self.folder))
        return sorted({int(match[1]) for match in found if match})
