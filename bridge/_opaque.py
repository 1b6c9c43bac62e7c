"""Any module as a container: its tensors as the tree, its own code as the function."""

import contextlib
import copy
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from purenn.errors import BridgeError, ContainerError
from purenn.tree import Layer, applies
from purenn.tree._fields import BUFFER, PARAMETER, Spec, is_container
from purenn.tree._register import register_node


class Skeleton:
    """A module without its tensors: what is the same for all containers that were made from such a module.

    Two skeletons are equal if their modules have the same classes, names and simple attributes throughout, so that the
    containers of equally built modules can be stacked and mapped over together.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.lock = threading.RLock()
        self.signature = _signature(module)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Skeleton) and self.signature == other.signature

    def __hash__(self) -> int:
        return hash(self.signature)

    def __repr__(self) -> str:
        return type(self.module).__name__

    def __reduce__(self) -> tuple:
        return Skeleton, (self.module,)

    def __deepcopy__(self, memo: dict) -> "Skeleton":
        return self


def _stripped(module: nn.Module) -> nn.Module:
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    # A copy that never allocates: the copier finds every tensor already "copied", to the meta device.
    memo: dict[int, Any] = {id(t): _without_data(t) for t in tensors.values()}
    return copy.deepcopy(module, memo).eval()


def _without_data(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


_BOOKKEEPING = {"_parameters", "_buffers", "_modules", "training", "_flat_weights", "_flat_weight_refs"}


def _signature(module: nn.Module) -> tuple:
    settings = tuple(
        sorted((name, _comparable(value)) for name, value in module.__dict__.items() if name not in _BOOKKEEPING)
    )
    children = tuple((name, _signature(child)) for name, child in module.named_children())
    return type(module), (*module._parameters, *module._buffers), settings, children


def _comparable(value: Any) -> str:
    # Simple values compare by what they are, everything else by which object it is.
    if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype, torch.device)):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, (tuple, list, set, frozenset)):
        return f"{type(value).__name__}({','.join(map(_comparable, value))})"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_comparable(k)}={_comparable(v)}' for k, v in value.items())}}}"
    return f"{type(value).__name__}@{id(value)}"


class _InstanceSpec:
    """The `Spec` of an opaque container: its fields are those of its module."""

    def __get__(self, node: "Opaque | None", owner: type) -> Spec:
        kinds = {} if node is None else node._kinds
        return Spec(owner=owner, fields=(), kinds=kinds, dynamic=tuple(kinds), static=(), by_alias=None)


class Opaque(Layer):
    """A module as a container: made by `from_module`, never by hand.

    Its fields are the parameters, buffers and submodules of the module, under their names; submodules are opaque
    containers themselves and can be applied alone.
    """

    __slots__ = ("__weakref__", "_children", "_kinds", "_marks", "_skeleton")
    __container_spec__ = _InstanceSpec()

    def __init__(self, skeleton: Skeleton, children: dict[str, Any], kinds: dict[str, str], marks: Any = None) -> None:
        object.__setattr__(self, "_skeleton", skeleton)
        object.__setattr__(self, "_children", children)
        object.__setattr__(self, "_kinds", kinds)
        object.__setattr__(self, "_marks", marks)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name not in self._children:
            raise AttributeError(name)
        if name in self._children:
            return self._children[name]
        raise AttributeError(f"the module {self._skeleton} has no parameter, buffer or submodule '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"containers are immutable: use pn.replace(p, {name}=...)")

    def __replace__(self, **changes: Any) -> "Opaque":
        for name in changes:
            if name not in self._kinds:
                raise ContainerError(
                    f"{self._skeleton} has no field '{name}'; its fields are: {', '.join(self._kinds) or 'none'}."
                )
        return Opaque(self._skeleton, {**self._children, **changes}, self._kinds, self._marks)

    def __reduce__(self) -> tuple:
        return Opaque, (self._skeleton, self._children, self._kinds, self._marks)

    def __repr__(self) -> str:
        from purenn.tree._repr import outline

        return outline(f"opaque {self._skeleton}", self._children, self._marks)


def _flatten(node: Opaque) -> tuple[tuple, Any, tuple]:
    names = tuple(node._kinds)
    return tuple([node._children[n] for n in names]), (node._skeleton, tuple(node._kinds.items()), node._marks), names


def _unflatten(context: tuple, values: tuple) -> Opaque:
    skeleton, kinds, marks = context
    return Opaque(skeleton, dict(zip((name for name, _ in kinds), values, strict=True)), dict(kinds), marks)


register_node(Opaque, _flatten, _unflatten)


def opaque(module: nn.Module) -> Opaque:
    """The opaque container of a module that is no bridged one."""
    for name, child in module.named_modules():
        where = f"'{name}'" if name else "the module"
        if any(map(is_lazy, child.parameters(recurse=False))):
            raise BridgeError(
                f"from_module: {where} ({type(child).__name__}) is lazy and has no parameters yet: call the module "
                f"once on an example input first."
            )
        if isinstance(child, torch.jit.ScriptModule):
            raise BridgeError(
                f"from_module: {where} is a TorchScript module, whose code cannot run on other tensors: use the "
                f"module that it was made from."
            )
    return _part(module, _stripped(module))


def _part(module: nn.Module, skeleton: nn.Module) -> Opaque:
    children: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for name, parameter in module._parameters.items():
        children[name], kinds[name] = None if parameter is None else parameter.detach(), PARAMETER
    for name, tensor in module._buffers.items():
        children[name], kinds[name] = None if tensor is None else tensor.detach(), BUFFER
    for name, child in module._modules.items():
        if child is not None:
            children[name], kinds[name] = _part(child, skeleton.get_submodule(name)), PARAMETER
    return Opaque(Skeleton(skeleton), children, kinds)


@applies(Opaque, stateful=False)
def apply_opaque(p: Opaque, *args: Any, **kwargs: Any) -> Any:
    """Run the module's own code, in evaluation mode, on the tensors of its container.

    Raises:
        BridgeError: the module writes into its buffers even in evaluation mode.
    """
    skeleton = p._skeleton
    tensors, buffers = {}, {}
    seen: set[int] = set()
    for name, module, node in _places(p, skeleton.module, ""):
        if id(module) in seen:
            continue  # a submodule that appears twice has one set of tensors
        seen.add(id(module))
        for field, kind in node._kinds.items():
            value = node._children[field]
            if is_container(value) or value is None:
                continue
            path = f"{name}.{field}" if name else field
            # Buffers are copied, so that code which writes into them cannot reach the container's.
            tensors[path] = value.clone() if kind == BUFFER else value
            if kind == BUFFER:
                buffers[path] = tensors[path]._version
    with skeleton.lock if not torch.compiler.is_compiling() else contextlib.nullcontext():
        out = torch.func.functional_call(skeleton.module, tensors, args, kwargs, tie_weights=False)
    for path, version in buffers.items():
        if tensors[path]._version != version:
            raise BridgeError(
                f"from_module: {skeleton} writes into its buffer '{path}' in evaluation mode, and the new value "
                f"would be lost: build it from purenn.layers, whose stateful layers return their new buffers."
            )
    return out


def _places(p: Opaque, module: nn.Module, prefix: str) -> list[tuple[str, nn.Module, Opaque]]:
    found = [(prefix, module, p)]
    for name, child in p._children.items():
        if isinstance(child, Opaque):
            found += _places(child, module.get_submodule(name), f"{prefix}.{name}" if prefix else name)
    return found
