import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from purenn import initializers, random
from purenn.errors import ArgumentError, KeyReuseError

FIXED = {
    "constant": (partial(initializers.constant, value=0.5), (3, 4)),
    "dirac": (partial(initializers.dirac, groups=2), (6, 4, 3)),
    "eye": (initializers.eye, (3, 4)),
    "ones": (initializers.ones, (3, 4)),
    "zeros": (initializers.zeros, (3, 4)),
}
DRAWN = {
    "uniform": (partial(initializers.uniform, low=-2.0, high=3.0), (3, 4)),
    "normal": (partial(initializers.normal, mean=1.0, std=2.0), (3, 4)),
    "trunc_normal": (partial(initializers.trunc_normal, std=0.02), (3, 4)),
    "xavier_uniform": (initializers.xavier_uniform, (3, 4)),
    "xavier_normal": (initializers.xavier_normal, (3, 4, 2)),
    "kaiming_uniform": (partial(initializers.kaiming_uniform, nonlinearity="relu"), (3, 4)),
    "kaiming_normal": (partial(initializers.kaiming_normal, mode="fan_out"), (3, 4, 2)),
    "lecun_uniform": (initializers.lecun_uniform, (3, 4)),
    "lecun_normal": (initializers.lecun_normal, (3, 4)),
    "variance_scaling": (partial(initializers.variance_scaling, mode="fan_avg"), (3, 4)),
    "fan_in_uniform": (initializers.fan_in_uniform, (3, 4)),
    "orthogonal": (initializers.orthogonal, (3, 4, 2)),
    "sparse": (partial(initializers.sparse, sparsity=0.5), (4, 3)),
}
ALL = FIXED | DRAWN
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

of_all = pytest.mark.parametrize(("initializer", "shape"), ALL.values(), ids=ALL.keys())
of_drawn = pytest.mark.parametrize(("initializer", "shape"), DRAWN.values(), ids=DRAWN.keys())
of_fixed = pytest.mark.parametrize(("initializer", "shape"), FIXED.values(), ids=FIXED.keys())


@pytest.fixture
def key(device: torch.device) -> Tensor:
    """One key on the device."""
    return random.key(20).to(device)


class DrawsOf(TorchDispatchMode):
    """Notes the parameters of every draw that torch makes: bounds of the uniform, mean and std of the normal ones."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: list[tuple[float, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default):
            self.parameters.append(args[1:])
        return func(*args, **(kwargs or {}))


def drawn_by_torch(call: Callable[[], object]) -> list[tuple[float, ...]]:
    """The parameters of the draws that a call makes."""
    with DrawsOf() as draws:
        call()
    return draws.parameters


def assert_follows(numbers: Tensor, distribution: stats.rv_continuous) -> None:
    """Kolmogorov and Smirnov do not doubt the distribution; the keys are fixed, so this never fails by chance."""
    assert stats.kstest(numbers.double().flatten().cpu().numpy(), distribution.cdf).pvalue > 0.01


# Scales


SCALED_LIKE_TORCH = {
    "xavier_uniform": {},
    "xavier_normal": {"gain": 1.7},
    "kaiming_uniform": {"a": 0.3, "mode": "fan_out"},
    "kaiming_normal": {"nonlinearity": "tanh"},
}


@pytest.mark.parametrize("shape", [(3, 4), (5, 2, 3, 3)])
@pytest.mark.parametrize("options", [{}, None], ids=["defaults", "options"])
@pytest.mark.parametrize("name", SCALED_LIKE_TORCH)
def test_scales_are_those_of_torch(name: str, options: dict | None, shape: tuple[int, ...], key: Tensor) -> None:
    """Bounds and standard deviations are to the bit what torch's function of the same name draws with."""
    options = SCALED_LIKE_TORCH[name] if options is None else options
    of_torch = getattr(torch.nn.init, f"{name}_")
    [(first, second)] = drawn_by_torch(lambda: of_torch(torch.empty(shape), **options))
    ours = getattr(initializers, name)(key, shape, dtype=torch.float64, **options)
    if name.endswith("uniform"):
        expected = random.uniform(key, shape, low=first, high=second, dtype=torch.float64)
    else:
        expected = first + second * random.normal(key, shape, dtype=torch.float64)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    "layer", [partial(torch.nn.Linear, 7, 3), partial(torch.nn.Conv2d, 4, 6, 3, groups=2)], ids=["Linear", "Conv2d"]
)
def test_fan_in_uniform_is_the_start_of_torch_layers(layer: Callable[[], torch.nn.Module], key: Tensor) -> None:
    """The bounds are those with which torch fills the weight and the bias of its layers."""
    [(_, weight_bound), (_, bias_bound)] = drawn_by_torch(layer)
    shape = tuple(layer().weight.shape)
    fan_in, _ = initializers.fan_in_and_fan_out(shape)
    weight = initializers.fan_in_uniform(key, shape, dtype=torch.float64)
    bias = initializers.fan_in_uniform(key, 3, fan_in=fan_in, dtype=torch.float64)
    torch.testing.assert_close(weight, _uniform(key, shape, weight_bound), rtol=1e-14, atol=1e-15)
    assert torch.equal(bias, _uniform(key, 3, bias_bound))


def _uniform(key: Tensor, shape: int | tuple[int, ...], bound: float) -> Tensor:
    return random.uniform(key, shape, low=-bound, high=bound, dtype=torch.float64)


def test_fan_in_uniform_without_inputs_is_zero(key: Tensor) -> None:
    """A bias of a layer without inputs starts at 0, as in torch."""
    assert torch.equal(initializers.fan_in_uniform(key, 3, fan_in=0), torch.zeros(3, device=key.device))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=5))
def test_fans_are_those_of_torch(shape: list[int]) -> None:
    """Fan-in and fan-out are torch's for a tensor of that shape."""
    ours = initializers.fan_in_and_fan_out(shape)
    assert ours == torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape, device="meta"))


@pytest.mark.parametrize("param", [None, 0, 0.2, -1.5])
@pytest.mark.parametrize(
    "nonlinearity",
    [
        *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("sigmoid", "tanh", "relu", "leaky_relu", "selu"),
    ],
)
def test_gains_are_those_of_torch(nonlinearity: str, param: float | None) -> None:
    """Every gain equals torch's."""
    gain = initializers.calculate_gain(nonlinearity, param)
    assert isinstance(gain, float)
    assert gain == torch.nn.init.calculate_gain(nonlinearity, param)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 12.0), ("fan_out", 30.0), ("fan_avg", 21.0)])
@pytest.mark.parametrize("distribution", ["uniform", "normal", "truncated_normal"])
def test_variance_scaling(distribution: str, mode: str, fan: float, key: Tensor) -> None:
    """Whatever the distribution, the variance is scale over fan."""
    keys = random.split(key, 600)

    def draw(key: Tensor) -> Tensor:
        return initializers.variance_scaling(
            key, (10, 4, 3), scale=5.0, mode=mode, distribution=distribution, dtype=torch.float64
        )

    numbers = torch.func.vmap(draw)(keys)
    std = math.sqrt(5 / fan)
    wide = std / stats.truncnorm(-2, 2).std()
    expected = {
        "uniform": stats.uniform(-math.sqrt(3) * std, 2 * math.sqrt(3) * std),
        "normal": stats.norm(0, std),
        "truncated_normal": stats.truncnorm(-2, 2, 0, wide),
    }[distribution]
    assert expected.std() == pytest.approx(std, rel=1e-12)
    assert numbers.std().item() == pytest.approx(std, rel=0.01)
    assert_follows(numbers, expected)


def test_variance_scaling_by_zero_is_zero(key: Tensor) -> None:
    """A scale of 0 gives zeros in every distribution."""
    for distribution in ("uniform", "normal", "truncated_normal"):
        numbers = initializers.variance_scaling(key, (2, 3), scale=0.0, distribution=distribution)
        assert torch.equal(numbers, torch.zeros(2, 3, device=key.device))


def test_lecun_has_the_variance_of_one_over_the_fan_in(key: Tensor) -> None:
    """LeCun's initializers are U(-sqrt(3 / fan_in), sqrt(3 / fan_in)) and N(0, 1 / fan_in)."""
    uniform = initializers.lecun_uniform(key, (4, 3, 2), dtype=torch.float64)
    normal = initializers.lecun_normal(key, (4, 3, 2), dtype=torch.float64)
    torch.testing.assert_close(uniform, _uniform(key, (4, 3, 2), math.sqrt(3 / 6)), rtol=1e-14, atol=1e-15)
    expected = random.normal(key, (4, 3, 2), dtype=torch.float64) * math.sqrt(1 / 6)
    torch.testing.assert_close(normal, expected, rtol=1e-14, atol=1e-15)


# Distributions

CONTINUOUS = {
    "uniform": (partial(initializers.uniform, low=-2.0, high=3.0), stats.uniform(-2, 5)),
    "uniform by default": (initializers.uniform, stats.uniform(0, 1)),
    "normal": (partial(initializers.normal, mean=1.0, std=2.0), stats.norm(1, 2)),
    "normal by default": (initializers.normal, stats.norm(0, 1)),
    "trunc_normal": (partial(initializers.trunc_normal, mean=1, std=2, a=0, b=4), stats.truncnorm(-0.5, 1.5, 1, 2)),
    "trunc_normal by default": (initializers.trunc_normal, stats.truncnorm(-2, 2)),
    "trunc_normal far out": (
        partial(initializers.trunc_normal, std=0.1, a=0.8, b=math.inf),
        stats.truncnorm(8, math.inf, 0, 0.1),
    ),
    "trunc_normal of wide bounds": (partial(initializers.trunc_normal, std=0.02), stats.norm(0, 0.02)),
    "xavier_uniform": (initializers.xavier_uniform, stats.uniform(-math.sqrt(6 / 250), 2 * math.sqrt(6 / 250))),
    "kaiming_normal": (partial(initializers.kaiming_normal, nonlinearity="relu"), stats.norm(0, math.sqrt(2 / 200))),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("initializer", "distribution"), CONTINUOUS.values(), ids=CONTINUOUS.keys())
def test_distribution(initializer, distribution, dtype: torch.dtype, key: Tensor) -> None:
    """The numbers lie within the bounds and follow the distribution."""
    numbers = initializer(key, (50, 200), dtype=dtype)
    lower, upper = distribution.support()
    slack = torch.finfo(dtype).eps * max(abs(bound) for bound in (lower, upper, 0) if math.isfinite(bound))
    assert lower - slack <= numbers.min().item()
    assert numbers.max().item() <= upper + slack
    assert_follows(numbers, distribution)


def test_trunc_normal_is_distributed_as_that_of_torch(key: Tensor) -> None:
    """Torch's function, whose bounds are in the units of the numbers too, gives the same distribution."""
    options = {"mean": 0.5, "std": 2.0, "a": -1.0, "b": 3.0}
    ours = initializers.trunc_normal(key, 5000, dtype=torch.float64, **options).cpu().numpy()
    generator = torch.Generator().manual_seed(0)
    theirs = torch.nn.init.trunc_normal_(torch.empty(5000).double(), generator=generator, **options).numpy()
    assert stats.ks_2samp(ours, theirs).pvalue > 0.01


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_trunc_normal_keeps_its_bounds_in_every_dtype(dtype: torch.dtype, key: Tensor) -> None:
    """No number lies beyond a bound rounded to the dtype, however narrow the interval is next to the mean."""
    lower, upper = torch.tensor([0.3, 0.31], dtype=dtype).tolist()
    numbers = initializers.trunc_normal(key, 3000, mean=1000.0, std=40.0, a=0.3, b=0.31, dtype=dtype)
    assert lower <= numbers.min().item()
    assert numbers.max().item() <= upper


@of_drawn
def test_float64_is_not_rounded_to_float32(initializer, shape: tuple[int, ...], key: Tensor) -> None:
    """The numbers of float64 carry more digits than float32 has."""
    numbers = initializer(key, shape, dtype=torch.float64)
    numbers = numbers[numbers != 0]
    assert (numbers != numbers.float()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_normal_rounds_once(dtype: torch.dtype, key: Tensor) -> None:
    """A short dtype gets the numbers of float32, scaled and shifted before they are rounded."""
    short = initializers.normal(key, 100, mean=1.0, std=0.01, dtype=dtype)
    assert torch.equal(short, initializers.normal(key, 100, mean=1.0, std=0.01, dtype=torch.float32).to(dtype))


def test_scales_of_zero(key: Tensor) -> None:
    """Where torch allows a standard deviation, a gain or an interval of 0, all numbers are equal."""
    ones = torch.ones(2, 3, device=key.device)
    assert torch.equal(initializers.normal(key, (2, 3), mean=1.0, std=0.0), ones)
    assert torch.equal(initializers.uniform(key, (2, 3), low=1.0, high=1.0), ones)
    assert torch.equal(initializers.xavier_uniform(key, (2, 3), gain=0.0), 0 * ones)
    assert torch.equal(initializers.xavier_normal(key, (2, 3), gain=0.0), 0 * ones)


# Constants and identities


def test_constants(device: torch.device) -> None:
    """Constants need no key and hold their value, in any dtype."""
    assert torch.equal(
        initializers.constant(None, (2, 3), value=0.1, dtype=torch.float64, device=device),
        torch.full((2, 3), 0.1, dtype=torch.float64, device=device),
    )
    assert torch.equal(
        initializers.zeros(None, 3, dtype=torch.int64, device=device), torch.tensor([0] * 3, device=device)
    )
    assert torch.equal(initializers.ones(None, (), dtype=torch.bool, device=device), torch.tensor(True, device=device))


@given(rows=st.integers(0, 4), columns=st.integers(0, 4))
def test_eye_is_that_of_torch(rows: int, columns: int) -> None:
    """The identity is torch's for every shape of a matrix."""
    assert torch.equal(initializers.eye(None, (rows, columns)), torch.nn.init.eye_(torch.empty(rows, columns)))


@given(
    groups=st.integers(1, 3),
    out_channels=st.integers(0, 3),
    in_channels=st.integers(0, 4),
    kernel=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_dirac_is_that_of_torch(groups: int, out_channels: int, in_channels: int, kernel: list[int]) -> None:
    """The kernel is torch's for every number of channels, groups and dimensions, odd or even."""
    shape = (groups * out_channels, in_channels, *kernel)
    expected = torch.nn.init.dirac_(torch.empty(shape), groups)
    assert torch.equal(initializers.dirac(None, shape, groups=groups), expected)


def test_dirac_hands_on_its_input(device: torch.device) -> None:
    """A convolution with the kernel gives each group's first channels unchanged."""
    x = torch.arange(2 * 6 * 5, dtype=torch.float64, device=device).reshape(2, 6, 5)
    weight = initializers.dirac(None, (4, 3, 3), groups=2, dtype=torch.float64, device=device)
    assert torch.equal(F.conv1d(x, weight, padding=1, groups=2), x[:, [0, 1, 3, 4]])


# Matrices


@pytest.mark.parametrize("gain", [1.0, -2.5])
@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6), (3, 2, 5), (8, 2, 2), (1, 5), (5, 1), (1, 1)])
def test_orthogonal(shape: tuple[int, ...], gain: float, key: Tensor) -> None:
    """Rows or columns, whichever are fewer, are orthogonal and as long as the gain."""
    matrix = initializers.orthogonal(key, shape, gain=gain, dtype=torch.float64)
    assert matrix.shape == shape
    matrix = matrix.flatten(1)
    product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    expected = gain**2 * torch.eye(min(matrix.shape), dtype=torch.float64, device=key.device)
    torch.testing.assert_close(product, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_orthogonal_in_short_dtypes(dtype: torch.dtype, key: Tensor) -> None:
    """Short dtypes get the matrix of float32, rounded."""
    short = initializers.orthogonal(key, (4, 3), dtype=dtype)
    assert torch.equal(short, initializers.orthogonal(key, (4, 3), dtype=torch.float32).to(dtype))


def test_orthogonal_is_uniform(key: Tensor) -> None:
    """All matrices are equally likely: the elements of a 3 by 3 one are uniform, and half of them are reflections."""
    keys = random.split(key, 3000)
    matrices = torch.func.vmap(lambda key: initializers.orthogonal(key, (3, 3), dtype=torch.float64))(keys)
    for row in range(3):
        for column in range(3):
            assert_follows(matrices[:, row, column], stats.uniform(-1, 2))
    assert (torch.linalg.det(matrices) > 0).double().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.34, 0.5, 1, 1.0])
def test_sparse_counts_its_zeros(sparsity: float, key: Tensor) -> None:
    """Each column has the share of zeros, rounded up, and no number elsewhere is 0."""
    matrix = initializers.sparse(key, (10, 7), sparsity=sparsity, dtype=torch.float64)
    assert ((matrix == 0).sum(0) == math.ceil(sparsity * 10)).all()


def test_sparse_places_and_values(key: Tensor) -> None:
    """Every set of rows is equally likely, in each column anew, and the rest follows the normal distribution."""
    matrix = initializers.sparse(key, (4, 6000), sparsity=0.5, std=0.3, dtype=torch.float64)
    zero = matrix == 0
    patterns = (zero * 2 ** torch.arange(4, device=key.device).unsqueeze(1)).sum(0)
    _, counts = patterns.unique(return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts.cpu().numpy()).pvalue > 0.01
    assert_follows(matrix[~zero], stats.norm(0, 0.3))


def test_sparse_default_std_is_that_of_torch(key: Tensor) -> None:
    """The standard deviation is 0.01 unless given."""
    [(_, std)] = drawn_by_torch(lambda: torch.nn.init.sparse_(torch.empty(4, 3), 0.5))
    ours = initializers.sparse(key, (4, 3), sparsity=0.5)
    assert torch.equal(ours, initializers.sparse(key, (4, 3), sparsity=0.5, std=std))
    assert std == 0.01


# What all share


@of_all
def test_same_key_same_numbers(initializer, shape: tuple[int, ...], key: Tensor) -> None:
    """A key gives the same numbers to the bit however often it is used; neither it nor torch's global state changes."""
    before = key.clone()
    global_state = torch.get_rng_state()
    first, second = initializer(key, shape), initializer(key, shape)
    assert torch.equal(first, second)
    assert torch.equal(key, before)
    assert torch.equal(torch.get_rng_state(), global_state)


@of_drawn
def test_other_key_other_numbers(initializer, shape: tuple[int, ...], key: Tensor) -> None:
    """Another key gives other numbers."""
    assert not torch.equal(initializer(key, shape), initializer(random.fold_in(key, 1), shape))


@of_drawn
def test_the_reuse_guard_sees_the_draws(initializer, shape: tuple[int, ...], key: Tensor) -> None:
    """One initializer uses its key once, and the same key for a second one is refused by `strict`."""
    with random.strict():
        initializer(key, shape)
        with pytest.raises(KeyReuseError):
            initializer(key, shape)


@of_all
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_shape_dtype_and_device(initializer, shape: tuple[int, ...], dtype: torch.dtype, key: Tensor) -> None:
    """The result has the shape and dtype asked for, lies on the key's device, and has no gradient."""
    result = initializer(key, list(shape), dtype=dtype)
    assert (result.shape, result.dtype, result.device) == (shape, dtype, key.device)
    assert result.isfinite().all()
    assert result.is_contiguous()
    assert not result.requires_grad


@of_all
def test_default_dtype(initializer, shape: tuple[int, ...], key: Tensor) -> None:
    """Without a dtype the result has torch's default one."""
    assert initializer(key, shape).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert initializer(key, shape).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@of_all
def test_device_argument(initializer, shape: tuple[int, ...], device: torch.device) -> None:
    """A key from elsewhere gives on the device asked for what the key moved there gives."""
    key = random.key(3).cpu()
    result = initializer(key, shape, device=device)
    assert result.device.type == device.type
    assert torch.equal(result, initializer(key.to(device), shape))
    assert torch.equal(result, initializer(key, shape, device=str(device)))


@of_fixed
def test_without_a_key(initializer, shape: tuple[int, ...], key: Tensor) -> None:
    """What needs no randomness needs no key: it then lies on torch's default device."""
    result = initializer(None, shape)
    assert result.device == torch.get_default_device()
    assert torch.equal(result, initializer(key, shape, device=result.device))
    with torch.device("meta"):
        assert initializer(None, shape).is_meta


@of_all
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_meta_allocates_and_draws_nothing(initializer, shape: tuple[int, ...], dtype: torch.dtype, key: Tensor) -> None:
    """On the meta device the result has its shape and dtype, however large, and the key stays unused."""
    large = tuple(2**50 if size == shape[0] else size for size in shape)
    with random.strict():
        for _ in range(2):
            result = initializer(key, large, dtype=dtype, device="meta")
            assert (result.shape, result.dtype, result.device.type) == (large, dtype, "meta")


@of_all
@pytest.mark.parametrize("empty", [0, 1, "all"])
def test_empty_shapes(initializer, shape: tuple[int, ...], empty: int | str, key: Tensor) -> None:
    """A dimension of size 0 gives an empty tensor, without a warning, also under vmap."""
    sizes = tuple(0 if empty in (dimension, "all") else size for dimension, size in enumerate(shape))
    assert initializer(key, sizes).shape == sizes
    batch = torch.func.vmap(lambda key: initializer(key, sizes))(random.split(key, 2))
    assert batch.shape == (2, *sizes)


@of_all
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_vmap_over_keys(initializer, shape: tuple[int, ...], dtype: torch.dtype, key: Tensor) -> None:
    """An ensemble's parameters are those of its members to the bit; of QR, which torch batches, to 1e-12 in float64."""
    keys = random.split(key, 5)
    batch = torch.func.vmap(lambda key: initializer(key, shape, dtype=dtype))(keys)
    singles = torch.stack([initializer(one, shape, dtype=dtype) for one in keys])
    if initializer is initializers.orthogonal:
        tolerance = 1e-12 if dtype == torch.float64 else max(1e-5, 2 * torch.finfo(dtype).eps)
        torch.testing.assert_close(batch, singles, rtol=0, atol=tolerance)
    else:
        assert torch.equal(batch, singles)


@of_all
def test_nested_vmap_over_keys(initializer, shape: tuple[int, ...], key: Tensor) -> None:
    """An ensemble of ensembles works too."""
    keys = random.split(key, 6)

    def draw(key: Tensor) -> Tensor:
        return initializer(key, shape, dtype=torch.float64)

    nested = torch.func.vmap(torch.func.vmap(draw))(keys.reshape(2, 3, 2))
    torch.testing.assert_close(nested.flatten(0, 1), torch.func.vmap(draw)(keys), rtol=0, atol=1e-12)


@of_all
def test_make_fx(initializer, shape: tuple[int, ...], key: Tensor) -> None:
    """A traced initializer gives for another key what the function itself gives."""
    graph = make_fx(lambda key: initializer(key, shape))(key)
    other = random.fold_in(key, 1)
    assert torch.equal(graph(other), initializer(other, shape))


@of_all
def test_compile(initializer, shape: tuple[int, ...], key: Tensor) -> None:
    """Every initializer compiles into one graph with the same numbers."""
    torch.compiler.reset()
    compiled = torch.compile(lambda key: initializer(key, shape), fullgraph=True, backend="eager")
    assert torch.equal(compiled(key), initializer(key, shape))


# Refusals

KEY_ERROR = "key must be a random key, a tensor made by purenn.random.key(seed), not "


@of_drawn
@pytest.mark.parametrize("device_argument", [None, "meta"])
def test_drawing_needs_a_key(initializer, shape: tuple[int, ...], device_argument: str | None) -> None:
    """Without a key nothing is drawn, nor promised on the meta device."""
    with pytest.raises(ArgumentError) as caught:
        initializer(None, shape, device=device_argument)
    assert str(caught.value) == KEY_ERROR + "NoneType None"


@of_all
def test_wrong_key(initializer, shape: tuple[int, ...]) -> None:
    """A seed is not a key, not even where no randomness is needed."""
    with pytest.raises(ArgumentError) as caught:
        initializer(7, shape)
    assert str(caught.value) == KEY_ERROR + "int 7"


@of_all
@pytest.mark.parametrize("device_argument", [None, "meta"])
def test_wrong_shape(initializer, shape: tuple[int, ...], device_argument: str | None, key: Tensor) -> None:
    """A negative size is refused."""
    shape = (-1, *shape[1:])
    with pytest.raises(ArgumentError) as caught:
        initializer(key, shape, device=device_argument)
    assert str(caught.value) == f"shape must be an int or a tuple of ints, each at least 0, not {shape}"


@of_drawn
@pytest.mark.parametrize("device_argument", [None, "meta"])
def test_drawing_needs_a_float_dtype(
    initializer, shape: tuple[int, ...], device_argument: str | None, key: Tensor
) -> None:
    """Random integers are not an initialisation."""
    with pytest.raises(ArgumentError) as caught:
        initializer(key, shape, dtype=torch.int64, device=device_argument)
    assert str(caught.value) == (
        "dtype must be torch.float32, torch.float64, torch.bfloat16 or torch.float16, not torch.int64"
    )


@of_all
def test_wrong_dtype(initializer, shape: tuple[int, ...], key: Tensor) -> None:
    """What is no dtype of torch is refused."""
    with pytest.raises(ArgumentError) as caught:
        initializer(key, shape, dtype="float32")
    assert str(caught.value) == "dtype must be a torch.dtype or None, not 'float32'"


NO_FANS = (
    "shape must have 2 dimensions or more, (out_features, in_features, *kernel), to have a fan-in and a fan-out, "
    "not [3]; for a bias use zeros, uniform, or fan_in_uniform with the weight's fan_in"
)
NONLINEARITIES = (
    "nonlinearity must be one of linear, conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, "
    "conv_transpose3d, sigmoid, tanh, relu, leaky_relu, selu, not 'gelu'"
)
OUT_OF_REACH = (
    "a=40.0 and b=50.0 lie where the normal distribution with mean=0.0 and std=1.0 has no weight left in float64; "
    "choose bounds of which one is within 38 std of the mean"
)
NO_GROUPS = "groups must be an int of at least 1 that divides the out_channels=5 of shape [5, 2, 3], not "
NO_KERNEL = "shape must be (out_channels, in_channels / groups, *kernel) with a kernel of 1, 2 or 3 dimensions, not "

REFUSED = [
    ("uniform", 3, {"low": 2.0, "high": 1.0}, "low must be at most high, not low=2.0 and high=1.0"),
    ("uniform", 3, {"low": -math.inf}, "low must be a finite number, not -inf"),
    ("uniform", 3, {"high": math.nan}, "high must be a finite number, not nan"),
    ("normal", 3, {"mean": math.inf}, "mean must be a finite number, not inf"),
    ("normal", 3, {"std": -1.0}, "std must be a finite number of at least 0, not -1.0"),
    ("normal", 3, {"std": "small"}, "std must be a finite number of at least 0, not 'small'"),
    ("normal", 3, {"std": True}, "std must be a finite number of at least 0, not True"),
    ("trunc_normal", 3, {"mean": math.nan}, "mean must be a finite number, not nan"),
    ("trunc_normal", 3, {"std": math.inf}, "std must be a finite number, not inf"),
    ("trunc_normal", 3, {"std": 0.0}, "std must be more than 0, not 0.0; for one value everywhere use constant"),
    ("trunc_normal", 3, {"a": 1.0, "b": 1.0}, "a must be less than b, not a=1.0 and b=1.0"),
    ("trunc_normal", 3, {"a": math.nan}, "a must be less than b, not a=nan and b=2.0"),
    ("trunc_normal", 3, {"a": 40.0, "b": 50.0}, OUT_OF_REACH),
    ("constant", 3, {"value": "one"}, "value must be a number, not 'one'"),
    (
        "eye",
        (2, 3, 4),
        {},
        "shape must be (out_features, in_features) for an identity matrix, not [2, 3, 4]; "
        "for the weight of a convolution use dirac",
    ),
    ("dirac", (2, 3), {}, NO_KERNEL + "[2, 3]; for a matrix use eye"),
    ("dirac", (2, 3, 1, 1, 1, 1), {}, NO_KERNEL + "[2, 3, 1, 1, 1, 1]; for a matrix use eye"),
    ("dirac", (5, 2, 3), {"groups": 2}, NO_GROUPS + "2"),
    ("dirac", (5, 2, 3), {"groups": 0}, NO_GROUPS + "0"),
    ("dirac", (5, 2, 3), {"groups": 2.5}, NO_GROUPS + "2.5"),
    ("xavier_uniform", 3, {}, NO_FANS),
    ("xavier_normal", (3,), {}, NO_FANS),
    ("xavier_uniform", (3, 3), {"gain": -1.0}, "gain must be a finite number of at least 0, not -1.0"),
    ("kaiming_uniform", 3, {}, NO_FANS),
    ("kaiming_normal", 3, {}, NO_FANS),
    ("kaiming_uniform", (3, 3), {"mode": "fan_avg"}, "mode must be one of fan_in, fan_out, not 'fan_avg'"),
    ("kaiming_normal", (3, 3), {"nonlinearity": "gelu"}, NONLINEARITIES),
    ("kaiming_normal", (3, 3), {"a": "0"}, "the negative slope of leaky_relu must be a finite number, not '0'"),
    ("lecun_uniform", 3, {}, NO_FANS),
    ("lecun_normal", 3, {}, NO_FANS),
    ("variance_scaling", 3, {}, NO_FANS),
    ("variance_scaling", (3, 3), {"scale": -1}, "scale must be a finite number of at least 0, not -1"),
    ("variance_scaling", (3, 3), {"mode": "both"}, "mode must be one of fan_in, fan_out, fan_avg, not 'both'"),
    (
        "variance_scaling",
        (3, 3),
        {"distribution": "cauchy"},
        "distribution must be one of truncated_normal, normal, uniform, not 'cauchy'",
    ),
    ("fan_in_uniform", 3, {}, NO_FANS),
    ("fan_in_uniform", 3, {"fan_in": -1}, "fan_in must be an int of at least 0 or None, not -1"),
    ("fan_in_uniform", 3, {"fan_in": 2.0}, "fan_in must be an int of at least 0 or None, not 2.0"),
    ("orthogonal", 3, {}, "shape must have 2 dimensions or more for an orthogonal matrix, not [3]"),
    ("orthogonal", (3, 3), {"gain": math.nan}, "gain must be a finite number, not nan"),
    ("sparse", 3, {"sparsity": 0.5}, "shape must be (rows, columns) for a sparse matrix, not [3]"),
    ("sparse", (3, 3, 3), {"sparsity": 0.5}, "shape must be (rows, columns) for a sparse matrix, not [3, 3, 3]"),
    ("sparse", (3, 3), {"sparsity": 1.5}, "sparsity must be a share, a number in [0, 1], not 1.5"),
    ("sparse", (3, 3), {"sparsity": -0.5}, "sparsity must be a share, a number in [0, 1], not -0.5"),
    ("sparse", (3, 3), {"sparsity": 0.5, "std": -1.0}, "std must be a finite number of at least 0, not -1.0"),
]


@pytest.mark.parametrize("device_argument", [None, "meta"])
@pytest.mark.parametrize(("name", "shape", "options", "text"), REFUSED)
def test_refusals(name: str, shape, options: dict, text: str, device_argument: str | None, key: Tensor) -> None:
    """What cannot be meant is refused with the reason, on the meta device as well."""
    with pytest.raises(ArgumentError) as caught:
        getattr(initializers, name)(key, shape, device=device_argument, **options)
    assert str(caught.value) == text


def test_refusals_of_gain_and_fans() -> None:
    """The functions of shapes and names refuse as the initializers do, and a flag is no slope, as in torch."""
    with pytest.raises(ArgumentError) as caught:
        initializers.fan_in_and_fan_out((3,))
    assert str(caught.value) == NO_FANS
    with pytest.raises(ArgumentError) as caught:
        initializers.calculate_gain("gelu")
    assert str(caught.value) == NONLINEARITIES
    with pytest.raises(ArgumentError) as caught:
        initializers.calculate_gain("leaky_relu", True)
    assert str(caught.value) == "the negative slope of leaky_relu must be a finite number, not True"
