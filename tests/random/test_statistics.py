"""Distributions, by statistical tests with fixed seeds: a p-value under one in a thousand would be a defect."""

import math

import pytest
import torch
from scipy import stats

import purenn as pn

N = 100_000
SIGNIFICANT = 1e-3
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def kolmogorov_smirnov(numbers: torch.Tensor, distribution) -> float:
    """The p-value of numbers under a distribution."""
    return stats.kstest(numbers.double().cpu().flatten().numpy(), distribution).pvalue


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor | None = None) -> float:
    """The p-value of counts of categories, equally likely by default."""
    counts = counts.double().cpu()
    share = torch.full_like(counts, 1 / counts.numel()) if probabilities is None else probabilities.double().cpu()
    return stats.chisquare(counts.flatten().numpy(), (share * counts.sum()).flatten().numpy()).pvalue


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """The correlation of two samples, in its standard deviations."""
    return float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1]) * math.sqrt(a.numel())


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_bits_are_fair(seed, device):
    """Each of the 32 bits is set half the time, and each byte takes its values equally often."""
    words = pn.random.bits(pn.random.key(seed, device), N)
    for bit in range(32):
        ones = int((words >> bit & 1).sum())
        assert abs(ones - N / 2) < 4 * math.sqrt(N) / 2
    for byte in range(4):
        assert chi_square(torch.bincount(words >> 8 * byte & 255, minlength=256)) > SIGNIFICANT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_distribution(dtype, device):
    """Mean, variance, Kolmogorov-Smirnov, and squares of consecutive pairs."""
    numbers = pn.random.uniform(pn.random.key(3, device), N, dtype=dtype)
    assert abs(numbers.double().mean() - 0.5) < 4 / math.sqrt(12 * N)
    assert abs(numbers.double().var() - 1 / 12) < 4 / math.sqrt(180 * N)
    assert kolmogorov_smirnov(numbers, "uniform") > SIGNIFICANT
    cells = (numbers.view(-1, 2) * 16).long()
    assert chi_square(torch.bincount(cells[:, 0] * 16 + cells[:, 1], minlength=256)) > SIGNIFICANT


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_short_uniform_distribution(dtype, bits, device):
    """Every number on the grid of a short dtype is equally likely."""
    numbers = pn.random.uniform(pn.random.key(3, device), N, dtype=dtype)
    assert chi_square(torch.bincount((numbers.double() * 2**bits).long(), minlength=2**bits)) > SIGNIFICANT


@pytest.mark.parametrize("dtype", FLOATS)
def test_normal_moments(dtype, device):
    """The first four moments, within four of their standard deviations."""
    numbers = pn.random.normal(pn.random.key(4, device), N, dtype=dtype).double()
    # Of z, z^2, z^3, z^4: the expectation, and the variance.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((numbers**power).mean() - mean) < 4 * math.sqrt(variance / N)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_distribution(dtype, device):
    """Kolmogorov-Smirnov, and how many numbers are in the tails."""
    numbers = pn.random.normal(pn.random.key(5, device), 4 * N, dtype=dtype)
    assert kolmogorov_smirnov(numbers, "norm") > SIGNIFICANT
    edges = [-math.inf, -4, -3, -2, 0, 2, 3, 4, math.inf]
    probabilities = torch.tensor(stats.norm.cdf(edges)).diff()
    counts = torch.histc(torch.bucketize(numbers.double().cpu(), torch.tensor(edges[1:-1])).double(), 8, 0, 7)
    assert chi_square(counts, probabilities) > SIGNIFICANT


def test_normal_pairs_are_independent(device):
    """The two numbers that come from one radius and angle are uncorrelated, and so are their squares."""
    numbers = pn.random.normal(pn.random.key(6, device), 4 * (N // 4)).view(2, -1)
    assert abs(correlation(numbers[0], numbers[1])) < 4
    assert abs(correlation(numbers[0] ** 2, numbers[1] ** 2)) < 4


@pytest.mark.parametrize(("lower", "upper"), [(-2.0, 2.0), (-0.5, 3.0), (-math.inf, -1.0), (2.0, math.inf), (6.0, 9.0)])
def test_truncated_normal_distribution(lower, upper, device):
    """Kolmogorov-Smirnov against the truncated distribution, around the mean and far from it."""
    for dtype in (torch.float32, torch.float64):
        numbers = pn.random.truncated_normal(pn.random.key(7, device), N, lower=lower, upper=upper, dtype=dtype)
        assert kolmogorov_smirnov(numbers, stats.truncnorm(lower, upper).cdf) > SIGNIFICANT


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.97])
def test_bernoulli_frequency(p, device):
    """True as often as asked, whether p is a number or a tensor."""
    for probability in (p, torch.tensor(p, dtype=torch.float64, device=device)):
        hits = int(pn.random.bernoulli(pn.random.key(8, device), N, p=probability).sum())
        assert abs(hits - N * p) < 4 * math.sqrt(N * p * (1 - p))


@pytest.mark.parametrize(("low", "high"), [(0, 2), (-3, 4), (0, 1000), (-(2**40), 2**40), (0, 3 * 2**61)])
def test_randint_distribution(low, high, device):
    """All values, or all of up to a thousand equal parts of the range, are equally likely."""
    numbers = pn.random.randint(pn.random.key(9, device), N, low=low, high=high)
    parts = min(high - low, 1000)
    place = [(number - low) * parts // (high - low) for number in numbers.tolist()]
    assert chi_square(torch.bincount(torch.tensor(place), minlength=parts)) > SIGNIFICANT


def test_permutations_are_equally_likely(device):
    """All 24 orders of four come equally often."""
    keys = pn.random.split(pn.random.key(10, device), 24_000)
    orders = torch.vmap(lambda key: pn.random.permutation(key, 4))(keys)
    digits = orders @ torch.tensor([64, 16, 4, 1], device=device)
    _, counts = digits.unique(return_counts=True)
    assert len(counts) == 24
    assert chi_square(counts) > SIGNIFICANT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categorical_frequencies(dtype, device):
    """Categories come as often as softmax says, rare ones too."""
    logits = torch.tensor([0.0, -1.0, 3.0, -6.0, 0.5], dtype=dtype, device=device)
    drawn = pn.random.categorical(pn.random.key(11, device), logits, shape=4 * N)
    assert chi_square(torch.bincount(drawn, minlength=5), logits.double().softmax(0)) > SIGNIFICANT


@pytest.mark.parametrize("seed", [0, 12])
def test_children_draw_independently(seed, device):
    """Parent, split children and folded children draw uncorrelated numbers, at every lag looked at."""
    parent = pn.random.key(seed, device)
    keys = [parent, *pn.random.split(parent, 3), *(pn.random.fold_in(parent, step) for step in (0, 1, 2**32))]
    drawn = [pn.random.normal(key, N // 4) for key in keys]
    for i, a in enumerate(drawn):
        for b in drawn[i + 1 :]:
            assert abs(correlation(a, b)) < 4
        for lag in (1, 2, N // 16, N // 8):
            assert abs(correlation(a[lag:], a[:-lag])) < 4


def test_one_number_of_each_of_many_keys(device):
    """First numbers of consecutive seeds, of split keys and of folded keys are as good as numbers of one key."""
    seeds = torch.stack([pn.random.key(seed, device) for seed in range(4000)])
    parent = pn.random.key(13, device)
    folded = torch.vmap(pn.random.fold_in, in_dims=(None, 0))(parent, torch.arange(N, device=device))
    for keys in (seeds, pn.random.split(parent, N), folded):
        numbers = torch.vmap(lambda key: pn.random.uniform(key, ()))(keys)
        assert kolmogorov_smirnov(numbers, "uniform") > SIGNIFICANT
        assert abs(correlation(numbers[1:], numbers[:-1])) < 4


def test_neighbouring_keys_do_not_resemble(device):
    """One bit of a key changes half the bits of what it draws."""
    key = pn.random.key(14, device)
    for word in (0, 1):
        for bit in (0, 15, 31):
            other = key.clone()
            other[word] ^= 1 << bit
            changed = pn.random.bits(key, 10_000) ^ pn.random.bits(other, 10_000)
            share = sum(int((changed >> place & 1).sum()) for place in range(32)) / 320_000
            assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(320_000)
