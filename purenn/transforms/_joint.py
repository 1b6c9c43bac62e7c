"""Dividing the graph of a function and its gradient into one for each, and what the first hands on to the second.

The gradient of a loop runs after the whole loop, so what a step computes for its gradient has to be kept, or computed
again. Kept is what the function's results need anyway and the gradient uses. Views of it, and whatever only the
gradient needs, are computed with the gradient.
"""

import operator
from collections.abc import Sequence

import torch
from torch import fx

from purenn.transforms._close import has_no_gradient
from purenn.transforms._graph import aliased, memory_of
from purenn.transforms._unused import has_effect

_VIEWS = frozenset(
    {
        torch.ops.aten.alias.default,
        torch.ops.aten.detach.default,
        torch.ops.aten.expand.default,
        torch.ops.aten.permute.default,
        torch.ops.aten.select.int,
        torch.ops.aten.slice.Tensor,
        torch.ops.aten.squeeze.dim,
        torch.ops.aten.squeeze.dims,
        torch.ops.aten.t.default,
        torch.ops.aten.transpose.int,
        torch.ops.aten.unsqueeze.default,
        torch.ops.aten.view.default,
    }
)


def divide(joint: fx.GraphModule, inputs: int, results: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Two graphs from one.

    Args:
        joint: takes the function's inputs and the cotangents of its results, and returns the results and the gradients.
        inputs: how many of its inputs are the function's.
        results: how many of its results are.

    Returns:
        A graph of the inputs that returns the results and what is kept, and a graph of the inputs, what was kept and
        the cotangents that returns the gradients.
    """
    nodes = list(joint.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    given, cotangents = placeholders[:inputs], placeholders[inputs:]
    returned = list(joint.graph.output_node().args[0])  # pyright: ignore[reportArgumentType]
    outputs, gradients = returned[:results], returned[results:]
    first = _needed(nodes, outputs, set(cotangents))
    second = [node for node in nodes if node.op not in ("placeholder", "output") and node not in first]
    used = {argument for node in second for argument in node.all_input_nodes} | set(gradients)
    views: set[fx.Node] = set()
    for node in reversed(nodes):
        if node in used and node in first and node.target in _VIEWS:
            views.add(node)
            used |= set(node.all_input_nodes)
    kept = [node for node in nodes if node in used and node in first and node not in views]
    forward = _graph(nodes, given, first, [*outputs, *kept])
    # The rule of the operation that also returned such a value takes it as a constant, and has no derivative by it.
    fixed = [node for node in kept if has_no_gradient(node)]
    backward = _graph(nodes, [*given, *kept, *cotangents], {*second, *views}, gradients, fixed)
    return forward, backward


def _needed(nodes: list[fx.Node], outputs: list[fx.Node], cotangents: set[fx.Node]) -> set[fx.Node]:
    # What the results come from, with all writes that they may see, as far as no cotangent has a part in it.
    late = set(cotangents)
    for node in nodes:
        if late & set(node.all_input_nodes):
            late.add(node)
    needed = {node for node in outputs if node.op == "call_function"}
    for node in nodes:
        if node.op == "call_function" and node not in late and has_effect(node):
            needed.add(node)
    needed |= _read_before_writes(nodes, late)
    for node in reversed(nodes):
        if node in needed:
            needed |= {argument for argument in node.all_input_nodes if argument.op == "call_function"}
    # The parts of an operation with several results stay with it.
    parts = {n for n in nodes if n.target is operator.getitem and n.args[0] in needed}
    return needed | parts


def _read_before_writes(nodes: list[fx.Node], late: set[fx.Node]) -> set[fx.Node]:
    # What reads memory that is written to afterwards, such as the copy that the gradient of a write needs.
    memory = memory_of(nodes)
    written: set[fx.Node] = set()
    readers: set[fx.Node] = set()
    for node in reversed(nodes):
        if node.op == "call_function" and node not in late:
            if any(memory[argument] in written for argument in node.all_input_nodes):
                readers.add(node)
            written |= {memory[value] for value, writes in aliased(node) if writes}
    return readers


def _graph(
    nodes: list[fx.Node],
    inputs: list[fx.Node],
    body: set[fx.Node],
    outputs: list[fx.Node],
    fixed: Sequence[fx.Node] = (),
) -> fx.GraphModule:
    graph = fx.Graph()
    new = {node: graph.placeholder(node.name) for node in inputs}
    new |= {node: graph.call_function(torch.ops.aten.detach.default, (new[node],)) for node in fixed}
    for node in nodes:
        if node in body and node not in new:
            new[node] = graph.node_copy(node, new.__getitem__)
    graph.output([new[node] for node in outputs])
    return fx.GraphModule(torch.nn.Module(), graph)
