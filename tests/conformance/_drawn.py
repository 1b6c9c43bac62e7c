"""Layers that draw: torch's numbers cannot be had from a key, so formulas take the module's place.

A formula gets the draws by showing the layer, with the same key, an input that lets them be read: ones for a dropout,
minus ones for RReLU. It checks that they are what the layer promises, and applies them to the input by the textbook.

Networks that draw in many places (attention, Transformers, recurrent layers) have no such formula. There the columns
that compare with torch check that the key matters, and that nothing else does.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from _cases import Case, tensors
from _samplers import distinct, real, sample
from _samples import Sample
from torch import Tensor, nn

import purenn as pn

_ALPHA = 1.7580993408473766


def _dropped(case: Case, module: Any, x: Tensor) -> Tensor:
    """Zeros or ``x / (1 - p)``; whole channels for the forms with a dimension."""
    shown = _shown(case, torch.ones_like(x))
    kept = shown != 0
    _check_share(kept, module.p, by_channel="1d" in case.row or "2d" in case.row or "3d" in case.row)
    return torch.where(kept, x / (1 - module.p) if module.p < 1 else x, 0)


def _alpha_dropped(case: Case, module: Any, x: Tensor) -> Tensor:
    """``a x + b``, where dropped ``b - a alpha``, so that mean and variance stay."""
    if module.p == 1:
        return torch.zeros_like(x)
    scale = 1 / math.sqrt((1 - module.p) * (1 + module.p * _ALPHA**2))
    shift = scale * module.p * _ALPHA
    shown = _shown(case, torch.ones_like(x))
    kept = (shown - (scale + shift)).abs() < 1e-12
    _check_share(kept, module.p, by_channel="Feature" in case.row)
    return torch.where(kept, scale * x, -scale * _ALPHA) + shift


def _random_slope(case: Case, module: Any, x: Tensor) -> Tensor:
    """``slope * x`` where negative, with slopes between the bounds."""
    slope = -_shown(case, -torch.ones_like(x))
    assert (slope >= module.lower).all()
    assert (slope <= module.upper).all()
    assert x.numel() < 2 or slope.unique().numel() > 1
    return torch.where(x > 0, x, slope * x)


def _fractional(case: Case, _: nn.Module, x: Tensor) -> Tensor:
    """The elements at the indices that the same draw gives; they are the largest around."""
    p = pn.replace(case.p, return_indices=True)
    _, indices = p(x.detach(), key=case.key)
    space = indices.dim() - (3 if "3d" in case.row else 2)
    y = x.flatten(space).gather(space, indices.flatten(space)).reshape(indices.shape)
    assert y.detach().mean() > x.detach().mean()
    return y


def _shown(case: Case, x: Tensor) -> Tensor:
    with torch.no_grad():
        return case.p(x.detach(), key=case.key)


def _check_share(kept: Tensor, rate: float, *, by_channel: bool) -> None:
    if by_channel:
        channels = kept.flatten(2)
        assert torch.equal(channels.all(-1), channels.any(-1))
        kept = channels[..., :1]
    count = kept.numel()
    share = kept.double().mean().item()
    assert abs(share - (1 - rate)) <= 5 * math.sqrt(rate * (1 - rate) / count), share


def key_decides(case: Case, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Without formula: the same key gives the same, other keys something else; no key gives what torch evaluates."""
    floats, others = case.inputs()
    first, again = case.outputs(case.p, floats, others), case.outputs(case.p, floats, others)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    evaluated = tensors(module.eval()(*args, **kwargs))
    assert not torch.allclose(first[0], evaluated[0])
    return None


def _rates(cls: Any, formula: Callable[..., Tensor], *shape: int) -> Callable[[], list[Sample]]:
    return lambda: [
        sample(
            cls,
            rate,
            call=(real(*shape),),
            key=1,
            train=True,
            expected=formula,
            name=f"drawn_{rate}",
            awkward=rate in (0.0, 1.0),
        )
        for rate in (0.5, 0.0, 1.0)
    ]


def _slopes() -> list[Sample]:
    return [sample(nn.RReLU, call=(distinct(4, 6),), key=1, train=True, expected=_random_slope, name="drawn")]


def _places(cls: type[nn.Module], *shape: int) -> Callable[[], list[Sample]]:
    return lambda: [
        sample(cls, 2, output_ratio=0.6, call=(distinct(*shape),), key=1, expected=_fractional, name="drawn")
    ]


def _network(
    cls: Callable[..., nn.Module], *args: Any, call: list[tuple], **options: Any
) -> Callable[[], list[Sample]]:
    return lambda: [
        sample(
            cls,
            *args,
            call=tuple(real(*shape) for shape in call),
            key=1,
            train=True,
            expected=key_decides,
            name="drawn",
            **options,
        )
    ]


def _encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5), 1, enable_nested_tensor=False)


def _decoder() -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, dropout=0.5), 1)


_SOURCE, _TARGET = (5, 2, 4), (3, 2, 4)
DRAWN: dict[str, Callable[[], list[Sample]]] = {
    "Dropout": _rates(nn.Dropout, _dropped, 6, 5),
    "Dropout1d": _rates(nn.Dropout1d, _dropped, 6, 4, 3),
    "Dropout2d": _rates(nn.Dropout2d, _dropped, 6, 4, 2, 2),
    "Dropout3d": _rates(nn.Dropout3d, _dropped, 6, 4, 2, 1, 2),
    "AlphaDropout": _rates(nn.AlphaDropout, _alpha_dropped, 6, 5),
    "FeatureAlphaDropout": _rates(nn.FeatureAlphaDropout, _alpha_dropped, 6, 4, 2, 2),
    "RReLU": _slopes,
    "FractionalMaxPool2d": _places(nn.FractionalMaxPool2d, 2, 3, 6, 6),
    "FractionalMaxPool3d": _places(nn.FractionalMaxPool3d, 2, 3, 5, 5, 5),
    "MultiheadAttention": _network(nn.MultiheadAttention, 4, 2, dropout=0.5, call=[_TARGET, _SOURCE, _SOURCE]),
    "TransformerEncoderLayer": _network(nn.TransformerEncoderLayer, 4, 2, 8, dropout=0.5, call=[_SOURCE]),
    "TransformerDecoderLayer": _network(nn.TransformerDecoderLayer, 4, 2, 8, dropout=0.5, call=[_TARGET, _SOURCE]),
    "TransformerEncoder": _network(_encoder, call=[_SOURCE]),
    "TransformerDecoder": _network(_decoder, call=[_TARGET, _SOURCE]),
    "Transformer": _network(nn.Transformer, 4, 2, 1, 1, 8, dropout=0.5, call=[_SOURCE, _TARGET]),
    "RNN": _network(nn.RNN, 2, 3, 2, dropout=0.5, call=[(4, 2, 2)]),
    "GRU": _network(nn.GRU, 2, 3, 2, dropout=0.5, call=[(4, 2, 2)]),
    "LSTM": _network(nn.LSTM, 2, 3, 2, dropout=0.5, call=[(4, 2, 2)]),
}
