"""The options of a record, and how records behave within other transformations."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _per_sample_cases import EXAMPLES, draw
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import purenn as pn
from purenn.layers import (
    RNN,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose2d,
    Dropout,
    Embedding,
    Flatten,
    LayerNorm,
    Linear,
    ReLU,
    Sequential,
    dropout,
)

D = torch.float64


def model(device: torch.device) -> Sequential:
    """Two linear layers and a norm."""
    first, second = pn.random.split(pn.random.key(0, device))
    layers = Linear.init(first, 4, 6, dtype=D), ReLU(), LayerNorm.init(6, dtype=D, device=device)
    return Sequential.of(*layers, Linear.init(second, 6, 3, dtype=D))


def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(p(x), y)


def data(device: torch.device, n: int = 7) -> tuple[Tensor, Tensor]:
    x = pn.random.normal(pn.random.key(1, device), (n, 4), dtype=D)
    return x, torch.arange(n, device=device) % 3


def rows(gradients: Any) -> Tensor:
    """Per-example gradients side by side."""
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in pn.tree.leaves(gradients)], 1)


def same(one: Any, other: Any) -> bool:
    """Whether two trees or tensors are equal up to rounding in float64."""
    pairs = zip(pn.tree.leaves(one), pn.tree.leaves(other), strict=True)
    return all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in pairs)


def by_vmap(p: Any, *batch: Tensor) -> Any:
    return pn.vmap(pn.grad(loss), (None, 0, 0))(p, *batch)


def test_functions_of_batches(device: torch.device) -> None:
    """A loss written for batches gives what the loss of one example gives."""
    p, batch = model(device), data(device)

    def of_batch(p: Any, x: Any, y: Any) -> Any:
        return F.cross_entropy(p(x), y, reduction="none")

    assert same(pn.per_sample.record(of_batch, p, batch, batched=True).grads(), by_vmap(p, *batch))


def test_functions_of_batches_with_keys(device: torch.device) -> None:
    """A loss written for batches that draws has a key for every example, in pieces as well."""
    p, (x, _), key = model(device), data(device), pn.random.key(3, device)

    def of_batch(p: Any, x: Tensor, key: Tensor) -> Tensor:
        return p(x * pn.random.uniform(key, x.shape, dtype=D)).square().sum(1)

    def of_one(p: Any, x: Tensor, key: Tensor) -> Tensor:
        return of_batch(p, x[None], key)[0]

    expected = pn.vmap(pn.grad(of_one), (None, 0, 0))(p, x, pn.random.split(key, 7))
    for pieces in (None, 1, 3):
        record = pn.per_sample.record(of_batch, p, (x,), batched=True, key=key, microbatch=pieces)
        assert same(record.grads(), expected)


@pytest.mark.parametrize("mode", ["flat", "per_layer"])
def test_clipping_to_infinity_is_no_clipping(mode: str, device: torch.device) -> None:
    """With an infinite bound the sum of the gradients is left, that of zero gradients too."""
    p, (x, y) = model(device), data(device)
    record = pn.per_sample.record(lambda p, x, y: (y > 0) * loss(p, x, y), p, (x, y))
    assert (record.norms() == 0).any()
    ones = torch.ones(7, dtype=D, device=device)
    assert same(record.clipped_sum(float("inf"), mode=mode), record.weighted_sum(ones))


@pytest.mark.parametrize("derivative", [pn.grad, torch.func.grad])
def test_derivatives_by_inputs_within_the_loss(derivative: Any, device: torch.device) -> None:
    """A penalty on the gradient by the input, of native layers, is recorded right."""
    p, (x, _) = model(device), data(device)

    def penalty(p: Any, x: Tensor) -> Tensor:
        return derivative(lambda x: p(x).tanh().sum())(x).square().sum()

    expected = pn.vmap(pn.grad(penalty), (None, 0))(p, x)
    assert same(pn.per_sample.record(penalty, p, (x,)).grads(), expected)


@pytest.mark.parametrize("mode", ["flat", "per_layer", "automatic"])
def test_modes_of_clipping(mode: str, device: torch.device) -> None:
    """Each mode is its formula on the per-example gradients."""
    p, batch = model(device), data(device)
    gradients = by_vmap(p, *batch)
    found = pn.per_sample.clipped_grad(loss, 0.4, mode=mode)(p, batch)
    layers = [
        ["layers.0.weight", "layers.0.bias"],
        ["layers.2.weight", "layers.2.bias"],
        ["layers.3.weight", "layers.3.bias"],
    ]
    named = dict(pn.tree.named_leaves(gradients))
    groups = layers if mode == "per_layer" else [list(named)]
    for group in groups:
        norms = rows([named[path] for path in group]).norm(dim=1)
        bound = 0.4 / len(groups) ** 0.5
        factors = bound / (norms + 0.01) if mode == "automatic" else (bound / norms).clamp(max=1)
        for path in group:
            assert same(dict(pn.tree.named_leaves(found))[path], torch.tensordot(factors, named[path], 1))


def test_norms_by_layer(device: torch.device) -> None:
    """Norms of layers are those of all leaves with the same parent."""
    p, batch = model(device), data(device)
    gradients = by_vmap(p, *batch)
    found = pn.per_sample.record(loss, p, batch).norms("layer")
    assert list(found) == ["layers.0", "layers.2", "layers.3"]
    assert same(found["layers.2"], rows(gradients.layers[2]).norm(dim=1))


@pytest.mark.parametrize("size", [1, 3, 7, 9])
def test_microbatches_change_nothing(size: int, device: torch.device) -> None:
    """However many examples run at a time, all answers are the same."""
    p, batch = model(device), data(device)
    whole, parts = (pn.per_sample.record(loss, p, batch, microbatch=n) for n in (None, size))
    assert same(parts.losses, whole.losses)
    assert same(parts.grads(), whole.grads())
    assert same(parts.norms("leaf"), whole.norms("leaf"))
    assert same(parts.clipped_sum(0.3), whole.clipped_sum(0.3))
    assert same(parts.weighted_sum(whole.losses), whole.weighted_sum(whole.losses))
    assert same(parts.gram(), whole.gram())
    assert same(parts.second_moment(), whole.second_moment())
    assert same(parts.kfac(), whole.kfac())
    assert same(list(parts.noise_scale()), list(whole.noise_scale()))


@pytest.mark.parametrize("budget", [0, 1000, 10**9])
def test_budget_changes_nothing(budget: int, device: torch.device) -> None:
    """Gradients that have no room are computed again, with the same result."""
    p = Conv2d.init(pn.random.key(0, device), 2, 3, 3, dtype=D)
    x = pn.random.normal(pn.random.key(1, device), (5, 2, 6, 6), dtype=D)

    def f(p: Any, x: Any) -> Any:
        return p(x).sin().sum()

    record = pn.per_sample.record(f, p, (x,), budget=budget)
    wanted = pn.vmap(pn.grad(f), (None, 0))(p, x)
    assert same(record.norms(), rows(wanted).norm(dim=1))
    assert same(record.clipped_sum(1e9), pn.tree.map(lambda g: g.sum(0), wanted))
    kept = {leaf.path: leaf.kept for leaf in record.explain().leaves}
    assert kept == {"weight": budget >= 5 * 54 * 8, "bias": True}


@pytest.mark.parametrize("positions", [44, 64, 65, 70])
@pytest.mark.parametrize(("budget", "form"), [(0, "closed form"), (10**9, "materialised")])
def test_budget_chooses_the_form(budget: int, form: str, positions: int, device: torch.device) -> None:
    """Where gradients are faster to keep than to go without, the budget decides; the norms are equal."""
    p = Linear.init(pn.random.key(0, device), 96, 128, bias=False, dtype=D)
    x = pn.random.normal(pn.random.key(1, device), (3, positions, 96), dtype=D)

    def f(p: Any, x: Any) -> Any:
        return p(x).sin().sum()

    record = pn.per_sample.record(f, p, (x,), budget=budget)
    assert [leaf.form for leaf in record.explain().leaves] == [form]
    assert same(record.norms(), rows(pn.vmap(pn.grad(f), (None, 0))(p, x)).norm(dim=1))


@pytest.mark.parametrize("shape", [(6, 2), (2, 6)])
def test_gradients_after_their_norms(shape: tuple[int, int], device: torch.device) -> None:
    """Kept gradients of a matrix have its shape and layout, whichever way round was the faster to make them."""
    p = {"w": pn.random.normal(pn.random.key(0, device), shape, dtype=D)}
    x = pn.random.normal(pn.random.key(1, device), (3, 5, shape[1]), dtype=D)
    record = pn.per_sample.record(lambda p, x: F.linear(x, p["w"]).square().sum(), p, (x,))
    wanted = torch.stack([2 * p["w"] @ one.T @ one for one in x])
    torch.testing.assert_close(record.norms(), wanted.flatten(1).norm(dim=1), rtol=1e-12, atol=0)
    found, total = record.grads()["w"], record.weighted_sum(torch.ones(3, dtype=D, device=device))["w"]
    assert found.is_contiguous()
    assert total.is_contiguous()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, wanted.sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lead", [(), (1,)])
@pytest.mark.parametrize(
    ("pool", "space"), [(F.max_pool2d, (32, 32)), (F.max_pool2d, (30, 40)), (F.max_pool3d, (8, 16, 16))]
)
def test_maxima_of_large_batches(
    pool: Callable[..., Any], space: tuple[int, ...], lead: tuple[int, ...], device: torch.device
) -> None:
    """Gradients through maxima over windows are those of vmap where the batch is so large that it is pooled as one."""
    p = {"w": pn.random.normal(pn.random.key(0, device), (16, *[1] * len(space)), dtype=D)}
    x = pn.random.normal(pn.random.key(1, device), (3, *lead, 16, *space), dtype=D)

    def f(p: Any, x: Any) -> Any:
        return pool(x * p["w"], 3, stride=2, padding=1, ceil_mode=True).sin().sum()

    wanted = pn.vmap(pn.grad(f), (None, 0))(p, x)["w"]
    found = pn.per_sample.record(f, p, (x,))
    torch.testing.assert_close(found.grads()["w"], wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.losses, pn.vmap(f, (None, 0))(p, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [None, 2])
def test_no_examples(size: int | None, device: torch.device) -> None:
    """An empty batch, as Poisson sampling may draw, has no norms, and its sums are zero."""
    p, (x, y) = model(device), data(device)
    record = pn.per_sample.record(loss, p, (x[:0], y[:0]), microbatch=size)
    assert record.losses.shape == record.norms().shape == (0,)
    assert same(record.clipped_sum(1.0), pn.tree.map(torch.zeros_like, p))
    assert same(record.grads(), pn.tree.map(lambda leaf: leaf.new_zeros(0, *leaf.shape), p))
    assert record.gram().shape == (0, 0)


@pytest.mark.parametrize("of_parameters", [True, False])
def test_tensors_of_inference_mode(of_parameters: bool, device: torch.device) -> None:
    """Parameters and inputs that were made in inference mode are taken, as vmap over a gradient takes them."""
    p, batch = model(device), data(device)
    with torch.inference_mode():
        made = pn.tree.map(torch.clone, p) if of_parameters else tuple([x.clone() for x in batch])
    given = (made, batch) if of_parameters else (p, made)
    assert same(pn.per_sample.grads(loss)(*given), pn.per_sample.grads(loss)(p, batch))


def test_short_forms(device: torch.device) -> None:
    """By either name they give what a record gives."""
    p, batch = model(device), data(device)
    record = pn.per_sample.record(loss, p, batch)
    for short in (pn.per_sample.grads, pn.per_sample.per_sample_grads):
        assert same(short(loss)(p, batch), record.grads())
    for short in (pn.per_sample.norms, pn.per_sample.per_sample_norms):
        assert same(short(loss)(p, batch), record.norms())
    assert same(pn.per_sample.clipped_grad(loss, 0.4)(p, batch), record.clipped_sum(0.4))


def test_nothing_is_left_behind(device: torch.device) -> None:
    """A record that is gone has left no tensor for the garbage collector."""
    p, batch = model(device), data(device)
    pn.per_sample.norms(loss)(p, batch)
    gc.collect()
    gc.disable()
    try:
        before = _tensors()
        pn.per_sample.clipped_grad(loss, 1.0)(p, batch)
        assert _tensors() == before
    finally:
        gc.enable()


def _tensors() -> int:
    return sum(issubclass(type(item), Tensor) for item in gc.get_objects())


def test_units_of_several_rows(device: torch.device) -> None:
    """With segments the units' gradients are the sums of their rows', for closed and for materialised forms."""
    table = Embedding.init(pn.random.key(0, device), 9, 4, dtype=D)
    p = {"embed": table, "top": model(device)}

    def f(p: Any, i: Any, y: Any) -> Any:
        return loss(p["top"], p["embed"](i).sum(0), y)

    i = pn.random.randint(pn.random.key(5, device), (7, 3), low=0, high=9)
    y = torch.arange(7, device=device) % 3
    units = torch.tensor([2, 0, 1, 0, 2, 2, 4], device=device)
    each = pn.vmap(pn.grad(f), (None, 0, 0))(p, i, y)
    wanted = pn.tree.map(lambda g: torch.stack([g[units == u].sum(0) for u in range(5)]), each)
    record = pn.per_sample.record(f, p, (i, y), segments=units)
    norms = rows(wanted).norm(dim=1)
    assert same(record.grads(), wanted)
    assert same(record.norms(), norms)
    factors = torch.where(norms > 0.5, 0.5 / norms, 1.0)
    assert same(record.clipped_sum(0.5), pn.tree.map(lambda g: torch.tensordot(factors, g, 1), wanted))
    assert same(record.gram(), rows(wanted) @ rows(wanted).T)
    assert same(record.losses.sum(), pn.per_sample.record(f, p, (i, y)).losses.sum())


def test_units_as_examples_with_an_axis_more(device: torch.device) -> None:
    """Equally many rows for each unit are one example that the loss sums over."""
    p, (x, y) = model(device), data(device, 6)

    def whole(p: Any, x: Any, y: Any) -> Any:
        return F.cross_entropy(p(x), y, reduction="sum")

    found = pn.per_sample.norms(whole)(p, (x.view(3, 2, 4), y.view(3, 2)))
    gradients = pn.tree.map(lambda g: g.view(3, 2, *g.shape[1:]).sum(1), by_vmap(p, x, y))
    assert same(found, rows(gradients).norm(dim=1))


def test_axes_and_shared_arguments(device: torch.device) -> None:
    """Examples may be any axis, and an argument may be the same for all."""
    p, (x, y) = model(device), data(device)

    def f(p: Any, x: Any, y: Any, scale: Any) -> Any:
        return loss(p, x * scale["a"], y)

    scale = {"a": torch.tensor(2.0, dtype=D, device=device)}
    for size in (None, 2):
        record = pn.per_sample.record(f, p, (x.T, y, scale), in_dims=(1, 0, None), microbatch=size)
        assert same(record.grads(), by_vmap(p, x * 2, y))


def test_key_for_every_example(device: torch.device) -> None:
    """Every example has its own key, the same one as in a loop over split keys."""
    p, (x, y) = model(device), data(device)

    def f(p: Any, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
        return loss(p, dropout(Dropout(0.5), x, key=key), y)

    key = pn.random.key(7, device)
    found = pn.per_sample.record(f, p, (x, y), key=key).grads()
    keys = pn.random.split(key, len(x))
    looped = [pn.grad(lambda p, n=n: f(p, x[n], y[n], key=keys[n]))(p) for n in range(len(x))]
    assert same(found, pn.tree.stack(looped))
    assert same(pn.per_sample.record(f, p, (x, y), key=key, microbatch=3).grads(), found)


def test_gram_between_records(device: torch.device) -> None:
    """Inner products with the gradients of other examples, for influence."""
    p, (x, y) = model(device), data(device)
    mine, theirs = pn.per_sample.record(loss, p, (x[:4], y[:4])), pn.per_sample.record(loss, p, (x[4:], y[4:]))
    gradients = rows(by_vmap(p, x, y))
    assert same(mine.gram(theirs), gradients[:4] @ gradients[4:].T)


def test_products_of_a_gram_matrix(device: torch.device) -> None:
    """A bias takes the inner products that its weight has needed: two products of matrices for each layer, no third."""

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
            return func(*args, **(kwargs or {}))

    p, (x, y) = pn.models.MLP.init(pn.random.key(0, device), 4, (30, 20), 10, dtype=D), data(device)
    record = pn.per_sample.record(loss, p, (x, y))
    with Products() as seen:
        found = record.gram()
    assert seen.count == 2 * 3
    gradients = rows(by_vmap(p, x, y))
    assert same(found, gradients @ gradients.T)


def test_kronecker_factors(device: torch.device) -> None:
    """They are the second moments of inputs and output gradients; of a convolution, those of its windows."""
    p, (x, y) = model(device), data(device)
    factors = pn.per_sample.record(loss, p, (x, y)).kfac()
    assert set(factors) == {"layers.0.weight", "layers.3.weight"}
    assert same(factors["layers.0.weight"].input, x.T @ x / len(x))
    of_outputs = by_vmap(p, x, y).layers[0].bias
    assert same(factors["layers.0.weight"].output, of_outputs.T @ of_outputs / len(x))
    conv = Conv2d.init(pn.random.key(0, device), 2, 3, 3, dtype=D)
    images = pn.random.normal(pn.random.key(1, device), (5, 2, 4, 4), dtype=D)
    found = pn.per_sample.record(lambda p, x: p(x).sin().sum(), conv, (images,)).kfac()["weight"]
    windows = F.unfold(images, 3).mT.flatten(0, 1)
    assert same(found.input, windows.T @ windows / len(windows))


def test_noise_scale(device: torch.device) -> None:
    """Signal and noise are the unbiased estimates from the gradients of the examples."""
    p, batch = model(device), data(device)
    gradients = rows(by_vmap(p, *batch))
    found = pn.per_sample.record(loss, p, batch).noise_scale()
    trace = gradients.var(0).sum()
    squared_norm = gradients.mean(0).square().sum() - trace / len(gradients)
    assert same(list(found), [trace / squared_norm, squared_norm, trace])


@pytest.mark.parametrize(
    "make",
    [
        lambda k: (Linear.init(k, 6, 3), (6,)),
        lambda k: (Linear.init(k, 6, 3), (4, 6)),
        lambda k: (Conv1d.init(k, 6, 3, 2), (6, 5)),
        lambda k: (Conv2d.init(k, 6, 4, 2, groups=2), (6, 5, 5)),
        lambda k: (Conv3d.init(k, 2, 3, 2), (2, 3, 3, 3)),
        lambda k: (ConvTranspose2d.init(k, 6, 3, 2, stride=2), (6, 3, 3)),
        lambda k: (RNN.init(k, 6, 3, batch_first=True), (1, 4, 6)),
    ],
)
@pytest.mark.parametrize("budget", [2**30, 0])
def test_autocast(make: Any, budget: int, device: torch.device) -> None:
    """Under autocast, where results have another dtype than parameters, they are those of a loop but for rounding."""
    p, shape = make(pn.random.key(0, device))
    x = pn.random.normal(pn.random.key(1, device), (EXAMPLES, *shape))

    def loss(p: Any, x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            y = p(x)
        return (y[0] if isinstance(y, tuple) else y).float().square().sum()

    expected = rows(pn.tree.stack([pn.grad(loss)(p, one) for one in x]))
    norms = expected.norm(dim=1)
    record = pn.per_sample.record(loss, p, (x,), budget=budget)
    torch.testing.assert_close(record.norms(), norms, rtol=0.02, atol=0)
    bound = float(norms.median())
    found = torch.cat([leaf.flatten() for leaf in pn.tree.leaves(record.clipped_sum(bound))])
    wanted = (bound / norms).clamp(max=1) @ expected
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    assert (rows(record.grads()) - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("positions", [1, 4])
def test_questions_under_autocast(positions: int, device: torch.device) -> None:
    """Autocast is for the loss: what is asked of a record is computed in the parameters' dtype, here and under jit."""
    k = pn.random.split(pn.random.key(0, device))
    p = {"norm": LayerNorm.init(6), "linear": Linear.init(k[0], 6, 5)}
    x = pn.random.normal(k[1], (EXAMPLES, positions, 6))

    def loss(p: Any, x: Tensor) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            return p["linear"](p["norm"](x)).sin().sum()

    def answers(p: Any, x: Tensor) -> list[Any]:
        record = pn.per_sample.record(loss, p, (x,))
        squares = [leaf for factors in record.kfac().values() for leaf in factors]
        return [record.norms(), record.clipped_sum(0.5), record.grads(), record.gram(), record.second_moment(), squares]

    wanted = answers(p, x)
    with torch.autocast(device.type, torch.bfloat16):
        found = [answers(p, x), pn.jit(answers, backend="eager")(p, x)]
    assert all(pn.tree.allclose(one, wanted, rtol=1e-5, atol=1e-5) for one in found)


def test_losses_in_half_precision(device: torch.device) -> None:
    """They do not make norms and inner products less exact than the gradients are."""
    p, batch = {"w": draw(device, 3, 4), "b": draw(device, 3, seed=3)}, (draw(device, EXAMPLES, 4, seed=4),)
    record = pn.per_sample.record(lambda p, x: F.linear(x, p["w"], p["b"]).square().sum().half(), p, batch)
    assert record.losses.dtype is torch.float16
    gradients = rows(record.grads())
    torch.testing.assert_close(record.norms(), gradients.norm(dim=1))
    torch.testing.assert_close(record.gram(), gradients @ gradients.T)


def test_complex_parameters(device: torch.device) -> None:
    """A complex number counts as two real ones: the same as of a loss that makes it of these."""
    pairs = {"w": draw(device, 3, 4, 2), "b": draw(device, 3, 2, seed=3)}

    def loss(p: dict, x: Tensor) -> Tensor:
        return (F.linear(torch.view_as_complex(x), p["w"], p["b"]).abs() + p["b"].real).square().sum()

    def of_pairs(p: dict, x: Tensor) -> Tensor:
        return loss(pn.tree.map(torch.view_as_complex, p), x)

    batch = (draw(device, EXAMPLES, 4, 2, seed=4),)
    record = pn.per_sample.record(loss, pn.tree.map(torch.view_as_complex, pairs), batch)
    other = pn.per_sample.record(of_pairs, pairs, batch)
    torch.testing.assert_close(record.norms("leaf"), other.norms("leaf"))
    torch.testing.assert_close(record.gram(), other.gram())
    torch.testing.assert_close(record.noise_scale(), other.noise_scale())
    for found, wanted in ((record.grads(), other.grads()), (record.clipped_sum(1.0), other.clipped_sum(1.0))):
        torch.testing.assert_close(pn.tree.map(torch.view_as_real, found), wanted)
    sizes = pn.tree.map(lambda x: x.sum(-1), other.second_moment())
    torch.testing.assert_close(pn.tree.map(lambda x: x.real, record.second_moment()), sizes)


def test_explanation_as_text(device: torch.device) -> None:
    """An explanation is a table of all leaves."""
    p = {"conv": Conv2d.init(pn.random.key(0, device), 2, 3, 3, bias=False), "w": torch.ones(3, device=device)}
    x = torch.ones(4, 2, 6, 6, device=device)
    record = pn.per_sample.record(lambda p, x: (p["conv"](x).flatten(1).sum(1) * p["w"]).sum(), p, (x,))
    assert str(record.explain()) == (
        "leaf         shape         norms by      MiB of all  kept\n"
        "conv.weight  [3, 2, 3, 3]  materialised  0.00        yes\n"
        "w            [3]           copies        0.00        yes"
    )


def test_differentiated_again(device: torch.device) -> None:
    """Norms can be differentiated: within another gradient the record falls back to the transformations."""
    p, batch = model(device), data(device)

    def penalty(p: Any) -> Any:
        return pn.per_sample.norms(loss)(p, batch).sum()

    def wanted(p: Any) -> Tensor:
        each = [pn.tree.leaves(pn.grad(loss)(p, x, y)) for x, y in zip(*batch, strict=True)]
        return torch.stack([torch.cat([g.flatten() for g in leaves]).norm() for leaves in each]).sum()

    assert same(pn.grad(penalty)(p), pn.grad(wanted)(p))
    leaf = p.layers[0].weight.clone().requires_grad_()
    traced = pn.replace(p, layers=(pn.replace(p.layers[0], weight=leaf), *p.layers[1:]))
    (found,) = torch.autograd.grad(penalty(traced), leaf)
    assert same(found, pn.grad(penalty)(p).layers[0].weight)


def test_batched_over_models(device: torch.device) -> None:
    """A record within vmap over models is that of each model."""
    batch = data(device)
    models = pn.ensemble(Linear.init)(pn.random.split(pn.random.key(3, device), 2), 4, 3, dtype=D)
    found = pn.vmap(lambda p: pn.per_sample.norms(loss)(p, batch))(models)
    assert same(list(found), [pn.per_sample.norms(loss)(p, batch) for p in pn.tree.unstack(models)])


@pytest.mark.parametrize("of_parameters", [False, True])
def test_graph_of_a_closure_is_not_cut(of_parameters: bool, device: torch.device) -> None:
    """A loss that closes over a tensor that requires grad keeps its graph, also where that meets parameters alone."""
    scale = torch.full((), 1.5, dtype=D, device=device, requires_grad=True)

    def scaled(p: Sequential, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(pn.tree.map(lambda w: w * scale, p), x, y) if of_parameters else loss(p, x * scale, y)

    ways = pn.per_sample.grads(scaled), lambda p, batch: pn.vmap(pn.grad(scaled), (None, 0, 0))(p, *batch)
    totals = [sum(leaf.square().sum() for leaf in pn.tree.leaves(way(model(device), data(device)))) for way in ways]
    found, wanted = (torch.autograd.grad(total, scale)[0] for total in totals)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("examples", [1, 2])
@pytest.mark.parametrize("turned", [False, True])
def test_long_sequences(examples: int, turned: bool, device: torch.device) -> None:
    """Gradients of a bias added at very many positions are right however the output's gradient lies in memory."""
    p = Linear.init(pn.random.key(0, device), 2, 512, dtype=D)
    x = pn.random.normal(pn.random.key(1, device), (examples, 1024 // examples, 2), dtype=D)

    def total(p: Linear, x: torch.Tensor) -> torch.Tensor:
        y = p(x).sin()
        weights = torch.linspace(-1, 1, y.numel(), dtype=D, device=device)
        return (y.mT * weights.view(y.mT.shape) if turned else y * weights.view(y.shape)).sum()

    found, wanted = pn.per_sample.grads(total)(p, x), pn.vmap(pn.grad(total), (None, 0))(p, x)
    assert pn.tree.allclose(found, wanted, rtol=1e-10, atol=1e-10)


def test_arguments_by_name(device: torch.device) -> None:
    """Functions of torch take their arguments by any of the names that they have for them."""
    weight = pn.random.normal(pn.random.key(0, device), (3, 4), dtype=D)
    x = pn.random.normal(pn.random.key(1, device), (5, 2, 4), dtype=D)

    def plain(p: dict, x: torch.Tensor) -> torch.Tensor:
        h = x @ p["w"].T
        return (h @ h.mT).sum() + (h @ p["w"]).sin().sum()

    def named(p: dict, x: torch.Tensor) -> torch.Tensor:
        h = torch.mm(input=x, mat2=p["w"].T)
        zero = torch.zeros((), dtype=D, device=device)
        return torch.matmul(input=h, other=h.mT).sum() + torch.addmm(input=zero, mat1=h, mat2=p["w"]).sin().sum()

    found, wanted = (pn.per_sample.grads(f)({"w": weight}, (x,)) for f in (named, plain))
    assert pn.tree.allclose(found, wanted, rtol=1e-10, atol=1e-10)


def test_missing_arguments(device: torch.device) -> None:
    """What is wrong with a call is for torch to say."""
    p, x = {"w": torch.ones(3, 4, device=device)}, torch.ones(5, 4, device=device)
    with pytest.raises(
        TypeError, match=r"linear\(\) missing 1 required positional argument|linear\(\) received an invalid"
    ):
        pn.per_sample.grads(lambda p, x: torch.nn.functional.linear(p["w"]))(p, (x,))


def test_purity(device: torch.device) -> None:
    """Neither parameters nor batch are changed, and the result has no graph."""
    p, batch = model(device), data(device)
    before = [leaf.clone() for leaf in pn.tree.leaves((p, batch))]
    record = pn.per_sample.record(loss, p, batch)
    assert not any(leaf.requires_grad for leaf in pn.tree.leaves((record.losses, record.norms(), record.grads())))
    assert all(torch.equal(a, b) for a, b in zip(before, pn.tree.leaves((p, batch)), strict=True))


@pytest.mark.parametrize("mode", ["flat", "per_layer"])
def test_compiled_as_one_graph(mode: str, device: torch.device) -> None:
    """Forward, backward, norms and clipping are traced by pn.jit as one graph, convolutions as one operation each."""
    first, second = pn.random.split(pn.random.key(0, device))
    layers = Conv2d.init(first, 1, 2, 3, dtype=D), ReLU(), Flatten(0), Linear.init(second, 32, 3, dtype=D)
    p = Sequential.of(*layers)
    batch = pn.random.normal(pn.random.key(1, device), (5, 1, 6, 6), dtype=D), torch.arange(5, device=device) % 3
    clipped = pn.per_sample.clipped_grad(loss, 0.1, mode=mode)
    jitted = pn.jit(clipped, backend="eager")
    assert same(jitted(p, batch), clipped(p, batch))
    text = str(jitted.lower(p, batch))
    assert text.count("convolution_weight_gradients.default(") == 1
    assert text.count("convolution_backward") <= 1
