"""Bilinear map of two inputs: each feature of the result is a weighted sum of all products of their features."""

from functools import partial
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn import initializers, random
from purenn.errors import ShapeError
from purenn.tree import Layer, applies, container


@container
class Bilinear(Layer):
    """A bilinear map of the last dimensions of two inputs.

    Attributes:
        weight: ``[out_features, in1_features, in2_features]``.
        bias: ``[out_features]`` or None.
    """

    weight: Float[Tensor, "out_features in1_features in2_features"]
    bias: Float[Tensor, " out_features"] | None

    @classmethod
    def init(
        cls,
        key: Tensor,
        in1_features: int,
        in2_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw weight and bias from U(-k, k), ``k = 1 / sqrt(in1_features)``, as torch does.

        Args:
            key: random key.
            in1_features: size of the first input's last dimension.
            in2_features: size of the second input's last dimension.
            out_features: size of the result's last dimension.
            bias: whether there is a bias.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.
        """
        weight_key, bias_key = random.split(key)
        draw = partial(initializers.fan_in_uniform, fan_in=in1_features, dtype=dtype, device=device)
        weight = draw(weight_key, (out_features, in1_features, in2_features))
        return cls(weight, draw(bias_key, (out_features,)) if bias else None)

    @property
    def in1_features(self) -> int:
        """Size of the first input's last dimension."""
        return self.weight.shape[-2]

    @property
    def in2_features(self) -> int:
        """Size of the second input's last dimension."""
        return self.weight.shape[-1]

    @property
    def out_features(self) -> int:
        """Size of the result's last dimension."""
        return self.weight.shape[-3]

    def extra_repr(self) -> str:
        """The sizes, and whether there is a bias."""
        return (
            f"in1_features={self.in1_features}, in2_features={self.in2_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


@applies(Bilinear)
def bilinear(
    p: Bilinear, x1: Float[Tensor, "*batch in1_features"], x2: Float[Tensor, "*batch in2_features"]
) -> Float[Tensor, "*batch out_features"]:
    """``sum_ij x1[i] * weight[:, i, j] * x2[j] + bias``.

    Raises:
        ShapeError: the inputs have not the same batch dimensions, or other last dimensions than the weight.
    """
    weight = p.weight
    out_features, in1_features, in2_features = weight.shape
    if x1.shape[:-1] != x2.shape[:-1] or x1.shape[-1:] != (in1_features,) or x2.shape[-1:] != (in2_features,):
        raise ShapeError(
            f"bilinear: x1 must be [*batch, {in1_features}] and x2 [*batch, {in2_features}] with the same batch "
            f"dimensions, got shapes {list(x1.shape)} and {list(x2.shape)}."
        )
    # Products of matrices, which batch well, in the order in which what lies between them is smaller. (torch's own
    # kernel is slower on most sizes, and vmap takes it for an operation that draws.)
    if in2_features <= out_features:
        products = (x1.unsqueeze(-1) * x2.unsqueeze(-2)).flatten(-2)
        return F.linear(products, weight.flatten(1), p.bias)
    maps = F.linear(x2, weight.flatten(0, 1)).unflatten(-1, (out_features, in1_features))
    y = (maps @ x1.unsqueeze(-1)).squeeze(-1)
    return y if p.bias is None else y + p.bias
