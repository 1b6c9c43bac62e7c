"""Embedding: a table of vectors, looked up by index.

The table never changes while it is read. What torch's layer does to it in place (``max_norm``) happens to the vectors
that are returned, and what torch's kernels do to its gradient alone (``padding_idx``, ``scale_grad_by_freq``) is
written so that forward mode, second derivatives and `vmap` see the same rule. Gradients are dense: torch's sparse ones
have neither second derivatives nor batching rules, so the option ``sparse`` is refused.
"""

from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from purenn import initializers
from purenn._modes import is_plain
from purenn.errors import ArgumentError
from purenn.tree import Layer, applies, container, static


@container
class Embedding(Layer):
    """A table of `num_embeddings` vectors.

    Attributes:
        weight: the table, ``[num_embeddings, embedding_dim]``.
        padding_idx, max_norm, norm_type, scale_grad_by_freq: as in `init`.
    """

    weight: Float[Tensor, "num_embeddings embedding_dim"]
    padding_idx: int | None = static(default=None)
    max_norm: float | None = static(default=None)
    norm_type: float = static(default=2.0)
    scale_grad_by_freq: bool = static(default=False)

    @classmethod
    def init(
        cls,
        key: Tensor,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the table from N(0, 1); the vector at `padding_idx` is zero.

        Args:
            key: random key.
            num_embeddings: number of vectors.
            embedding_dim: length of each.
            padding_idx: index whose vector is a constant to derivatives of all modes, so that training leaves it as it
                is; negative counts from the end.
            max_norm: vectors with a larger norm are scaled down to it when they are looked up. The gradient is that of
                the table without this step, as in torch.
            norm_type: the p of that p-norm.
            scale_grad_by_freq: divide the gradient of each vector by the number of times that it is looked up in the
                call (under `vmap`: in the example).
            sparse: only False.
            dtype: of the table; torch's default dtype if None.
            device: of the table; the key's device if None.

        Raises:
            ArgumentError: `padding_idx` is outside the table, or `sparse` is True.
        """
        weight, padding_idx = draw_table(cls, key, num_embeddings, embedding_dim, padding_idx, sparse, dtype, device)
        return cls(weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)

    @property
    def num_embeddings(self) -> int:
        """Number of vectors."""
        return self.weight.shape[-2]

    @property
    def embedding_dim(self) -> int:
        """Length of each vector."""
        return self.weight.shape[-1]

    def extra_repr(self) -> str:
        """The sizes, and the options that differ from their defaults."""
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        for name, default in (
            ("padding_idx", None),
            ("max_norm", None),
            ("norm_type", 2.0),
            ("scale_grad_by_freq", False),
        ):
            value = getattr(self, name)
            if value != default:
                text += f", {name}={value}"
        return text


@applies(Embedding)
def embedding(p: Embedding, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape embedding_dim"]:
    """The vectors at `indices`, whole numbers from 0 to ``num_embeddings - 1`` in a tensor of any shape."""
    plain = is_plain(indices)
    # torch's function has no second derivative for no indices at all.
    padding_idx = p.padding_idx if plain else None
    vectors = F.embedding(indices, p.weight, padding_idx) if indices.numel() else p.weight[indices]
    if p.padding_idx is not None and not plain:
        # torch's own option stops reverse mode only: a tangent of the padding vector would come through.
        vectors = torch.where((indices == p.padding_idx).unsqueeze(-1), vectors.detach(), vectors)
    if p.max_norm is not None:
        vectors = _with_value(_shortened(vectors.detach(), p.max_norm, p.norm_type), vectors)
    if p.scale_grad_by_freq:
        frequency = _counts(indices, p.weight.size(0))[indices].to(vectors.dtype).unsqueeze(-1)
        vectors = _with_value(vectors, vectors / frequency)
    return vectors


def _with_value(value: Tensor, derivative: Tensor) -> Tensor:
    # Exactly `value`, with the derivatives of the other, under every transformation.
    return value.detach() + (derivative - derivative.detach())


def _shortened(vectors: Tensor, max_norm: float, norm_type: float) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, norm_type, dim=-1, keepdim=True)
    # The small number keeps a rounded result from being longer than max_norm; it is torch's.
    return torch.where(norms > max_norm, vectors * (max_norm / (norms + 1e-7)), vectors)


def _counts(indices: Tensor, num_embeddings: int) -> Tensor:
    flat = indices.flatten()
    return flat.new_zeros(num_embeddings).scatter_add(0, flat, torch.ones_like(flat))


def draw_table(
    cls: type,
    key: Tensor,
    num_embeddings: int,
    embedding_dim: int,
    padding_idx: int | None,
    sparse: bool,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[Tensor, int | None]:
    """The first values of a table and its `padding_idx`, counted from the front; arguments as in `Embedding.init`."""
    if sparse:
        raise ArgumentError(
            f"{cls.__name__}.init: sparse=True is not supported, because torch's sparse gradients have no second "
            "derivatives and no batching rules. Leave it out: the gradient is then a dense tensor of equal value."
        )
    if padding_idx is not None:
        if not -num_embeddings <= padding_idx < num_embeddings:
            raise ArgumentError(
                f"{cls.__name__}.init: padding_idx must lie between {-num_embeddings} and {num_embeddings - 1} for "
                f"num_embeddings={num_embeddings}, got {padding_idx}."
            )
        padding_idx %= num_embeddings
    weight = initializers.normal(key, (num_embeddings, embedding_dim), dtype=dtype, device=device)
    if padding_idx is not None:
        rows = torch.arange(num_embeddings, device=weight.device).unsqueeze(-1)
        weight = torch.where(rows == padding_idx, 0, weight)
    return weight, padding_idx
