"""Fully connected layers: ``y = x W^T + b`` over the last dimension, and two variations of it.

`Linear` is the plain map, `LinearActivation` has an activation after it, and `ScaledLinear` a learned scale in it. How
the parameters start is the option `init`: the name of a scheme, or a pair of initializers of your own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from purenn import initializers, random
from purenn.errors import ArgumentError, ContainerError, ShapeError
from purenn.layers._parameters import draw_weight_and_bias
from purenn.layers.shape import Lambda
from purenn.tree import Layer, applies, container, is_container, is_stateful
from purenn.tree._applies import binding_of

Initializer = Callable[..., Tensor]

# How weight and bias start, by name. The default, "torch", stands apart: its bias depends on the weight's shape.
_SCHEMES: dict[str, tuple[Initializer, Initializer]] = {
    "xavier": (initializers.xavier_uniform, initializers.zeros),
    "kaiming": (
        partial(initializers.kaiming_uniform, mode="fan_in", nonlinearity="relu"),
        partial(initializers.constant, value=0.01),
    ),
    "normal": (initializers.normal, initializers.zeros),
    "normal_bias": (initializers.normal, initializers.normal),
}


@container
class _Affine(Layer):
    weight: Float[Tensor, "out_features in_features"]
    bias: Float[Tensor, " out_features"] | None

    @property
    def in_features(self) -> int:
        """Size of the input's last dimension."""
        return self.weight.shape[-1]

    @property
    def out_features(self) -> int:
        """Size of the result's last dimension."""
        return self.weight.shape[-2]

    def extra_repr(self) -> str:
        """The sizes, and whether there is a bias."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


@container
class Linear(_Affine):
    """An affine map of the last dimension.

    Attributes:
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]`` or None.
    """

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        init: str | tuple[Initializer, Initializer] = "torch",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw weight and bias.

        Args:
            key: random key.
            in_features: size of the input's last dimension.
            out_features: size of the result's last dimension.
            bias: whether there is a bias.
            init: ``"torch"`` draws both from U(-k, k), ``k = 1 / sqrt(in_features)``; ``"xavier"`` is xavier_uniform
                with zero bias; ``"kaiming"`` is kaiming_uniform for ReLU by fan-in, with bias 0.01; ``"normal"`` is
                N(0, 1) with zero bias, ``"normal_bias"`` N(0, 1) for both. Or a pair of functions
                ``f(key, shape, *, dtype, device)``, for weight and bias.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: `init` is not a known name.
        """
        return cls(*_draw("Linear", key, in_features, out_features, bias, init, dtype, device))


@applies(Linear)
def linear(p: Linear, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
    """``x @ weight.T + bias``.

    Raises:
        ShapeError: the last dimension of `x` is not `in_features`.
    """
    try:
        return F.linear(x, p.weight, p.bias)
    except RuntimeError as error:
        _explain("linear", x, p.weight, error)
        raise


@container
class LinearActivation(_Affine):
    """An affine map with an activation after it.

    Attributes:
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]`` or None.
        activation: the layer that is applied to the result; it may have parameters of its own.
    """

    activation: Layer

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_features: int,
        out_features: int,
        *,
        activation: Callable[[Tensor], Tensor],
        bias: bool = True,
        init: str | tuple[Initializer, Initializer] = "torch",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw weight and bias as `Linear.init` does.

        Args:
            key: random key.
            in_features: size of the input's last dimension.
            out_features: size of the result's last dimension.
            activation: a container such as ``GELU()``, or a function such as ``torch.tanh``, which becomes a `Lambda`.
            bias: whether there is a bias.
            init: as in `Linear.init`.
            dtype: of weight and bias; torch's default dtype if None.
            device: of weight and bias; the key's device if None.

        Raises:
            ArgumentError: `init` is not a known name.
            ContainerError: `activation` updates buffers, so that it does not return a tensor alone.
        """
        layer: Any = activation if is_container(activation) else Lambda(activation)
        if is_stateful(layer):
            raise ContainerError(
                f"LinearActivation.init: activation must return a tensor alone, but {type(layer).__name__} returns its "
                f"new state as well. Put a Linear and the {type(layer).__name__} into a Sequential instead."
            )
        return cls(*_draw("LinearActivation", key, in_features, out_features, bias, init, dtype, device), layer)


@applies(LinearActivation)
def linear_activation(
    p: LinearActivation, x: Float[Tensor, "*batch in_features"], *, key: Tensor | None = None
) -> Float[Tensor, "*batch out_features"]:
    """``activation(x @ weight.T + bias)``.

    Args:
        p: the container.
        x: the input.
        key: passed to the activation if it draws; None makes it deterministic.

    Raises:
        ShapeError: the last dimension of `x` is not `in_features`.
    """
    y = _affine("linear_activation", x, p.weight, p.bias)
    binding = None if key is None else binding_of(p.activation)
    return p.activation(y, key=key) if binding is not None and "key" in binding.takes else p.activation(y)


@container
class ScaledLinear(_Affine):
    """An affine map whose weight has a learned scale.

    Attributes:
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]`` or None.
        gamma: the scale, one number.
    """

    gamma: Float[Tensor, ""]

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw the weight from U(-k, k), ``k = sqrt(3 / in_features)``, which has the variance ``1 / in_features``.

        The bias starts at 0 and the scale at 1.

        Args:
            key: random key.
            in_features: size of the input's last dimension.
            out_features: size of the result's last dimension.
            bias: whether there is a bias.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.
        """
        init = (initializers.lecun_uniform, initializers.zeros)
        weight, bias_ = _draw("ScaledLinear", key, in_features, out_features, bias, init, dtype, device)
        return cls(weight, bias_, torch.ones((), dtype=weight.dtype, device=weight.device))


@applies(ScaledLinear)
def scaled_linear(p: ScaledLinear, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
    """``gamma * x @ weight.T + bias``.

    Raises:
        ShapeError: the last dimension of `x` is not `in_features`.
    """
    return _affine("scaled_linear", x, p.gamma * p.weight, p.bias)


def _affine(function: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    try:
        return F.linear(x, weight, bias)
    except RuntimeError as error:
        _explain(function, x, weight, error)
        raise


def _explain(function: str, x: Tensor, weight: Tensor, error: RuntimeError) -> None:
    # Looked into only after the fact, so that the smallest of layers pays nothing for it.
    if not x.ndim or x.size(-1) != weight.size(-1):
        raise ShapeError(
            f"{function}: the last dimension of x must be in_features={weight.size(-1)}, got shape {list(x.shape)}. "
            f"Flatten or transpose x so that its features come last."
        ) from error


def _draw(
    name: str,
    key: Tensor,
    in_features: int,
    out_features: int,
    bias: bool,
    init: str | tuple[Initializer, Initializer],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[Tensor, Tensor | None]:
    shape = (out_features, in_features)
    if init == "torch":
        return draw_weight_and_bias(key, shape, out_features if bias else None, dtype, device)
    if isinstance(init, str) and init not in _SCHEMES:
        raise ArgumentError(
            f"{name}.init: init must be one of torch, {', '.join(_SCHEMES)}, or a pair of initializers for weight and "
            f"bias, got {init!r}."
        )
    of_weight, of_bias = _SCHEMES[init] if isinstance(init, str) else init
    weight_key, bias_key = random.split(key)
    weight = of_weight(weight_key, shape, dtype=dtype, device=device)
    return weight, of_bias(bias_key, (out_features,), dtype=dtype, device=device) if bias else None
