"""What the benchmark of layers runs on: for each class of torch.nn its options and inputs, of 0.1 to 3 ms of work.

Samples are those of the conformance matrix, only larger, so that every row has the same converted container and the
same arguments on both sides.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from _samplers import real, sample, whole
from _samples import DOUBLE, Sample
from torch import Tensor, nn
from torch.nn import functional as F

# Shapes that several rows share.
MATRIX, LARGE_MATRIX = (256, 2048), (512, 2048)
SEQUENCES = (16, 64, 256)
SPACES: dict[int, tuple[int, ...]] = {1: (1024,), 2: (32, 32), 3: (8, 8, 16)}
ELEMENTWISE: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("ReLU", "ReLU6", "LeakyReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "GLU"), ()),
    **dict.fromkeys(("Sigmoid", "LogSigmoid", "Tanh", "Tanhshrink", "Softplus", "Softsign", "Softshrink"), ()),
    **dict.fromkeys(("Hardtanh", "Hardsigmoid", "Hardswish", "Hardshrink", "Identity", "Flatten"), ()),
    **dict.fromkeys(("Softmax", "Softmin", "LogSoftmax"), (-1,)),
    "Threshold": (0.1, 0.5),
    "Unflatten": (1, (8, 256)),
}


def share(*shape: int) -> Tensor:
    """Numbers between 0 and 1, to be differentiated."""
    return (torch.rand(shape, dtype=DOUBLE) * 0.98 + 0.01).requires_grad_()


def target(value: Tensor) -> Tensor:
    """The same numbers, not to be differentiated."""
    return value.detach()


def signs(*shape: int) -> Tensor:
    """1 or -1."""
    return (torch.randint(2, shape) * 2 - 1).to(DOUBLE)


def _spatial(batch: int, channels: int, dimensions: int) -> Tensor:
    return real(batch, channels, *SPACES[dimensions])


def _elementwise() -> dict[str, Callable[[], Sample]]:
    return {
        name: functools.partial(_sample, getattr(nn, name), *options, call=lambda: (real(*LARGE_MATRIX),))
        for name, options in ELEMENTWISE.items()
    }


def _sample(cls: Callable[..., nn.Module], *args: Any, call: Callable[[], tuple], **options: Any) -> Sample:
    return sample(cls, *args, call=call(), **options)


def _convolutions() -> dict[str, Callable[[], Sample]]:
    found: dict[str, Callable[[], Sample]] = {}
    for n in (1, 2, 3):
        for name in ("Conv", "ConvTranspose"):
            call = functools.partial(lambda n: (_spatial(4, 16, n),), n)
            cls, lazy = getattr(nn, f"{name}{n}d"), getattr(nn, f"Lazy{name}{n}d")
            found[f"{name}{n}d"] = functools.partial(_sample, cls, 16, 32, 3, padding=1, call=call)
            found[f"Lazy{name}{n}d"] = functools.partial(_sample, lazy, 32, 3, padding=1, call=call)
    return found


def _poolings() -> dict[str, Callable[[], Sample]]:
    found: dict[str, Callable[[], Sample]] = {}
    for n in (1, 2, 3):
        call = functools.partial(lambda n: (_spatial(8, 16, n),), n)
        for name in ("MaxPool", "AvgPool"):
            found[f"{name}{n}d"] = functools.partial(_sample, getattr(nn, f"{name}{n}d"), 2, call=call)
        for name in ("AdaptiveMaxPool", "AdaptiveAvgPool"):
            found[f"{name}{n}d"] = functools.partial(_sample, getattr(nn, f"{name}{n}d"), 4, call=call)
        positive = functools.partial(lambda n: (share(8, 16, *SPACES[n]),), n)
        found[f"LPPool{n}d"] = functools.partial(_sample, getattr(nn, f"LPPool{n}d"), 2.0, 2, call=positive)
        found[f"MaxUnpool{n}d"] = functools.partial(_unpool, n)
    for n in (2, 3):
        # The places of the windows are drawn; see the dropouts.
        found[f"FractionalMaxPool{n}d"] = functools.partial(
            _sample,
            getattr(nn, f"FractionalMaxPool{n}d"),
            2,
            output_ratio=0.5,
            key=0,
            train=True,
            call=functools.partial(lambda n: (_spatial(32, 16, n),), n),
        )
    return found


def _unpool(n: int) -> Sample:
    y, indices = getattr(F, f"max_pool{n}d")(target(_spatial(8, 16, n)), 2, return_indices=True)
    return sample(getattr(nn, f"MaxUnpool{n}d"), 2, call=(y.requires_grad_(), indices))


def _paddings() -> dict[str, Callable[[], Sample]]:
    return {
        f"{name}Pad{n}d": functools.partial(
            _sample,
            getattr(nn, f"{name}Pad{n}d"),
            2,
            *((0.5,) if name == "Constant" else ()),
            call=functools.partial(lambda n: (_spatial(8, 16, n),), n),
        )
        for n in (1, 2, 3)
        for name in ("Zero", "Constant", "Reflection", "Replication", "Circular")
    }


def _norms() -> dict[str, Callable[[], Sample]]:
    found: dict[str, Callable[[], Sample]] = {}
    for n in (1, 2, 3):
        call = functools.partial(lambda n: (_spatial(8, 16, n),), n)
        options: dict[str, Any] = {"call": call, "train": True}
        tracking = {"affine": True, "track_running_stats": True}
        found[f"BatchNorm{n}d"] = functools.partial(_sample, getattr(nn, f"BatchNorm{n}d"), 16, **options)
        found[f"LazyBatchNorm{n}d"] = functools.partial(_sample, getattr(nn, f"LazyBatchNorm{n}d"), **options)
        found[f"InstanceNorm{n}d"] = functools.partial(
            _sample, getattr(nn, f"InstanceNorm{n}d"), 16, **tracking, **options
        )
        found[f"LazyInstanceNorm{n}d"] = functools.partial(
            _sample, getattr(nn, f"LazyInstanceNorm{n}d"), **tracking, **options
        )
    images: dict[str, Any] = {"call": lambda: (_spatial(8, 16, 2),)}
    rows: dict[str, Any] = {"call": lambda: (real(*SEQUENCES),)}
    return {
        **found,
        "SyncBatchNorm": functools.partial(_sample, nn.SyncBatchNorm, 16, train=True, **images),
        "GroupNorm": functools.partial(_sample, nn.GroupNorm, 4, 16, **images),
        "LayerNorm": functools.partial(_sample, nn.LayerNorm, 256, **rows),
        "RMSNorm": functools.partial(_sample, nn.RMSNorm, 256, **rows),
        "LocalResponseNorm": functools.partial(_sample, nn.LocalResponseNorm, 5, **images),
        "CrossMapLRN2d": functools.partial(_sample, nn.CrossMapLRN2d, 5, **images),
    }


def _dropouts() -> dict[str, Callable[[], Sample]]:
    spaces = {
        "Dropout": MATRIX,
        "AlphaDropout": MATRIX,
        "RReLU": MATRIX,
        # A key's numbers cost 0.05 ms, however few they are.
        "Dropout1d": (64, 96, 1024),
        "Dropout2d": (64, 96, 32, 32),
        "Dropout3d": (24, 64, 16, 16, 16),
        "FeatureAlphaDropout": (64, 96, 32, 32),
    }
    return {
        name: functools.partial(
            _sample, getattr(nn, name), 0.3, train=True, key=0, call=functools.partial(lambda s: (real(*s),), shape)
        )
        for name, shape in spaces.items()
    }


def _sequences() -> dict[str, Callable[[], Sample]]:
    found: dict[str, Callable[[], Sample]] = {
        name: functools.partial(_sample, getattr(nn, name), 64, 128, call=lambda: (real(16, 32, 64),))
        for name in ("RNN", "LSTM", "GRU")
    }
    found |= {
        name: functools.partial(_sample, getattr(nn, name), 128, 256, call=lambda: (real(64, 128),))
        for name in ("RNNCell", "LSTMCell", "GRUCell")
    }
    source, goal = (64, 8, 128), (48, 8, 128)
    sizes = (128, 4, 256)
    return {
        **found,
        "MultiheadAttention": functools.partial(
            _sample, nn.MultiheadAttention, 128, 4, call=lambda: (real(*goal), real(*source), real(*source))
        ),
        "TransformerEncoderLayer": functools.partial(
            _sample, nn.TransformerEncoderLayer, *sizes, 0.0, call=lambda: (real(*source),)
        ),
        "TransformerDecoderLayer": functools.partial(
            _sample, nn.TransformerDecoderLayer, *sizes, 0.0, call=lambda: (real(*goal), real(*source))
        ),
        "TransformerEncoder": functools.partial(_sample, _encoder, *sizes, call=lambda: (real(*source),)),
        "TransformerDecoder": functools.partial(_sample, _decoder, *sizes, call=lambda: (real(*goal), real(*source))),
        "Transformer": functools.partial(
            _sample, nn.Transformer, 128, 4, 1, 1, 256, 0.0, call=lambda: (real(*source), real(*goal))
        ),
    }


def _encoder(*sizes: int) -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(*sizes, 0.0), 2, enable_nested_tensor=False)


def _decoder(*sizes: int) -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(*sizes, 0.0), 2)


def _shapes() -> dict[str, Callable[[], Sample]]:
    images: dict[str, Any] = {"call": lambda: (_spatial(8, 16, 2),)}
    return {
        "Linear": functools.partial(_sample, nn.Linear, 256, 256, call=lambda: (real(256, 256),)),
        "LazyLinear": functools.partial(_sample, nn.LazyLinear, 256, call=lambda: (real(256, 256),)),
        "Bilinear": functools.partial(_sample, nn.Bilinear, 64, 64, 32, call=lambda: (real(128, 64), real(128, 64))),
        "PReLU": functools.partial(_sample, nn.PReLU, 16, **images),
        "Softmax2d": functools.partial(_sample, nn.Softmax2d, **images),
        "Fold": functools.partial(_sample, nn.Fold, (32, 32), 3, padding=1, call=lambda: (real(4, 16 * 9, 1024),)),
        "Unfold": functools.partial(_sample, nn.Unfold, 3, padding=1, call=lambda: (_spatial(4, 16, 2),)),
        "PixelShuffle": functools.partial(_sample, nn.PixelShuffle, 2, **images),
        "PixelUnshuffle": functools.partial(_sample, nn.PixelUnshuffle, 2, **images),
        "ChannelShuffle": functools.partial(_sample, nn.ChannelShuffle, 4, **images),
        "Upsample": functools.partial(
            _sample, nn.Upsample, scale_factor=2, mode="bicubic", call=lambda: (_spatial(4, 16, 2),)
        ),
        "UpsamplingBilinear2d": functools.partial(_sample, nn.UpsamplingBilinear2d, scale_factor=2, **images),
        "UpsamplingNearest2d": functools.partial(_sample, nn.UpsamplingNearest2d, scale_factor=2, **images),
        "CosineSimilarity": functools.partial(_sample, nn.CosineSimilarity, call=_pairs),
        "PairwiseDistance": functools.partial(_sample, nn.PairwiseDistance, call=_pairs),
        "Embedding": functools.partial(_sample, nn.Embedding, 2000, 128, call=lambda: (whole(2000, 32, 64),)),
        "EmbeddingBag": functools.partial(
            _sample, nn.EmbeddingBag, 2000, 128, call=lambda: (whole(2000, 4096), torch.arange(0, 4096, 32))
        ),
        "AdaptiveLogSoftmaxWithLoss": functools.partial(
            _sample,
            nn.AdaptiveLogSoftmaxWithLoss,
            *(128, 2000, [200, 1000]),
            call=lambda: (real(256, 128), whole(2000, 256)),
        ),
    }


def _pairs() -> tuple[Tensor, ...]:
    return real(1024, 256), real(1024, 256)


def _losses() -> dict[str, Callable[[], Sample]]:
    calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        **dict.fromkeys(("L1Loss", "MSELoss", "HuberLoss", "SmoothL1Loss"), _numbers),
        "PoissonNLLLoss": _numbers,
        "KLDivLoss": lambda: (target(real(*MATRIX)).log_softmax(-1).requires_grad_(), target(share(*MATRIX))),
        "GaussianNLLLoss": lambda: (real(*MATRIX), target(real(*MATRIX)), share(*MATRIX)),
        "BCELoss": lambda: (share(128, 1024), target(share(128, 1024))),
        **dict.fromkeys(("BCEWithLogitsLoss", "MultiLabelSoftMarginLoss"), _answers),
        **dict.fromkeys(("SoftMarginLoss", "HingeEmbeddingLoss"), lambda: (real(*MATRIX), signs(*MATRIX))),
        "CrossEntropyLoss": lambda: (real(512, 1000), whole(1000, 512)),
        "NLLLoss": lambda: (target(real(8, 64, 64, 64)).log_softmax(1).requires_grad_(), whole(64, 8, 64, 64)),
        "MultiMarginLoss": lambda: (real(512, 1000), whole(1000, 512)),
        "MultiLabelMarginLoss": lambda: (real(256, 100), _labels(256, 100)),
        "MarginRankingLoss": lambda: (real(2**18), real(2**18), signs(2**18)),
        "CosineEmbeddingLoss": lambda: (real(1024, 256), real(1024, 256), signs(1024)),
        **dict.fromkeys(("TripletMarginLoss", "TripletMarginWithDistanceLoss"), lambda: (*_pairs(), real(1024, 256))),
        "CTCLoss": _frames,
    }
    return {
        **{name: functools.partial(_sample, getattr(nn, name), call=call) for name, call in calls.items()},
        "LinearCrossEntropyLoss": functools.partial(
            _sample, nn.LinearCrossEntropyLoss, 128, 1000, call=lambda: (real(512, 128), whole(1000, 512))
        ),
    }


def _numbers() -> tuple[Tensor, ...]:
    return real(*MATRIX), target(real(*MATRIX))


def _answers() -> tuple[Tensor, ...]:
    return real(*MATRIX), torch.randint(2, MATRIX).to(DOUBLE)


def _labels(batch: int, classes: int) -> Tensor:
    found = torch.full((batch, classes), -1)
    found[:, :5] = torch.stack([torch.randperm(classes)[:5] for _ in range(batch)])
    return found


def _frames() -> tuple[Tensor, ...]:
    frames = target(real(64, 16, 32)).log_softmax(-1).requires_grad_()
    return frames, whole(31, 16, 20) + 1, torch.full((16,), 64), torch.full((16,), 20)


SIZES: dict[str, Callable[[], Sample]] = {
    **_elementwise(),
    **_convolutions(),
    **_poolings(),
    **_paddings(),
    **_norms(),
    **_dropouts(),
    **_sequences(),
    **_shapes(),
    **_losses(),
}
