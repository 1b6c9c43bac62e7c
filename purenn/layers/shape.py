"""Layers that rearrange a tensor, pass it on, or apply a function of your own.

None of them has parameters: a container here holds options only, and being a container it can stand in a
`Sequential`, be saved with the model's structure, and be carried by a module.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from purenn.tree import Layer, applies, container, static


@container
class Flatten(Layer):
    """Merge the dimensions from `start_dim` to `end_dim` into one.

    The default keeps the batch dimension: ``[batch, channels, height, width]`` becomes ``[batch, channels * height *
    width]``. Under `vmap` an example has no batch dimension any more: use ``Flatten(start_dim=0)`` there.

    Attributes:
        start_dim: first dimension to merge.
        end_dim: last dimension to merge, included.
    """

    start_dim: int = static(default=1)
    end_dim: int = static(default=-1)


@applies(Flatten)
def flatten(p: Flatten, x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Merge the dimensions ``p.start_dim`` to ``p.end_dim`` of `x` into one; a batch of no examples stays one."""
    return x.flatten(p.start_dim, p.end_dim)


@container
class Unflatten(Layer):
    """Split one dimension into several, the inverse of `Flatten`.

    Attributes:
        dim: the dimension to split.
        unflattened_size: sizes of the dimensions it becomes; one of them may be -1 and is then inferred.
    """

    dim: int = static()
    unflattened_size: tuple[int, ...] = static()


@applies(Unflatten)
def unflatten(p: Unflatten, x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Split the dimension ``p.dim`` of `x` into dimensions of the sizes ``p.unflattened_size``."""
    return x.unflatten(p.dim, p.unflattened_size)


@container
class Identity(Layer):
    """The layer that does nothing, for the place of an optional one."""


@applies(Identity)
def identity(p: Identity, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return `x` itself."""
    return x


@container
class Lambda(Layer):
    """A function of your own as a layer: ``Lambda(torch.sin)``.

    The function is static, a part of the model's structure, so two trees are alike only if they hold the *same*
    function: define it once, by ``def``, rather than as a new ``lambda`` for each model. Tensors that it uses but does
    not take as arguments are invisible to gradients and to saving; a layer with parameters is a container of its own.

    Attributes:
        function: any pure function of tensors.
    """

    function: Callable[..., Any] = static()


@applies(Lambda)
def lambda_(p: Lambda, *inputs: Any, **options: Any) -> Any:
    """Apply ``p.function`` to the arguments."""
    return p.function(*inputs, **options)
