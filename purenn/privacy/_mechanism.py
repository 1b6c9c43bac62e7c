"""The Gaussian mechanism: what makes a sum of clipped gradients private."""

from typing import Any

import torch
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError
from purenn.optim import GradientTransformation
from purenn.tree import buffer, container, leaves
from purenn.tree import map as tree_map


@container
class GaussianMechanismState:
    """State of `gaussian_mechanism`.

    Attributes:
        key: from which the noise of the next step is drawn.
    """

    key: Tensor = buffer()


def gaussian_mechanism(
    key: Tensor, *, max_norm: float, noise_multiplier: float, batch_size: float
) -> GradientTransformation:
    """Add noise to a clipped sum of gradients and divide it by the expected batch size.

    Its gradients are those of `pn.per_sample.clipped_grad`: sums over a Poisson sample in which no example counts for
    more than `max_norm`. Put it before an optimiser: ``chain(gaussian_mechanism(...), adam(1e-3))``; whatever follows
    is post-processing and costs no privacy.

    Args:
        key: random key of the noise. Who knows it can remove the noise: it must be secret, and used for nothing else.
        max_norm: the bound that the gradients were clipped to.
        noise_multiplier: the standard deviation of the noise in units of `max_norm`; see `noise_multiplier`.
        batch_size: what the noisy sum is divided by: the expected number ``rate * size``, not that of the sample,
            which is itself private.

    Returns:
        A transformation for `pn.optim`. Noise is drawn in the dtype of each gradient, at least in float32, for both
        parts of complex numbers; the rounding of floating-point numbers is outside of the guarantee.

    Raises:
        ArgumentError: a number is not positive (`noise_multiplier` may be 0, for no noise and no privacy).

    Source:
        Abadi et al.: Deep Learning with Differential Privacy, 2016.

    Example:
        >>> import torch, purenn as pn
        >>> noisy = pn.privacy.gaussian_mechanism(
        ...     pn.random.key(0), max_norm=1.0, noise_multiplier=0.0, batch_size=4
        ... )
        >>> params, sums = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 2.0])}
        >>> noisy.update(sums, noisy.init(params), params)[0]
        {'w': tensor([0.2500, 0.5000])}
    """
    for name, value in (("max_norm", max_norm), ("batch_size", batch_size)):
        if not value > 0:
            raise ArgumentError(f"gaussian_mechanism: {name} must be positive, got {value}.")
    if not noise_multiplier >= 0:
        raise ArgumentError(f"gaussian_mechanism: noise_multiplier must not be negative, got {noise_multiplier}.")
    deviation = max_norm * noise_multiplier

    def init(params: Any) -> GaussianMechanismState:
        return GaussianMechanismState(key)

    def update(grads: Any, state: GaussianMechanismState, params: Any) -> tuple[Any, GaussianMechanismState]:
        next_key, here = random.split(state.key)
        keys = iter(random.split(here, max(1, len(leaves(grads)))))

        def noisy(total: Tensor) -> Tensor:
            if total.is_complex():  # two real numbers each, as for the norm
                return torch.view_as_complex(noisy(torch.view_as_real(total.resolve_conj())))
            wide = total.float() if total.dtype in (torch.float16, torch.bfloat16) else total
            noise = random.normal(next(keys), total.shape, dtype=wide.dtype).to(total.device)
            return ((wide + deviation * noise) / batch_size).to(total.dtype)

        return tree_map(noisy, grads), GaussianMechanismState(next_key)

    return GradientTransformation(init, update)
