"""Weight normalisation: a weight as a magnitude times a direction, each a parameter of its own.

`WeightNorm` takes the place of a layer. The layer's own weight is the direction ``v``, whose length does not matter;
``original0`` is the magnitude ``g``. What the layer is applied with is ``g * v / ||v||``.
"""

from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn.layers._stand_in import StandIn, apply_layer, require_dimension, require_layer
from purenn.tree import applies, container, static


@container
class WeightNorm(StandIn):
    """A layer with a normalised weight; make it by `of`.

    It can be read like the layer: ``p.weight`` is the weight that the layer is applied with.

    Attributes:
        layer: the layer; its weight is the direction.
        original0: the magnitude, in the shape of the weight with 1 in the place of all dimensions but `dim`, or ``[]``
            if `dim` is None.
        name: the field of the layer that is normalised. Default: "weight".
        dim: the dimension along which magnitudes differ, None for one magnitude. Default: 0.
    """

    original0: Float[Tensor, "*magnitudes"]
    name: str = static(default="weight")  # pyright: ignore[reportIncompatibleVariableOverride]
    dim: int | None = static(default=0)

    @classmethod
    def of(cls, layer: Any, name: str = "weight", dim: int | None = 0) -> Self:
        """Wrap a layer; it computes what it did before.

        Args:
            layer: a container with a function.
            name: which of its tensors to normalise.
            dim: the dimension along which magnitudes differ (0 is the output of linear layers and convolutions), None
                for a single magnitude.

        Raises:
            ContainerError: `layer` cannot be applied, or updates buffers.
            ArgumentError: it has no such tensor, or that has no dimension `dim`.

        Example:
            >>> import torch, purenn as pn
            >>> from purenn.layers import Linear, WeightNorm
            >>> p = WeightNorm.of(Linear.init(pn.random.key(0), 3, 2))
            >>> [(path, list(leaf.shape)) for path, leaf in pn.tree.named_leaves(p)]
            [('layer.weight', [2, 3]), ('layer.bias', [2]), ('original0', [2, 1])]
        """
        weight = require_layer("WeightNorm.of", layer, name)
        if dim is not None:
            require_dimension("WeightNorm.of", weight, dim)
        return cls(layer, _norm(weight, dim), name, dim)

    @property
    def original1(self) -> Tensor:
        """The direction, under the name that torch has for it."""
        return getattr(self.layer, self.name)

    def value(self) -> Tensor:
        """The weight: the direction, scaled to the magnitude."""
        return self.original1 * (self.original0 / _norm(self.original1, self.dim))

    def extra_repr(self) -> str:
        """What is normalised."""
        return f"name={self.name!r}, dim={self.dim}"


@applies(WeightNorm, stands_in=True)
def weight_norm(p: WeightNorm, *inputs: Any, key: Tensor | None = None, train: bool = False, **options: Any) -> Any:
    """Apply the layer with its weight replaced by ``original0 * original1 / ||original1||``.

    Args:
        p: the container.
        *inputs: of the layer.
        key: passed to a layer that draws.
        train: passed to a layer that takes it.
        **options: of the layer's function.

    Returns:
        What the layer's function returns.

    Source:
        Salimans, Kingma: Weight Normalization, 2016.
    """
    return apply_layer(p, p.value(), inputs, key, train, options)


def _norm(weight: Tensor, dim: int | None) -> Tensor:
    # Over all dimensions but one. An empty tuple would mean all of them to torch.
    if dim is None:
        return torch.linalg.vector_norm(weight)
    others = [d for d in range(weight.ndim) if d != dim]
    return torch.linalg.vector_norm(weight, dim=others, keepdim=True) if others else weight.abs()
