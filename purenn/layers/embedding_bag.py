"""EmbeddingBag: the vectors of several indices in one, their sum, mean or maximum.

As in `Embedding` the table never changes while it is read, and gradients are dense. torch's kernel, which does not keep
the single vectors, runs where nothing transforms or traces; its derivative is written here, since torch's own cannot be
differentiated again. Everywhere else the vectors are looked up and then put together.
"""

from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from purenn._modes import is_plain
from purenn.errors import ArgumentError, ShapeError
from purenn.layers._bags import MODES, FusedBags, find_bags, reduce_bags
from purenn.layers.embedding import Embedding, draw_table, embedding
from purenn.tree import Layer, applies, container, static

Mode = Literal["sum", "mean", "max"]

# Up to so many numbers in bags of equal length, an autograd function around the kernel takes more time than it saves.
_FEW = 2**17


def _check_mode(p: Any, *_: Any) -> None:
    if p.mode not in MODES:
        raise ArgumentError(f"EmbeddingBag: mode must be one of {', '.join(MODES)}, got {p.mode!r}.")
    if p.mode == "max" and p.scale_grad_by_freq:
        raise ArgumentError("EmbeddingBag: scale_grad_by_freq is an option of the modes sum and mean only.")


@container
class EmbeddingBag(Layer):
    """A table of `num_embeddings` vectors, of which several are put together.

    Attributes:
        weight: the table, ``[num_embeddings, embedding_dim]``.
        max_norm, norm_type, scale_grad_by_freq, mode, include_last_offset, padding_idx: as in `init`.
    """

    weight: Float[Tensor, "num_embeddings embedding_dim"]
    max_norm: float | None = static(default=None)
    norm_type: float = static(default=2.0)
    scale_grad_by_freq: bool = static(default=False)
    mode: Mode = static(default="mean", validator=_check_mode)
    include_last_offset: bool = static(default=False)
    padding_idx: int | None = static(default=None)

    @classmethod
    def init(
        cls,
        key: Tensor,
        num_embeddings: int,
        embedding_dim: int,
        *,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: Mode = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the table from N(0, 1); the vector at `padding_idx` is zero.

        Args:
            key: random key.
            num_embeddings: number of vectors.
            embedding_dim: length of each.
            max_norm: vectors with a larger norm are scaled down to it when they are looked up. The gradient is that of
                the table without this step, as in torch.
            norm_type: the p of that p-norm.
            scale_grad_by_freq: divide the gradient of each vector by the number of times that it is looked up in the
                call (under `vmap`: in the example), as torch documents it; not with mode ``"max"``.
            mode: how the vectors of a bag are put together: ``"sum"``, ``"mean"`` or ``"max"``.
            sparse: only False.
            include_last_offset: whether the offsets have one element more, the end of the last bag.
            padding_idx: index that is left out of all bags; negative counts from the end.
            dtype: of the table; torch's default dtype if None.
            device: of the table; the key's device if None.

        Raises:
            ArgumentError: `padding_idx` is outside the table, `sparse` is True, or `mode` is unknown or does not go
                with `scale_grad_by_freq`.
        """
        weight, padding_idx = draw_table(cls, key, num_embeddings, embedding_dim, padding_idx, sparse, dtype, device)
        return cls(weight, max_norm, norm_type, scale_grad_by_freq, mode, include_last_offset, padding_idx)

    @property
    def num_embeddings(self) -> int:
        """Number of vectors."""
        return self.weight.shape[-2]

    @property
    def embedding_dim(self) -> int:
        """Length of each vector."""
        return self.weight.shape[-1]

    def extra_repr(self) -> str:
        """The sizes, the options that differ from their defaults, and the mode."""
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        for name, default in (
            ("max_norm", None),
            ("norm_type", 2.0),
            ("scale_grad_by_freq", False),
            ("include_last_offset", False),
            ("padding_idx", None),
        ):
            value = getattr(self, name)
            if value != default:
                text += f", {name}={value}"
        return f"{text}, mode={self.mode!r}"


@applies(EmbeddingBag)
def embedding_bag(
    p: EmbeddingBag,
    indices: Int[Tensor, "..."],
    offsets: Int[Tensor, " offsets"] | None = None,
    per_sample_weights: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "bags embedding_dim"]:
    """The vectors at `indices`, put together bag by bag; an empty bag gives zeros.

    Args:
        p: the container.
        indices: whole numbers from 0 to ``num_embeddings - 1``: ``[bags, length]`` for bags of equal length, or all
            bags one after the other, ``[total]``, with `offsets`.
        offsets: where in `indices` each bag begins, rising from 0. The last bag reaches to the end of `indices`; with
            ``p.include_last_offset`` there is one more element, which must say that.
        per_sample_weights: factors of the vectors, in the shape of `indices`; in mode ``"sum"`` only.

    Raises:
        ShapeError: the shapes do not fit each other.
        ArgumentError: `per_sample_weights` is given in another mode or dtype, or the offsets do not rise from 0 to the
            number of indices (where nothing transforms or traces).
    """
    _check(p, indices, offsets, per_sample_weights)
    if offsets is None:
        return _put_together(p, indices, None, per_sample_weights)
    if p.include_last_offset:
        offsets = offsets[:-1]
    try:
        return _put_together(p, indices, offsets, per_sample_weights)
    except (RuntimeError, IndexError) as error:
        _explain(indices, offsets, error)
        raise


def _put_together(
    p: EmbeddingBag, indices: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None
) -> Tensor:
    if _takes_kernel(p, indices, offsets, per_sample_weights):
        return _by_kernel(p, indices, offsets, per_sample_weights)
    vectors = embedding(Embedding(p.weight, None, p.max_norm, p.norm_type, p.scale_grad_by_freq), indices)
    if per_sample_weights is not None:
        vectors = vectors * per_sample_weights.unsqueeze(-1)
    counted = None if p.padding_idx is None else indices != p.padding_idx
    if offsets is None:
        return reduce_bags(vectors, p.mode, counted, None, len(indices))
    return reduce_bags(vectors, p.mode, counted, find_bags(offsets, len(indices)), len(offsets))


def _check(p: EmbeddingBag, indices: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None) -> None:
    if indices.ndim != (2 if offsets is None else 1) or (offsets is not None and offsets.ndim != 1):
        given = "none" if offsets is None else f"shape {list(offsets.shape)}"
        raise ShapeError(
            f"embedding_bag: indices must be [bags, length] without offsets, or [total] with offsets of shape [bags], "
            f"got indices of shape {list(indices.shape)} and offsets: {given}."
        )
    if offsets is not None and len(offsets) <= p.include_last_offset and (len(indices) or not len(offsets)):
        # torch's kernel reads beyond the end of its memory here.
        raise ShapeError(
            f"embedding_bag: offsets of shape {list(offsets.shape)} with include_last_offset={p.include_last_offset} "
            f"make no bag for the {len(indices)} indices. Give offsets that begin with 0."
        )
    if per_sample_weights is None:
        return
    if p.mode != "sum":
        raise ArgumentError(
            f"embedding_bag: per_sample_weights go with mode='sum' only, got mode={p.mode!r}. Divide the weighted sum "
            f"by what the mean shall be over."
        )
    if per_sample_weights.dtype != p.weight.dtype:
        raise ArgumentError(
            f"embedding_bag: per_sample_weights must have the dtype of the table, {p.weight.dtype}, got "
            f"{per_sample_weights.dtype}."
        )
    if per_sample_weights.shape != indices.shape:
        raise ShapeError(
            f"embedding_bag: per_sample_weights must have the shape of indices, {list(indices.shape)}, got "
            f"{list(per_sample_weights.shape)}."
        )


def _explain(indices: Tensor, offsets: Tensor, error: Exception) -> None:
    # Looked into only after the fact, and only where the numbers can be read.
    if not is_plain(offsets) or not len(offsets):
        return
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last > len(indices):
        raise ArgumentError(
            f"embedding_bag: offsets must rise from 0 to at most the number of indices, {len(indices)}, got offsets "
            f"from {first} to {last}."
        ) from error


def _takes_kernel(p: EmbeddingBag, indices: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None) -> bool:
    given = (indices,) if per_sample_weights is None else (indices, per_sample_weights)
    if p.max_norm is not None or p.scale_grad_by_freq or not is_plain(*given):
        return False
    if any(unpack_dual(value).tangent is not None for value in (p.weight, *given)):
        return False
    if offsets is not None or not _needs_gradient(p.weight, per_sample_weights):
        return True
    return indices.numel() * p.weight.size(1) > _FEW


def _needs_gradient(weight: Tensor, factors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (weight.requires_grad or (factors is not None and factors.requires_grad))


def _by_kernel(p: EmbeddingBag, indices: Tensor, offsets: Tensor | None, factors: Tensor | None) -> Tensor:
    if offsets is None:
        bags, length = indices.shape
        offsets = torch.arange(bags, dtype=indices.dtype, device=indices.device) * length
        indices = indices.flatten()
        factors = None if factors is None else factors.flatten()
    args = (factors, indices, offsets, MODES.index(p.mode), p.padding_idx)
    if _needs_gradient(p.weight, factors):
        return FusedBags.apply(p.weight, *args)
    return torch.embedding_bag(p.weight, indices, offsets, False, args[3], False, factors, False, p.padding_idx)[0]
