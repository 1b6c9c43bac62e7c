"""Graphs without what nobody uses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import has_side_effect

# It raises where a factorisation has failed. Passes of torch 2.11, and of compilers, would leave it out.
has_side_effect(torch.ops.aten._linalg_check_errors.default)

Shorten = Callable[[fx.Node, list[int]], tuple[tuple[Any, ...], list[int]]]


def drop_unused(module: fx.GraphModule, shortened: Mapping[Any, Shorten]) -> None:
    """Leave out of a graph, in place, what nobody uses: of calls of programs, single results and arguments too.

    Args:
        module: the graph.
        shortened: by operation that returns a list, a function of a call and of the places of the results that are
            used. It returns the arguments of a call that computes no more than it must, and the places of its results.
    """
    graph = module.graph
    # Backwards: a call that needs fewer arguments leaves results of calls before it without use.
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and not has_effect(node):
            graph.erase_node(node)
        elif node.target in shortened:
            used: list[Any] = sorted({user.args[1] for user in node.users})
            arguments, results = shortened[node.target](node, used)
            node.args = arguments
            node.meta = {**node.meta, "val": [node.meta["val"][n] for n in results]}
            for user in list(node.users):
                user.args = (node, results.index(user.args[1]))
    module.recompile()


def has_effect(node: fx.Node) -> bool:
    """Whether a node does something beside returning its results."""
    schema = getattr(node.target, "_schema", None)
    return node.is_impure() or (schema is not None and schema.is_mutable)


def with_results(module: fx.GraphModule, places: Sequence[int]) -> fx.GraphModule:
    """A graph that returns some of the results and computes what they need. Its inputs are all that were there."""
    graph = fx.Graph()
    returned: Any = graph.graph_copy(module.graph, {})
    graph.output([returned[n] for n in places])
    graph.eliminate_dead_code(has_effect)
    return fx.GraphModule(module, graph)
