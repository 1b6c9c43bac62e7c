"""Layers that torch.nn has as well: as modules they are of torch's class too.

Much code finds the layers that it is for by ``isinstance(module, torch.nn.Linear)``: quantisation, batch norms that are
synchronised or estimated anew, initialisation, weight decay by kinds of layers. So the module of a `Linear` is both a
`Module`, whose function it runs, and a `torch.nn.Linear`, whose attributes it has.
"""

from typing import Any

from torch import nn

import purenn.layers
from bridge._module import Module
from purenn.tree._fields import spec_of

# Those whose classes in torch.nn do no more than to hold parameters and options.
_FAMILIES = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
)


def _fixed_options(native: Any, original: type) -> dict[str, Any]:
    """The options of torch's class that the container does not have, with what it does always."""
    if issubclass(original, nn.modules.conv._ConvTransposeNd):
        return {"transposed": True, "padding_mode": "zeros"}
    if issubclass(original, nn.modules.conv._ConvNd):
        return {"transposed": False, "output_padding": (0,) * native.dimensions}
    return {"sparse": False} if issubclass(original, (nn.Embedding, nn.EmbeddingBag)) else {}


def _twins() -> dict[type, type[Module]]:
    made: dict[type, type[Module]] = {}
    for name in purenn.layers.__all__:
        native, original = getattr(purenn.layers, name), getattr(nn, name, None)
        if isinstance(original, type) and issubclass(original, _FAMILIES) and spec_of(native) is not None:
            text = f"A `{name}` as a module, which is a `torch.nn.{name}` as well."
            members = {"__module__": __name__, "__doc__": text, **_fixed_options(native, original)}
            made[native] = type(name, (Module, original), members)
    return made


_TWINS = _twins()
# By these names they are found when a pickle is read.
globals().update({twin.__name__: twin for twin in _TWINS.values()})


def carrier_class(container_class: type) -> type[Module]:
    """The class of the modules that carry containers of a class."""
    return _TWINS.get(container_class, Module)


def carrier_classes() -> tuple[Any, ...]:
    """All classes of such modules."""
    return Module, *_TWINS.values()
