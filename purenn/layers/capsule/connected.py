"""A layer of capsules that is fully connected to the layer below, with any routing."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.initializers import normal
from purenn.layers.capsule._votes import Routed
from purenn.tree import Layer, applies, container


@container
class Capsules(Layer):
    """Every input capsule votes for every output capsule by a matrix of its own, and a routing decides; see `capsules`.

    Attributes:
        weight: ``[out_caps, in_caps, out_dim, in_dim]``, or ``[out_caps, in_caps, n, m]`` for capsules that are
            matrices ``[n, n]``, kept flat, and become ``[n, m]``.
        routing: `AgreementRouting`, `EMRouting`, `SelfRouting`, `AttentionRouting`, `InvertedAttentionRouting`, or any
            other container whose function takes what theirs take.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Capsules, EMRouting
        >>> p = Capsules.init(pn.random.key(0), 32, 10, EMRouting.init(10))
        >>> poses, activations = p(torch.ones(5, 32, 8), torch.ones(5, 32))
        >>> poses.shape, activations.shape
        (torch.Size([5, 10, 16]), torch.Size([5, 10]))
    """

    weight: Float[Tensor, "out_caps in_caps out_dim in_dim"]
    routing: Layer

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_caps: int,
        out_caps: int,
        routing: Layer,
        *,
        in_dim: int = 8,
        out_dim: int = 16,
        matrix: bool = False,
        std: float = 0.05,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "Capsules":
        """Draw the weight from a normal distribution.

        Args:
            key: random key.
            in_caps: number of input capsules.
            out_caps: number of output capsules.
            routing: see above.
            in_dim: components of an input capsule. Default: 8.
            out_dim: components of an output capsule. Default: 16.
            matrix: whether capsules are square matrices; `in_dim` and `out_dim` are then n * n. Default: False.
            std: standard deviation of the weight. Default: 0.05.
            dtype: of the weight. Default: torch's default dtype.
            device: of the weight. Default: the key's.

        Raises:
            ArgumentError: capsules shall be square matrices, and `in_dim` or `out_dim` is no square number.
        """
        sides = sides_of("Capsules.init", in_dim, out_dim, matrix)
        return cls(normal(key, (out_caps, in_caps, *sides), std=std, **placed(dtype, device)), routing)

    def extra_repr(self) -> str:
        """The sizes, as modules write them."""
        out_caps, in_caps = self.weight.shape[:2]
        return f"in_caps={in_caps}, out_caps={out_caps}"


def sides_of(name: str, in_dim: int, out_dim: int, matrix: bool) -> tuple[int, int]:
    """The last two sizes of a weight; ArgumentError if capsules that shall be square matrices cannot be."""
    sides = math.isqrt(in_dim), math.isqrt(out_dim)
    if matrix and sides != (math.sqrt(in_dim), math.sqrt(out_dim)):
        raise ArgumentError(
            f"{name}: capsules that are square matrices have n * n components, got in_dim={in_dim} and "
            f"out_dim={out_dim}. For vectors write matrix=False."
        )
    return sides if matrix else (out_dim, in_dim)


def placed(dtype: torch.dtype | None, device: torch.device | str | None) -> dict:
    """dtype and device, torch's default dtype if None."""
    return {"dtype": torch.get_default_dtype() if dtype is None else dtype, "device": device}


@applies(Capsules)
def capsules(
    p: Capsules,
    poses: Float[Tensor, "*batch in_caps in_dim"],
    activations: Float[Tensor, "*batch in_caps"] | None = None,
) -> Routed:
    """Route input capsules, of one example or of any batch of them.

    Args:
        p: the parameters.
        poses: the input capsules.
        activations: how surely each is present; agreement and attention do without.

    Raises:
        ArgumentError: the routing needs activations and there are none.
        ShapeError: the shapes do not fit.
    """
    return p.routing((p.weight, poses), activations)
