"""What is known about one pure run of a module."""

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import Tensor, nn

from bridge._pure_questions import running, running_module
from bridge._pure_writes import Writes
from purenn import random
from purenn.errors import BridgeError

Handler = Callable[..., Any]


@attrs.define(eq=False)
class Context:
    """One pure run.

    Attributes:
        writes: what has been written into.
        key: the key from which everything is drawn, or None for a deterministic run.
        paths: names of the running modules, by their ids.
        inside: runs a function of torch in such a way that what it calls is seen as well.
        drawn: how many keys have been taken.
    """

    writes: Writes
    key: Tensor | None
    paths: Mapping[int, str]
    inside: Callable[..., Any]
    drawn: int = 0

    def next_key(self) -> Tensor | None:
        """A key for the next draw; None in a deterministic run."""
        if self.key is None:
            return None
        self.drawn += 1
        return random.fold_in(self.key, self.drawn - 1)

    def required_key(self, function: str) -> Tensor:
        """A key for a draw that cannot be left out.

        Raises:
            BridgeError: the run is deterministic.
        """
        key = self.next_key()
        if key is None:
            raise BridgeError(
                f"{running(self.paths)} draws random numbers by {function}: give the container a key to draw from, "
                f"p(..., key=pn.random.key(0))."
            )
        return key

    def running_module(self) -> nn.Module | None:
        """The innermost module whose code is running."""
        return running_module(self.paths)

    def require_free(self, *tensors: Tensor | None) -> None:
        """Note that a kernel of torch is about to write into tensors, which it does without a word.

        Raises:
            BridgeError: one is the caller's.
        """
        for tensor in tensors:
            if tensor is not None and id(tensor) in self.writes.protected:
                raise BridgeError(
                    f"{running(self.paths)} updates running statistics that are not known to be its own: make the "
                    f"container by from_module(module, stateful=True), and applying it returns them."
                )
            if tensor is not None:
                self.writes.touched.add(id(tensor))
