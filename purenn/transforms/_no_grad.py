"""What `torch.no_grad` means for a traced graph that is differentiated afterwards.

A graph knows operations and no modes: what was computed under `torch.no_grad` would have a derivative like everything
else. So the trace writes down where gradients are switched off and on, and what was computed in between is cut off.

The running statistics that norms are given cannot have a derivative: torch refuses those that require grad, as all
arguments of such a graph do. They are cut off too.
"""

from typing import Any

import torch
from torch import fx
from torch._C._functorch import CGradInterpreterPtr, TransformType, get_interpreter_stack
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.overrides import TorchFunctionMode

from purenn.transforms._norm_arguments import named

_SWITCH = torch._C._set_grad_enabled


class SwitchesWritten(TorchFunctionMode):
    """Writes into the graph that is traced where gradients are switched off and on."""

    def __init__(self) -> None:
        super().__init__()
        self._written = _is_tracked(torch.is_grad_enabled())
        # Without a call that is seen here, autograd switches them off while an autograd.Function runs; what is computed
        # there has derivatives. Then this is the state to which the function's own switches have to return.
        self._hidden: bool | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is _SWITCH:
            self._write(_is_tracked(torch.is_grad_enabled()), _is_tracked(args[0]))
        given = named(func, args, kwargs)
        if given is not None:
            args, kwargs = (), {name: _detached(x) if name.startswith("running_") else x for name, x in given.items()}
        return func(*args, **kwargs)

    def _write(self, before: bool, after: bool) -> None:
        if self._hidden is None and before != self._written:
            self._hidden = before
        if self._hidden is not None:
            self._hidden = None if after == self._hidden else self._hidden
        elif after != before:
            self._written = after
            proxies = get_proxy_mode()
            if proxies is not None:
                proxies.tracer.create_node("call_function", _SWITCH, (after,), {})


def _detached(statistic: Any) -> Any:
    return statistic.detach() if isinstance(statistic, torch.Tensor) else statistic


def _is_tracked(enabled: bool) -> bool:
    # Transformations switch gradients on for themselves, not for those around them.
    levels = get_interpreter_stack() or []
    outer = [CGradInterpreterPtr(level).prevGradMode() for level in levels if level.key() == TransformType.Grad]
    return enabled and all(outer)


def cut_untracked(graph: fx.GraphModule, cut: Any) -> None:
    """Put what was computed while gradients were switched off through the operation `cut`; remove the switches."""
    tracked = True
    for node in list(graph.graph.nodes):
        if node.target is _SWITCH:
            tracked = node.args[0]
            graph.graph.erase_node(node)
        elif not tracked and _has_derivative(node):
            with graph.graph.inserting_after(node):
                without = graph.graph.call_function(cut, (node,))
            without.meta = dict(node.meta)
            node.replace_all_uses_with(without, delete_user_cb=lambda user, own=without: user is not own)


def _has_derivative(node: fx.Node) -> bool:
    value = node.meta.get("val")
    schema = getattr(node.target, "_schema", None)
    return (
        node.op == "call_function"
        and isinstance(value, torch.Tensor)
        and (value.is_floating_point() or value.is_complex())
        # A write does not end the derivative of what is written to.
        and not (schema is not None and schema.is_mutable)
    )
