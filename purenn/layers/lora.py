"""Low-rank adaptation (LoRA): a layer stays as it is, and a product of two thin matrices is learned beside it.

`LoRA` takes the place of a layer with a weight ``W``; the weight becomes ``W + alpha / rank * B A``. `lora` puts it
into a whole model, in the places that a selection names, and freezes the rest. `merge_lora` turns such a model into
one of plain layers again.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn import initializers, random
from purenn.errors import ArgumentError
from purenn.layers._stand_in import StandIn, apply_layer, require_layer
from purenn.layers.conv import Conv1d, Conv2d, Conv3d
from purenn.layers.embedding import Embedding
from purenn.layers.linear import Linear
from purenn.tree import Selection, applies, container, freeze, select, static, tie, untie
from purenn.tree._applies import binding_of
from purenn.tree._select import chosen
from purenn.tree._ties import aliases_of

T = TypeVar("T")


@container
class LoRA(StandIn):
    """A layer with a low-rank addition to its weight; make it by `of` or `lora`.

    Applied to a linear layer, convolution or embedding, as ``p(x)`` or as ``linear(p.fc, x)`` in a model that was
    written for the plain layer, it never computes the sum of the weights: the thin matrices are applied to the input
    beside the layer, which costs little time and memory. Reading ``p.weight`` does compute the sum, each time, and so
    does applying a layer of another class: as much memory as the layer's weight once more, kept for the backward pass,
    and ``rank * weight.numel()`` multiplications.

    Attributes:
        layer: the layer.
        lora_A: ``[rank, *weight.shape[1:]]``.
        lora_B: ``[weight.shape[0], rank]``.
        alpha: the addition is scaled by ``alpha / rank``.
    """

    name: ClassVar[str] = "weight"

    lora_A: Float[Tensor, "rank *inputs"]  # noqa: N815
    lora_B: Float[Tensor, "outputs rank"]  # noqa: N815
    alpha: float = static()

    @classmethod
    def of(cls, key: Tensor, layer: Any, rank: int = 8, alpha: float | None = None) -> Self:
        """Wrap a layer; it computes what it did before, because B is zero at first.

        A is drawn from U(-k, k), ``k = 1 / sqrt(fan_in)``, or N(0, 1) for embeddings. (There the zero matrix is the
        one that is looked up, which is called B here as in all layers, and A in the authors' code.)

        Args:
            key: random key.
            layer: a layer with a weight of two or more dimensions.
            rank: how many columns and rows the two matrices have.
            alpha: the addition is scaled by ``alpha / rank``; `rank` if None, so that the scale is 1.

        Raises:
            ContainerError: `layer` cannot be applied, or updates buffers.
            ArgumentError: it has no such weight, or `rank` is not positive.

        Example:
            >>> import torch, purenn as pn
            >>> from purenn.layers import Linear, LoRA
            >>> first, second = pn.random.split(pn.random.key(0))
            >>> p = LoRA.of(first, Linear.init(second, 30, 20), rank=4)
            >>> [(path, list(leaf.shape)) for path, leaf in pn.tree.named_leaves(p)]
            [('layer.weight', [20, 30]), ('layer.bias', [20]), ('lora_A', [4, 30]), ('lora_B', [20, 4])]
        """
        weight = _require_weight("LoRA.of", layer)
        if rank < 1:
            raise ArgumentError(f"LoRA.of: rank must be at least 1, got {rank}.")
        placed: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        shape = (rank, *weight.shape[1:])
        if isinstance(layer, Embedding):
            lora_a = initializers.normal(key, shape, **placed)
        else:
            lora_a = initializers.fan_in_uniform(key, shape, fan_in=math.prod(shape[1:]), **placed)
        return cls(layer, lora_a, torch.zeros(len(weight), rank, **placed), float(rank if alpha is None else alpha))

    @property
    def rank(self) -> int:
        """How many rows A has, and columns B."""
        return self.lora_B.shape[-1]

    @property
    def scale(self) -> float:
        """The factor of the addition."""
        return self.alpha / self.rank

    def value(self) -> Tensor:
        """The layer's weight plus the addition."""
        weight = self.layer.weight
        return weight + (self.scale * self.lora_B @ self.lora_A.flatten(1)).view_as(weight)

    def extra_repr(self) -> str:
        """Rank and scale."""
        return f"rank={self.rank}, alpha={self.alpha}"


@applies(LoRA, stands_in=True)
def apply_lora(p: LoRA, *inputs: Any, key: Tensor | None = None, train: bool = False, **options: Any) -> Any:
    """The result of the layer with the weight ``W + alpha / rank * B A``.

    Args:
        p: the container.
        *inputs: of the layer.
        key: passed to a layer that draws.
        train: passed to a layer that takes it.
        **options: of the layer's function.

    Returns:
        What the layer's function returns.

    Source:
        Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, 2021.
    """
    binding, cls = binding_of(p.layer), _class_with_addition(p.layer)
    if binding is None or cls is None:
        return apply_layer(p, p.value(), inputs, key, train, options)
    return binding.layer(p.layer, *inputs, **options) + _addition(p, cls, *inputs)


def _class_with_addition(layer: Any) -> Any:
    # A class whose result is a sum if its weight is one.
    binding = binding_of(layer)
    for cls in (Linear, Conv1d, Conv2d, Conv3d, Embedding):
        if binding is binding_of(cls):
            return None if cls is Embedding and (layer.max_norm is not None or layer.scale_grad_by_freq) else cls
    return None


def _addition(p: LoRA, cls: Any, x: Tensor) -> Tensor:
    layer, lora_a, lora_b = p.layer, p.lora_A, p.scale * p.lora_B
    if cls is Linear:
        return F.linear(F.linear(x, lora_a), lora_b)
    if cls is Embedding:
        y = F.embedding(x, lora_b) @ lora_a
        # The vector at this index is a constant.
        return y if layer.padding_idx is None else torch.where((x == layer.padding_idx).unsqueeze(-1), y.detach(), y)
    # A is a convolution that all groups of channels share, and B one of size 1 that keeps them apart.
    ones = [1] * cls.dimensions
    narrow = cls(
        lora_a.repeat(layer.groups, 1, *ones),
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.padding_mode,
    )
    return cls(lora_b.reshape(*lora_b.shape, *ones), None, groups=layer.groups)(narrow(x))


def _linears(selection: Selection[Any]) -> Selection[Any]:
    return selection.instances(Linear)


def lora(
    key: Tensor,
    p: T,
    selection: Callable[[Selection[T]], Selection[T]] | str | Sequence[str] = _linears,
    rank: int = 8,
    alpha: float | None = None,
) -> T:
    """A model with `LoRA` in the place of every selected layer, and everything else frozen.

    The result computes what the model did. Only the new matrices are trained: by `pn.grad`, by optimisers, and by the
    module that `bridge.to_module` makes. Tied leaves stay tied; the additions to them are not.

    Args:
        key: random key; each layer gets one of its own.
        p: the model.
        selection: which layers: path patterns, or a function of ``select(p)``; all `Linear` ones by default.
        rank: as in `LoRA.of`.
        alpha: as in `LoRA.of`.

    Raises:
        SelectionError: nothing is selected.
        ContainerError: a selected node is no layer, or updates buffers.
        ArgumentError: a selected layer has no weight of two or more dimensions, or is adapted already.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear, ReLU, Sequential, lora, merge_lora
        >>> k1, k2, k3 = pn.random.split(pn.random.key(0), 3)
        >>> base = Sequential.of(Linear.init(k1, 64, 64), ReLU(), Linear.init(k2, 64, 10))
        >>> p = lora(k3, base, rank=4)
        >>> pn.tree.count(p, trainable=True), pn.tree.count(base)
        (808, 4810)
        >>> x = torch.ones(2, 64)
        >>> torch.equal(p(x), base(x)), type(merge_lora(p)[0]).__name__
        (True, 'Linear')
    """
    whole = freeze(untie(p))
    places = chosen("lora", whole, selection)
    inside = {f"{name}.layer" if name else "layer" for name in select(whole).instances(LoRA).names}
    for name, layer in zip(places.names, places.get(), strict=True):
        _require_weight(f"lora: '{name}'" if name else "lora", layer)
        if name in inside:
            raise ArgumentError(
                f"lora: '{name}' is adapted already. Leave it out of the selection, or make plain layers of the "
                f"adapted ones first, with merge_lora."
            )
    keys = iter(random.split(key, len(places.entries)))
    wrapped = places.apply(lambda layer: LoRA.of(next(keys), layer, rank, alpha))
    ties = {_moved(alias, places.names): _moved(leaf, places.names) for alias, leaf in aliases_of(p).items()}
    return tie(wrapped, ties) if ties else wrapped


def merge_lora(p: T) -> T:
    """A model with the plain layer, its weight changed by the addition, in the place of every `LoRA`.

    The marks of `freeze` stay; `pn.tree.unfreeze` takes them off. A weight that was tied to an adapted one, or adapted
    itself, is not tied to it any more: the two differ.
    """
    places = select(p).instances(LoRA).names
    if not places:
        return p
    merged = select(untie(p)).instances(LoRA).apply(LoRA.folded)
    changed = {_moved("weight" if not place else f"{place}.weight", places) for place in places}
    ties = {
        _moved_back(alias, places): _moved_back(leaf, places)
        for alias, leaf in aliases_of(p).items()
        if alias not in changed and leaf not in changed
    }
    return tie(merged, ties) if ties else merged


def _moved(path: str, places: Sequence[str]) -> str:
    # Where a leaf is after the layers at some places have become children of other nodes.
    for place in places:
        if not place or path.startswith(f"{place}."):
            return _joined(place, "layer", path.removeprefix(f"{place}."))
    return path


def _moved_back(path: str, places: Sequence[str]) -> str:
    for place in places:
        inside = _joined(place, "layer", "")
        if path.startswith(inside):
            return _joined(place, path.removeprefix(inside))
    return path


def _joined(*parts: str) -> str:
    return ".".join(parts).removeprefix(".")


def _require_weight(where: str, layer: Any) -> Tensor:
    weight = require_layer(where, layer, "weight")
    if weight.ndim < 2:
        raise ArgumentError(
            f"{where}: the weight of {type(layer).__name__} has shape {list(weight.shape)}, and a low-rank addition "
            f"needs two dimensions or more. Select other layers."
        )
    return weight
