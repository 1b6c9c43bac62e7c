"""Samples at the edges: empty batches, odd memory layouts, masks that leave nothing, options with special cases."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from _samplers import mode, real, sample, whole
from _samples import DOUBLE, Sample
from torch import Tensor, nn

import purenn as pn

ShapeError = pn.errors.ShapeError


def awkward(cls: Callable[..., nn.Module], *args: Any, call: tuple, **options: Any) -> Sample:
    """A sample for every column that is cheap."""
    return sample(cls, *args, call=call, awkward=True, **options)


def strided(*shape: int) -> Tensor:
    """Normal numbers in reversed order of memory, to be differentiated."""
    return torch.randn(shape[::-1], dtype=DOUBLE).permute(*reversed(range(len(shape)))).requires_grad_()


def channels_last(*shape: int) -> Tensor:
    """Images or volumes with their channels together in memory, to be differentiated."""
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return torch.randn(shape, dtype=DOUBLE).contiguous(memory_format=layout).requires_grad_()


def _batch_norm(cls: type[nn.Module], *space: int) -> Callable[[], list[Sample]]:
    def make() -> list[Sample]:
        x = [strided(4, 3, *space)] + ([channels_last(2, 3, *space)] if len(space) > 1 else [])
        found = [awkward(cls, 3, call=(value,), train=True, name="strided") for value in x]
        found += [
            awkward(cls, 3, momentum=None, call=x[:1], train=train, name=f"momentum_none_{mode(train)}")
            for train in (True, False)
        ]
        found += [awkward(cls, 3, call=(real(0, 3, *space),), name="empty_batch")]
        one = (1,) * len(space)
        failing = (ValueError, ShapeError)
        found += [awkward(cls, 3, call=(real(1, 3, *one),), train=True, raises=failing, name="batch_of_one")]
        return [*found, awkward(cls, 3, call=(real(1, 3, *one),), name="batch_of_one_evaluated")]

    return make


def _instance_norm(cls: type[nn.Module], *space: int) -> Callable[[], list[Sample]]:
    def make() -> list[Sample]:
        options = {"affine": True, "track_running_stats": True, "train": True}
        one = (1,) * len(space)
        return [
            awkward(cls, 3, call=(real(3, *space),), name="unbatched", **options),
            awkward(cls, 3, call=(strided(2, 3, *space),), name="strided", **options),
            awkward(cls, 3, call=(real(2, 3, *one),), raises=(ValueError, ShapeError), name="one_place", **options),
        ]

    return make


def _convolution(cls: type[nn.Module], dimensions: int) -> Callable[[], list[Sample]]:
    def make() -> list[Sample]:
        space = [5] * dimensions
        found = [
            awkward(cls, 3, 4, 2, call=(strided(2, 3, *space),), name="strided"),
            awkward(cls, 3, 4, 2, call=(real(0, 3, *space),), name="empty_batch"),
            awkward(cls, 3, 4, 2, call=(real(3, *space),), name="unbatched"),
        ]
        if dimensions > 1:
            found.append(awkward(cls, 3, 4, 2, call=(channels_last(2, 3, *space),), name="channels_last"))
        return found

    return make


def _pool(cls: type[nn.Module], dimensions: int, *args: Any, **options: Any) -> Callable[[], list[Sample]]:
    def make() -> list[Sample]:
        space = [6] * dimensions
        found = [
            awkward(cls, *args, call=(strided(2, 3, *space),), name="strided", **options),
            awkward(cls, *args, call=(real(0, 3, *space),), name="empty_batch", **options),
            awkward(cls, *args, call=(real(3, *space),), name="unbatched", **options),
        ]
        if dimensions > 1:
            found.append(awkward(cls, *args, call=(channels_last(2, 3, *space),), name="channels_last", **options))
        return found

    return make


def _linear() -> list[Sample]:
    return [
        awkward(nn.Linear, 4, 3, call=(strided(5, 4),), name="strided"),
        awkward(nn.Linear, 4, 3, call=(real(0, 4),), name="empty_batch"),
        awkward(nn.Linear, 4, 3, call=(real(4),), name="unbatched"),
    ]


def _last_axis_norm(cls: Callable[..., nn.Module], *args: Any) -> Callable[[], list[Sample]]:
    return lambda: [
        awkward(cls, *args, call=(strided(2, 4, 6),), name="strided"),
        awkward(cls, *args, call=(real(0, 4, 6),), name="empty_batch"),
    ]


def _embedding() -> list[Sample]:
    return [
        awkward(nn.Embedding, 5, 3, padding_idx=2, call=(whole(5, 4, 6),), name="padding_idx"),
        awkward(nn.Embedding, 5, 3, padding_idx=-1, call=(whole(5, 9),), name="last_is_padding"),
        awkward(nn.Embedding, 5, 3, call=(whole(5, 0, 2),), name="empty_batch"),
        awkward(
            nn.Embedding,
            5,
            3,
            scale_grad_by_freq=True,
            call=(whole(5, 9),),
            differentiable_twice=_by_frequency,
            name="by_frequency",
        ),
    ]


def _by_frequency(module: nn.Embedding, indices: Tensor) -> Tensor:
    """torch's second derivative of an embedding forgets the frequencies, silently; here they are in the weight."""
    shared = module.weight / torch.bincount(indices.flatten(), minlength=len(module.weight)).clamp(min=1)[:, None]
    return shared[indices] + (module.weight - shared)[indices].detach()


def _attention() -> list[Sample]:
    cls = nn.MultiheadAttention
    options: dict[str, Any] = {"batch_first": True}
    call = (real(2, 3, 4), real(2, 5, 4), real(2, 5, 4))
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    nothing[1] = True
    for_each = torch.rand(2, 3, 5) < 0.4
    for_each[..., 0] = False
    # One mask for each example, when there are as many examples as heads; torch wants one for each head as well.
    found = [
        awkward(
            cls, 4, 2, call=call, kwargs={"attn_mask": for_each}, expected=_mask_for_each, name="mask_b_t_s", **options
        ),
        awkward(cls, 4, 2, call=call, kwargs={"attn_mask": nothing}, expected=_nothing, name="fully_masked", **options),
        awkward(cls, 4, 2, call=call, kwargs={"key_padding_mask": padding, "need_weights": False}, **options),
        awkward(cls, 4, 2, call=(real(0, 3, 4), real(0, 5, 4), real(0, 5, 4)), name="empty_batch", **options),
        awkward(cls, 4, 2, call=(strided(2, 3, 4), strided(2, 5, 4), strided(2, 5, 4)), name="strided", **options),
        awkward(cls, 4, 2, call=(real(3, 4), real(5, 4), real(5, 4)), name="unbatched", **options),
        awkward(
            cls, 4, 2, kdim=3, vdim=5, call=(real(2, 3, 4), real(2, 5, 3), real(2, 5, 5)), name="widths", **options
        ),
    ]
    weights = {"average_attn_weights": False}
    return [*found, awkward(cls, 4, 2, call=call, kwargs=weights, name="weights_of_heads", **options)]


def _mask_for_each(_: Any, module: nn.MultiheadAttention, *args: Tensor, attn_mask: Tensor, **options: Any) -> Any:
    """torch is given a mask for each example once for each head."""
    return module(*args, attn_mask=attn_mask.repeat_interleave(module.num_heads, 0), **options)


def _nothing(_: Any, module: nn.MultiheadAttention, *args: Tensor, attn_mask: Tensor) -> Any:
    """Rows without masked ones as in torch, the others by the formula: no weight, and the bias. torch's are NaN."""
    empty = attn_mask.all(-1)
    y, weights = module(*args, attn_mask=attn_mask & ~empty[:, None])
    return torch.where(empty[:, None], module.out_proj.bias, y), torch.where(empty[:, None], 0, weights)


def _reductions(cls: type[nn.Module], *tensors: Callable[[], Tensor], **options: Any) -> Callable[[], list[Sample]]:
    return lambda: [
        awkward(cls, call=tuple(make() for make in tensors), reduction=reduction, name=reduction, **options)
        for reduction in ("none", "mean", "sum")
    ]


def _classes() -> list[Sample]:
    weight = torch.rand(4, dtype=DOUBLE) + 0.5
    target = torch.tensor([0, 3, -100, 2, -100])
    probabilities = torch.rand(5, 4, dtype=DOUBLE).softmax(-1)
    found = []
    for reduction, smoothing in itertools.product(("none", "mean", "sum"), (0.0, 0.2)):
        options: dict[str, Any] = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
        name = f"weights_{reduction}_{smoothing}"
        found.append(awkward(nn.CrossEntropyLoss, call=(real(5, 4), target), name=f"ignored_{name}", **options))
        found.append(awkward(nn.CrossEntropyLoss, call=(real(5, 4), probabilities), name=name, **options))
    found.append(awkward(nn.CrossEntropyLoss, ignore_index=2, call=(real(5, 4), target.clamp(min=0)), name="ignored_2"))
    return [*found, awkward(nn.CrossEntropyLoss, call=(real(4), torch.tensor(1)), name="unbatched")]


def _likelihoods() -> list[Sample]:
    weight = torch.rand(4, dtype=DOUBLE) + 0.5
    target = torch.tensor([0, 3, -100, 2, -100])
    return [
        awkward(nn.NLLLoss, weight=weight, reduction=reduction, call=(real(5, 4), target), name=f"ignored_{reduction}")
        for reduction in ("none", "mean", "sum")
    ]


def _signs() -> Tensor:
    return torch.randint(2, (4, 3)).to(DOUBLE) * 2 - 1


def _first_signs() -> Tensor:
    return torch.randint(2, (4,)).to(DOUBLE) * 2 - 1


def _shares() -> Tensor:
    return torch.rand(4, 3, dtype=DOUBLE)


def _inner() -> Tensor:
    return (torch.rand(4, 3, dtype=DOUBLE) * 0.8 + 0.1).requires_grad_()


def _matrix() -> Tensor:
    return real(4, 3)


def _row() -> Tensor:
    return real(4)


def _targets() -> Tensor:
    return whole(3, 4)


def _elementwise(cls: type[nn.Module], *args: Any) -> Callable[[], list[Sample]]:
    return lambda: [
        awkward(cls, *args, call=(strided(3, 4, 2),), name="strided"),
        awkward(cls, *args, call=(real(0, 3),), name="empty_batch"),
    ]


def _recurrent(cls: type[nn.Module]) -> Callable[[], list[Sample]]:
    return lambda: [
        awkward(cls, 3, 4, call=(real(5, 3),), name="unbatched"),
        awkward(cls, 3, 4, call=(strided(5, 2, 3),), name="strided"),
        awkward(cls, 3, 4, batch_first=True, bidirectional=True, call=(real(2, 5, 3),), name="batch_first"),
    ]


AWKWARD: dict[str, Callable[[], list[Sample]]] = {
    "Linear": _linear,
    "LayerNorm": _last_axis_norm(nn.LayerNorm, 6),
    "RMSNorm": _last_axis_norm(nn.RMSNorm, 6),
    "GroupNorm": _last_axis_norm(nn.GroupNorm, 2, 4),
    "Embedding": _embedding,
    "MultiheadAttention": _attention,
    "CrossEntropyLoss": _classes,
    "NLLLoss": _likelihoods,
    "ReLU": _elementwise(nn.ReLU),
    "GELU": _elementwise(nn.GELU),
    "Softmax": _elementwise(nn.Softmax, -1),
    "PReLU": _elementwise(nn.PReLU),
    **{f"BatchNorm{n}d": _batch_norm(getattr(nn, f"BatchNorm{n}d"), *[3] * n) for n in (1, 2, 3)},
    **{f"InstanceNorm{n}d": _instance_norm(getattr(nn, f"InstanceNorm{n}d"), *[3] * n) for n in (1, 2, 3)},
    **{f"Conv{n}d": _convolution(getattr(nn, f"Conv{n}d"), n) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": _convolution(getattr(nn, f"ConvTranspose{n}d"), n) for n in (1, 2, 3)},
    **{f"MaxPool{n}d": _pool(getattr(nn, f"MaxPool{n}d"), n, 2) for n in (1, 2, 3)},
    **{f"AvgPool{n}d": _pool(getattr(nn, f"AvgPool{n}d"), n, 2) for n in (1, 2, 3)},
    **{f"AdaptiveAvgPool{n}d": _pool(getattr(nn, f"AdaptiveAvgPool{n}d"), n, 2) for n in (1, 2, 3)},
    **{name: _recurrent(getattr(nn, name)) for name in ("RNN", "GRU", "LSTM")},
    **{
        name: _reductions(getattr(nn, name), _matrix, _matrix)
        for name in ("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
    },
    "BCELoss": _reductions(nn.BCELoss, _inner, _shares),
    "BCEWithLogitsLoss": _reductions(nn.BCEWithLogitsLoss, _matrix, _shares),
    "KLDivLoss": _reductions(nn.KLDivLoss, _matrix, _shares),
    "PoissonNLLLoss": _reductions(nn.PoissonNLLLoss, _matrix, _shares),
    "SoftMarginLoss": _reductions(nn.SoftMarginLoss, _matrix, _signs),
    "HingeEmbeddingLoss": _reductions(nn.HingeEmbeddingLoss, _matrix, _signs),
    "MarginRankingLoss": _reductions(nn.MarginRankingLoss, _row, _row, _first_signs),
    "CosineEmbeddingLoss": _reductions(nn.CosineEmbeddingLoss, _matrix, _matrix, _first_signs),
    "MultiMarginLoss": _reductions(nn.MultiMarginLoss, _matrix, _targets),
}
