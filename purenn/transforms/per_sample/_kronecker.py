"""Kronecker factors of the Fisher matrix, from the inputs and output gradients that are recorded anyway."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from purenn._modes import without_autocast
from purenn.errors import ArgumentError
from purenn.transforms.per_sample._convolution import Windows
from purenn.transforms.per_sample._engine import NAME, Recorded
from purenn.transforms.per_sample._outer import Outer
from purenn.transforms.per_sample._part import Part


class KroneckerFactors(NamedTuple):
    """The Fisher matrix of a weight ``[out, in]`` as the Kronecker product ``output x input``.

    Positions of a sequence or an image count as examples of their own (the setting that is called *expand*). The
    gradients are those of the losses given, so this is the empirical Fisher matrix.

    Attributes:
        input: the mean over examples and positions of ``a a^T``, ``[in, in]``.
        output: the mean over examples of the sum over positions of ``b b^T``, ``[out, out]``.

    Source:
        Martens, Grosse: Optimizing Neural Networks with Kronecker-factored Approximate Curvature, 2015. Shared
        weights: Eschenhagen et al.: Kronecker-Factored Approximate Curvature for Modern Neural Network
        Architectures, 2023.
    """

    input: Float[Tensor, "in in"]
    output: Float[Tensor, "out out"]


def factors_of(slices: Iterable[Recorded]) -> dict[str, KroneckerFactors]:
    """The factors of all leaves that have such, by path.

    Raises:
        ArgumentError: of a record that is made otherwise.
    """
    sums: dict[str, list[KroneckerFactors]] = {}
    counts: list[int] = []
    for recorded in slices:
        if not recorded.has_inputs:
            raise ArgumentError(
                f"{NAME}: kfac is made of inputs and output gradients, which are not recorded where something outside "
                f"differentiates, batches or compiles the loss, where it takes derivatives itself, or where parameters "
                f"are complex: ask for it elsewhere."
            )
        counts.append(len(recorded.losses))
        for path, _, part in recorded.named:
            sides = None if part is None else _sides(part)
            if sides is not None:
                left, right = sides
                with without_autocast():
                    inputs = torch.einsum("ntd,nte->de", right, right) / right.shape[1]
                    outputs = torch.einsum("ntp,ntq->pq", left, left)
                sums.setdefault(path, []).append(KroneckerFactors(inputs, outputs))
    total = sum(counts)
    return {
        path: KroneckerFactors(*[torch.stack(factor).sum(0) / total for factor in zip(*factors, strict=True)])
        for path, factors in sums.items()
        if len(factors) == len(counts)
    }


def _sides(part: Part) -> tuple[Tensor, Tensor] | None:
    # Output gradients [examples, positions, out] and inputs [examples, positions, in].
    if isinstance(part, Outer) and part.lead[1] == 1 and not part.order:
        return part.left[:, 0], part.right[:, 0]
    if isinstance(part, Windows) and part.has_windows:
        return part.gradient.flatten(2).mT, part.windows().mT
    return None
