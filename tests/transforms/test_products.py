"""Products under `pn.jit` on the CPU: small ones in the compiler's own source, a bias in the loop of what follows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

import purenn as pn
from purenn.layers import Linear
from purenn.transforms import _products

# Products, rows, terms and columns: whole vectors and parts of one, one block and several; then more than are small.
SIZES = [
    (25, 10, 40, 40),
    (3, 7, 5, 33),
    (2, 64, 64, 64),
    (4, 2, 3, 2),
    (5, 13, 1, 50),
    (1, 9, 8, 8),
    (2, 90, 128, 150),
]
LARGER = [(2, 513, 3, 8), (2, 9, 129, 8), (1, 0, 4, 4)]
FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": torch.bmm,
    "left transposed": lambda x, y: torch.bmm(x.mT.contiguous().mT, y),
    "right transposed": lambda x, y: torch.bmm(x, y.mT.contiguous().mT),
    "both": lambda x, y: torch.bmm(x.mT.contiguous().mT, y.mT.contiguous().mT),
    "left the same for all": lambda x, y: torch.bmm(x[:1].expand_as(x), y),
    "right the same for all": lambda x, y: torch.bmm(x, y[:1].expand_as(y)),
    "a part of each": lambda x, y: torch.bmm(x[:, 1:, 1:], y[:, 1:, 1:]),
    "every other number": lambda x, y: torch.bmm(torch.stack([x, x], -1)[..., 0], torch.stack([y, y], -1)[..., 1]),
    "of results": lambda x, y: torch.bmm(x.exp(), y.tanh()).sin(),
}
Pairs = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _library_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that torch's linear algebra is not made for, where more products are compiled."""
    monkeypatch.setattr(_products, "library_is_made_for_processor", lambda: False)


def pairs(device: torch.device, *sizes: tuple[int, int, int, int]) -> Pairs:
    """Matrices to multiply, in both precisions."""
    keys = pn.random.split(pn.random.key(0, device), 2)
    shapes = [((n, rows, terms), (n, terms, columns)) for n, rows, terms, columns in sizes]
    return [
        (pn.random.normal(keys[0], one, dtype=dtype), pn.random.normal(keys[1], other, dtype=dtype))
        for one, other in shapes
        for dtype in (torch.float32, torch.float64)
    ]


def require_same(products: Callable[[Pairs], Any], given: Pairs, count: int) -> None:
    """What is compiled gives what eager gives, and so many products at least are not left to torch."""
    before = counters["inductor"]["cpp_templated_kernel_counter"]
    found, expected = pn.jit(products)(given), products(given)
    if given[0][0].device.type == "cpu":
        assert counters["inductor"]["cpp_templated_kernel_counter"] >= before + count
    for one, other, (x, _) in zip(found, expected, given, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 if x.dtype == torch.float64 else 1e-4)


@pytest.mark.slow
def test_layouts(device: torch.device) -> None:
    """Products are those of eager however the matrices lie in memory."""
    given = pairs(device, (3, 9, 5, 33))
    require_same(lambda given: [{name: form(x, y) for name, form in FORMS.items()} for x, y in given], given, 16)


@pytest.mark.slow
def test_sizes(device: torch.device) -> None:
    """They are those of eager whatever the sizes; larger ones and empty ones are left to torch."""
    given = pairs(device, *SIZES, *LARGER)
    require_same(lambda given: [(torch.bmm(x, y), FORMS["right transposed"](x, y)) for x, y in given], given, 18)


@pytest.mark.slow
def test_threads(device: torch.device) -> None:
    """Several threads share a product that is worth it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        require_same(lambda given: [torch.bmm(x, y) for x, y in given], pairs(device, (5, 64, 64, 64)), 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_gradients_of_many_models(device: torch.device) -> None:
    """Gradients of stacked models, in a loop and without one, are those of eager."""
    keys = pn.random.split(pn.random.key(0, device), 3)
    weights = pn.random.normal(keys[0], (4, 16, 12), dtype=torch.float64) / 4
    x = pn.random.normal(keys[1], (4, 5, 12), dtype=torch.float64)

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        def step(h: Tensor, _: None) -> tuple[Tensor, None]:
            return torch.tanh(h @ weight.mT @ weight), None

        return pn.scan(step, torch.tanh(x @ weight.mT) @ weight, None, 3)[0].square().sum()

    gradients = pn.vmap(pn.grad(loss))
    torch.testing.assert_close(pn.jit(gradients)(weights, x), gradients(weights, x), rtol=0, atol=1e-10)


@pytest.mark.slow
def test_own_pass_of_the_compiler(device: torch.device) -> None:
    """A pass that somebody has set for the compiler is not replaced."""
    from torch._inductor import config

    seen = []
    x = pn.random.normal(pn.random.key(0, device), (3, 4, 4), dtype=torch.float64)
    with config.patch(post_grad_custom_post_pass=seen.append, fx_graph_cache=False):
        found = pn.jit(lambda x: torch.bmm(x, x.cos()))(x)
    assert len(seen) == 1
    torch.testing.assert_close(found, torch.bmm(x, x.cos()), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_without_vectors(device: torch.device) -> None:
    """Where the compiler has no vectors for the processor, the products are left to torch."""
    from torch._inductor import config

    x = pn.random.normal(pn.random.key(0, device), (3, 9, 9), dtype=torch.float64)
    with config.patch({"cpp.simdlen": 1}):
        found = pn.jit(lambda x: torch.bmm(x, x.cos()))(x)
    torch.testing.assert_close(found, torch.bmm(x, x.cos()), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_library_made_for_the_processor(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Where torch's linear algebra is made for the processor, it keeps the larger products, and in float64 more."""
    monkeypatch.setattr(_products, "library_is_made_for_processor", lambda: True)
    given = pairs(device, (2, 32, 32, 32), (2, 64, 64, 64), (2, 65, 64, 64))
    before = counters["inductor"]["cpp_templated_kernel_counter"]
    require_same(lambda given: [(torch.bmm(x, y), FORMS["right transposed"](x, y)) for x, y in given], given, 5)
    if device.type == "cpu":
        assert counters["inductor"]["cpp_templated_kernel_counter"] == before + 5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bias(dtype: torch.dtype, device: torch.device) -> None:
    """A bias is added by the loop of what follows, but not where it would be rounded once more."""
    keys = pn.random.split(pn.random.key(0, device), 2)
    p = pn.tree.map(lambda leaf: leaf.to(dtype), Linear.init(keys[0], 12, 16, dtype=torch.float64))
    x = pn.random.normal(keys[1], (9, 12), dtype=torch.float64).to(dtype)
    fused = pn.jit(lambda p, x: torch.tanh(p(x)))
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(fused(p, x), torch.tanh(p(x)), rtol=0, atol=tolerance)
    if device.type == "cpu":
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
            fused(p, x)
        assert ("aten::addmm" in {event.name for event in recorded.events()}) == (dtype == torch.bfloat16)
