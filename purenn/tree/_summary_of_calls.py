"""What every layer of a model does with an example: shapes and operations, on tensors without data."""

from collections.abc import Iterable
from typing import Any

import attrs
import optree
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from purenn.errors import ContainerError
from purenn.tree._applies import binding_of
from purenn.tree._select import select
from purenn.tree._walk import Entries, flatten, is_trainable, join, node_at, short
from purenn.tree._watch import watched, watching


@attrs.define
class Call:
    """A layer and what it does.

    Attributes:
        path: where it is; empty for the model itself.
        kind: its class, that of the module where one is carried whole.
        inputs: shapes of the inputs of the first call, "-" if there is none.
        output: shape of the first output.
        times: how often it is applied.
        parameters: number of elements of its parameters, without those of layers within it.
        trained: how many of them are trained.
        bytes: of its tensors, buffers and all.
        flops: floating-point operations of all calls, with those of layers within it.
    """

    path: str
    kind: str
    inputs: str = "-"
    output: str = "-"
    times: int = 0
    parameters: int = 0
    trained: int = 0
    bytes: int = 0
    flops: int = 0


def calls_of(p: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> list[Call]:
    """All layers of a model in the order of its tree, after it has been applied to an example in thought.

    Raises:
        ContainerError: the model has no function to apply.
    """
    if binding_of(p) is None:
        raise ContainerError(
            f"summary: a {type(p).__name__} has no function to apply to inputs. Give a layer or a model, or no inputs."
        )
    layers = select(p).instances(object).where(lambda node: binding_of(node) is not None)
    calls = {entries: Call(join(entries), _class_of(node_at(p, entries))) for entries in layers.entries}
    _count_tensors(p, calls)
    by_path = {call.path: call for call in calls.values()}
    fake = FakeTensorMode()
    with torch.no_grad(), fake, FlopCounterMode(display=False) as counter:

        def begin(path: str, given: tuple[Any, ...]) -> None:
            call = by_path[path]
            call.times += 1
            call.flops -= counter.get_total_flops()
            if call.times == 1:
                call.inputs = _shapes(given)

        def end(path: str, output: Any) -> Any:
            call = by_path[path]
            call.flops += counter.get_total_flops()
            if call.times == 1:
                call.output = _shapes([output])
            return output

        everything: Any = (p, inputs, options)
        model, arguments, given = optree.tree_map(_without_data, everything)
        marked = watched(model, set(calls))
        with watching(end, begin):
            marked(*arguments, **given)
    return list(calls.values())


def _class_of(layer: Any) -> str:
    # That of a module that is carried whole is its own.
    return getattr(layer, "__container_name__", type(layer).__name__)


def _count_tensors(p: Any, calls: dict[Entries, Call]) -> None:
    # Each leaf is counted in the innermost layer that holds it.
    values, structure = flatten(p)
    for leaf, value in zip(structure.leaves, values, strict=True):
        if isinstance(value, Tensor):
            call = next(calls[leaf.entries[:n]] for n in range(len(leaf.entries), -1, -1) if leaf.entries[:n] in calls)
            call.bytes += value.nbytes
            if leaf.kind == "parameter":
                call.parameters += value.numel()
                call.trained += value.numel() * is_trainable(leaf, value)


def _without_data(leaf: Any) -> Any:
    # Of the CPU, whatever the leaf's device is: inputs of another one, or meta, are no obstacle here.
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="cpu")


def _shapes(values: Iterable[Any]) -> str:
    leaves = [leaf for value in values for leaf in optree.tree_leaves(value) if isinstance(leaf, Tensor)]
    return ", ".join(map(short, leaves)) or "-"
