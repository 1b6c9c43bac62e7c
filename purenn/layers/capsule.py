"""Capsules: groups of neurons whose vector says what is there and whose length says how surely.

`dynamic_routing` is written for one example and batched by vmap; its products are `einsum2`, so the batched form costs
what one written by hand would. A layer of capsules is `PrimaryCapsules` (a convolution cut into vectors) followed by
`DynamicRouting` (every output capsule gathers the votes of the input capsules that agree with it).
"""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from purenn.errors import ArgumentError, ShapeError
from purenn.initializers import normal
from purenn.layers.conv import Conv2d, conv2d
from purenn.ops import einsum2, squash
from purenn.tree import Layer, applies, container, static


def dynamic_routing(
    W: Float[Tensor, "out_caps in_caps out_dim in_dim"],
    u: Float[Tensor, "in_caps in_dim"],
    *,
    iterations: int = 3,
    stop_gradient: bool = False,
) -> Float[Tensor, "out_caps out_dim"]:
    """Route the capsules of one example by agreement; batch it with ``pn.vmap(dynamic_routing, (None, 0))``.

    Every input capsule i votes for every output capsule o with ``W[o, i] @ u[i]``. It divides its vote among the output
    capsules by a softmax over **them**, of logits that grow with the agreement between the vote and each output so far.
    The logits are linear in the outputs, so the only state is the sum V of the outputs of all earlier iterations.

    Args:
        W: one matrix for every pair of capsules.
        u: the input capsules of one example.
        iterations: how often to route. Default: 3.
        stop_gradient: whether to treat the coupling coefficients as constants, so that gradients flow through the last
            iteration only. Default: False, the exact gradient.

    Returns:
        The output capsules, each of length below 1, in the dtype of `u`.

    Raises:
        ArgumentError: fewer than one iteration.
        ShapeError: the shapes do not fit, or `u` has a batch axis.

    Source:
        Sabour, Frosst, Hinton: Dynamic Routing Between Capsules, 2017, procedure 1.
    """
    if iterations < 1:
        raise ArgumentError(f"dynamic_routing: iterations must be at least 1, got {iterations}.")
    if W.dim() != 4 or u.shape != (W.shape[1], W.shape[3]):
        batched = W.dim() == 4 and u.dim() > 2 and u.shape[-2:] == (W.shape[1], W.shape[3])
        raise ShapeError(
            f"dynamic_routing: expected W [out_caps, in_caps, out_dim, in_dim] and u [in_caps, in_dim] of one example, "
            f"got W {tuple(W.shape)} and u {tuple(u.shape)}."
            + (" Batch it with pn.vmap(dynamic_routing, (None, 0))(W, u)." if batched else "")
        )
    votes = einsum2("oidk,ik->oid", W, u)
    # With all logits zero every output capsule gets an equal share: no softmax in the first iteration.
    outputs = squash(votes.sum(1) / W.shape[0])
    state = outputs
    agreeing = votes.detach() if stop_gradient else votes
    for iteration in range(1, iterations):
        logits = einsum2("oid,od->oi", agreeing, state.detach() if stop_gradient else state)
        outputs = squash(einsum2("oi,oid->od", logits.softmax(0), votes))
        if iteration + 1 < iterations:
            state = state + outputs
    return outputs


@container
class DynamicRouting(Layer):
    """A layer of capsules that is fully connected to the layer below, by `dynamic_routing`.

    Attributes:
        weight: one matrix for every pair of capsules, ``[out_caps, in_caps, out_dim, in_dim]``.
        iterations: how often to route.
        stop_gradient: whether gradients flow through the last iteration only.
    """

    weight: Float[Tensor, "out_caps in_caps out_dim in_dim"]
    iterations: int = static(default=3)
    stop_gradient: bool = static(default=False)

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_caps: int,
        out_caps: int,
        *,
        in_dim: int = 8,
        out_dim: int = 16,
        iterations: int = 3,
        stop_gradient: bool = False,
        std: float = 0.05,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "DynamicRouting":
        """Draw the matrices from a normal distribution.

        Args:
            key: a random key.
            in_caps: number of input capsules.
            out_caps: number of output capsules.
            in_dim: components of an input capsule. Default: 8.
            out_dim: components of an output capsule. Default: 16.
            iterations: how often to route. Default: 3.
            stop_gradient: see `dynamic_routing`. Default: False.
            std: standard deviation of the weights. Default: 0.05. With 1.0 and a thousand capsules every output
                saturates at length 1 and no gradient is left.
            dtype: of the weight. Default: torch's default dtype.
            device: of the weight. Default: the key's.

        Raises:
            ArgumentError: fewer than one iteration.
        """
        if iterations < 1:
            raise ArgumentError(f"DynamicRouting: iterations must be at least 1, got {iterations}.")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        weight = normal(key, (out_caps, in_caps, out_dim, in_dim), std=std, dtype=dtype, device=device)
        return cls(weight, iterations, stop_gradient)

    def extra_repr(self) -> str:
        """The sizes, as modules write them."""
        out_caps, in_caps, out_dim, in_dim = self.weight.shape
        return (
            f"in_caps={in_caps}, out_caps={out_caps}, in_dim={in_dim}, out_dim={out_dim}, iterations={self.iterations}"
        )


@applies(DynamicRouting)
def routing(p: DynamicRouting, u: Float[Tensor, "*batch in_caps in_dim"]) -> Float[Tensor, "*batch out_caps out_dim"]:
    """Route input capsules, of one example or of any batch of them."""
    one = functools.partial(dynamic_routing, iterations=p.iterations, stop_gradient=p.stop_gradient)
    if u.dim() <= 2:
        return one(p.weight, u)
    batch = u.shape[:-2]
    outputs = torch.func.vmap(one, (None, 0))(p.weight, u.reshape(-1, *u.shape[-2:]))
    return outputs.reshape(*batch, *outputs.shape[1:])


@container
class PrimaryCapsules(Layer):
    """The lowest layer of capsules: a convolution whose channels are cut into vectors.

    Attributes:
        conv: the convolution; it makes ``types * dim`` channels.
        dim: components of a capsule.
    """

    conv: Conv2d
    dim: int = static(default=8)

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_channels: int,
        *,
        types: int = 32,
        dim: int = 8,
        kernel_size: int = 9,
        stride: int = 2,
        padding: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "PrimaryCapsules":
        """Draw the convolution.

        Args:
            key: a random key.
            in_channels: channels of the input.
            types: capsules at each position. Default: 32.
            dim: components of a capsule. Default: 8.
            kernel_size: of the convolution. Default: 9.
            stride: of the convolution. Default: 2.
            padding: of the convolution. Default: 0.
            dtype: of the parameters. Default: torch's default dtype.
            device: of the parameters. Default: the key's.
        """
        conv = Conv2d.init(
            key, in_channels, types * dim, kernel_size, stride=stride, padding=padding, dtype=dtype, device=device
        )
        return cls(conv, dim)

    def extra_repr(self) -> str:
        """The options, as modules write them."""
        return f"dim={self.dim}"


@applies(PrimaryCapsules)
def primary_capsules(
    p: PrimaryCapsules, x: Float[Tensor, "*batch in_channels height width"]
) -> Float[Tensor, "*batch capsules dim"]:
    """Cut the feature maps into capsules and squash them.

    The components of a capsule are `dim` neighbouring **channels** at one position. (Reshaping the maps without moving
    the channel axis last would group neighbouring pixels instead.) Capsules are ordered by type, then by position.
    """
    maps = conv2d(p.conv, x)
    by_type = maps.unflatten(-3, (-1, p.dim))
    return squash(by_type.movedim(-3, -1).flatten(-4, -2))


def capsule_lengths(
    poses: Float[Tensor, "*batch capsules dim"],
) -> Float[Tensor, "*batch capsules"]:
    """The lengths of capsules; the derivative at zero length is zero."""
    q = poses.square().sum(-1)
    zero = q == 0
    return torch.where(zero, 0, torch.where(zero, 1, q).sqrt())


def mask_capsules(
    poses: Float[Tensor, "*batch capsules dim"], label: Int[Tensor, "*batch"] | None = None
) -> Float[Tensor, "*batch capsules*dim"]:
    """Zero all capsules but one and flatten: what a decoder reconstructs from.

    Args:
        poses: the class capsules.
        label: the class to keep. Default: the longest capsule's, the predicted class.
    """
    kept = capsule_lengths(poses).argmax(-1) if label is None else label
    mask = kept.unsqueeze(-1) == torch.arange(poses.shape[-2], device=poses.device)
    return (poses * mask.unsqueeze(-1).to(poses.dtype)).flatten(-2)
