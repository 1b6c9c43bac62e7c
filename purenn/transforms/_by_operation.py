"""Traced graphs that run operation by operation, by torch's own kernels: what `pn.jit` makes without a compiler.

A trace has written down every view that a layer, a rule and a backward pass have each taken of the same numbers. Here a
view that shows what an earlier one shows is that one, and results go where operands were that nobody needs any more:
into memory that is in the cache.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from purenn.transforms._graph import aliased, memory_of
from purenn.transforms._unused import has_effect

_aten = torch.ops.aten
# Frequent operations by a shorter way than torch.ops, with the same arguments.
_SHORT: dict[Any, Callable[..., Any]] = {
    _aten.add.Tensor: torch.add,
    _aten.add_.Tensor: Tensor.add_,
    _aten.addmm.default: torch.addmm,
    _aten.bmm.default: torch.bmm,
    _aten.div.Tensor: torch.div,
    _aten.linalg_vector_norm.default: torch.linalg.vector_norm,
    _aten.mm.default: torch.mm,
    _aten.mul.Tensor: torch.mul,
    _aten.mul_.Tensor: Tensor.mul_,
    _aten.relu.default: torch.relu,
    _aten.relu_.default: Tensor.relu_,
    _aten.select.int: torch.select,
    _aten.sub.Tensor: torch.sub,
    _aten.sum.dim_IntList: torch.sum,
    _aten.t.default: Tensor.t,
    _aten.transpose.int: torch.transpose,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.view.default: Tensor.view,
}
# Those that may take their first two arguments in any order.
_COMMUTATIVE = (_aten.add.Tensor, _aten.mul.Tensor)


def by_operation(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """A function of tensors that runs a graph, which is changed for it.

    Args:
        graph: the graph.
        inputs: examples of its arguments. If one requires grad the graph runs as it is, for autograd to see.
    """
    if not any(tensor.requires_grad for tensor in inputs):
        _share_views(graph)
        _write_over_operands(graph)
        for node in graph.graph.nodes:
            node.target = _SHORT.get(node.target, node.target)
        graph.recompile()
    return graph.forward


def _share_views(graph: fx.GraphModule) -> None:
    returned = set(graph.graph.output_node().all_input_nodes)
    origins: dict[fx.Node, fx.Node] = {}
    first: dict[Any, fx.Node] = {}
    for node in graph.graph.nodes:
        whole = _whole(node)
        origin = origins[node] = node if whole is None else origins[whole]
        value = _dense(node)
        if value is not None:
            place = tuple(value.shape), value.stride(), value.storage_offset()
            same = first.setdefault((origin, *place, value.dtype, value.is_conj(), value.is_neg()), node)
            # Results stay tensors of their own.
            if same is not node and node not in returned:
                node.replace_all_uses_with(same)
    graph.graph.eliminate_dead_code(has_effect)


def _whole(node: fx.Node) -> fx.Node | None:
    """What a node is a view of, at a place that does not depend on where that lies in its memory; None for others."""
    whole, writes = next(aliased(node), (None, False))
    if whole is None or writes or node.target is _aten.as_strided.default:
        return None
    if node.target is operator.getitem:  # one of several views, or one of several results
        return whole if isinstance(whole.target, OpOverload) and whole.target.is_view else None
    return whole if _dense(whole) is not None else None


def _write_over_operands(graph: fx.GraphModule) -> None:
    nodes = list(graph.graph.nodes)
    memory = memory_of(nodes)
    last = _last_uses(nodes, memory)
    for node in nodes:
        form = _form_in_place(node.target)
        if form is None or node.kwargs:
            continue
        for place in (0, 1) if node.target in _COMMUTATIVE else (0,):
            operand, *others = node.args[place:] + node.args[:place]
            if isinstance(operand, fx.Node) and last.get(memory[operand]) is node and _layout(operand) == _layout(node):
                read: list[fx.Node] = []
                fx.map_arg(others, read.append)
                if all(memory[other] is not memory[operand] for other in read):
                    node.target, node.args = form, (operand, *others)
                    break


def _last_uses(nodes: Sequence[fx.Node], memory: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """For the memory of every result of torch's operations that nobody else uses: which node uses it last."""
    last: dict[fx.Node, fx.Node] = {}
    foreign: set[fx.Node] = set()
    for node in nodes:
        used = {memory[operand] for operand in node.all_input_nodes}
        last |= dict.fromkeys(used, node)
        if not _is_of_torch(node) and node.target is not operator.getitem:
            foreign |= used
    return {root: node for root, node in last.items() if _is_of_torch(root) and root not in foreign}


def _is_of_torch(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target.namespace == "aten"


def _layout(node: fx.Node) -> Any:
    value = _dense(node)
    return node if value is None else (value.shape, value.stride(), value.dtype, value.device)


def _dense(node: fx.Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) and value.layout is torch.strided else None


@functools.cache
def _form_in_place(operation: Any) -> OpOverload | None:
    # The one that writes its result over its first argument, if there is one.
    if not isinstance(operation, OpOverload) or operation.namespace != "aten" or operation._schema.is_mutable:
        return None
    packet = getattr(_aten, f"{operation._opname}_", None)
    form = getattr(packet, operation._overloadname, None)
    if form is None or [x.name for x in form._schema.arguments] != [x.name for x in operation._schema.arguments]:
        return None
    return form
