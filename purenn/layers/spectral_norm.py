"""Spectral normalisation: a weight divided by its largest singular value.

`SpectralNorm` takes the place of a layer. It is stateful: two buffers hold estimates of the singular vectors that
belong to the largest singular value, each training step improves them by power iteration, and the function returns the
container with the new ones. Gradients flow through the weight, not through the estimates.
"""

from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn import random
from purenn.errors import ArgumentError
from purenn.layers._stand_in import StandIn, apply_layer, require_dimension, require_layer
from purenn.layers.conv_transpose import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from purenn.tree import applies, buffer, container, replace, static

# With so many steps the first estimates are made, as in torch.
_FIRST_ITERATIONS = 15


@container
class SpectralNorm(StandIn):
    """A layer with a spectrally normalised weight; make it by `of`.

    It can be read like the layer: ``p.weight`` is the weight divided by the estimate at hand. A model that was written
    as ``linear(p.fc, x)`` works with it, but improves the estimates only where its own function is applied.

    Attributes:
        layer: the layer; its weight is the one before the division.
        u: estimated left singular vector, as long as dimension `dim` of the weight; None for a weight with one
            dimension, which is divided by its length.
        v: estimated right singular vector, as long as the weight's other dimensions together, or None.
        name: the field of the layer that is normalised. Default: "weight".
        n_power_iterations: steps of power iteration in each training step. Default: 1.
        eps: least length by which a vector is divided. Default: 1e-12.
        dim: the dimension that makes the rows of the matrix; all others make its columns. Default: 0.
    """

    u: Float[Tensor, " rows"] | None = buffer()
    v: Float[Tensor, " columns"] | None = buffer()
    name: str = static(default="weight")  # pyright: ignore[reportIncompatibleVariableOverride]
    n_power_iterations: int = static(default=1)
    eps: float = static(default=1e-12)
    dim: int = static(default=0)

    @classmethod
    def of(
        cls,
        key: Tensor,
        layer: Any,
        name: str = "weight",
        *,
        n_power_iterations: int = 1,
        eps: float = 1e-12,
        dim: int | None = None,
    ) -> Self:
        """Wrap a layer; the first estimates are drawn from N(0, 1) and improved by 15 steps of power iteration.

        Args:
            key: random key.
            layer: a container with a function.
            name: which of its tensors to normalise.
            n_power_iterations: steps of power iteration in each training step.
            eps: least length by which a vector is divided.
            dim: the dimension that makes the rows of the matrix; None for 1 in transposed convolutions, else 0.

        Raises:
            ContainerError: `layer` cannot be applied, or updates buffers.
            ArgumentError: it has no such tensor, that has no dimension `dim`, or `n_power_iterations` is not positive.

        Example:
            >>> import torch, purenn as pn
            >>> from purenn.layers import Linear, SpectralNorm
            >>> first, second = pn.random.split(pn.random.key(0))
            >>> p = SpectralNorm.of(first, Linear.init(second, 3, 2))
            >>> y, p = p(torch.ones(4, 3), train=True)
            >>> round(torch.linalg.matrix_norm(p.weight, 2).item(), 3)
            1.0
        """
        weight = require_layer("SpectralNorm.of", layer, name)
        if dim is None:
            dim = 1 if isinstance(layer, (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)) else 0
        require_dimension("SpectralNorm.of", weight, dim)
        if n_power_iterations < 1:
            raise ArgumentError(f"SpectralNorm.of: n_power_iterations must be at least 1, got {n_power_iterations}.")
        u = v = None
        if weight.ndim > 1:
            matrix = _matrix(weight, dim).detach()
            of_u, of_v = random.split(key)
            u, v = (
                F.normalize(random.normal(k, (n,), dtype=weight.dtype).to(weight.device), dim=0, eps=eps)
                for k, n in zip((of_u, of_v), matrix.shape, strict=True)
            )
            u, v = _iterated(matrix, v, _FIRST_ITERATIONS, eps)
        return cls(layer, u, v, name, n_power_iterations, eps, dim)

    def value(self) -> Tensor:
        """The weight, divided by the estimate of its largest singular value."""
        return _divided(getattr(self.layer, self.name), self.u, self.v, self.dim, self.eps)

    def extra_repr(self) -> str:
        """What is normalised, and how."""
        return f"name={self.name!r}, n_power_iterations={self.n_power_iterations}, eps={self.eps}, dim={self.dim}"


@applies(SpectralNorm, stateful=True)
def spectral_norm(
    p: SpectralNorm, *inputs: Any, key: Tensor | None = None, train: bool = False, **options: Any
) -> tuple[Any, SpectralNorm]:
    """Apply the layer with its weight divided by the estimate of its largest singular value.

    Args:
        p: the container.
        *inputs: of the layer.
        key: passed to a layer that draws.
        train: whether to improve the estimates first; also passed to a layer that takes it.
        **options: of the layer's function.

    Returns:
        What the layer's function returns, and the container with the new estimates.

    Source:
        Miyato et al.: Spectral Normalization for Generative Adversarial Networks, 2018.
    """
    weight, u, v = getattr(p.layer, p.name), p.u, p.v
    if train and v is not None:
        u, v = _iterated(_matrix(weight, p.dim).detach(), v.detach(), p.n_power_iterations, p.eps)
    y = apply_layer(p, _divided(weight, u, v, p.dim, p.eps), inputs, key, train, options)
    return y, replace(p, u=u, v=v) if train else p


def _matrix(weight: Tensor, dim: int) -> Tensor:
    return weight.movedim(dim, 0).flatten(1)


def _iterated(matrix: Tensor, v: Tensor, steps: int, eps: float) -> tuple[Tensor, Tensor]:
    u = matrix.new_empty(0)
    for _ in range(steps):
        u = F.normalize(matrix @ v, dim=0, eps=eps)
        v = F.normalize(matrix.mT @ u, dim=0, eps=eps)
    return u, v


def _divided(weight: Tensor, u: Tensor | None, v: Tensor | None, dim: int, eps: float) -> Tensor:
    if u is None or v is None:
        return F.normalize(weight, dim=0, eps=eps)
    return weight / torch.dot(u, _matrix(weight, dim) @ v)
