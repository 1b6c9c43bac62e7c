"""Gated feed-forward layers: a hidden layer, each element of which is multiplied by a gate of its own.

The names of the three maps are Llama's. For the parameters of a plain layer with 4 d hidden features take 8/3 d here.
"""

from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from purenn import random
from purenn.layers.linear import Linear, linear
from purenn.tree import Layer, applies, container


@container
class _Gated(Layer):
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_features: int,
        hidden_features: int,
        *,
        out_features: int | None = None,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the three maps as `Linear.init` does.

        Args:
            key: random key.
            in_features: size of the input's last dimension.
            hidden_features: size of the gated layer.
            out_features: size of the result's last dimension. Default: `in_features`.
            bias: whether the maps have biases. Default: False.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.
        """
        gate, up, down = random.split(key, 3)
        make = partial(Linear.init, bias=bias, dtype=dtype, device=device)
        return cls(
            make(gate, in_features, hidden_features),
            make(up, in_features, hidden_features),
            make(down, hidden_features, in_features if out_features is None else out_features),
        )


@container
class SwiGLU(_Gated):
    """A gated feed-forward layer; see `swiglu`.

    Attributes:
        gate_proj: the map to the gates, ``in_features`` to ``hidden_features``.
        up_proj: the map to the hidden layer.
        down_proj: the map from it to ``out_features``.
    """


@applies(SwiGLU)
def swiglu(p: SwiGLU, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
    """``down_proj(silu(gate_proj(x)) * up_proj(x))``.

    Raises:
        ShapeError: the last dimension of `x` is not `in_features`.

    Source:
        Shazeer: GLU Variants Improve Transformer, 2020.
    """
    return linear(p.down_proj, F.silu(linear(p.gate_proj, x)) * linear(p.up_proj, x))


@container
class GEGLU(_Gated):
    """A gated feed-forward layer; see `geglu`.

    Attributes:
        gate_proj: the map to the gates, ``in_features`` to ``hidden_features``.
        up_proj: the map to the hidden layer.
        down_proj: the map from it to ``out_features``.
    """


@applies(GEGLU)
def geglu(p: GEGLU, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
    """``down_proj(gelu(gate_proj(x)) * up_proj(x))``, with the exact GELU.

    Raises:
        ShapeError: the last dimension of `x` is not `in_features`.

    Source:
        Shazeer: GLU Variants Improve Transformer, 2020.
    """
    return linear(p.down_proj, F.gelu(linear(p.gate_proj, x)) * linear(p.up_proj, x))
