"""Rows 9 to 16 of the list of components: rules of one's own, dropouts, normalisation, the rest of torch.nn."""

import pytest
import torch
from _matrix import check_cell
from _reference import check_equals_module, numbers, same
from _rows import ROWS
from torch import Tensor, nn

import purenn as pn
from purenn import layers
from purenn.errors import ShapeError


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device)


@pn.custom_jvp
def handmade_relu(x: Tensor) -> Tensor:
    """The larger of x and 0, with a derivative written by hand."""
    return torch.where(x > 0, x, 0)


@handmade_relu.defjvp
def _handmade_relu_jvp(primals: tuple[Tensor], tangents: tuple[Tensor]) -> tuple[Tensor, Tensor]:
    (x,), (tangent,) = primals, tangents
    return handmade_relu(x), torch.where(x > 0, tangent, 0)


def test_row_09_relu_with_a_handwritten_derivative(device: torch.device) -> None:
    """It works under grad, vmap, vmap(grad) and jvp, and its derivative at 0 is 0."""
    x = torch.tensor([[-1.5, 0.0, 2.0], [0.0, 3.0, -0.5]], dtype=torch.float64, device=device)
    slope = (x > 0).double()

    def loss(x: Tensor) -> Tensor:
        return (handmade_relu(x) ** 2 + 3 * handmade_relu(x)).sum()

    expected = (2 * x + 3) * slope
    same(pn.grad(loss)(x), expected)
    same(pn.vmap(handmade_relu)(x), x * slope)
    same(pn.vmap(pn.grad(loss))(x), expected)
    same(pn.grad(lambda x: pn.vmap(pn.grad(loss))(x).sum())(x), 2 * slope)
    y, along = pn.jvp(handmade_relu, (x,), (torch.full_like(x, 5),))
    same((y, along), (x * slope, 5 * slope))


@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"])
def test_row_10_dropouts(name: str, device: torch.device) -> None:
    """Without key the identity; kept values are scaled by 1 / (1 - p); other examples have other masks under vmap."""
    dimensions = int(name[-2]) if name[-1] == "d" else 2
    p = getattr(layers, name)()
    assert p.p == 0.5
    x = 1 + torch.rand(64, 32, *[3] * dimensions, dtype=torch.float64, device=device)
    assert torch.equal(p(x), x)
    y = p(x, key=key(device))
    kept = y != 0
    same(y, torch.where(kept, x / 0.5, 0))
    assert abs(kept.double().mean() - 0.5) < 0.05
    if name != "Dropout":
        assert torch.equal(kept, kept.flatten(2)[..., :1].reshape(64, 32, *[1] * dimensions).expand_as(kept))
    many = pn.vmap(lambda x, k: p(x, key=k))(x, pn.random.split(key(device), 64))
    assert len({tuple((one != 0).flatten().tolist()) for one in many}) == 64
    same(many, torch.stack([p(one, key=k) for one, k in zip(x, pn.random.split(key(device), 64), strict=True)]))


@pytest.mark.parametrize("name", ["AlphaDropout", "FeatureAlphaDropout"])
def test_row_10_alpha_dropouts(name: str, device: torch.device) -> None:
    """They keep mean 0 and variance 1, and without key they are the identity."""
    p = getattr(layers, name)(0.3)
    x = torch.randn(400, 100, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(p(x), x)
    y = p(x, key=key(device))
    assert abs(y.mean()) < 0.02
    assert abs(y.var() - 1) < 0.03
    assert not torch.equal(y, p(x, key=key(device, 1)))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_row_11_batch_norm(dimensions: int, momentum: float | None, device: torch.device) -> None:
    """Outputs and buffers are torch's after training steps, with the unbiased variance and with momentum=None."""
    name = f"BatchNorm{dimensions}d"
    shape = (4, 3, *[2] * (dimensions if dimensions > 1 else 0))
    p = getattr(layers, name).init(3, momentum=momentum, dtype=torch.float64, device=device)
    module = getattr(nn, name)(3, momentum=momentum, dtype=torch.float64, device=device)
    for seed in range(3):
        x = numbers(*shape, seed=seed, device=device)
        y, p = layers.batch_norm(p, x, train=True)
        same(y, module(x))
        same(dict(pn.tree.named_leaves(p)), dict(module.state_dict()))
    same(layers.batch_norm(p, x)[0], module.eval()(x))


def test_row_11_edges(device: torch.device) -> None:
    """No examples leave the statistics alone; one value in training is an error, as in torch; statistics may be off."""
    p = layers.BatchNorm2d.init(3, device=device)
    y, new = layers.batch_norm(p, torch.zeros(0, 3, 2, 2, device=device), train=True)
    assert y.shape == (0, 3, 2, 2)
    assert torch.equal(new.running_mean, p.running_mean)
    assert torch.equal(new.running_var, p.running_var)
    with pytest.raises(ShapeError):
        layers.batch_norm(p, torch.zeros(1, 3, 1, 1, device=device), train=True)
    p = layers.BatchNorm2d.init(3, track_running_stats=False, dtype=torch.float64, device=device)
    x = numbers(4, 3, 2, 2, device=device)
    expected = nn.BatchNorm2d(3, track_running_stats=False, dtype=torch.float64, device=device).eval()(x)
    same(layers.batch_norm(p, x)[0], expected)


def test_row_12_layer_norm(device: torch.device) -> None:
    """[32, 10, 768] over 768 is nn.LayerNorm; the unbiased variant has its own name, eps 1e-6, gamma and beta."""
    x = numbers(32, 10, 768, device=device)
    p = layers.LayerNorm.init(768, dtype=torch.float64, device=device)
    check_equals_module(p, layers.layer_norm, nn.LayerNorm(768, dtype=torch.float64, device=device), x)
    p = layers.UnbiasedLayerNorm.init(768, dtype=torch.float64, device=device)
    assert p.eps == 1e-6
    p = pn.replace(p, gamma=numbers(768, device=device), beta=numbers(768, seed=1, device=device))
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().sum(-1, keepdim=True) / 767).sqrt()
    same(layers.unbiased_layer_norm(p, x), p.gamma * centred / (deviation + 1e-6) + p.beta)


@pytest.mark.parametrize("promise", ["forward", "gradients", "buffers", "second order"])
@pytest.mark.parametrize(
    "name", ["GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "RMSNorm", "LocalResponseNorm"]
)
def test_row_13_other_norms(name: str, promise: str, device: torch.device) -> None:
    """They are torch.nn's, in values, gradients, buffers and second derivatives."""
    check_cell(name, promise, device)


def test_row_14_running_norm(device: torch.device) -> None:
    """Buffers and no parameters; biased variance; detached statistics; new buffers come back; N = 1 and NCHW work."""
    p = layers.RunningNorm.init(4, dtype=torch.float64, device=device)
    assert (p.momentum, p.eps) == (0.1, 1e-5)
    assert pn.tree.count(p) == 0
    assert pn.tree.count(p, kind="buffer") == 8
    x = numbers(5, 4, device=device).requires_grad_()
    y, new = layers.running_norm(p, x, train=True)
    mean, var = x.mean(0), x.var(0, correction=0)
    same(y, (x - mean) / (var + 1e-5).sqrt())
    same(new.running_mean, 0.1 * mean)
    same(new.running_var, 0.9 + 0.1 * var)
    assert not new.running_mean.requires_grad
    assert not new.running_var.requires_grad
    assert (p.running_mean == 0).all()
    images = numbers(2, 4, 3, 3, device=device)
    same(layers.running_norm(new, images)[0], _normalised(images, new))
    y, _ = layers.running_norm(p, images, train=True)
    same(
        (y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)),
        (torch.zeros_like(mean), torch.ones_like(mean)),
        tolerance=1e-3,
    )
    y, new = layers.running_norm(p, numbers(1, 4, device=device), train=True)
    assert (y.abs() < 1e-10).all()
    same(new.running_var, torch.full_like(new.running_var, 0.9))


def _normalised(x: Tensor, p: layers.RunningNorm) -> Tensor:
    mean, var = (value[:, None, None] for value in (p.running_mean, p.running_var))
    return (x - mean) / (var + p.eps).sqrt()


def test_row_15_centered(device: torch.device) -> None:
    """By default each example has its own mean, so vmap of the whole agrees; `dim=None` averages over the batch too."""
    x = numbers(3, 4, 5, device=device)
    by_example = torch.stack([one - one.sum() / 20 for one in x])
    same(layers.centered(layers.Centered(), x), by_example)
    same(pn.vmap(layers.Centered(dim=None))(x), by_example)
    same(layers.centered(layers.Centered(dim=None), x), x - x.sum() / 60)
    same(layers.centered(layers.Centered(dim=-1), x), x - x.sum(-1, keepdim=True) / 5)


PADDINGS = tuple(name for name in ROWS if "Pad" in name)
POOLINGS = tuple(name for name in ROWS if "Pool" in name or "Unpool" in name)
OTHERS = (
    *("Embedding", "EmbeddingBag", "Bilinear", "Identity", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle"),
    *("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d", "Fold", "Unfold"),
    *("CosineSimilarity", "PairwiseDistance"),
)


def test_row_16_counts() -> None:
    """There are 15 paddings and 20 poolings."""
    assert len(PADDINGS) == 15
    assert len(POOLINGS) == 20


@pytest.mark.parametrize("name", [*OTHERS, *PADDINGS, *POOLINGS])
def test_row_16_the_rest(name: str, device: torch.device) -> None:
    """Each is torch.nn's class of that name, in values and gradients, for all samples of the matrix."""
    assert hasattr(layers, name)
    check_cell(name, "forward", device)
    check_cell(name, "gradients", device)
