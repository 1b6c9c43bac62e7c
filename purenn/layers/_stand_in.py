"""Containers that take a layer's place and compute one of its parameters from others.

Such a container has the layer as a child. It is applied by a function of its own, which also takes over where the
layer's function is given the container, as in ``linear(p.fc, x)``. And it can be read like the layer: ``p.weight`` is
the computed weight, ``p.bias``, ``p.stride`` and so on are the layer's.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from purenn.errors import ArgumentError, ContainerError
from purenn.tree import Layer, container, is_container, is_stateful, replace
from purenn.tree._applies import binding_of, container_of
from purenn.tree._checks import a_or_an
from purenn.tree._fields import spec_of


def _read(name: str) -> Any:
    def read(self: "StandIn") -> Any:
        return self.value() if self.name == name else getattr(self.layer, name)

    return property(read, doc=f"As of the layer, or computed if `name` is '{name}'.")


@container
class StandIn(Layer):
    """What takes the place of a layer.

    Attributes:
        layer: the layer.
        name: the field of the layer that is computed.
    """

    layer: Any
    name: ClassVar[str]

    # Everything that the functions of linear layers, convolutions and embeddings read.
    weight = _read("weight")
    bias = _read("bias")
    in_features = _read("in_features")
    out_features = _read("out_features")
    activation = _read("activation")
    stride = _read("stride")
    padding = _read("padding")
    output_padding = _read("output_padding")
    dilation = _read("dilation")
    groups = _read("groups")
    padding_mode = _read("padding_mode")
    padding_idx = _read("padding_idx")
    max_norm = _read("max_norm")
    norm_type = _read("norm_type")
    scale_grad_by_freq = _read("scale_grad_by_freq")

    def value(self) -> Tensor:
        """The parameter that is computed."""
        raise ContainerError(f"{type(self).__name__} computes no parameter: define its method `value(self)`.")

    def folded(self) -> Any:
        """The plain layer, with the computed parameter in it."""
        return replace(container_of(self.layer), **{self.name: self.value()})


def apply_layer(p: Any, value: Tensor, inputs: tuple, key: Tensor | None, train: bool, options: dict[str, Any]) -> Any:
    """Apply the layer of a stand-in with `value` as the parameter `p.name`."""
    layer = p.layer
    binding = binding_of(layer)
    assert binding is not None
    if "key" in binding.takes and key is not None:
        options = {**options, "key": key}
    if isinstance(layer, nn.Module):
        # Called as a module, so that its hooks fire. It follows its own mode, and draws in training only.
        if not layer.training:
            options.pop("key", None)
        return torch.func.functional_call(layer, {p.name: value}, inputs, options)
    if "train" in binding.takes:
        options = {**options, "train": train}
    return binding.layer(replace(layer, **{p.name: value}), *inputs, **options)


def require_layer(where: str, layer: Any, name: str) -> Tensor:
    """The tensor `name` of a layer that shall be wrapped; `where` begins the error messages.

    Raises:
        ContainerError: `layer` cannot be applied, or updates buffers of its own.
        ArgumentError: it has no floating tensor of that name.
    """
    if not is_container(layer) or binding_of(layer) is None:
        raise ContainerError(
            f"{where}: expected a container with a function, such as Linear.init(...), got {a_or_an(layer)}."
        )
    if is_stateful(layer):
        raise ContainerError(
            f"{where}: {type(layer).__name__} updates buffers, so it cannot be wrapped as a whole: wrap the "
            f"layers in it, with pn.tree.select(p).instances(Linear).apply(...)."
        )
    spec = spec_of(layer)
    assert spec is not None
    tensors = {field: getattr(layer, field) for field in spec.dynamic}
    tensors = {field: x for field, x in tensors.items() if isinstance(x, Tensor) and x.is_floating_point()}
    if name not in tensors:
        raise ArgumentError(
            f"{where}: {type(layer).__name__} has no floating tensor '{name}'; it has "
            f"{', '.join(tensors) or 'none'}. Wrap the layer whose own field it is."
        )
    return tensors[name]


def require_dimension(where: str, weight: Tensor, dim: int) -> None:
    """Require that `dim` is a dimension of the weight, counted from the front.

    Raises:
        ArgumentError: it is not.
    """
    if not 0 <= dim < weight.ndim:
        raise ArgumentError(
            f"{where}: dim must lie between 0 and {weight.ndim - 1} for a weight of shape "
            f"{list(weight.shape)}, got {dim}. Count from the front."
        )
