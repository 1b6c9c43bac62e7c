"""Dynamic routing: an output capsule gathers the votes that agree with it.

`dynamic_routing` is written for one example and batched by vmap, which costs what a batch written by hand would.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from purenn.errors import ShapeError
from purenn.initializers import normal
from purenn.layers.capsule._votes import check_iterations
from purenn.ops import Memory, route_by_agreement
from purenn.tree import Layer, applies, container, static


def dynamic_routing(
    W: Float[Tensor, "out_caps in_caps out_dim in_dim"],
    u: Float[Tensor, "in_caps in_dim"],
    *,
    iterations: int = 3,
    stop_gradient: bool = False,
    leaky: bool = False,
    memory: Memory = "auto",
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
        leaky: whether a vote may go to no output capsule at all, by one more logit that is always zero. Default: False.
        memory: "votes" makes all votes and keeps them for the gradient; "folded" never makes them, but multiplies the
            weights with the state and with the weighted inputs; "tiled" does that for a few input capsules at a time,
            and keeps W, u and the outputs only, for the gradient as well, by fused kernels on an NVIDIA GPU in single
            and half precision where Triton is installed. All are equal and can be transformed to any order; forward
            mode and second derivatives of "tiled" go by "folded". Default: "auto", tiles for a batch of examples with
            many votes, else votes.

    Returns:
        The output capsules, each of length below 1, in the dtype of `u`.

    Raises:
        ArgumentError: fewer than one iteration, an unknown `memory`, or dtypes that differ, but for autocast.
        ShapeError: the shapes do not fit, or `u` has a batch axis.

    Source:
        Sabour, Frosst, Hinton: Dynamic Routing Between Capsules, 2017, procedure 1. The form of the logits and of the
        tiles is our own.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import dynamic_routing
        >>> W, u = torch.ones(10, 32, 16, 8), torch.ones(5, 32, 8)
        >>> pn.vmap(dynamic_routing, (None, 0))(W, u).shape
        torch.Size([5, 10, 16])
    """
    if W.dim() != 4 or u.shape != (W.shape[1], W.shape[3]):
        batched = W.dim() == 4 and u.dim() > 2 and u.shape[-2:] == (W.shape[1], W.shape[3])
        raise ShapeError(
            f"dynamic_routing: expected W [out_caps, in_caps, out_dim, in_dim] and u [in_caps, in_dim] of one example, "
            f"got W {tuple(W.shape)} and u {tuple(u.shape)}."
            + (" Batch it with pn.vmap(dynamic_routing, (None, 0))(W, u)." if batched else "")
        )
    return route_by_agreement(W, u, iterations=iterations, stop_gradient=stop_gradient, leaky=leaky, memory=memory)


@container
class DynamicRouting(Layer):
    """A layer of capsules that is fully connected to the layer below, by `dynamic_routing`.

    Attributes:
        weight: one matrix for every pair of capsules, ``[out_caps, in_caps, out_dim, in_dim]``.
        iterations: how often to route.
        stop_gradient: whether gradients flow through the last iteration only.
        leaky: whether a vote may go to no output capsule at all.
        memory: which form of `dynamic_routing` serves.
    """

    weight: Float[Tensor, "out_caps in_caps out_dim in_dim"]
    iterations: int = static(default=3)
    stop_gradient: bool = static(default=False)
    leaky: bool = static(default=False)
    memory: Memory = static(default="auto")

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
        leaky: bool = False,
        memory: Memory = "auto",
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
            leaky: see `dynamic_routing`. Default: False.
            memory: see `dynamic_routing`. Default: "auto".
            std: standard deviation of the weights. Default: 0.05. With 1.0 and a thousand capsules every output
                saturates at length 1 and no gradient is left.
            dtype: of the weight. Default: torch's default dtype.
            device: of the weight. Default: the key's.

        Raises:
            ArgumentError: fewer than one iteration.
        """
        check_iterations("DynamicRouting", iterations)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        weight = normal(key, (out_caps, in_caps, out_dim, in_dim), std=std, dtype=dtype, device=device)
        return cls(weight, iterations, stop_gradient, leaky, memory)

    def extra_repr(self) -> str:
        """The sizes, as modules write them."""
        out_caps, in_caps, out_dim, in_dim = self.weight.shape
        return (
            f"in_caps={in_caps}, out_caps={out_caps}, in_dim={in_dim}, out_dim={out_dim}, iterations={self.iterations}"
        )


@applies(DynamicRouting)
def routing(p: DynamicRouting, u: Float[Tensor, "*batch in_caps in_dim"]) -> Float[Tensor, "*batch out_caps out_dim"]:
    """Route input capsules, of one example or of any batch of them.

    Raises:
        ArgumentError: the options or dtypes do not fit; see `dynamic_routing`.
        ShapeError: the shapes do not fit.
    """
    return route_by_agreement(
        p.weight, u, iterations=p.iterations, stop_gradient=p.stop_gradient, leaky=p.leaky, memory=p.memory
    )
