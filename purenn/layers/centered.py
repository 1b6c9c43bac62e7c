"""Taking the mean away, of each example or of a whole tensor."""

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from purenn.errors import ShapeError
from purenn.tree import Layer, applies, container, static


@container
class Centered(Layer):
    """Takes the mean away: ``x - mean(x)``; see `centered`.

    Attributes:
        dim: the dimensions to average over: one or several numbers, ``"example"`` for all but the first (the batch), or
            None for all of them.
    """

    dim: int | tuple[int, ...] | Literal["example"] | None = static(default="example")


@applies(Centered)
def centered(p: Centered, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``x - mean(x)``, over the dimensions ``p.dim``.

    By default every example of a batch is centred by its own mean, which is what `vmap` of ``Centered(dim=None)``
    computes. Applied to a batch, ``dim=None`` mixes the examples.

    Raises:
        ShapeError: `x` has only one dimension and ``p.dim`` is ``"example"``.
    """
    dim: Any = p.dim
    if dim == "example":
        if x.dim() < 2:
            raise ShapeError(
                f"centered: expected a batch of examples, at least 2 dimensions, got shape {list(x.shape)}. For a "
                f"single example use Centered(dim=None)."
            )
        dim = tuple(range(1, x.dim()))
    return x - x.mean(dim, keepdim=True)
