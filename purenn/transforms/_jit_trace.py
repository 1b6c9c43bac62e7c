"""Tracing one call of a jitted function to a flat graph, and what is checked there before it is compiled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import attrs
import optree
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from purenn.errors import TraceError
from purenn.transforms._donation import Apart, donated_inputs
from purenn.transforms._graph import donate, lift_constants, refuse_mutations, trace
from purenn.transforms._hidden import refuse_hidden
from purenn.transforms._jit_entry import TENSOR, resolved
from purenn.transforms._jit_key import Call, Key, input_labels, places_of
from purenn.transforms._lean import graph_is_differentiated
from purenn.transforms._program import Tracing
from purenn.transforms._rule_op import marked_if_foreign


@attrs.frozen(eq=False)
class Lowered:
    """The graph of one call of a jitted function: see `Jitted.lower`.

    Attributes:
        graph: the graph.
        programs: by name, the graphs of the steps and branches that it calls.
    """

    graph: fx.GraphModule
    programs: dict[str, fx.GraphModule]

    def __str__(self) -> str:
        parts = [self.graph.print_readable(print_output=False)]
        parts += [f"{name}:\n{graph.print_readable(print_output=False)}" for name, graph in self.programs.items()]
        return "\n".join(parts)


class Traced(NamedTuple):
    """What a trace has found; see `Entry`."""

    graph: fx.GraphModule
    constants: list[Tensor]
    apart: Apart | None
    out_spec: optree.PyTreeSpec
    out_leaves: list[Any]


def traced(
    run: Callable[..., Any],
    call: Call,
    key: Key,
    tensors: list[Tensor],
    donate_argnums: tuple[int, ...],
    tracing: Tracing,
) -> Traced:
    """Trace one call.

    Args:
        run: the function, of positional, keyword and static arguments.
        call: the call.
        key: its key.
        tensors: its tensors.
        donate_argnums: see `jit`.
        tracing: the trace that is being made.

    Raises:
        TraceError: the function depends on values.
        MutationError: it writes into an argument.
    """
    leaves, spec = optree.tree_flatten(call.tree)
    places = places_of(leaves, key.aliases)
    outcome: dict[str, Any] = {}

    def flat(*values: Tensor) -> list[Tensor]:
        pairs = zip(leaves, places, strict=True)
        tree: Any = optree.tree_unflatten(spec, [leaf if n is None else values[n] for leaf, n in pairs])
        args, kwargs = tree
        results, outcome["spec"] = optree.tree_flatten(run(args, kwargs, call.statics))
        refuse_hidden(results)
        outcome["leaves"] = [TENSOR if isinstance(leaf, Tensor) else leaf for leaf in results]
        return marked_if_foreign([leaf for leaf in results if isinstance(leaf, Tensor)], values)

    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    with graph_is_differentiated(wanted):
        graph = trace("jit", flat, list(map(resolved, tensors)), tracing.mode)
    constants = lift_constants(graph)
    if any(isinstance(constant, FakeTensor) for constant in constants):
        raise TraceError(
            "jit: the function uses a tensor that an earlier trace has left behind, in a global variable or an "
            "object's attribute; it has no value. Return what is to be kept."
        )
    names = [*input_labels(call, places), *["a tensor that it closes over"] * len(constants)]
    refuse_mutations("jit", graph, names)
    apart = None
    if donate_argnums:
        donated = [number for number, _ in donate(graph, donated_inputs(call, key, tensors, names, donate_argnums))]
        apart = Apart.of([*tensors, *constants], names, donated)
    return Traced(graph, constants, apart, outcome["spec"], outcome["leaves"])
