"""Adaptive softmax: the log-probabilities of very many classes, of which few are frequent.

Classes are numbered from the most frequent to the rarest and cut into clusters. The `head` knows the most frequent ones
and one entry for each cluster; inside a cluster, a part of the `tail` knows the rest, through a projection to fewer
features the rarer its classes are.
"""

from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from purenn import random
from purenn._modes import is_plain
from purenn.errors import ArgumentError, ShapeError
from purenn.layers.linear import Linear, linear
from purenn.tree import Layer, applies, container, static


class AdaptiveLogSoftmaxOutput(NamedTuple):
    """What `adaptive_log_softmax_with_loss` returns.

    Attributes:
        output: log-probability of each target.
        loss: the mean of their negatives.
    """

    output: Float[Tensor, "*batch"]
    loss: Float[Tensor, ""]


@container
class AdaptiveLogSoftmaxWithLoss(Layer):
    """Log-probabilities of many classes by clusters; see `init`.

    Attributes:
        head: from the features to the classes before the first cutoff and to the clusters.
        tail: for each cluster a pair, the projection and the map from it to the cluster's classes.
        cutoffs: the first class of each cluster, and the number of classes.
        div_value: by what the features are divided from one cluster to the next.
    """

    head: Linear
    tail: tuple[tuple[Linear, Linear], ...]
    cutoffs: tuple[int, ...] = static()
    div_value: float = static(default=4.0)

    @classmethod
    def init(
        cls,
        key: Tensor,
        in_features: int,
        n_classes: int,
        cutoffs: tuple[int, ...] | list[int],
        *,
        div_value: float = 4.0,
        head_bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw all weights as `Linear.init` does.

        Args:
            key: random key.
            in_features: size of the input's last dimension.
            n_classes: number of classes.
            cutoffs: the first class of each cluster, rising, from 1 to ``n_classes - 1``. With ``[10, 100]`` of 1000
                classes the head knows ten, the first cluster 90, the second 900.
            div_value: cluster i (from 1) has a projection to ``in_features // div_value ** i`` features.
            head_bias: whether the head has a bias.
            dtype: of the parameters; torch's default dtype if None.
            device: of the parameters; the key's device if None.

        Raises:
            ArgumentError: the cutoffs are not such numbers, or no feature would be left for the last cluster.

        Source:
            Grave et al.: Efficient softmax approximation for GPUs, 2017.
        """
        cutoffs = tuple(cutoffs)
        rising = all(before < after for before, after in pairwise((0, *cutoffs, n_classes)))
        if not cutoffs or not rising or any(int(cutoff) != cutoff for cutoff in cutoffs):
            raise ArgumentError(
                f"AdaptiveLogSoftmaxWithLoss.init: cutoffs must be at least one whole number, rising, between 1 and "
                f"n_classes - 1 = {n_classes - 1}, got {list(cutoffs)}."
            )
        projected = [int(in_features // div_value ** (i + 1)) for i in range(len(cutoffs))]
        if min(projected) < 1:
            raise ArgumentError(
                f"AdaptiveLogSoftmaxWithLoss.init: in_features={in_features} divided {len(cutoffs)} times by div_value="
                f"{div_value} leaves no feature for the last cluster. Use fewer cutoffs or a smaller div_value."
            )
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        keys = iter(random.split(key, 2 * len(cutoffs) + 1))
        head = Linear.init(next(keys), in_features, cutoffs[0] + len(cutoffs), bias=head_bias, **options)
        tail = tuple(
            (
                Linear.init(next(keys), in_features, size, bias=False, **options),
                Linear.init(next(keys), size, high - low, bias=False, **options),
            )
            for size, (low, high) in zip(projected, pairwise((*cutoffs, n_classes)), strict=True)
        )
        return cls(head, tail, (*cutoffs, n_classes), div_value)

    @property
    def in_features(self) -> int:
        """Size of the input's last dimension."""
        return self.head.in_features

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.cutoffs[-1]

    def log_prob(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch n_classes"]:
        """The log-probabilities of all classes; see `adaptive_log_prob`."""
        return adaptive_log_prob(self, x)

    def predict(self, x: Float[Tensor, "*batch in_features"]) -> Int[Tensor, "*batch"]:
        """The most probable classes; see `adaptive_predict`."""
        return adaptive_predict(self, x)

    def extra_repr(self) -> str:
        """The sizes."""
        return (
            f"in_features={self.in_features}, n_classes={self.n_classes}, cutoffs={list(self.cutoffs[:-1])}, "
            f"div_value={self.div_value}, head_bias={self.head.bias is not None}"
        )


@applies(AdaptiveLogSoftmaxWithLoss)
def adaptive_log_softmax_with_loss(
    p: AdaptiveLogSoftmaxWithLoss, x: Float[Tensor, "*batch in_features"], target: Int[Tensor, "*batch"]
) -> AdaptiveLogSoftmaxOutput:
    """The log-probability of each target, and the loss.

    As long as nothing transforms or traces, each cluster computes its own targets only. Otherwise nothing can depend on
    the targets' values, so that every cluster computes all, and a target that is no class gives NaN instead of an
    error.

    Raises:
        ShapeError: the shapes do not fit each other or the layer.
        ArgumentError: a target is no class.
    """
    _check_input("adaptive_log_softmax_with_loss", p, x)
    if target.shape != x.shape[:-1]:
        raise ShapeError(
            f"adaptive_log_softmax_with_loss: target must have the shape of x without its last dimension, "
            f"{list(x.shape[:-1])}, got {list(target.shape)}."
        )
    cutoffs = tuple(p.cutoffs)
    readable = _is_readable(x, target)
    is_class = (target >= 0) & (target < cutoffs[-1])
    if readable and not bool(is_class.all()):
        raise ArgumentError(
            f"adaptive_log_softmax_with_loss: targets must be classes from 0 to {cutoffs[-1] - 1}, got numbers from "
            f"{int(target.min())} to {int(target.max())}."
        )
    flat_x, flat_target = x.reshape(-1, x.size(-1)), target.flatten()
    clusters = [(flat_target >= low) & (flat_target < high) for low, high in pairwise(cutoffs)]
    entry = flat_target
    for i, members in enumerate(clusters):
        entry = torch.where(members, cutoffs[0] + i, entry)
    head = F.log_softmax(linear(p.head, flat_x), -1)
    output = _pick(head, entry)
    for i, (members, low) in enumerate(zip(clusters, cutoffs, strict=False)):
        if readable:
            rows = members.nonzero().squeeze(-1)
            if len(rows):
                output = output.index_add(0, rows, _pick(_in_cluster(p, i, flat_x[rows]), flat_target[rows] - low))
        else:
            output = output + torch.where(members, _pick(_in_cluster(p, i, flat_x), flat_target - low), 0)
    output = output.reshape(target.shape)
    if not readable:
        output = torch.where(is_class, output, torch.nan)
    return AdaptiveLogSoftmaxOutput(output, -output.mean())


def adaptive_log_prob(
    p: AdaptiveLogSoftmaxWithLoss, x: Float[Tensor, "*batch in_features"]
) -> Float[Tensor, "*batch n_classes"]:
    """The log-probabilities of all classes.

    Raises:
        ShapeError: the last dimension of `x` is not `in_features`.
    """
    _check_input("adaptive_log_prob", p, x)
    return _all_classes(p, x, linear(p.head, x))


def adaptive_predict(p: AdaptiveLogSoftmaxWithLoss, x: Float[Tensor, "*batch in_features"]) -> Int[Tensor, "*batch"]:
    """The most probable classes, the argmax of `adaptive_log_prob`.

    As long as nothing transforms or traces, clusters are looked into only where one of them is the head's first choice.

    Raises:
        ShapeError: the last dimension of `x` is not `in_features`.
    """
    _check_input("adaptive_predict", p, x)
    flat = x.reshape(-1, x.size(-1))
    head = linear(p.head, flat)
    if not _is_readable(x):
        return _all_classes(p, flat, head).argmax(-1).reshape(x.shape[:-1])
    first = head.argmax(-1)
    rows = (first >= p.cutoffs[0]).nonzero().squeeze(-1)
    if len(rows):
        first = first.index_copy(0, rows, _all_classes(p, flat[rows], head[rows]).argmax(-1))
    return first.reshape(x.shape[:-1])


def _is_readable(*tensors: Tensor) -> bool:
    return is_plain(*tensors) and not any(tensor.is_meta for tensor in tensors)


def _check_input(name: str, p: AdaptiveLogSoftmaxWithLoss, x: Tensor) -> None:
    in_features = p.head.weight.shape[-1]
    if not x.ndim or x.size(-1) != in_features:
        raise ShapeError(
            f"{name}: the last dimension of x must be in_features={in_features}, got shape {list(x.shape)}."
        )


def _all_classes(p: AdaptiveLogSoftmaxWithLoss, x: Tensor, head: Tensor) -> Tensor:
    head = F.log_softmax(head, -1)
    frequent = p.cutoffs[0]
    rare = [_in_cluster(p, i, x) + head[..., frequent + i, None] for i in range(len(p.tail))]
    return torch.cat((head[..., :frequent], *rare), -1)


def _in_cluster(p: AdaptiveLogSoftmaxWithLoss, i: int, x: Tensor) -> Tensor:
    project, classify = p.tail[i]
    return F.log_softmax(linear(classify, linear(project, x)), -1)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    # Where the index is meant for another cluster, any entry will do: what is picked there is not used.
    index = index.clamp(0, values.size(-1) - 1)
    return values.gather(-1, index.unsqueeze(-1)).squeeze(-1)
