"""From a module to a container."""

import copy
from typing import Any

import optree
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from bridge._module import Module, is_changed
from bridge._opaque import opaque
from purenn.errors import BridgeError
from purenn.tree._partition import freeze
from purenn.tree._ties import tie

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def from_module(module: nn.Module, *, example: Any = None, stateful: bool | None = None) -> Any:
    """The container of a module: the inverse of `to_module`, and any other module as a pure function.

    A module made by `to_module` gives back its container, without hooks that it has been given. Any other module, and
    one into which others have put something (parametrizations, pruning), becomes an opaque container: its parameters
    and buffers under their own names, applied by running the module's own code on the tensors of the container. The
    module is copied without its tensors and never touched, whatever happens in a call; calls may run in several threads
    at once. What a call leaves in attributes of the module is forgotten.

    ``p(*args)`` runs the module as in ``eval()``, ``p(*args, train=True)`` as in ``train()``. With ``key=`` all random
    numbers are drawn from that key; without it, dropout and stochastic layers do nothing, and code that draws random
    numbers itself is refused. If the module has arguments named `train` or `key` that are not given by position, then
    these are the module's.

    If the module may write into its buffers (batch normalisation does, and classes whose source code assigns to a
    buffer or updates it in place), ``p(...)`` returns ``(output, new container)``, and `purenn.is_stateful` says so.

    In transformations the functions that `torch.func` cannot handle are replaced by others with the same values:
    normalisation, recurrent layers and cells, attention, embeddings with `max_norm`, and more. Code that asks for the
    value of a batched tensor gets an answer if that is the same for all examples, and otherwise an error that names the
    module. Activations that the module would compute again in the backward pass (`torch.utils.checkpoint`) are kept.

    Args:
        module: the module. One that is compiled or wrapped for data-parallel training stands for what is in it.
        example: arguments for a module with lazy parameters, a tuple: a copy of the module is called with them, which
            gives the parameters their shapes.
        stateful: True if parameters and buffers may be written into, though the code does not show it; False if new
            values are to be dropped. Default: found out from the classes, as above.

    Returns:
        The container. Its leaves share storage with the module's tensors and do not require grad. Parameters that do
        not require grad are frozen; parameters and buffers that are shared are tied.

    Raises:
        BridgeError: the module is no module, is lazy and there is no example, is a TorchScript module, is sharded by
            ``fully_shard``, or cannot be copied.

    Example:
        >>> import torch, bridge, purenn as pn
        >>> p = bridge.from_module(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)))
        >>> [path for path, _ in pn.tree.named_leaves(pn.grad(lambda p: p(torch.ones(3)).sum())(p))]
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> norm = bridge.from_module(torch.nn.BatchNorm1d(3))
        >>> y, new = norm(torch.randn(8, 3), train=True)
        >>> norm.num_batches_tracked, new.num_batches_tracked
        (tensor(0), tensor(1))
    """
    if not isinstance(module, nn.Module):
        raise BridgeError(f"from_module takes a module, got {type(module).__name__}.")
    module = prepared(module, example)
    if isinstance(module, Module) and not is_changed(module):
        # With the ties that it has recorded.
        p, aliases = _detached(module.tree()), set(_aliases(module))
    else:
        p, aliases = opaque(module, stateful=stateful), set()
    frozen = [
        name
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if name not in aliases
        and not parameter.requires_grad
        and (parameter.is_floating_point() or parameter.is_complex())
    ]
    if frozen:
        p = freeze(p, frozen)
    shared = _shared(module, aliases)
    return tie(p, shared) if shared else p


def prepared(module: nn.Module, example: Any) -> nn.Module:
    """The module to make a container of: without wrappers, and not lazy if there is an example.

    Args:
        module: the module, which is not touched.
        example: a tuple of arguments, or None.
    """
    if isinstance(module, _WRAPPERS):
        module = module.module
    if example is not None:
        # torch has no deep copies of buffers that are still without a shape.
        empty: Any = UninitializedBuffer
        lazy = [buffer for buffer in module.buffers() if isinstance(buffer, UninitializedBuffer)]
        module = copy.deepcopy(module, {id(b): empty(device=b.device, dtype=b.dtype) for b in lazy})
        with torch.no_grad():
            module(*example)
    return _unwrapped(module, {})


def _unwrapped(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    """The module without those that `torch.compile` has put around parts of it; shares all that is not on the way."""
    if id(module) in known:
        return known[id(module)]
    inner = module.__dict__["_modules"].get("_orig_mod")
    if inner is not None and isinstance(module, torch._dynamo.OptimizedModule):
        made = known[id(module)] = _unwrapped(inner, known)
        return made
    made = module
    children = {name: None if child is None else _unwrapped(child, known) for name, child in module._modules.items()}
    if any(children[name] is not child for name, child in module._modules.items()):
        made = copy.copy(module)
        made.__dict__["_modules"] = children
    known[id(module)] = made
    return made


def _detached(p: Any) -> Any:
    # Plain tensors, no longer parameters.
    return optree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, p)


def _aliases(module: nn.Module) -> list[str]:
    # The ties that bridged modules record, by the names of the aliases from here.
    return [
        f"{name}.{alias}" if name else alias
        for name, child in module.named_modules()
        if isinstance(child, Module)
        for alias in child.aliases
    ]


def _shared(module: nn.Module, known: set[str]) -> dict[str, str]:
    # Tensors that are one object in several places, other than the aliases that are recorded already.
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        if name in known:
            continue
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
    return ties
