"""Working on the tensors of all examples while a loss of one runs under vmap."""

from torch._C import _functorch as functorch  # pyright: ignore[reportAttributeAccessIssue]


class BelowVmap:
    """Within this context operations run on tensors of all examples, as if there were no vmap."""

    def __enter__(self) -> None:
        """Lay the levels aside."""
        self._levels = []
        while functorch.peek_interpreter_stack() is not None:
            self._levels.append(functorch.pop_dynamic_layer_stack())

    def __exit__(self, *error: object) -> None:
        """Take them up again."""
        while self._levels:
            functorch.push_dynamic_layer_stack(self._levels.pop())
