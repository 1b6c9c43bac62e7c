"""Poisson sampling: every example takes part in a step or not, independently of all others.

Privacy accounting by subsampling rests on this draw. Shuffled batches of fixed size, which are what data loaders give,
have other (in general worse) guarantees.
"""

from typing import NamedTuple, overload

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError


class PaddedSample(NamedTuple):
    """A Poisson sample of fixed length, for functions that are compiled for one size.

    Attributes:
        indices: ``[capacity]``; where nothing is drawn it is 0.
        mask: ``[capacity]``: True where an example is drawn. The loss of the others is to be multiplied by 0.
    """

    indices: Int[Tensor, " capacity"]
    mask: Bool[Tensor, " capacity"]


@overload
def poisson_sample(key: Tensor, size: int, rate: float) -> Int[Tensor, " drawn"]: ...
@overload
def poisson_sample(key: Tensor, size: int, rate: float, *, capacity: int) -> PaddedSample: ...
def poisson_sample(
    key: Tensor, size: int, rate: float, *, capacity: int | None = None
) -> Int[Tensor, " drawn"] | PaddedSample:
    """Which of `size` examples take part in a step, each with probability `rate`.

    Args:
        key: random key.
        size: how many examples there are.
        rate: the probability; the expected number is ``rate * size``.
        capacity: the length of a padded sample. By default the indices come alone, as many as are drawn: any number,
            0 too.

    Raises:
        ArgumentError: `rate` is no probability, or more examples are drawn than `capacity`. None may be left out,
            because that would void the accounting: choose a capacity that is never reached, such as
            ``rate * size + 8 * sqrt(rate * size)``.

    Example:
        >>> import purenn as pn
        >>> pn.privacy.poisson_sample(pn.random.key(0), 10, 1.0)
        tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    if not 0 <= rate <= 1:
        raise ArgumentError(f"poisson_sample: rate is a probability and must be from 0 to 1, got {rate}.")
    drawn = random.bernoulli(key, (size,), p=rate).nonzero().squeeze(1)
    if capacity is None:
        return drawn
    if len(drawn) > capacity:
        raise ArgumentError(
            f"poisson_sample: {len(drawn)} examples were drawn, but capacity is {capacity}; to leave some out would "
            f"void the privacy accounting. Set it to {round(rate * size + 8 * (rate * size) ** 0.5)} or more."
        )
    padded = torch.nn.functional.pad(drawn, (0, capacity - len(drawn)))
    return PaddedSample(padded, torch.arange(capacity, device=drawn.device) < len(drawn))
