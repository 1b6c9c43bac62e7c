"""Rules of normalisations."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purenn import ops
from purenn.errors import BatchingError
from purenn.transforms.per_sample._below import BelowVmap
from purenn.transforms.per_sample._handle import Handle, Node
from purenn.transforms.per_sample._part import Later, Part
from purenn.transforms.per_sample._tape import PHYSICAL_RULES, Tape, rule


@rule(F.layer_norm, torch.layer_norm, ops.layer_norm)
def _layer_norm(
    tape: Tape,
    input: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    x = tape.physical(input)
    if x is None or any(tape.physical(affine) is not None for affine in (weight, bias)):
        return NotImplemented
    nodes = [affine.node if isinstance(affine, Handle) else None for affine in (weight, bias)]
    factors, summands = nodes
    node = factors or summands
    if node is None:
        return NotImplemented
    scale, shift = (affine if own is None else own.beside(x) for affine, own in zip((weight, bias), nodes, strict=True))
    with BelowVmap():
        y, mean, inverse = torch.native_layer_norm(x, list(normalized_shape), scale, shift, eps)

    def pull(gradient: Tensor) -> list[tuple[Node, Part]]:
        parts: list[tuple[Node, Part]] = []
        if factors is not None:
            make = functools.partial(
                _of_factors, x.detach(), mean.detach(), inverse.detach(), gradient, factors.value.shape
            )
            parts.append((factors, Later(make, factors.value, tape.examples)))
        if summands is not None:
            make = functools.partial(_per_example, gradient, summands.value.shape)
            parts.append((summands, Later(make, summands.value, tape.examples)))
        return parts

    return tape.use(y, x, node, pull)


def _of_factors(x: Tensor, mean: Tensor, inverse: Tensor, gradient: Tensor, shape: torch.Size) -> Tensor:
    scaled = (x - mean).mul_(gradient)
    if scaled.dtype != inverse.dtype:
        return _per_example(scaled * inverse, shape)
    # A product with the row of inverse deviations is also the sum over the positions.
    examples = len(x)
    return torch.bmm(inverse.reshape(examples, 1, -1), scaled.reshape(examples, -1, shape.numel())).view(-1, *shape)


def _per_example(x: Tensor, shape: torch.Size) -> Tensor:
    return x.reshape(x.shape[0], -1, *shape).sum(1)


def _copies(tape: Tape, affine: Any) -> Tensor | None:
    # One for every example, [examples, *shape]; a constant needs none.
    return tape.physical(affine.node.copies()) if isinstance(affine, Handle) else None


@rule(F.group_norm, ops.group_norm)
def _group_norm(
    tape: Tape, input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    x = tape.physical(input)
    if x is None or x.dim() < 3 or not x.numel():
        return NotImplemented
    if any(affine is not None and not isinstance(affine, Handle) for affine in (weight, bias)):
        return NotImplemented
    # With the examples among the channels, the kernel's own gradient of the factors is that of every example.
    count, channels = x.shape[:2].numel(), x.shape[2]
    wide = [
        None if copies is None else copies[:, None].expand(-1, x.shape[1], -1).reshape(-1)
        for copies in (_copies(tape, weight), _copies(tape, bias))
    ]
    y = F.group_norm(x.reshape(1, count * channels, *x.shape[3:]), count * num_groups, wide[0], wide[1], eps)
    return tape.batched(y.view(x.shape))


@rule(F.instance_norm)
def _instance_norm(
    tape: Tape,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if running_mean is not None or not use_input_stats:
        return NotImplemented
    return _group_norm(tape, input, input.shape[1], weight, bias, eps)


def _refuse_batch_statistics(weight: Any, tape: Tape) -> None:
    layer = "a batch normalisation"
    if isinstance(weight, Handle):
        owner = tape.name(weight.node).strip("'").rpartition(".")[0]
        layer += f", {owner!r}," if owner else f" (with {tape.name(weight.node)})"
    raise BatchingError(
        f"per_sample.record: {layer} normalises with the statistics of the batch, so that the loss of one example "
        f"depends on all of them, and there is no gradient for each. Apply it with train=False, or use GroupNorm, "
        f"LayerNorm or InstanceNorm instead."
    )


@rule(F.batch_norm)
def _batch_norm(
    tape: Tape,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training or running_mean is None:
        _refuse_batch_statistics(weight, tape)
    return NotImplemented


@rule(ops.batch_norm)
def _own_batch_norm(
    tape: Tape,
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    *,
    train: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Any:
    return _batch_norm(tape, x, running_mean, running_var, weight, bias, train)


PHYSICAL_RULES[F.batch_norm] = _batch_norm
PHYSICAL_RULES[ops.batch_norm] = _own_batch_norm
