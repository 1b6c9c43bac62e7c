"""`bridge.convert` on one module of every class of torch.nn that has a native counterpart: same outputs, same names."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing._internal.common_modules import module_db

import bridge
import purenn as pn

SAMPLES = {info.module_cls: info for info in module_db if "Lazy" not in info.module_cls.__name__}


def distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().sum(-1)


# Classes that torch has no samples of, and options that its samples leave out: name -> arguments, options, shapes of
# the inputs.
OWN: list[tuple[str, tuple, dict[str, Any], tuple]] = [
    ("AlphaDropout", (0.3,), {}, ((2, 3),)),
    ("ChannelShuffle", (2,), {}, ((1, 4, 3, 3),)),
    ("Conv2d", (4, 6, [3, 2]), {"padding": "same", "padding_mode": "circular", "groups": 2}, ((2, 4, 5, 5),)),
    ("CosineSimilarity", (), {"dim": 0, "eps": 0.1}, ((4, 3), (4, 3))),
    ("CrossMapLRN2d", (3,), {"alpha": 0.1}, ((2, 5, 3, 3),)),
    ("Dropout", (0.3,), {"inplace": True}, ((2, 3),)),
    ("Dropout1d", (0.3,), {}, ((2, 3, 4),)),
    ("Dropout2d", (0.3,), {}, ((2, 3, 4, 4),)),
    ("Dropout3d", (0.3,), {}, ((2, 3, 4, 4, 4),)),
    ("FeatureAlphaDropout", (0.3,), {}, ((2, 3, 4),)),
    ("Flatten", (1, 2), {}, ((2, 3, 4, 5),)),
    ("Fold", ([4, 5], (2, 2)), {"padding": 1}, ((2, 12, 30),)),
    ("Hardsigmoid", (), {}, ((5, 3),)),
    ("Identity", (), {}, ((5, 3),)),
    ("InstanceNorm2d", (3,), {"affine": True, "track_running_stats": True, "momentum": None}, ((2, 3, 4, 4),)),
    ("LayerNorm", ([3, 4],), {"bias": False}, ((2, 3, 4),)),
    ("PairwiseDistance", (1.0,), {"keepdim": True}, ((5, 3), (5, 3))),
    ("PixelShuffle", (2,), {}, ((1, 8, 3, 3),)),
    ("PixelUnshuffle", (2,), {}, ((1, 2, 4, 4),)),
    ("RReLU", (0.1, 0.2), {}, ((5, 3),)),
    ("Sequential", (nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 2))), {}, ((5, 3),)),
    ("Sequential", (), {}, ((5, 3),)),
    ("TransformerDecoder", (nn.TransformerDecoderLayer(4, 2, 8), 2, nn.LayerNorm(4)), {}, ((3, 2, 4), (5, 2, 4))),
    ("TransformerEncoderLayer", (4, 1, 8), {"activation": nn.SiLU(), "norm_first": True}, ((3, 2, 4),)),
    ("TransformerEncoderLayer", (4, 1, 8), {"activation": torch.tanh, "batch_first": True}, ((3, 2, 4),)),
    ("TripletMarginLoss", (0.5,), {"p": 1, "swap": True}, ((5, 3), (5, 3), (5, 3))),
    ("TripletMarginWithDistanceLoss", (), {"swap": True}, ((5, 3), (5, 3), (5, 3))),
    ("TripletMarginWithDistanceLoss", (), {"distance_function": distance}, ((5, 3), (5, 3), (5, 3))),
    ("Unflatten", (1, [2, 3]), {}, ((4, 6),)),
    ("Unfold", ((2, 3),), {"stride": 2}, ((2, 3, 5, 6),)),
    ("Upsample", (), {"scale_factor": (2, 3), "mode": "bilinear", "align_corners": True}, ((2, 3, 4, 4),)),
    ("UpsamplingBilinear2d", ((5, 6),), {}, ((2, 3, 4, 4),)),
    ("UpsamplingNearest2d", (), {"scale_factor": 2}, ((2, 3, 4, 4),)),
    ("LSTM", (3, 4, 2), {"bidirectional": True, "proj_size": 2, "bias": False, "batch_first": True}, ((2, 5, 3),)),
    ("GRU", (3, 4, 3), {"dropout": 0.5}, ((5, 2, 3),)),
    ("RNN", (3, 4), {"nonlinearity": "relu", "bidirectional": True}, ((5, 2, 3),)),
]


def names_of(module: nn.Module) -> set[str]:
    return {name for name, _ in (*module.named_parameters(), *module.named_buffers())}


def assert_same(module: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The converted module is native, has the module's outputs, and the names that the report says."""
    p = bridge.convert(module)
    assert type(p).__name__ == type(module).__name__
    assert type(p).__module__.startswith("purenn.")
    # torch has names for what are positions here, and for nothing else.
    first = (kwargs.pop("input"),) if "input" in kwargs else ()
    y, expected = p(*first, *args, **kwargs), module(*first, *args, **kwargs)
    torch.testing.assert_close(y[0] if pn.is_stateful(p) else y, expected, rtol=0, atol=1e-9, equal_nan=True)
    paths = {path for path, _ in pn.tree.named_leaves(p)}
    assert set(bridge.report(module).paths.values()) == paths
    if not isinstance(module, nn.Sequential):
        assert paths == names_of(module)


@pytest.mark.parametrize("cls", SAMPLES, ids=lambda cls: cls.__name__)
@pytest.mark.filterwarnings("ignore")
def test_torch_samples(cls: type[nn.Module], device: torch.device) -> None:
    """On torch's own samples of a class, the container's outputs are the module's, and its paths the names there."""
    info = SAMPLES[cls]
    samples = info.module_inputs_func(info, device=device, dtype=torch.float64, requires_grad=False, training=False)
    for sample in samples:
        made, inputs = sample.constructor_input, sample.forward_input
        module = cls(*made.args, **made.kwargs).to(device, torch.float64).eval()
        if cls is nn.FractionalMaxPool3d and inputs.args[0].ndim == 4:
            continue  # for a single example torch takes the numbers of a whole batch as well
        assert_same(module, *inputs.args, **inputs.kwargs)


@pytest.mark.parametrize("number", range(len(OWN)), ids=lambda number: OWN[number][0])
def test_own_samples(number: int, device: torch.device) -> None:
    """The same for the classes and options that torch has no samples of."""
    name, arguments, options, shapes = OWN[number]
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = getattr(nn, name)(*arguments, **options).to(device, torch.float64).eval()
        inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes]
        assert_same(module, *inputs)


def test_samples_with_indices(device: torch.device) -> None:
    """The same for classes whose inputs are indices."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64, device=device)
    for pool, cls, spatial in (
        (F.max_pool1d, nn.MaxUnpool1d, (4,)),
        (F.max_pool2d, nn.MaxUnpool2d, (4, 4)),
        (F.max_pool3d, nn.MaxUnpool3d, (4, 4, 4)),
    ):
        values = x[(slice(None), slice(None), *[0] * (3 - len(spatial)))]
        assert_same(cls(2), *pool(values, 2, return_indices=True))
    indices = torch.tensor([[1, 2, 0], [4, 1, 3]], device=device)
    options = {"dtype": torch.float64, "device": device}
    assert_same(nn.Embedding(5, 3, padding_idx=-1, max_norm=0.5, **options), indices)
    assert_same(nn.EmbeddingBag(5, 3, mode="sum", padding_idx=1, **options), indices)
    adaptive = nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10], 2, head_bias=True, **options)
    assert_same(adaptive, torch.randn(4, 8, **options), torch.tensor([0, 6, 12, 19], device=device))


def test_every_counterpart_is_converted() -> None:
    """There is no class of purenn with the name of a class of torch.nn that is not in the samples."""
    tested = {cls.__name__ for cls in SAMPLES} | {name for name, *_ in OWN}
    tested |= {"MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d", "EmbeddingBag", "AdaptiveLogSoftmaxWithLoss"}
    names = {*pn.layers.__all__, *pn.losses.__all__}
    both = {name for name in names if isinstance(getattr(nn, name, None), type)}
    assert both - tested == set()
    assert len(both) > 120
