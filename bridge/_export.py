"""Programs of torch.export from containers, modules and pure functions."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from bridge._export_lowered import Watch, lowered
from bridge._to_module import to_module
from purenn.errors import ArgumentError
from purenn.tree import is_container
from purenn.tree._checks import a_or_an
from purenn.tree._walk import one_level


def export(p: Any, *example_inputs: Any, dynamic_shapes: Sequence[Any] | None = None) -> ExportedProgram:
    """What `p` does to inputs like the given ones, as a program of torch's operations without Python.

    Gradients and `vmap` within `p` become plain operations. Save the program with `torch.export.save`, compile it ahead
    of time, or turn it into an ONNX model with ``torch.onnx.export(program, f=path)``.

    Args:
        p: a container, which is applied in evaluation mode and whose leaves are the program's ``state_dict``; or a
            module, in the mode that it is in; or a pure function.
        *example_inputs: tensors, numbers, containers, and tuples, lists and dicts of them. What a function takes as
            containers, the program takes as containers too.
        dynamic_shapes: what may vary, for each input: for a tensor a dict of its axes to names, ``{0: "batch"}`` (axes
            of one name have one length) or to what torch.export takes (a `torch.export.Dim`); for a tuple, list or dict
            the same of its items; None where nothing does. Default: None.

    Raises:
        ArgumentError: `p` cannot be called, or `dynamic_shapes` is not as long as the inputs.
        BridgeError: the container cannot be a module.
        UserError: torch's, if the program would differ with what may vary.

    Example:
        >>> import torch, bridge, purenn as pn
        >>> from purenn.layers import Linear
        >>> p = Linear.init(pn.random.key(0), 3, 2)
        >>> program = bridge.export(p, torch.randn(4, 3), dynamic_shapes=({0: "batch"},))
        >>> program.module()(torch.randn(7, 3)).shape
        torch.Size([7, 2])
    """
    module = _module_of(p)
    shapes = None
    if dynamic_shapes is not None:
        if len(dynamic_shapes) != len(example_inputs):
            raise ArgumentError(
                f"export: dynamic_shapes must have an item for each input, got {len(dynamic_shapes)} for "
                f"{len(example_inputs)}."
            )
        names: dict[str, Dim] = {}
        each = [_shape(value, shape, names) for value, shape in zip(example_inputs, dynamic_shapes, strict=True)]
        # As the module's forward has its arguments: those of *args are one tuple.
        shapes = tuple(inspect.signature(module.forward).bind(*each).arguments.values())

    with Watch() as watch:
        try:
            program = torch.export.export(module, example_inputs, dynamic_shapes=shapes)
        except Exception:
            if not watch.seen:
                raise
            program = None
    if watch.seen or program is None:
        program = torch.export.export(lowered(module), example_inputs, dynamic_shapes=shapes)
    return program


def _module_of(p: Any) -> nn.Module:
    if is_container(p):
        return to_module(p).eval()
    if isinstance(p, nn.Module):
        return p
    if callable(p):
        return _Function(p)
    raise ArgumentError(f"export takes a container, a module or a function, got {a_or_an(p)}.")


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def _shape(value: Any, shape: Any, names: dict[str, Dim]) -> Any:
    """What torch.export wants to know about one input; in the place of a container it takes a list of its children."""
    if isinstance(value, (tuple, list)):
        return type(value)([_shape(item, inner, names) for item, inner in _pairs(value, shape)])
    if isinstance(value, dict):
        return {key: _shape(item, None if shape is None else shape.get(key), names) for key, item in value.items()}
    if is_container(value):
        level = one_level(value)
        assert level is not None
        return [_shape(child, None, names) for child in level.children if child is not None]
    if not isinstance(shape, dict):
        return shape
    return {axis: names.setdefault(name, Dim(name)) if isinstance(name, str) else name for axis, name in shape.items()}


def _pairs(value: Any, shape: Any) -> list[tuple[Any, Any]]:
    return list(zip(value, [None] * len(value) if shape is None else shape, strict=True))
