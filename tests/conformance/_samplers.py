"""Samples of the 38 classes that torch's own table of modules leaves out."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from _samples import DOUBLE, Constructor, Sample
from torch import Tensor, nn


def sample(cls: Callable[..., nn.Module], *args: Any, call: tuple, **options: Any) -> Sample:
    """A sample of ``cls(*args, **options)(*call)``; `name`, `train`, `axis` and so on are the sample's own."""
    own = {name: options.pop(name) for name in _OWN & options.keys()}
    constructor = Constructor(cls, args, options)
    make = functools.partial(constructor.module, call, own.get("kwargs", {}))
    return Sample(make, call, constructor=constructor, **own)


_OWN = {
    "name",
    "train",
    "key",
    "expected",
    "differentiable",
    "differentiable_twice",
    "axis",
    "raises",
    "awkward",
    "kwargs",
}


def real(*shape: int) -> Tensor:
    """Normal numbers, to be differentiated."""
    return torch.randn(shape, dtype=DOUBLE, requires_grad=True)


def whole(below: int, *shape: int) -> Tensor:
    """Whole numbers from 0."""
    return torch.randint(below, shape)


def distinct(*shape: int) -> Tensor:
    """Numbers that are far from each other and from 0, to be differentiated."""
    size = torch.Size(shape).numel()
    return ((torch.randperm(size) + 0.25) / max(size, 1) - 0.5).to(DOUBLE).reshape(shape).requires_grad_()


def mode(train: bool) -> str:
    """A name for a sample's mode."""
    return "train" if train else "evaluation"


def _elementwise(cls: type[nn.Module], *args: Any, **options: Any) -> Callable[[], list[Sample]]:
    shapes = [(4, 3, 6), (2, 3), ()]
    return lambda: [sample(cls, *args, call=(distinct(*shape),), name=f"{len(shape)}d", **options) for shape in shapes]


def _hardsigmoid(_: nn.Module, x: Tensor) -> Tensor:
    """torch's derivative has a sixth in single precision."""
    return (x + 3).clamp(0, 6) / 6


def _across_channels(module: Any, x: Tensor) -> Tensor:
    """torch's derivative is that of other windows than its values'; of these the first channel never leaves."""
    reach = (module.size - 1) // 2
    sums = []
    for channel in range(x.shape[1]):
        first = max(channel - reach, 0)
        window = x[:, first : channel + reach + 1].square().sum(1)
        sums.append(window + x[:, 0].square() if first > 0 else window)
    return x * (module.k + module.alpha / module.size * torch.stack(sums, 1)) ** -module.beta


def _dropout(cls: type[nn.Module], *shape: int) -> Callable[[], list[Sample]]:
    return lambda: [sample(cls, rate, call=(real(*shape),), name=f"evaluation_{rate}") for rate in (0.5, 0.2)]


def _adaptive() -> list[Sample]:
    cls = nn.AdaptiveLogSoftmaxWithLoss
    return [
        sample(cls, 16, 9, [3, 6], call=(real(5, 16), whole(9, 5))),
        sample(cls, 9, 9, [2, 4, 7], 2.0, head_bias=True, call=(real(4, 9), whole(9, 4)), name="head_bias"),
        sample(cls, 6, 5, [2], call=(real(6), whole(5)), name="no_batch"),
    ]


def _bags() -> list[Sample]:
    cls, starts = nn.EmbeddingBag, torch.tensor([0, 3, 3, 5])
    rows = [sample(cls, 7, 3, mode=mode, call=(whole(7, 3, 4),), name=mode) for mode in ("mean", "sum", "max")]
    parts = [
        sample(cls, 7, 3, mode=mode, call=(whole(7, 9), starts), name=f"{mode}_offsets")
        for mode in ("mean", "sum", "max")
    ]
    return [
        *rows,
        *parts,
        sample(cls, 7, 3, mode="sum", call=(whole(7, 3, 4), None, real(3, 4)), name="weighted"),
        sample(cls, 7, 3, padding_idx=2, call=(whole(7, 9), starts), name="padding_idx", awkward=True),
        sample(cls, 7, 3, include_last_offset=True, call=(whole(7, 9), torch.tensor([0, 4, 9])), name="last_offset"),
    ]


def _unpool(cls: type[nn.Module], pool: type[nn.Module], dimensions: int) -> Callable[[], list[Sample]]:
    def make() -> list[Sample]:
        found = []
        for shape in ((2, 3), (3,)):
            x = distinct(*shape, *[6] * dimensions).detach()
            y, indices = pool(2, return_indices=True)(x)
            # Rolled along the first axis, indices stay different within each channel.
            name = "batch" if len(shape) == 2 else "no_batch"
            found.append(sample(cls, 2, call=(y.requires_grad_(), indices), axis=0, name=name))
        y, indices = pool(2, 2, return_indices=True)(distinct(2, 3, *[7] * dimensions).detach())
        size = {"output_size": [7] * dimensions}
        found.append(sample(cls, 2, call=(y.requires_grad_(), indices), axis=0, kwargs=size, name="output_size"))
        return found

    return make


def _lazy_norm(cls: type[nn.Module], *shape: int) -> Callable[[], list[Sample]]:
    tracking: dict[str, Any] = {"affine": True, "track_running_stats": True}
    return lambda: [
        sample(
            cls, call=(real(*shape),), train=train, name="_".join([*changed, mode(train)]), **{**tracking, **changed}
        )
        for train in (True, False)
        for changed in ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False})
    ]


def _lazy_linear() -> list[Sample]:
    found = [sample(nn.LazyLinear, 4, call=(real(*shape),)) for shape in ((5, 3), (3,), (2, 5, 3))]
    return [*found, sample(nn.LazyLinear, 4, bias=False, call=(real(5, 3),), name="no_bias")]


def _sync_batch_norm() -> list[Sample]:
    return [
        sample(nn.SyncBatchNorm, 3, call=(real(*shape),), train=train, name=f"{len(shape)}d_{mode(train)}", **options)
        for train in (True, False)
        for shape, options in (((4, 3), {}), ((2, 3, 5), {"momentum": None}), ((2, 3, 4, 4), {"affine": False}))
    ]


def _decoder() -> list[Sample]:
    def make(norm: bool = False, **options: Any) -> nn.Module:
        layer = nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, **options)
        return nn.TransformerDecoder(layer, 2, nn.LayerNorm(4) if norm else None)

    causal = torch.ones(3, 3).triu(1).bool()
    return [
        sample(make, call=(real(3, 2, 4), real(5, 2, 4))),
        sample(make, batch_first=True, norm=True, call=(real(2, 3, 4), real(2, 5, 4)), name="batch_first"),
        sample(make, norm_first=True, call=(real(3, 4), real(5, 4)), name="no_batch"),
        sample(make, call=(real(3, 2, 4), real(5, 2, 4)), kwargs={"tgt_mask": causal}, name="mask"),
    ]


def _triplet(cls: type[nn.Module], options: list[dict]) -> Callable[[], list[Sample]]:
    return lambda: [
        sample(cls, call=(real(*shape), real(*shape), real(*shape)), name="_".join(map(str, chosen.values())), **chosen)
        for chosen in options
        for shape in ((4, 5), (5,))
    ]


def _manhattan(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs().sum(-1)


def _upsample() -> list[Sample]:
    cls = nn.Upsample
    cases = [
        ({"scale_factor": 2}, (2, 3, 4)),
        ({"size": (5, 7)}, (2, 3, 4, 4)),
        ({"scale_factor": 2, "mode": "linear", "align_corners": False}, (2, 3, 4)),
        ({"scale_factor": (2, 1.5), "mode": "bilinear", "align_corners": True}, (2, 3, 4, 4)),
        ({"size": (6, 6), "mode": "bicubic"}, (2, 3, 4, 4)),
        ({"scale_factor": 2, "mode": "trilinear"}, (1, 2, 3, 3, 3)),
        ({"size": (5, 5), "mode": "nearest-exact"}, (2, 3, 4, 4)),
    ]
    return [
        sample(cls, call=(real(*shape),), name=str(options.get("mode", "nearest")), **options)
        for options, shape in cases
    ]


def _resized(cls: type[nn.Module]) -> Callable[[], list[Sample]]:
    return lambda: [
        sample(cls, scale_factor=2, call=(real(2, 3, 4, 5),)),
        sample(cls, size=(7, 3), call=(real(1, 3, 4, 5),), name="size"),
    ]


SAMPLERS: dict[str, Callable[[], list[Sample]]] = {
    "AdaptiveLogSoftmaxWithLoss": _adaptive,
    "AlphaDropout": _dropout(nn.AlphaDropout, 4, 5),
    "ChannelShuffle": lambda: [
        sample(nn.ChannelShuffle, 2, call=(real(2, 6, 3),)),
        sample(nn.ChannelShuffle, 3, call=(real(1, 6, 3, 2),), name="4d"),
    ],
    "CosineSimilarity": lambda: [
        sample(nn.CosineSimilarity, call=(real(4, 5), real(4, 5))),
        sample(nn.CosineSimilarity, dim=-1, eps=1e-3, call=(real(2, 3, 5), real(1, 3, 5)), name="broadcast"),
    ],
    "CrossMapLRN2d": lambda: [
        sample(nn.CrossMapLRN2d, 3, call=(real(2, 5, 3, 3),), differentiable=_across_channels),
        sample(
            nn.CrossMapLRN2d,
            5,
            0.1,
            0.5,
            2.0,
            call=(real(1, 6, 2, 2),),
            differentiable=_across_channels,
            name="options",
        ),
    ],
    "Dropout": _dropout(nn.Dropout, 4, 5),
    "Dropout1d": _dropout(nn.Dropout1d, 2, 4, 5),
    "Dropout2d": _dropout(nn.Dropout2d, 2, 4, 3, 3),
    "Dropout3d": _dropout(nn.Dropout3d, 2, 4, 2, 2, 2),
    "EmbeddingBag": _bags,
    "FeatureAlphaDropout": _dropout(nn.FeatureAlphaDropout, 2, 4, 3, 3),
    "Flatten": lambda: [
        sample(nn.Flatten, call=(real(2, 3, 4),)),
        sample(nn.Flatten, 0, 1, call=(real(2, 3, 4),), name="first"),
    ],
    "Fold": lambda: [
        sample(nn.Fold, (4, 5), (2, 2), call=(real(2, 8, 12),)),
        sample(nn.Fold, (5, 5), 3, padding=1, stride=2, call=(real(18, 9),), name="no_batch"),
        sample(nn.Fold, (5, 6), 2, dilation=2, call=(real(1, 4, 12),), name="dilation"),
    ],
    "Hardsigmoid": _elementwise(nn.Hardsigmoid, differentiable=_hardsigmoid),
    "Identity": _elementwise(nn.Identity),
    "LazyBatchNorm1d": _lazy_norm(nn.LazyBatchNorm1d, 4, 3, 5),
    "LazyBatchNorm2d": _lazy_norm(nn.LazyBatchNorm2d, 3, 3, 2, 2),
    "LazyBatchNorm3d": _lazy_norm(nn.LazyBatchNorm3d, 3, 3, 2, 2, 2),
    "LazyInstanceNorm1d": _lazy_norm(nn.LazyInstanceNorm1d, 2, 3, 5),
    "LazyInstanceNorm2d": _lazy_norm(nn.LazyInstanceNorm2d, 2, 3, 3, 2),
    "LazyInstanceNorm3d": _lazy_norm(nn.LazyInstanceNorm3d, 2, 3, 2, 2, 2),
    "LazyLinear": _lazy_linear,
    "MaxUnpool1d": _unpool(nn.MaxUnpool1d, nn.MaxPool1d, 1),
    "MaxUnpool2d": _unpool(nn.MaxUnpool2d, nn.MaxPool2d, 2),
    "MaxUnpool3d": _unpool(nn.MaxUnpool3d, nn.MaxPool3d, 3),
    "PairwiseDistance": lambda: [
        sample(nn.PairwiseDistance, call=(real(4, 5), real(4, 5))),
        sample(nn.PairwiseDistance, 3.0, keepdim=True, call=(real(5), real(5)), name="no_batch"),
        sample(nn.PairwiseDistance, 1.0, call=(real(4, 5), real(1, 5)), name="broadcast"),
    ],
    "PixelShuffle": lambda: [
        sample(nn.PixelShuffle, 2, call=(real(2, 8, 3, 2),)),
        sample(nn.PixelShuffle, 3, call=(real(9, 2, 2),), name="no_batch"),
    ],
    "PixelUnshuffle": lambda: [
        sample(nn.PixelUnshuffle, 2, call=(real(2, 3, 4, 6),)),
        sample(nn.PixelUnshuffle, 3, call=(real(1, 3, 6),), name="no_batch"),
    ],
    "RReLU": _elementwise(nn.RReLU, 0.1, 0.4),
    "SyncBatchNorm": _sync_batch_norm,
    "TransformerDecoder": _decoder,
    "TripletMarginLoss": _triplet(
        nn.TripletMarginLoss, [{}, {"p": 3.0, "reduction": "sum"}, {"swap": True, "reduction": "none"}]
    ),
    "TripletMarginWithDistanceLoss": _triplet(
        nn.TripletMarginWithDistanceLoss, [{}, {"distance_function": _manhattan}, {"swap": True, "reduction": "none"}]
    ),
    "Unflatten": lambda: [
        sample(nn.Unflatten, 1, (2, 3), call=(real(2, 6, 2),)),
        sample(nn.Unflatten, -1, (2, -1), call=(real(3, 6),), name="open"),
    ],
    "Unfold": lambda: [
        sample(nn.Unfold, (2, 3), call=(real(2, 3, 4, 5),)),
        sample(nn.Unfold, 2, dilation=2, padding=1, stride=2, call=(real(3, 5, 5),), name="no_batch"),
    ],
    "Upsample": _upsample,
    "UpsamplingBilinear2d": _resized(nn.UpsamplingBilinear2d),
    "UpsamplingNearest2d": _resized(nn.UpsamplingNearest2d),
}
