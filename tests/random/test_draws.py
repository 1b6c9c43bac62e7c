"""Draws: the same bits in every transform, the right ranges and dtypes, wrong use refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

import purenn as pn
from purenn.errors import ArgumentError, DeviceError

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KEYS = 4

# Every draw, as a function of a key and a number of numbers.
DRAWS = {
    "bits": pn.random.bits,
    "uniform-bounds": lambda key, n: pn.random.uniform(key, n, low=-3.3, high=0.7),
    "truncated_normal-tail": lambda key, n: pn.random.truncated_normal(key, n, lower=3.0, upper=9.0),
    "bernoulli": lambda key, n: pn.random.bernoulli(key, n, p=0.3),
    "bernoulli-tensor": lambda key, n: pn.random.bernoulli(key, n, p=torch.full((), 0.3, device=key.device)),
    "randint": lambda key, n: pn.random.randint(key, n, low=-5, high=17),
    "randint-word": lambda key, n: pn.random.randint(key, n, low=0, high=2**32 - 3),
    "randint-large": lambda key, n: pn.random.randint(key, n, low=-(2**62), high=2**61 + 12345),
    "randint-all": lambda key, n: pn.random.randint(key, n, low=-(2**63), high=2**63),
    "permutation": pn.random.permutation,
    "categorical": lambda key, n: pn.random.categorical(
        key, torch.arange(5, dtype=torch.float32, device=key.device), shape=n
    ),
    "categorical-float64": lambda key, n: pn.random.categorical(
        key, torch.arange(5, dtype=torch.float32, device=key.device).double(), shape=n
    ),
}
for _dtype in FLOATS:
    _name = str(_dtype).removeprefix("torch.")
    DRAWS |= {
        f"uniform-{_name}": lambda key, n, dtype=_dtype: pn.random.uniform(key, n, dtype=dtype),
        f"normal-{_name}": lambda key, n, dtype=_dtype: pn.random.normal(key, n, dtype=dtype),
        f"truncated_normal-{_name}": lambda key, n, dtype=_dtype: pn.random.truncated_normal(key, n, dtype=dtype),
    }

# Numbers few enough for python integers, one more than fills their blocks, and odd ones for tensors.
SIZES = (1, 7, 65, 301)


# What key(2024) gives.
GOLDEN = {
    "uniform": [0.6036898493766785, 0.984598696231842, 0.26856327056884766, 0.08359599113464355],
    "normal": [0.11691737174987793, -0.1524375081062317, -0.9978576302528381, -0.08834563940763474],
    "double": [-0.9999833172110614, 0.09707054685421838],
    "randint": [6, 3, 5, 9, 8, 8],
    "permutation": [7, 1, 2, 0, 3, 6, 5, 4],
    "split": [[204571008, 2160964851], [4054865605, 315363698]],
    "fold_in": [4210062950, 703978096],
}


@pytest.fixture(params=DRAWS)
def draw(request):
    """One of all the draws."""
    return DRAWS[request.param]


def loop(draw, keys, n):
    """What vmap must give."""
    return torch.stack([draw(key, n) for key in keys])


@pytest.mark.parametrize("n", SIZES)
def test_vmap_is_the_loop(draw, n, device):
    """Over keys in any dimension, and nested, vmap gives the stack of the single draws, bit for bit."""
    keys = pn.random.split(pn.random.key(1, device), KEYS)
    want = loop(draw, keys, n)
    assert torch.equal(torch.vmap(lambda key: draw(key, n))(keys), want)
    assert torch.equal(torch.vmap(lambda key: draw(key, n), in_dims=1)(keys.T.contiguous()), want)
    nested = torch.vmap(torch.vmap(lambda key: draw(key, n)), in_dims=1)(keys.reshape(2, 2, 2))
    assert torch.equal(nested, want.unflatten(0, (2, 2)).transpose(0, 1))


def test_empty_draws_under_vmap(draw, device):
    """No numbers for each of some keys: the batch dimension comes out where it is asked for."""
    keys = pn.random.split(pn.random.key(1, device), KEYS)
    empty = torch.vmap(lambda key: draw(key, 0), out_dims=1)(keys)
    assert (tuple(empty.shape), empty.dtype) == ((0, KEYS), draw(keys[0], 0).dtype)


def test_vmap_over_data_shares_the_draw(draw, device):
    """A key that is not batched gives every example the same numbers."""
    key = pn.random.key(1, device)
    shared = torch.vmap(lambda x: draw(key, 70) + 0 * x.to(torch.int64))(torch.arange(3, device=device))
    assert torch.equal(shared, draw(key, 70).expand(3, -1) + torch.zeros((), dtype=torch.int64, device=device))


def test_single_numbers_within_transformations(draw, device):
    """A draw of shape () is itself within a gradient, a jvp, and a vmap that does not map its key."""
    key = pn.random.key(1, device)
    n = 1 if draw is pn.random.permutation else ()
    want, one = draw(key, n).double(), torch.ones((), dtype=torch.float64, device=device)
    assert torch.equal(torch.func.grad(lambda x: (x * draw(key, n)).sum())(one), want.sum())
    assert torch.equal(torch.func.jvp(lambda x: x * draw(key, n).double(), (one,), (one,))[1], want)
    mapped = torch.vmap(lambda x: x * draw(key, n).double())(one.expand(3))
    assert torch.equal(mapped, want.expand(3, *want.shape))


@pytest.mark.parametrize("n", SIZES)
def test_trace_gives_the_same_bits(draw, n, device):
    """A graph traced with fake tensors gives, for other keys, the bits of the eager draw."""
    key, other = pn.random.split(pn.random.key(2, device))
    traced = make_fx(lambda key: draw(key, n), tracing_mode="fake")(key)
    assert torch.equal(traced(other), draw(other, n))


def test_inside_grad(draw, device):
    """Within torch.func.grad a draw is what it is outside."""
    key = pn.random.key(4, device)

    def scaled(x):
        numbers = draw(key, 70)
        return (x * numbers.double()).sum(), numbers

    gradient, numbers = torch.func.grad(scaled, has_aux=True)(torch.ones((), dtype=torch.float64, device=device))
    assert torch.equal(numbers, draw(key, 70))
    assert gradient == pytest.approx(draw(key, 70).double().sum().item())


@pytest.mark.parametrize("name", [name for name in DRAWS if "16" not in name])
def test_compiles_whole(name, device):
    """torch.compile takes every draw in one graph, under vmap; bits and floats without it, too."""
    torch._dynamo.reset()
    draw, keys = DRAWS[name], pn.random.split(pn.random.key(5, device), 2)
    batched = torch.compile(torch.vmap(lambda key: draw(key, 37)), backend="aot_eager", fullgraph=True)
    assert torch.equal(batched(keys), loop(draw, keys, 37))
    if name in ("bits", "normal-float32"):
        single = torch.compile(lambda key: draw(key, 37), backend="aot_eager", fullgraph=True)
        assert torch.equal(single(keys[0]), draw(keys[0], 37))


@pytest.mark.slow
def test_jit_gives_the_same_bits(device):
    """Jitted for the CPU or the GPU, vmapped draws and folds keep every bit, in vector lanes and in what is left."""

    def everything(key):
        return pn.random.fold_in(key, 1003), pn.random.uniform(key, 35), pn.random.normal(key, 35)

    keys = pn.random.split(pn.random.key(6, device), KEYS)
    batched = pn.jit(pn.vmap(everything))(keys)
    for got, *want in zip(batched, *(everything(key) for key in keys), strict=True):
        assert torch.equal(got, torch.stack(want))


def test_numbers_of_a_seed_stay(device):
    """The numbers that programs rely on: the same in every version and on every device."""
    key = pn.random.key(2024, device)
    golden = {
        "uniform": pn.random.uniform(key, 4),
        "normal": pn.random.normal(key, 4),
        "double": pn.random.normal(key, 2, dtype=torch.float64),
        "randint": pn.random.randint(key, 6, low=0, high=10),
        "permutation": pn.random.permutation(key, 8),
        "split": pn.random.split(key),
        "fold_in": pn.random.fold_in(key, 3),
    }
    assert {name: tensor.tolist() for name, tensor in golden.items()} == GOLDEN


def test_defaults_of_torch_do_not_matter(draw, device):
    """A draw follows its key and its arguments, not torch's default device and dtype."""
    key = pn.random.key(3, device)
    for n in (7, 301):
        want = draw(key, n)
        try:
            torch.set_default_dtype(torch.float64)
            with torch.device("meta"):
                assert torch.equal(draw(key, n), want)
        finally:
            torch.set_default_dtype(torch.float32)


@given(shape=st.lists(st.integers(0, 4), max_size=3))
def test_shapes(shape):
    """Any shape, scalar and empty ones too; the numbers are those of the flat draw, in memory of their own."""
    key = pn.random.key(0)
    for asked in (tuple(shape), shape, torch.Size(shape)):
        numbers = pn.random.normal(key, asked)
        assert list(numbers.shape) == shape
        assert torch.equal(numbers.flatten(), pn.random.normal(key, math.prod(shape)))
        assert numbers.is_contiguous()
        assert numbers.untyped_storage().nbytes() == 4 * numbers.numel()
    assert tuple(pn.random.bits(key, 3).shape) == (3,)


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_and_device(dtype, device):
    """Draws have the dtype asked for and live where the key lives."""
    for function in (pn.random.uniform, pn.random.normal, pn.random.truncated_normal):
        numbers = function(pn.random.key(0, device), 5, dtype=dtype)
        assert (numbers.dtype, numbers.device.type) == (dtype, device.type)


def test_meta_key(draw):
    """A key on the meta device gives shapes without numbers."""
    assert draw(pn.random.key(0, "meta"), 9).is_meta


@pytest.mark.parametrize(("dtype", "bits"), [*zip(FLOATS, (24, 53, 8, 11), strict=True)])
def test_uniform_is_on_its_grid(dtype, bits, device):
    """Uniform numbers are multiples of 2^-p in [0, 1), with odd multiples among them."""
    multiples = pn.random.uniform(pn.random.key(0, device), 4096, dtype=dtype).double() * 2.0**bits
    assert torch.equal(multiples, multiples.round())
    assert multiples.min() >= 0
    assert multiples.max() < 2**bits
    assert 0.4 < (multiples % 2).mean() < 0.6


def test_uniform_bounds(device):
    """Scaled numbers are the unit ones, scaled; equal bounds give that value."""
    key = pn.random.key(0, device)
    unit = pn.random.uniform(key, 1000)
    assert torch.equal(pn.random.uniform(key, 1000, low=-2, high=6), unit * 8 - 2)
    assert bool((pn.random.uniform(key, 1000, high=0.3) < 0.3).all())
    assert bool((pn.random.uniform(key, 10, low=0.3, high=0.3) == torch.tensor(0.3, device=device)).all())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("lower", "upper"), [(-2.0, 2.0), (-math.inf, -1.5), (7.0, 7.5), (-0.25, math.inf), (30, 31)])
def test_truncated_normal_keeps_its_bounds(lower, upper, dtype, device):
    """No number is beyond a bound, rounded to the dtype, nor infinite, however far out the bounds are."""
    numbers = pn.random.truncated_normal(pn.random.key(0, device), 2000, lower=lower, upper=upper, dtype=dtype)
    bounds = torch.tensor([lower, upper], dtype=dtype, device=device)
    assert bool(((numbers >= bounds[0]) & (numbers <= bounds[1]) & numbers.isfinite()).all())
    assert len(numbers.unique()) > 3


def test_truncated_normal_at_its_farthest_bound(device):
    """At 38 standard deviations numbers are still finite and differ."""
    for lower, upper in ((38, math.inf), (-math.inf, -38.0)):
        numbers = pn.random.truncated_normal(
            pn.random.key(0, device), 500, lower=lower, upper=upper, dtype=torch.float64
        )
        assert bool(((numbers.abs() >= 38) & (numbers.abs() < 38.5)).all())
        assert len(numbers.unique()) > 450


def test_bernoulli_certainties(device):
    """Probability 0 is never, 1 is always, as a number and in a tensor; NaN is never."""
    key = pn.random.key(0, device)
    assert not pn.random.bernoulli(key, 1000, p=0).any()
    assert pn.random.bernoulli(key, 1000, p=1).all()
    p = torch.tensor([0.0, 1.0, math.nan], device=device)
    assert pn.random.bernoulli(key, (500, 3), p=p).sum(0).tolist() == [0, 500, 0]


def test_bernoulli_of_a_tensor_is_that_of_a_number(device):
    """A tensor of equal probabilities gives the booleans of the number."""
    key = pn.random.key(0, device)
    p = torch.full((7,), 0.25, device=device)
    assert torch.equal(pn.random.bernoulli(key, (50, 7), p=p), pn.random.bernoulli(key, (50, 7), p=0.25))


@settings(max_examples=12)
@given(
    low=st.integers(-(2**63), 2**63 - 1),
    span=st.one_of(st.integers(1, 40), st.integers(2**31 - 3, 2**32 + 3), st.integers(1, 2**64)),
)
def test_randint_is_the_high_part_of_a_product(low, span):
    """In every range, small, large and whole, integers are ``low + floor(span * r)`` with r in binary digits."""
    span = min(span, 2**63 - low)
    key, n = pn.random.key(9), 6
    if span <= 2**32:
        even, odd = pn.random.bits(key, 2 * n).view(2, n).tolist()
        digits = [(high << 32 | low_word, 64) for high, low_word in zip(even, odd, strict=True)]
    else:
        rows = pn.random.bits(key, 4 * n).view(4, n).tolist()
        digits = [(a << 96 | c << 64 | b << 32 | d, 128) for a, b, c, d in zip(*rows, strict=True)]
    want = [low + (span * r >> length) for r, length in digits]
    got = pn.random.randint(key, n, low=low, high=low + span)
    traced = make_fx(lambda key: pn.random.randint(key, n, low=low, high=low + span), tracing_mode="fake")(key)
    assert got.tolist() == want
    assert traced(key).tolist() == want


def test_permutation_shuffles_rows(device):
    """A tensor is shuffled along its first dimension by the permutation of its length, and gradients follow."""
    key = pn.random.key(0, device)
    x = torch.arange(12.0, device=device).reshape(6, 2)
    order = pn.random.permutation(key, 6)
    assert sorted(order.tolist()) == list(range(6))
    assert torch.equal(pn.random.permutation(key, x), x[order])
    gradient = torch.func.grad(lambda x: pn.random.permutation(key, x)[0].sum())(x)
    assert gradient.sum(1).tolist() == [2.0 * (row == order[0]) for row in range(6)]


def test_categorical_shapes(device):
    """The categories' dimension goes; leading sizes of `shape` are independent draws."""
    key, logits = pn.random.key(0, device), torch.zeros(3, 5, 4, device=device)
    assert tuple(pn.random.categorical(key, logits).shape) == (3, 5)
    assert tuple(pn.random.categorical(key, logits, dim=0).shape) == (5, 4)
    several = pn.random.categorical(key, logits, shape=(100, 5, 4), dim=-3)
    assert tuple(several.shape) == (100, 5, 4)
    assert several.max() == 2
    assert not torch.equal(several[0], several[1])


def test_categorical_never_takes_the_impossible(device):
    """A logit of -inf is not chosen, in any dtype."""
    for dtype in FLOATS:
        logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0], dtype=dtype, device=device)
        assert set(pn.random.categorical(pn.random.key(0, device), logits, shape=2000).tolist()) == {1, 3}


KEY = pn.random.key(0)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: pn.random.bits(KEY, -1), "shape must be an int or a tuple of ints, each at least 0, not -1"),
        (
            lambda: pn.random.uniform(KEY, (2, 1.5)),
            "shape must be an int or a tuple of ints, each at least 0, not (2, 1.5)",
        ),
        (
            lambda: pn.random.bits(KEY, True),
            "shape must be an int or a tuple of ints, each at least 0, not True",
        ),
        (
            lambda: pn.random.bits(pn.random.key(0, "meta"), (2**20, 2**20)),
            "shape asks for 1099511627776 numbers, but one key draws at most 17179869180 at once; split the key and "
            "draw in parts",
        ),
        (
            lambda: pn.random.normal(KEY, 3, dtype=torch.int32),
            "dtype must be torch.float32, torch.float64, torch.bfloat16 or torch.float16, not torch.int32",
        ),
        (
            lambda: pn.random.uniform(KEY, 3, low=2, high=1),
            "low and high must be finite numbers, low <= high, not low=2 and high=1",
        ),
        (
            lambda: pn.random.uniform(KEY, 3, high=math.inf),
            "low and high must be finite numbers, low <= high, not low=0.0 and high=inf",
        ),
        (
            lambda: pn.random.uniform(KEY, 3, high=1e5, dtype=torch.float16),
            "low=0.0 and high=100000.0 are too far out for torch.float16, whose largest number is 65504.0; choose a "
            "longer dtype or nearer bounds",
        ),
        (
            lambda: pn.random.uniform(KEY, 3, low=-1.5e308, high=1.5e308, dtype=torch.float64),
            "low=-1.5e+308 and high=1.5e+308 are too far out for torch.float64, whose largest number is "
            "1.7976931348623157e+308; choose a longer dtype or nearer bounds",
        ),
        (
            lambda: pn.random.truncated_normal(KEY, 3, lower=1.0, upper=1.0),
            "lower and upper must be numbers, lower < upper, not lower=1.0 and upper=1.0",
        ),
        (
            lambda: pn.random.truncated_normal(KEY, 3, lower=-50.0, upper=-40.0),
            "lower=-50.0 and upper=-40.0 lie where the normal distribution has no weight left in float64; choose "
            "bounds of which one is within 38 of the mean",
        ),
        (
            lambda: pn.random.truncated_normal(KEY, 3, lower=38.25, upper=math.inf),
            "lower=38.25 and upper=inf lie where the normal distribution has no weight left in float64; choose bounds "
            "of which one is within 38 of the mean",
        ),
        (
            lambda: pn.random.bernoulli(KEY, 3, p=1.5),
            "p must be a probability, a number in [0, 1] or a float tensor, not 1.5",
        ),
        (
            lambda: pn.random.bernoulli(KEY, 3, p=torch.ones(3, dtype=torch.int64)),
            "p must be a float tensor of probabilities, not one of torch.int64",
        ),
        (
            lambda: pn.random.bernoulli(KEY, (2, 3), p=torch.ones(2)),
            "p of shape [2] does not broadcast to the shape [2, 3] of the draw",
        ),
        (
            lambda: pn.random.randint(KEY, 3, low=4, high=4),
            "low and high must be ints with -2^63 <= low < high <= 2^63, not low=4 and high=4",
        ),
        (
            lambda: pn.random.randint(KEY, 3, low=0, high=2.5),
            "low and high must be ints with -2^63 <= low < high <= 2^63, not low=0 and high=2.5",
        ),
        (
            lambda: pn.random.permutation(KEY, -2),
            "x must be an int of at least 0 or a tensor to shuffle, not -2",
        ),
        (
            lambda: pn.random.permutation(KEY, True),
            "x must be an int of at least 0 or a tensor to shuffle, not True",
        ),
        (
            lambda: pn.random.permutation(KEY, torch.tensor(4)),
            "x must be an int or a tensor with at least one dimension, not a tensor without any",
        ),
        (
            lambda: pn.random.categorical(KEY, torch.tensor(0.0)),
            "logits must be a tensor with at least one dimension, the categories",
        ),
        (
            lambda: pn.random.categorical(KEY, torch.zeros(3, 2), dim=2),
            "dim must be a dimension of logits, which has 2, not 2",
        ),
        (
            lambda: pn.random.categorical(KEY, torch.zeros(3, 2), dim=None),
            "dim must be a dimension of logits, which has 2, not None",
        ),
        (
            lambda: pn.random.categorical(KEY, torch.zeros(3, 0)),
            "logits of shape [3, 0] has no categories to choose from",
        ),
        (
            lambda: pn.random.categorical(KEY, torch.zeros(3, 2), shape=(3, 7)),
            "shape [3, 7] does not end in [3], the shape of logits without its categories",
        ),
    ],
)
def test_errors(call, text):
    """Wrong arguments are refused by name, with what was expected and what came."""
    with pytest.raises(ArgumentError) as caught:
        call()
    assert str(caught.value) == text


def test_devices_must_agree():
    """A tensor beside the key must be where the key is."""
    with pytest.raises(DeviceError) as caught:
        pn.random.categorical(KEY, torch.zeros(3, device="meta"))
    assert str(caught.value) == "key is on cpu, but logits is on meta; write key.to(logits.device)"
