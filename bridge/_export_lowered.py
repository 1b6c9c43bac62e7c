"""Exporting what transforms: functions with `vmap` or a gradient within.

torch.export traces above the transformations of torch.func and takes what they wrap for constants: it fails, or gives a
program that keeps the numbers of the example. Here the transformations are done before it sees anything: the function
is traced to a graph of plain operations, on the very tensors and with the very symbols for what may vary that
torch.export traces with, so that it checks as ever what the code assumes about them.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode_temporarily
from torch.utils import _pytree as torch_pytree
from torch.utils._python_dispatch import _disable_current_modes


class Watch(TorchFunctionMode):
    """Notices transformations of torch.func.

    Attributes:
        seen: whether an operation ran within one.
    """

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.seen = self.seen or peek_interpreter_stack() is not None
        return func(*args, **(kwargs or {}))


def lowered(module: nn.Module) -> nn.Module:
    """The same module, parameters included, whose forward runs plain operations only. For use in torch.export."""
    # A copy of its attributes alone: torch.export puts its tensors into the dicts of parameters that both have.
    made = copy.copy(module)
    made.forward = lambda *args: _run_lowered(module, args)
    return made


def _run_lowered(module: nn.Module, args: tuple) -> Any:
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    flat, spec = torch_pytree.tree_flatten((state, args))
    structures: list[Any] = []

    def run(*flat: Tensor) -> list[Any]:
        state, args = torch_pytree.tree_unflatten(flat, spec)
        out, structure = torch_pytree.tree_flatten(torch.func.functional_call(module, state, args))
        structures.append(structure)
        return out

    with _unseen():
        graph = make_fx(run, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*flat)
    return torch_pytree.tree_unflatten(graph(*flat), structures[-1])


@contextmanager
def _unseen() -> Iterator[None]:
    # Within this context none of the modes by which torch.export watches sees anything.
    with _disable_current_modes(), ExitStack() as stack:
        for _ in _get_current_function_mode_stack():
            stack.enter_context(_pop_mode_temporarily())
        yield
