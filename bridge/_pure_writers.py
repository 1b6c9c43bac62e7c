"""Which of its own tensors a module may write into when it runs.

The classes of torch.nn are known. Of any other class the source code is read: a tensor counts as written if one of the
methods assigns to it, calls a method on it that works in place, or passes it to a normalisation. That is no proof, and
need not be one: a write that is not foreseen is noticed when it happens.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

# Methods that make the module, and do not run when it is applied.
_MAKERS = frozenset({"__init__", "reset_parameters", "reset_running_stats", "_reset_parameters", "_init_weights"})
_NORMALISATIONS = frozenset({"batch_norm", "instance_norm", "native_batch_norm"})


class Written(NamedTuple):
    """Names of the module's own parameters and buffers that its forward may write into.

    Attributes:
        always: in any mode.
        in_training: in training mode only.
    """

    always: frozenset[str] = frozenset()
    in_training: frozenset[str] = frozenset()


def written_by(module: nn.Module) -> Written:
    """What a module may write into, without its submodules."""
    own = {name for name, value in module._parameters.items() if value is not None} | set(module._buffers)
    always, in_training = _written_in(type(module)), set()
    if isinstance(module, _NormBase):
        in_training |= {"running_mean", "running_var", "num_batches_tracked"}
    if isinstance(module, _SpectralNorm):
        in_training |= {"_u", "_v"}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            in_training |= {f"{hook.name}_u", f"{hook.name}_v"}
    present = {name for name, value in module._buffers.items() if value is not None}
    return Written(always & own, frozenset(in_training & present))


@functools.cache
def _written_in(cls: type) -> frozenset[str]:
    found: set[str] = set()
    for base in cls.__mro__:
        if base in (nn.Module, ParametrizationList) or base.__module__.startswith("torch.nn."):
            continue
        for name, member in vars(base).items():
            function = inspect.unwrap(member) if callable(member) else None
            if inspect.isfunction(function) and name not in _MAKERS:
                found |= _written_in_function(function)
    return frozenset(found)


def _written_in_function(function: Callable[..., Any]) -> set[str]:
    try:
        code = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):
        # Without source every name that the function mentions may be written.
        return set(function.__code__.co_names)
    visitor = _Writes()
    visitor.visit(code)
    return visitor.found


class _Writes(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: set[str] = set()

    def _add(self, node: ast.AST) -> None:
        # The attribute behind indices and further attributes: `a.b[0].data` is about `b`, and about `data`.
        while isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred, ast.Call)):
            if isinstance(node, ast.Attribute):
                self.found.add(node.attr)
            node = node.func if isinstance(node, ast.Call) else node.value

    def _add_target(self, node: ast.AST) -> None:
        for target in node.elts if isinstance(node, (ast.Tuple, ast.List)) else [node]:
            self._add(target)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._add_target(target)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add_target(node.target)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._add_target(node.target)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if isinstance(function, ast.Attribute) and name.endswith("_") and not name.endswith("__"):
            self._add(function.value)
        if name in _NORMALISATIONS:
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                self._add(argument)
        if name == "register_buffer" and node.args and isinstance(node.args[0], ast.Constant):
            self.found.add(str(node.args[0].value))
        for keyword in node.keywords:
            if keyword.arg == "out":
                self._add_target(keyword.value)
        self.generic_visit(node)
