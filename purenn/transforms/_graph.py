"""Tracing a flat function of tensors to a graph, and what is checked and changed there before it is compiled."""

import contextlib
import operator
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from purenn.errors import MutationError, PurennError, TraceError
from purenn.transforms._lean import is_graph_differentiated
from purenn.transforms._no_grad import SwitchesWritten, cut_untracked
from purenn.transforms._recorded import Recorded
from purenn.transforms._translate import place


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
    with explained(name), mode, _Unprintable():
        fakes = [mode.from_tensor(tensor) for tensor in tensors]
        with Recorded() if is_graph_differentiated() else contextlib.nullcontext():
            return graph_of(flat, fakes)


class _PrintedError(Exception):
    """A traced tensor was written as text."""


class _Unprintable(TorchFunctionMode):
    """Refuses to write a traced tensor as text, which would show no value."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in _WRITING:
            # Who asked for it: torch itself may, in a message of its own.
            frame, outermost = sys._getframe(1), None
            while frame is not None and frame.f_code.co_filename.startswith(_TORCH):
                outermost = frame if frame.f_code in _WRITING.values() else outermost
                frame = frame.f_back
            if outermost is not None and outermost.f_back is frame:
                raise _PrintedError
        return func(*args, **(kwargs or {}))


_WRITING = {method: method.__code__ for method in (Tensor.__repr__, Tensor.__format__)}
_TORCH = os.path.dirname(torch.__file__)


def _zeros(size: Sequence[int], **options: Any) -> Tensor:
    return torch.zeros(size, **options)


def _zeros_laid_out_as(tangent: Tensor, primal: Tensor, *, self_num_batch_dims: int = 0) -> Tensor:
    room = primal.untyped_storage().nbytes() // primal.element_size()
    batch = tangent.shape[:self_num_batch_dims]
    strides = torch.empty(batch, device="meta").stride()
    zeros = torch.zeros((*batch, room), dtype=tangent.dtype, device=tangent.device)
    return zeros.as_strided(
        (*batch, *primal.shape), (*[n * room for n in strides], *primal.stride()), primal.storage_offset()
    )


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
    _lay_out_without_writes(graph)

    def has_effect(node: fx.Node) -> bool:
        schema = getattr(node.target, "_schema", None)
        return node.is_impure() or (schema is not None and schema.is_mutable)

    graph.graph.eliminate_dead_code(has_effect)
    graph.recompile()
    return graph


def _lay_out_without_writes(graph: fx.GraphModule) -> None:
    # What forward mode copies into room of a layout becomes a copy with that layout: into room that is not batched vmap
    # writes nothing that is.
    aten = torch.ops.aten
    for copied in graph.graph.find_nodes(op="call_function", target=aten.copy_.default):
        room, value = copied.args[:2]
        is_fresh = room.target is aten.as_strided.default and room.args[0].target is aten.zeros.default
        if not is_fresh or len(room.users) > 1 or len(room.args[0].users) > 1:
            continue
        own, other = room.meta["val"], value.meta.get("val")
        order = sorted(range(own.dim()), key=lambda dim, own=own: -own.stride(dim))
        if (
            other is None
            or (own.shape, own.dtype) != (other.shape, other.dtype)
            or not own.permute(order).is_contiguous()
        ):
            continue
        with graph.graph.inserting_before(copied):
            moved = graph.graph.call_function(aten.permute.default, (value, order))
            dense = graph.graph.call_function(aten.clone.default, (moved,), {"memory_format": torch.contiguous_format})
            back = [order.index(dim) for dim in range(own.dim())]
            laid_out = graph.graph.call_function(aten.permute.default, (dense, back))
        for node, shown in ((moved, other.permute(order)), (dense, own.permute(order)), (laid_out, own)):
            node.meta = {**copied.meta, "val": shown}
        copied.replace_all_uses_with(laid_out)
        for node in (copied, room, room.args[0]):
            graph.graph.erase_node(node)


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Within this context, failures of tracing arrive as ours."""
    try:
        yield
    except PurennError:
        raise
    except DataDependentOutputException as error:
        raise TraceError(
            f"{name}: the function asks for the value of a traced tensor (`if`, `while`, bool(), int(), .item() or "
            f".tolist()){place(error)}. While it is traced there are no values: choose with torch.where(condition, "
            f"a, b), keep the number as a tensor, or pass it as a Python number, which is traced for each value anew."
        ) from error
    except _PrintedError as error:
        raise TraceError(
            f"{name}: the function prints a traced tensor, or makes a text of it{place(error)}. While it is traced "
            f"there are no values: return the tensor and print the result, or call the function without jit."
        ) from None
    except DynamicOutputShapeException as error:
        raise TraceError(
            f"{name}: the shape of a result depends on values (a boolean mask as an index, nonzero, "
            f"unique){place(error)}. Use torch.where(mask, x, 0), or a fixed number of results."
        ) from error
    except RuntimeError as error:
        text = str(error)
        if ".numpy() is not supported" in text or "data pointer" in text:
            raise TraceError(
                f"{name}: the function asks for the data of a traced tensor (.numpy() or a pointer){place(error)}. "
                f"While it is traced there are no values: compute with torch, or call numpy outside."
            ) from error
        raise


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
    base: dict[fx.Node, fx.Node] = {node: node for node in inputs}
    for node in graph.graph.nodes:
        for value, written in _aliased(node):
            if value not in base:
                continue
            if written:
                raise MutationError(
                    f"{name}: the function writes in place into {inputs[base[value]]} ({node.target}). Arguments are "
                    f"never changed: write `w = w + d` instead of `w.add_(d)`, or let the result take the argument's "
                    f"place with donate_argnums."
                )
            base[node] = base[value]


def _aliased(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    # The nodes whose memory a node's results may share, and whether it writes there.
    if node.target is operator.getitem:  # one of the views that split, chunk or unbind make
        yield cast(fx.Node, node.args[0]), False
    if not isinstance(node.target, torch._ops.OpOverload):
        return
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
    free = [position for position in donated if placeholders[position] not in results]
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
