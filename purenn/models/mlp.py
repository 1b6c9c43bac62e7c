"""The multilayer perceptron: linear maps with ReLU between them, and if wanted batch normalisation and dropout."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn.layers.dropout import Dropout, dropout
from purenn.layers.linear import Linear, linear
from purenn.layers.norm_batch import BatchNorm1d, batch_norm
from purenn.layers.transformer_layer import split_keys
from purenn.models._parts import placed
from purenn.tree import Layer, applies, container, is_stateful, replace


@container
class MLPBlock(Layer):
    """One hidden layer; see `mlp_block`.

    Attributes:
        linear: the map to the hidden features.
        norm: their batch normalisation, or None.
        dropout: of what has passed the ReLU.
    """

    linear: Linear
    norm: BatchNorm1d | None
    dropout: Dropout

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_features: int,
        out_features: int,
        *,
        dropout: float = 0.0,
        batch_norm: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the map as `Linear.init` does.

        Args:
            key: random key.
            in_features: size of the input's last dimension.
            out_features: size of the result's last dimension.
            dropout: probability of a zero, if a key is given. Default: 0.
            batch_norm: whether there is a normalisation. Default: False.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: `dropout` is no probability.
        """
        where = placed(key, dtype, device)
        norm = BatchNorm1d.init(out_features, **where) if batch_norm else None
        return cls(Linear.init(key, in_features, out_features, **where), norm, Dropout(dropout))


@applies(MLPBlock)
def mlp_block(
    p: MLPBlock, x: Float[Tensor, "*batch in_features"], *, key: Tensor | None = None, train: bool = False
) -> Any:
    """Linear map, batch normalisation, ReLU, dropout.

    Args:
        p: the parameters.
        x: the input; with batch normalisation ``[batch, in_features]``.
        key: random key of the dropout; without one there is none.
        train: whether to normalise with the batch's own statistics and to update the running averages.

    Returns:
        The output, ``[*batch, out_features]``; with batch normalisation the pair of output and new container.

    Raises:
        ShapeError: `x` has another number of dimensions or features.
    """
    y, norm = linear(p.linear, x), p.norm
    if norm is not None:
        y, norm = batch_norm(norm, y, train=train)
    y = dropout(p.dropout, y.relu(), key=key)
    return y if norm is None else (y, replace(p, norm=norm))


@container
class MLP(Layer):
    """A multilayer perceptron; see `mlp`.

    Attributes:
        blocks: the hidden layers.
        head: the map to the results.
    """

    blocks: tuple[MLPBlock, ...]
    head: Linear

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        *,
        dropout: float = 0.0,
        batch_norm: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw all maps as `Linear.init` does.

        With 784 features in and 10 out, `hidden` of (500,) makes 397,510 parameters, (256,) 203,530 and (256, 64)
        218,058; with batch normalisation (512, 256) makes 537,354 and (512, 256, 128) 569,226.

        Args:
            key: random key.
            in_features: size of the input's last dimension.
            hidden: number of features of each hidden layer; there may be none.
            out_features: size of the result's last dimension.
            dropout: probability of a zero after each hidden layer, if a key is given. Default: 0.
            batch_norm: whether hidden layers are normalised, which makes the model stateful. Default: False.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: `dropout` is no probability.

        Example:
            >>> import torch, purenn as pn
            >>> from purenn.models import MLP
            >>> p = MLP.init(pn.random.key(0), 784, (512, 256), 10, dropout=0.2)
            >>> p(torch.ones(3, 784)).shape
            torch.Size([3, 10])
        """
        *keys, head_key = random.split(key, len(hidden) + 1)
        blocks = tuple(
            MLPBlock.init(k, n, m, dropout=dropout, batch_norm=batch_norm, dtype=dtype, device=device)
            for k, n, m in zip(keys, (in_features, *hidden), hidden, strict=False)
        )
        last = hidden[-1] if hidden else in_features
        return cls(blocks, Linear.init(head_key, last, out_features, dtype=dtype, device=device))


@applies(MLP)
def mlp(p: MLP, x: Float[Tensor, "*batch in_features"], *, key: Tensor | None = None, train: bool = False) -> Any:
    """Apply the hidden layers in order, and then the last map; nothing is done to its results.

    Args:
        p: the parameters.
        x: the input; with batch normalisation ``[batch, in_features]``. Images must be flattened.
        key: random key of the dropouts; without one there are none.
        train: whether to normalise with the batch's own statistics and to update the running averages.

    Returns:
        The output, ``[*batch, out_features]``; with batch normalisation the pair of output and new container.

    Raises:
        ShapeError: `x` has another number of dimensions or features.
    """
    blocks = []
    for block, block_key in zip(p.blocks, split_keys(key, len(p.blocks)), strict=True):
        out = mlp_block(block, x, key=block_key, train=train)
        x, block = (out, block) if block.norm is None else out
        blocks.append(block)
    y = linear(p.head, x)
    return (y, replace(p, blocks=tuple(blocks))) if is_stateful(p) else y
