"""Random numbers while a module runs purely: all of them come from the run's key.

Without a key dropout and its relatives do nothing, as in the layers of this library. Code that asks for random numbers
itself cannot go without.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from bridge._pure_context import Context, Handler
from purenn import layers, random
from purenn._modes import is_plain

_NORMALS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _dropout(cls: Any, layer: Callable[..., Tensor]) -> Handler:
    def run(context: Context, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        key = context.next_key() if training and p else None
        y = input if key is None else layer(cls(p), input, key=key)
        return context.writes.put(input, y) if inplace and y is not input else y

    return run


def _channel_dropout(unbatched: int | None) -> Handler:
    """Dropout of whole channels, which are dimension 1, or dimension 0 of an input of `unbatched` dimensions."""

    def run(context: Context, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        key = context.next_key() if training and p else None
        if key is None:
            return input
        lead = 1 if input.dim() == unbatched else 2
        kept = random.bernoulli(key, (*input.shape[:lead], *[1] * (input.dim() - lead)), p=1 - p)
        y = torch.where(kept, input / (1 - p) if p < 1 else input, 0)
        return context.writes.put(input, y) if inplace else y

    return run


def _rrelu(
    context: Context,
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    key = context.next_key() if training else None
    y = layers.rrelu(layers.RReLU(lower, upper), input, key=key)
    return context.writes.put(input, y) if inplace else y


def _fractional(number: int, indices: bool) -> Handler:
    cls: Any = (layers.FractionalMaxPool2d, layers.FractionalMaxPool3d)[number - 2]
    function = getattr(F, f"fractional_max_pool{number}d_with_indices")

    def run(
        context: Context,
        input: Tensor,
        kernel_size: Any,
        output_size: Any = None,
        output_ratio: Any = None,
        return_indices: bool = False,
        _random_samples: Tensor | None = None,
    ) -> Any:
        if _random_samples is not None and is_plain():
            y = function(input, kernel_size, output_size, output_ratio, True, _random_samples)
            return y if indices or return_indices else y[0]
        key = context.next_key() if _random_samples is None else None
        options = {"output_size": output_size, "output_ratio": output_ratio, "random_samples": _random_samples}
        p = cls(kernel_size, return_indices=indices or return_indices, **options)
        return p(input, key=key)

    return run


# Draws of given sizes. All numbers are drawn on the key's device, and moved if something else is asked for.


def _sized(name: str, draw: Callable[..., Tensor]) -> Handler:
    def run(context: Context, *size: Any, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], (int, torch.SymInt)) else size
        return _drawn(context, f"torch.{name}", draw, _.get("size", shape), dtype or torch.get_default_dtype(), device)

    return run


def _like(name: str, draw: Callable[..., Tensor]) -> Handler:
    def run(context: Context, input: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return _drawn(context, f"torch.{name}", draw, input.shape, dtype or input.dtype, input.device)

    return run


def _drawn(
    context: Context, name: str, draw: Callable[..., Tensor], shape: Any, dtype: torch.dtype, device: Any
) -> Tensor:
    key = context.required_key(name)
    return draw(key, tuple(shape), dtype=dtype if dtype in _NORMALS else torch.float32).to(device, dtype)


def _randint(context: Context, *args: Any, size: Any = None, high: Any = None, low: int = 0, **options: Any) -> Tensor:
    given = [*args]
    size = given.pop() if size is None else size
    high = given.pop() if high is None else high
    low = given.pop() if given else low
    key = context.required_key("torch.randint")
    dtype, device = options.get("dtype") or torch.int64, options.get("device")
    return random.randint(key, tuple(size), low=low, high=high).to(device, dtype)


def _randint_like(context: Context, input: Tensor, *bounds: int, low: int = 0, high: int = 0, **_: Any) -> Tensor:
    low, high = (low, bounds[0]) if len(bounds) == 1 else bounds or (low, high)
    key = context.required_key("torch.randint_like")
    return random.randint(key, tuple(input.shape), low=low, high=high).to(input.dtype)


def _randperm(context: Context, n: int, *, dtype: torch.dtype = torch.int64, device: Any = None, **_: Any) -> Tensor:
    return random.permutation(context.required_key("torch.randperm"), n).to(device, dtype)


def _normal(context: Context, mean: Any, std: Any = 1.0, size: Any = None, **options: Any) -> Tensor:
    like = next((value for value in (mean, std) if isinstance(value, Tensor)), None)
    shape = size if size is not None else torch.broadcast_shapes(getattr(mean, "shape", ()), getattr(std, "shape", ()))
    dtype = options.get("dtype") or (torch.get_default_dtype() if like is None else like.dtype)
    device = options.get("device") if like is None else like.device
    return _drawn(context, "torch.normal", random.normal, shape, dtype, device) * std + mean


def _bernoulli(context: Context, input: Tensor, p: float | None = None, **_: Any) -> Tensor:
    chance = input.detach() if p is None else p
    return random.bernoulli(context.required_key("torch.bernoulli"), tuple(input.shape), p=chance).to(input.dtype)


def _multinomial(context: Context, input: Tensor, num_samples: int, replacement: bool = False, **_: Any) -> Tensor:
    key, logits = context.required_key("torch.multinomial"), input.detach().log()
    if replacement:
        return random.categorical(key, logits, shape=(num_samples, *logits.shape[:-1])).movedim(0, -1)
    # The largest sums of logits and Gumbel noise are a draw without replacement.
    noise = -(-random.uniform(key, tuple(logits.shape), dtype=torch.float64).clamp_min(1e-300).log()).log()
    return (logits + noise).topk(num_samples, -1).indices


# Draws in place: the numbers take the place of what the tensor was.


def _in_place(name: str, draw: Callable[..., Tensor]) -> Handler:
    def run(context: Context, input: Tensor, *args: Any, generator: Any = None, **options: Any) -> Tensor:
        key, dtype = context.required_key(f"Tensor.{name}"), input.dtype
        drawn = draw(key, tuple(input.shape), dtype if dtype in _NORMALS else torch.float32, *args, **options)
        return context.writes.put(input, drawn.to(input.device, dtype))

    return run


def _uniform_in(key: Tensor, shape: tuple, dtype: torch.dtype, *bounds: float, **named: float) -> Tensor:
    # The first bound is named `from`, which is no name in Python.
    low, high = (*bounds, *named.values()) or (0.0, 1.0)
    return random.uniform(key, shape, dtype=dtype) * (high - low) + low


def _normal_in(key: Tensor, shape: tuple, dtype: torch.dtype, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return random.normal(key, shape, dtype=dtype) * std + mean


def _log_normal_in(key: Tensor, shape: tuple, dtype: torch.dtype, mean: float = 1.0, std: float = 2.0) -> Tensor:
    return _normal_in(key, shape, dtype, mean, std).exp()


def _bernoulli_in(key: Tensor, shape: tuple, dtype: torch.dtype, p: float | Tensor = 0.5) -> Tensor:
    return random.bernoulli(key, shape, p=p)


def _exponential_in(key: Tensor, shape: tuple, dtype: torch.dtype, lambd: float = 1.0) -> Tensor:
    return -torch.log1p(-random.uniform(key, shape, dtype=dtype)) / lambd


def _cauchy_in(key: Tensor, shape: tuple, dtype: torch.dtype, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return median + sigma * torch.tan(math.pi * (random.uniform(key, shape, dtype=dtype) - 0.5))


def _geometric_in(key: Tensor, shape: tuple, dtype: torch.dtype, p: float) -> Tensor:
    return (_exponential_in(key, shape, dtype) / -math.log1p(-p)).ceil().clamp_min(1)


def _random_in(key: Tensor, shape: tuple, dtype: torch.dtype, *bounds: int) -> Tensor:
    low, high = (0, *bounds)[-2:] if bounds else (0, 2**24)
    return random.randint(key, shape, low=low, high=high)


_IN_PLACE = {
    "uniform_": _uniform_in,
    "normal_": _normal_in,
    "log_normal_": _log_normal_in,
    "bernoulli_": _bernoulli_in,
    "exponential_": _exponential_in,
    "cauchy_": _cauchy_in,
    "geometric_": _geometric_in,
    "random_": _random_in,
}


def _native_dropout(context: Context, input: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    key = context.next_key() if train is not False and p else None
    kept = torch.ones_like(input, dtype=torch.bool)
    if key is None:
        return input.clone(), kept
    kept = kept & random.bernoulli(key, tuple(input.shape), p=1 - p)
    return torch.where(kept, input / (1 - p) if p < 1 else input, 0), kept


def _kaiming_uniform(
    context: Context, tensor: Tensor, a: float = 0, mode: Any = "fan_in", nonlinearity: Any = "leaky_relu", **_: Any
) -> Tensor:
    bound = math.sqrt(3 / init._calculate_correct_fan(tensor, mode)) * init.calculate_gain(nonlinearity, a)
    return HANDLERS[Tensor.uniform_](context, tensor, -bound, bound)


def _in_torch(of_functional: Handler, *, in_place: bool = False) -> Handler:
    """For the function of `torch` of the same name, whose option is `train`, and which may write into its input."""

    def run(context: Context, input: Tensor, p: float, train: bool) -> Tensor:
        return of_functional(context, input, p, train, in_place)

    return run


_DROPOUTS = {
    "dropout": _dropout(layers.Dropout, layers.dropout),
    "alpha_dropout": _dropout(layers.AlphaDropout, layers.alpha_dropout),
    "feature_alpha_dropout": _dropout(layers.FeatureAlphaDropout, layers.feature_alpha_dropout),
    "feature_dropout": _channel_dropout(None),
}

HANDLERS: dict[Any, Handler] = {
    **{getattr(torch, name): _in_torch(handler) for name, handler in _DROPOUTS.items()},
    **{getattr(torch, f"{name}_"): _in_torch(handler, in_place=True) for name, handler in _DROPOUTS.items()},
    torch.native_dropout: _native_dropout,
    F.dropout: _DROPOUTS["dropout"],
    F.dropout1d: _channel_dropout(2),
    F.dropout2d: _channel_dropout(None),
    F.dropout3d: _channel_dropout(4),
    F.alpha_dropout: _DROPOUTS["alpha_dropout"],
    F.feature_alpha_dropout: _DROPOUTS["feature_alpha_dropout"],
    F.rrelu: _rrelu,
    torch.rrelu: _rrelu,
    torch.rrelu_: functools.partial(_rrelu, inplace=True),
    **{
        getattr(F, f"{start}fractional_max_pool{n}d{end}"): _fractional(n, bool(end))
        for n in (2, 3)
        for start, end in (("", ""), ("_", ""), ("", "_with_indices"))
    },
    torch.rand: _sized("rand", random.uniform),
    torch.randn: _sized("randn", random.normal),
    torch.rand_like: _like("rand_like", random.uniform),
    torch.randn_like: _like("randn_like", random.normal),
    torch.randint: _randint,
    torch.randint_like: _randint_like,
    torch.randperm: _randperm,
    torch.normal: _normal,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    torch.multinomial: _multinomial,
    Tensor.multinomial: _multinomial,
    **{getattr(Tensor, name): _in_place(name, draw) for name, draw in _IN_PLACE.items()},
    # Those of torch.nn.init that hand themselves to modes; what the others call is seen.
    init.uniform_: lambda context, tensor, a, b, **_: HANDLERS[Tensor.uniform_](context, tensor, a, b),
    init.normal_: lambda context, tensor, mean, std, **_: HANDLERS[Tensor.normal_](context, tensor, mean, std),
    init.constant_: lambda context, tensor, val: context.writes.in_place(Tensor.fill_, (tensor, val), {}),
    init.kaiming_uniform_: _kaiming_uniform,
}
