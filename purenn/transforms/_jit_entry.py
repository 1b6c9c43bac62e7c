"""A compiled graph: whether it is valid for a call, and calling it."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import optree
from torch import Tensor

from purenn._modes import without_autocast
from purenn.transforms._donation import Apart
from purenn.transforms._jit_key import Call, Key, tensors_like

#: Stands for a tensor among the leaves of a result.
TENSOR = object()


@attrs.frozen(eq=False)
class Entry:
    """One compiled graph.

    Attributes:
        key: what it is valid for.
        guards: the check of its tensors.
        described: its arguments, in words.
        run: the compiled function of its tensors and the constants.
        constants: the tensors that the function closes over.
        constant_guards: the check of those.
        is_lazy: whether an input is the conjugate or the negative of what its memory holds, which compiled code reads.
        apart: the check of donated inputs, if there are any.
        out_spec: the structure of the result.
        out_leaves: its leaves, with `TENSOR` for tensors; None if all are.
    """

    key: Key
    guards: Any
    described: tuple[tuple[str, str], ...]
    run: Callable[..., Sequence[Any]]
    constants: list[Tensor]
    constant_guards: Any
    is_lazy: bool
    apart: Apart | None
    out_spec: optree.PyTreeSpec
    out_leaves: list[Any] | None

    def inputs(self, call: Call) -> list[Tensor] | None:
        """The tensors of a call, if the graph is valid for it."""
        tensors = tensors_like(call, self.key)
        if tensors is None or not self.guards.check(*tensors):
            return None
        return tensors if not self.constants or self.constant_guards.check(*self.constants) else None

    def call(self, tensors: list[Tensor]) -> Any:
        """Run the graph and rebuild the result's tree."""
        if self.apart is not None:
            self.apart.check([*tensors, *self.constants])
        given = (*tensors, *self.constants)
        if self.is_lazy:
            given = map(resolved, given)
        with without_autocast():
            leaves = self.run(*given)
        if self.out_leaves is not None:
            results = iter(leaves)
            leaves = [next(results) if leaf is TENSOR else leaf for leaf in self.out_leaves]
        return optree.tree_unflatten(self.out_spec, leaves)


def resolved(tensor: Tensor) -> Tensor:
    """A tensor whose memory holds its values, not their conjugates or negatives."""
    return tensor.resolve_conj().resolve_neg()
