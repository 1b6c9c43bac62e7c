"""What each class of torch.nn becomes.

Containers have torch's names for parameters, buffers and options, so for nearly all classes the fields of the container
say which attributes of the module to take over. The few that need more have a function here.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import purenn.layers
import purenn.losses
from purenn.errors import BridgeError, PurennError
from purenn.layers import GELU, Lambda, Linear, ReLU
from purenn.layers._recurrent_container import with_layers
from purenn.tree import is_stateful
from purenn.tree._fields import Spec, spec_of

#: Gives the container of a submodule, by the submodule's name: a tuple or dict for a ModuleList or ModuleDict, and None
#: for None.
Part = Callable[[str], Any]
#: Makes a container of a module, whose submodules it converts by the second argument.
Conversion = Callable[[Any, Part], Any]


# Options that torch has and the containers have not.
_UNSUPPORTED: dict[type, tuple[str, Any]] = {
    nn.Embedding: ("sparse", True),
    nn.EmbeddingBag: ("sparse", True),
    nn.Softmax: ("dim", None),
    nn.Softmin: ("dim", None),
    nn.LogSoftmax: ("dim", None),
}


def _require_supported(module: Any) -> None:
    option, value = next((_UNSUPPORTED[cls] for cls in type(module).__mro__ if cls in _UNSUPPORTED), ("", None))
    if option and getattr(module, option) is value:
        raise BridgeError(f"{option}={value} has no counterpart")
    if getattr(module, "track_running_stats", None) is False and module.running_mean is not None:
        raise BridgeError("track_running_stats=False, but it has running averages")


def _copied(cls: Any, module: nn.Module, part: Part, **given: Any) -> Any:
    # The container whose fields are the module's attributes of the same names; those that it lacks have the defaults.
    _require_supported(module)
    spec: Spec = cls.__container_spec__
    values = dict(given)
    for name in (*spec.dynamic, *spec.static):
        if name not in given and hasattr(module, name):
            value = getattr(module, name)
            values[name] = part(name) if isinstance(value, nn.Module) else _hashable(value)
    try:
        # The argument for a field `_name` is `name`.
        return cls(**{name.lstrip("_"): value for name, value in values.items()})
    except PurennError as error:
        raise BridgeError(str(error)) from error


def _hashable(option: Any) -> Any:
    return tuple(map(_hashable, option)) if isinstance(option, list) else option


def _copy(cls: type) -> Conversion:
    return lambda module, part: _copied(cls, module, part)


def _sequential(module: nn.Sequential, part: Part) -> Any:
    names = tuple(module._modules)
    members = [part(name) for name in names]
    if names == tuple(map(str, range(len(names)))):
        return purenn.layers.Sequential(tuple(members))
    return purenn.layers.Sequential(dict(zip(names, members, strict=True)), names)


def _recurrent(cls: Any) -> Conversion:
    # The names of the parameters, and so the container's class, depend on the number of layers.
    return lambda module, part: _copied(with_layers(cls, module.num_layers, module.bidirectional), module, part)


def _transformer_layer(cls: type) -> Conversion:
    def convert(module: Any, part: Part) -> Any:
        activation = module.activation
        if isinstance(activation, nn.Module):
            activation = part("activation")
        else:
            known = {F.relu: ReLU(), torch.relu: ReLU(), F.gelu: GELU()}
            activation = known.get(activation) or Lambda(activation)
        if is_stateful(activation):
            raise BridgeError("its activation updates buffers")
        return _copied(cls, module, part, activation=activation)

    return convert


def _adaptive_softmax(module: nn.AdaptiveLogSoftmaxWithLoss, part: Part) -> Any:
    tail = tuple((part(f"tail.{i}.0"), part(f"tail.{i}.1")) for i in range(len(module.tail)))
    return _copied(purenn.layers.AdaptiveLogSoftmaxWithLoss, module, part, tail=tail)


def _linear_cross_entropy(module: Any, part: Part) -> Any:
    # The other options of torch's computation by chunks change neither results nor what has to be in memory.
    chunk_size = None if module.options is None else module.options.batch_chunk_size
    return _copied(purenn.losses.LinearCrossEntropyLoss, module, part, chunk_size=chunk_size)


def _triplet(module: nn.TripletMarginWithDistanceLoss, part: Part) -> Any:
    distance: Any = module.distance_function
    if type(distance) is nn.PairwiseDistance and (distance.norm, distance.eps, distance.keepdim) == (2, 1e-6, False):
        distance = None  # torch has put its default there
    if isinstance(distance, nn.Module):
        raise BridgeError("its distance_function is a module, not a function")
    return _copied(purenn.losses.TripletMarginWithDistanceLoss, module, part, distance_function=distance)


_OF_THEIR_OWN: dict[str, Conversion] = {
    "Sequential": _sequential,
    "RNN": _recurrent(purenn.layers.RNN),
    "LSTM": _recurrent(purenn.layers.LSTM),
    "GRU": _recurrent(purenn.layers.GRU),
    "TransformerEncoderLayer": _transformer_layer(purenn.layers.TransformerEncoderLayer),
    "TransformerDecoderLayer": _transformer_layer(purenn.layers.TransformerDecoderLayer),
    "AdaptiveLogSoftmaxWithLoss": _adaptive_softmax,
    "LinearCrossEntropyLoss": _linear_cross_entropy,
    "TripletMarginWithDistanceLoss": _triplet,
}


def torch_conversions() -> dict[type, Conversion]:
    """The conversion of every class of torch.nn for which there is a container."""
    # torch's name for the linear map within its attention, which is a Linear in every other respect.
    known: dict[type, Conversion] = {nn.modules.linear.NonDynamicallyQuantizableLinear: _copy(Linear)}
    for package in (purenn.layers, purenn.losses):
        for name in package.__all__:
            native, original = getattr(package, name), getattr(nn, name, None)
            if isinstance(original, type) and spec_of(native) is not None:
                known[original] = _OF_THEIR_OWN.get(name) or _copy(native)
    return known
