"""Writing a graph out: with the nodes of the graphs that it calls in the place of the calls."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx


def inlined(module: fx.GraphModule, called: Callable[[fx.Node], fx.GraphModule | None]) -> fx.GraphModule:
    """A graph without calls of other graphs.

    Args:
        module: the graph.
        called: the graph that a node calls with the list that is its first argument, for a list of results; or None.
    """
    graph = fx.Graph()
    given = [graph.node_copy(node) for node in module.graph.find_nodes(op="placeholder")]
    graph.output(_written(graph, module, given, called))
    return fx.GraphModule(torch.nn.Module(), graph)


def _written(
    graph: fx.Graph, module: fx.GraphModule, given: Sequence[Any], called: Callable[[fx.Node], fx.GraphModule | None]
) -> Any:
    new: dict[fx.Node, Any] = dict(zip(module.graph.find_nodes(op="placeholder"), given, strict=True))
    for node in module.graph.nodes:
        if node in new or node.op == "output":
            continue
        inner = called(node)
        if inner is None:
            new[node] = graph.node_copy(node, new.__getitem__)
        else:
            results = _written(graph, inner, fx.map_arg(node.args[0], new.__getitem__), called)
            # Each use takes one of the results out.
            new |= {user: results[user.args[1]] for user in node.users}
    return fx.map_arg(module.graph.output_node().args[0], new.__getitem__)
