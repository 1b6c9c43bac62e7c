"""From a module to a container."""

from typing import Any

import optree
from torch import Tensor, nn

from bridge._module import Module
from bridge._opaque import opaque
from purenn.errors import BridgeError
from purenn.tree._partition import freeze
from purenn.tree._ties import tie


def from_module(module: nn.Module) -> Any:
    """The container of a module: the inverse of `to_module`, and any other module as a pure function.

    A module made by `to_module` gives back its container. Any other module becomes an opaque container: its parameters
    and buffers under their own names, applied by running the module's own code on the tensors of the container. The
    module is copied without its tensors and is never touched; it runs as in ``eval()``.

    Args:
        module: the module.

    Returns:
        The container. Its leaves share storage with the module's tensors and do not require grad. Parameters that do
        not require grad are frozen; parameters that are shared are tied.

    Raises:
        BridgeError: the module changes its buffers when it is applied (batch statistics), is lazy, or is no module.

    Example:
        >>> import torch, bridge, purenn as pn
        >>> p = bridge.from_module(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)))
        >>> [path for path, _ in pn.tree.named_leaves(pn.grad(lambda p: p(torch.ones(3)).sum())(p))]
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    if not isinstance(module, nn.Module):
        raise BridgeError(f"from_module takes a module, got {type(module).__name__}.")
    p = _detached(module.tree()) if isinstance(module, Module) else opaque(module)
    aliases = set(_aliases(module, ""))
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


def _detached(p: Any) -> Any:
    # Plain tensors, no longer parameters.
    return optree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, p)


def _aliases(module: nn.Module, prefix: str) -> list[str]:
    found = []
    for name, child in module.named_modules(prefix=prefix):
        if isinstance(child, Module):
            found += [f"{name}.{alias}" if name else alias for alias in child.aliases]
    return found


def _shared(module: nn.Module, known: set[str]) -> dict[str, str]:
    # Parameters that are one object in several places, other than the aliases that are recorded already.
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in known:
            continue
        if id(parameter) in first:
            ties[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return ties
