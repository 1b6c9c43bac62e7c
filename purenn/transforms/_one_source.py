"""Which graphs inductor compiles as one C++ source."""

import functools
import operator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

_PRODUCTS = frozenset([torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm])
_MANY = 8
# The compiler takes its time for every product that the source calls, too.
_MOST_PRODUCTS_FOR_A_LOOP = 8


def has_many_loops(graph: fx.GraphModule) -> bool:
    """Whether a graph on the CPU is compiled in less time as one C++ source.

    Otherwise inductor runs the C++ compiler for every loop by itself. Between matrix products loops cannot be joined,
    so there are about as many as there are different things to do between products, most of them small: the compiler's
    start takes longer than the loop. One source has a start of its own, and what calls the loops is compiled too, which
    pays from about six loops on, if they are not a few that many equal layers share.

    Only graphs for which all loops are generated are. One that calls torch's kernels by their names would lose the
    texts and types of their exceptions in C++.
    """
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    products, loops = 0, set[tuple]()
    between: list[tuple] = []
    for node in calls:
        if isinstance(node.target, OpOverload) and node.target.overloadpacket in _PRODUCTS:
            products += 1
            loops.add(tuple(between))
            between = []
        else:
            between.append((node.target, tuple(getattr(node.meta.get("val"), "shape", ()))))
    if len(loops) < _MANY or products > _MOST_PRODUCTS_FOR_A_LOOP * len(loops):
        return False
    values = [node.meta.get("val") for node in graph.graph.nodes]
    if any(isinstance(value, torch.Tensor) and value.is_complex() for value in values):
        return False
    return all(map(_is_generated, {node.target for node in calls}))


@functools.lru_cache(maxsize=4096)
def _is_generated(target: Any) -> bool:
    from torch._inductor.decomposition import decompositions
    from torch._inductor.lowering import fallbacks, lowerings

    if target is operator.getitem:
        return True
    if not isinstance(target, OpOverload) or target.namespace != "aten" or target in fallbacks:
        return False
    # Operations that write are replaced by those that do not.
    packet = getattr(torch.ops.aten, target.overloadpacket.__name__.removesuffix("_"), target.overloadpacket)
    overloads = [getattr(packet, name) for name in packet.overloads()]
    return any((one in lowerings or one in decompositions) and one not in fallbacks for one in overloads)
