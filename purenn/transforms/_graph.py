"""Tracing a flat function of tensors to a graph, and what is checked and changed there before it is compiled."""

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from purenn.errors import MutationError
from purenn.transforms._lean import is_graph_differentiated
from purenn.transforms._no_grad import SwitchesWritten, cut_untracked
from purenn.transforms._recorded import Recorded
from purenn.transforms._translate import translated
from purenn.transforms._untraceable import Unreadable, explained
from purenn.transforms._unused import has_effect


def fake_mode() -> FakeTensorMode:
    """A mode to trace in: without symbols for unknown values, so that asking for one is an error and not a guess."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def trace(
    name: str, flat: Callable[..., list[Tensor]], tensors: Sequence[Tensor], mode: FakeTensorMode
) -> fx.GraphModule:
    """The graph of a function of tensors, traced by running it once on fake ones.

    Raises:
        TraceError: the function needs a value that only a real run has.
    """
    with translated(name), explained(name), mode, Unreadable():
        fakes = [mode.from_tensor(tensor) for tensor in tensors]
        with Recorded() if is_graph_differentiated() else contextlib.nullcontext():
            return graph_of(flat, fakes)


def _zeros(size: Sequence[int], **options: Any) -> Tensor:
    return torch.zeros(size, **options)


def _zeros_laid_out_as(tangent: Tensor, primal: Tensor, *, self_num_batch_dims: int = 0) -> Tensor:
    # Zeros of the tangent: where it is batched, so are they, and can be written to.
    room = primal.untyped_storage().nbytes() // primal.element_size()
    batch = tangent.shape[:self_num_batch_dims]
    shape = (*batch, *primal.shape)
    strides = (*[n * room for n in torch.empty(batch, device="meta").stride()], *primal.stride())
    if room != primal.numel() or not _is_dense(primal):
        return tangent.new_zeros((*batch, room)).as_strided(shape, strides, primal.storage_offset())
    # No view: compilers cannot follow writes to a view of as_strided.
    return tangent.new_zeros(shape) if primal.is_contiguous() else tangent.new_empty_strided(shape, strides).zero_()


def _is_dense(tensor: Tensor) -> bool:
    return tensor.permute(sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim))).is_contiguous()


# Of forward mode: a tangent that is zero, and room for one that lies in memory as its primal does, which may be a view.
# As operations on fake tensors they fail in some combinations.
_DECOMPOSITIONS = {
    torch.ops.aten._efficientzerotensor.default: _zeros,
    torch.ops.aten._new_zeros_with_same_feature_meta.default: _zeros_laid_out_as,
}


def graph_of(
    flat: Callable[..., Sequence[Tensor]], fakes: Sequence[Tensor], cut: Any = torch.ops.aten.detach.default
) -> fx.GraphModule:
    """The graph of a function of fake tensors, without operations of which nothing comes (forward mode leaves many).

    Args:
        flat: the function.
        fakes: its arguments.
        cut: the operation that results under `torch.no_grad` go through, if the graph is differentiated afterwards.
    """
    with SwitchesWritten() if is_graph_differentiated() else contextlib.nullcontext():
        graph = make_fx(flat, decomposition_table=_DECOMPOSITIONS, _allow_non_fake_inputs=True)(*fakes)
    cut_untracked(graph, cut)
    graph.graph.eliminate_dead_code(has_effect)
    graph.recompile()
    return graph


def lift_constants(graph: fx.GraphModule) -> list[Tensor]:
    """Make the tensors that the function closes over inputs of the graph, after the others.

    They are then passed by reference at every call, so that values that were changed in the meantime are seen and
    nothing is copied into the compiled code.

    Returns:
        The tensors, in the order of their inputs.
    """
    constants: dict[int, tuple[Tensor, fx.Node]] = {}
    last = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        value = getattr(graph, str(node.target))
        if not isinstance(value, Tensor):
            continue
        if id(value) not in constants:
            with (
                graph.graph.inserting_before(next(iter(graph.graph.nodes)))
                if not last
                else graph.graph.inserting_after(last[-1])
            ):
                new = graph.graph.placeholder(f"closed_over_{len(constants)}")
            new.meta = {"val": value, **node.meta}
            last.append(new)
            constants[id(value)] = value, new
        node.replace_all_uses_with(constants[id(value)][1])
        graph.graph.erase_node(node)
    graph.recompile()
    return [value for value, _ in constants.values()]


def refuse_mutations(name: str, graph: fx.GraphModule, labels: Sequence[str]) -> None:
    """Raise if the graph writes into one of its inputs, or into a view of one.

    Raises:
        MutationError: naming the first such input.
    """
    inputs = dict(zip(_placeholders(graph), labels, strict=True))
    memory = memory_of(graph.graph.nodes)
    for node in graph.graph.nodes:
        for value, written in aliased(node):
            if written and memory[value] in inputs:
                raise MutationError(
                    f"{name}: the function writes in place into {inputs[memory[value]]} ({node.target}). Arguments are "
                    f"never changed: write `w = w + d` instead of `w.add_(d)`, or let the result take the argument's "
                    f"place with donate_argnums."
                )


def memory_of(nodes: Iterable[fx.Node]) -> dict[fx.Node, fx.Node]:
    """For every node the one in whose memory its results lie: itself, unless it is a view."""
    memory: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        memory[node] = node
        for value, _ in aliased(node):
            memory[node] = memory[value]
    return memory


def aliased(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    """The nodes whose memory a node's results may share, and whether it writes there."""
    if node.target is operator.getitem:  # one of the views that split, chunk or unbind make
        yield cast(fx.Node, node.args[0]), False
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    if node.target is torch.ops.aten._unsafe_view.default:  # a view, though its schema does not say so
        yield cast(fx.Node, node.args[0]), False
    for position, argument in enumerate(node.target._schema.arguments):
        alias = argument.alias_info
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if alias is not None and isinstance(one, fx.Node):
                yield one, alias.is_write


def donate(graph: fx.GraphModule, donated: Sequence[int]) -> list[tuple[int, int]]:
    """Write results into the storage of donated inputs of the same shape, dtype and device, each used once.

    Returns:
        Pairs (input, output) that now share storage.
    """
    placeholders = _placeholders(graph)
    output = graph.graph.output_node()
    results = list(cast(tuple[Any, ...], output.args[0]))
    memory = memory_of(graph.graph.nodes)
    returned = {memory[result] for result in results if isinstance(result, fx.Node)}
    free = [position for position in donated if placeholders[position] not in returned]
    pairs = []
    for number, result in enumerate(results):
        if not isinstance(result, fx.Node) or result.op == "placeholder" or result in results[:number]:
            continue
        found = next((position for position in free if _alike(placeholders[position], result)), None)
        if found is None:
            continue
        free.remove(found)
        with graph.graph.inserting_before(output):
            graph.graph.call_function(torch.ops.aten.copy_.default, (placeholders[found], result))
        pairs.append((found, number))
    for position, number in pairs:
        results[number] = placeholders[position]
    output.args = (results,)
    graph.recompile()
    return pairs


def _alike(a: fx.Node, b: fx.Node) -> bool:
    one, two = a.meta["val"], b.meta["val"]
    return (one.shape, one.dtype, one.device) == (two.shape, two.dtype, two.device)


def _placeholders(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def write_results(graph: fx.GraphModule) -> None:
    """Have a graph write its results into tensors that it takes after its other inputs, instead of returning them."""
    output = graph.graph.output_node()
    first = next(node for node in graph.graph.nodes if node.op != "placeholder")
    for number, result in enumerate(cast(list[fx.Node], output.args[0])):
        with graph.graph.inserting_before(first):
            place = graph.graph.placeholder(f"place_{number}")
        place.meta["val"] = result.meta["val"]
        with graph.graph.inserting_before(output):
            graph.graph.call_function(torch.ops.aten.copy_.default, (place, result))
    output.args = ([],)
    graph.recompile()
