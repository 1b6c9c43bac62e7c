"""What recurrent layers have in common as containers: fields under torch's names for any number of layers."""

import functools
from typing import Any, ClassVar, Self, TypeVar

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError
from purenn.layers._recurrent import place_of
from purenn.layers._recurrent_parameters import draw_parameters, require_sizes
from purenn.tree import Layer, container, static

C = TypeVar("C", bound="Recurrent")

# What is written only if it differs, as modules do.
_DEFAULTS: dict[str, Any] = {
    "proj_size": 0,
    "num_layers": 1,
    "nonlinearity": "tanh",
    "bias": True,
    "batch_first": False,
    "dropout": 0,
    "bidirectional": False,
}


@container
class Recurrent(Layer):
    """One layer with one direction; `with_layers` makes subclasses with the fields of more."""

    weight_ih_l0: Float[Tensor, "rows input_size"]
    weight_hh_l0: Float[Tensor, "rows state_size"]
    bias_ih_l0: Float[Tensor, " rows"] | None = None
    bias_hh_l0: Float[Tensor, " rows"] | None = None
    batch_first: bool = static(default=False, kw_only=True)
    dropout: float = static(default=0.0, kw_only=True)

    num_layers: ClassVar[int] = 1
    bidirectional: ClassVar[bool] = False
    _gates: ClassVar[int] = 1
    _parts: ClassVar[tuple[str, ...]] = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

    @dropout.validator  # pyright: ignore[reportAttributeAccessIssue]
    def _check_dropout(self, _: Any, dropout: float) -> None:
        if not 0 <= dropout <= 1:
            raise ArgumentError(
                f"{type(self).__name__}: dropout is the probability of a zero and must be from 0 to 1, got {dropout!r}."
            )

    @classmethod
    def _drawn(
        cls,
        key: Tensor,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        bias: bool,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        proj_size: int = 0,
        **options: Any,
    ) -> Self:
        require_sizes(cls.__name__, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        places, directions = _places(num_layers, bidirectional), 2 if bidirectional else 1
        parameters: dict[str, Tensor | None] = {}
        for number, (place, k) in enumerate(zip(places, random.split(key, len(places)), strict=True)):
            size = input_size if number < directions else directions * (proj_size or hidden_size)
            drawn = draw_parameters(k, cls._gates, size, hidden_size, bias, dtype, device, proj_size=proj_size)
            parameters |= {f"{part}{place}": getattr(drawn, part) for part in cls._parts}
        return with_layers(cls, num_layers, bidirectional)(**parameters, **options)

    @property
    def input_size(self) -> int:
        """Size of the input's last dimension."""
        return self.weight_ih_l0.shape[-1]

    @property
    def hidden_size(self) -> int:
        """Features of the hidden state."""
        return self.weight_ih_l0.shape[-2] // self._gates

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return self.bias_ih_l0 is not None

    def extra_repr(self) -> str:
        """The sizes, and the options that differ from their defaults."""
        changed = [
            f"{name}={getattr(self, name)}"
            for name, default in _DEFAULTS.items()
            if getattr(self, name, default) != default
        ]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *changed])


def _places(num_layers: int, bidirectional: bool) -> list[str]:
    directions = (False, True) if bidirectional else (False,)
    return [place_of(layer, reverse) for layer in range(num_layers) for reverse in directions]


@functools.cache
def with_layers(cls: type[C], num_layers: int, bidirectional: bool) -> type[C]:
    """The subclass of a recurrent container for so many layers, with fields for their parameters.

    Args:
        cls: the class for one layer and one direction, or one that was made from it.
        num_layers: how many layers.
        bidirectional: whether each has a second direction.
    """
    base: Any = cls
    if cls.num_layers > 1 or cls.bidirectional:
        return with_layers(base.__base__, num_layers, bidirectional)
    if num_layers == 1 and not bidirectional:
        return cls
    names = [f"{part}{place}" for place in _places(num_layers, bidirectional)[1:] for part in cls._parts]
    body: dict[str, Any] = {
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        # By this name pickle finds the class again, through the `__getattr__` of the module that defines `cls`.
        "__qualname__": f"{cls.__qualname__}_{num_layers}{'_bidirectional' if bidirectional else ''}",
        "__annotations__": dict.fromkeys(names, Tensor | None),
        "num_layers": num_layers,
        "bidirectional": bidirectional,
        **{name: attrs.field(default=None, kw_only=True) for name in names},
    }
    made: Any = container(type(cls.__name__, (cls,), body))
    return made
