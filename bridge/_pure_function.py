"""Modules that run a function of one's own instead of the one that is bound to their container's class."""

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import optree
import torch
from optree.registry import __GLOBAL_NAMESPACE as OPTREE_GLOBAL
from torch import nn

from bridge._module import Group, Module, carry_strangers, options
from bridge._opaque import Opaque, live_like
from bridge._pure_template import HOOKS
from bridge._twins import carrier_classes
from purenn.errors import BridgeError
from purenn.tree._applies import binding_of, is_stateful
from purenn.tree._checks import a_or_an
from purenn.tree._fields import BUFFER, is_container
from purenn.tree._walk import walk


def give_function(module: nn.Module, p: Any, fn: Callable[..., Any]) -> nn.Module:
    """Let a module run a function.

    Args:
        module: what carries `p`.
        p: the tree that the function is for.
        fn: ``fn(p, *args)``.

    Raises:
        BridgeError: `fn` is no function.
    """
    if not callable(fn):
        raise BridgeError(f"to_module: fn must be a function of the container, got {a_or_an(fn)}.")
    pattern = p if isinstance(p, Opaque) else None
    run = functools.partial(_run, module, fn, _takes(fn), is_stateful(p), pattern)
    # Past nn.Module's own __setattr__, which counts functions as what they are, and partial ones as well.
    object.__setattr__(module, "forward", run)
    return module


def _takes(fn: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset({"key", "train"} & inspect.signature(fn).parameters.keys())
    except (TypeError, ValueError):
        return frozenset()


def _run(
    module: nn.Module,
    fn: Callable[..., Any],
    takes: frozenset[str],
    stateful: bool,
    pattern: Opaque | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    name = getattr(fn, "__name__", type(fn).__name__)
    carry_strangers(module)
    p = _seen(module, pattern)
    out = fn(p, *args, **options(module, takes, name, args, kwargs))
    if not stateful:
        return out
    if not (isinstance(out, tuple) and len(out) == 2):
        raise BridgeError(
            f"to_module: the container is stateful, so {name} must return the pair of its output and the new "
            f"container, got {a_or_an(out)}."
        )
    output, new = out
    if new is not p:
        _adopt(module, new)
    return output


def _seen(module: nn.Module, pattern: Opaque | None) -> Any:
    """What the function is given for the module."""
    if pattern is not None:
        return live_like(pattern, module)
    if isinstance(module, Group):
        return tuple(module) if module.is_tuple else dict(module.items())
    if isinstance(module, nn.ModuleList):
        return tuple(module)
    if isinstance(module, nn.ModuleDict):
        return dict(module.items())
    return _as_container(module) if isinstance(module, Module) else module


def _as_container(module: Module) -> Module:
    """A module of the same tensors and parts, which is applied as the container is, past its own hooks and function."""
    made = object.__new__(type(module))
    made.__dict__.update({**module.__dict__, **{name: OrderedDict() for name in HOOKS}})
    del made.__dict__["forward"]
    binding = binding_of(module)
    if binding is not None:
        made.__dict__["forward"] = made.__dict__["apply_inside"] = functools.partial(binding.raw, made)
    return made


def _adopt(module: nn.Module, new: Any) -> None:
    """Write the buffers of a container into those of the module that carries it."""
    buffers = dict(module.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for leaf, value in walk(new):
            if leaf.kind == BUFFER and leaf.path in buffers and value is not buffers[leaf.path]:
                buffers[leaf.path].copy_(value)


def _flatten(module: Module) -> tuple[tuple, Any, tuple]:
    level: Any = optree.tree_flatten_one_level(module.tree())
    return tuple(level.children), (level.unflatten_func, level.metadata), tuple(level.entries)


def _unflatten(context: Any, values: Any) -> Any:
    unflatten, metadata = context
    made = unflatten(metadata, tuple(values))
    assert is_container(made)
    return made


# To transformations a module that carries a container is that container, with the module's parameters in it.
_register: Any = optree.register_pytree_node
for _class in carrier_classes():
    _register(_class, _flatten, _unflatten, path_entry_type=optree.GetAttrEntry, namespace=OPTREE_GLOBAL)
