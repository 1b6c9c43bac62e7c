"""Functions of tensors that are written once, operation by operation, and run without the Python that wrote them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer


class Number(fx.Proxy):
    """What stands for a Python number while a function is written."""


class Writer:
    """A function while it is written: what is done with its arguments is written down.

    Nothing may depend on what they stand for, their shapes for example.
    """

    def __init__(self) -> None:
        self._graph = fx.Graph()
        self._tracer = GraphAppendingTracer(self._graph)
        self._count = 0

    def argument(self, *, is_number: bool = False) -> Any:
        """The next positional argument: a tensor, or a Python number."""
        self._count += 1
        return (Number if is_number else fx.Proxy)(self._graph.placeholder(f"x{self._count}"), self._tracer)

    def function(self, result: Any, *, is_alone: bool) -> Callable[..., Any]:
        """The function.

        Args:
            result: what it returns: lists of what has been written, and of None.
            is_alone: whether what it computes is neither differentiated nor batched. Then methods that write in place
                do so, for which they must be given what nobody else has; otherwise they do not. Only their results may
                be used.
        """
        self._graph.output(self._tracer.create_arg(result))
        for node in [node for node in self._graph.nodes if node.op == "call_method"]:
            if is_alone and node.target == "detach":
                node.replace_all_uses_with(node.args[0])
                self._graph.erase_node(node)
            elif not is_alone:
                node.target = node.target.rstrip("_")
        return fx.GraphModule(torch.nn.Module(), self._graph).forward
