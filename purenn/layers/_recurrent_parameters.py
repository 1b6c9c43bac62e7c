"""Drawing the parameters of recurrent layers and cells, and checking their options."""

from functools import partial

import torch
from torch import Tensor

from purenn import initializers, random
from purenn.errors import ArgumentError
from purenn.ops._recurrent import Weights


def draw_parameters(
    key: Tensor,
    gates: int,
    input_size: int,
    hidden_size: int,
    bias: bool,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    *,
    proj_size: int = 0,
) -> Weights:
    """The parameters of one cell, all from U(-k, k) with ``k = 1 / sqrt(hidden_size)``, which is torch's default.

    Args:
        key: random key.
        gates: how many times `hidden_size` rows the weights have.
        input_size: features of the input.
        hidden_size: features of the hidden state.
        bias: whether there are biases.
        dtype: of the parameters; torch's default dtype if None.
        device: of the parameters; the key's device if None.
        proj_size: features of the projected output, 0 for no projection.
    """
    draw = partial(initializers.fan_in_uniform, fan_in=hidden_size, dtype=dtype, device=device)
    rows = gates * hidden_size
    ih_key, hh_key, bias_ih_key, bias_hh_key, hr_key = random.split(key, 5)
    return Weights(
        draw(ih_key, (rows, input_size)),
        draw(hh_key, (rows, proj_size or hidden_size)),
        draw(bias_ih_key, (rows,)) if bias else None,
        draw(bias_hh_key, (rows,)) if bias else None,
        draw(hr_key, (proj_size, hidden_size)) if proj_size else None,
    )


def require_sizes(name: str, **sizes: int) -> None:
    """Raise an ArgumentError if a size is not positive."""
    for size, value in sizes.items():
        if value < 1:
            raise ArgumentError(f"{name}.init: {size} must be at least 1, got {value!r}.")


def require_nonlinearity(cell: object, _: object, nonlinearity: str) -> None:
    """The validator of the field `nonlinearity`."""
    if nonlinearity not in ("tanh", "relu"):
        raise ArgumentError(f"{type(cell).__name__}: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}.")
