"""The vision Transformer: published size and names, the same network in torch.nn, transformations."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _reference import numbers, same
from torch import Tensor, nn

import purenn as pn
from purenn.errors import ArgumentError, ShapeError
from purenn.models import ViT, vit

TINY: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 4,
    "num_classes": 3,
    "dim": 8,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 12,
}


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


def tiny(device: torch.device, seed: int = 0, **options: Any) -> ViT:
    """A small model in float64, no parameter of which is constant."""
    p = ViT.init(key(device, seed), **{**TINY, **options}, dtype=torch.float64)
    return pn.tree.map(lambda leaf: leaf + 0.2 * numbers(*leaf.shape, seed=seed, device=device), p)


class Block(nn.Module):
    """One block with the public names."""

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), nn.GELU(), nn.Dropout(0.0), nn.Linear(mlp_dim, dim), nn.Dropout(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    """The blocks, with positions before and a normalisation behind them."""

    def __init__(self, length: int, dim: int, depth: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, length, dim))
        blocks = [(f"encoder_layer_{i}", Block(dim, heads, mlp_dim)) for i in range(depth)]
        self.layers = nn.Sequential(OrderedDict(blocks))
        self.ln = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.ln(self.layers(x + self.pos_embedding))


class Reference(nn.Module):
    """The whole model with the public names."""

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
    ) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.conv_proj = nn.Conv2d(3, dim, patch_size, patch_size)
        self.encoder = Encoder(1 + (image_size // patch_size) ** 2, dim, depth, num_heads, mlp_dim)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(dim, num_classes)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.repeat(len(x), 1, 1), x), 1)
        return self.heads(self.encoder(x)[:, 0])


def test_size_and_public_names() -> None:
    """The defaults are ViT-B/16: 86,567,656 parameters with the public names and shapes; 224 pixels, 1000 classes."""
    p = ViT.init(pn.random.key(0), device="meta")
    assert pn.tree.count(p) == 86_567_656
    with torch.device("meta"):
        module = Reference()
    expected = {name: value.shape for name, value in module.state_dict().items()}
    assert {path: leaf.shape for path, leaf in pn.tree.named_leaves(p)} == expected
    assert expected["encoder.layers.encoder_layer_11.self_attention.in_proj_weight"] == (2304, 768)
    assert expected["encoder.pos_embedding"] == (1, 197, 768)
    assert vit(p, torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


@pytest.mark.slow
def test_base_equals_modules() -> None:
    """ViT-B/16, with all its 86 million parameters, gives the scores of torch.nn's modules in float64."""
    p = pn.tree.map(lambda leaf: leaf + 0.01, ViT.init(pn.random.key(0), dtype=torch.float64))
    with torch.device("meta"):
        module = Reference()
    module.load_state_dict(dict(pn.tree.named_leaves(p)), assign=True)
    x = numbers(1, 3, 224, 224)
    with torch.no_grad():
        same(vit(p, x), module(x), tolerance=1e-9)


@pytest.mark.parametrize("depth", [1, 11])
def test_equals_modules(depth: int, device: torch.device, check_equals_module: Callable[..., None]) -> None:
    """Names, outputs and gradients are those of torch.nn's modules; blocks are in order of their numbers."""
    options = {**TINY, "depth": depth}
    p = ViT.init(key(device), **options, dtype=torch.float64)
    check_equals_module(p, Reference(**options).to(device).double(), numbers(2, 3, 8, 8, device=device))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_promises(batch: tuple[int, ...], device: torch.device, check_promises: Callable[..., None]) -> None:
    """It keeps what all models promise, for one image and for a batch."""
    options = {"dim": 4, "depth": 1, "mlp_dim": 3, "in_channels": 1, "image_size": (4, 2), "patch_size": 2}
    check_promises(lambda seed: tiny(device, seed, **options), numbers(2, *batch, 1, 4, 2, device=device))


def test_one_image(device: torch.device) -> None:
    """A single image gives what it gives in a batch; images need not be square."""
    p = tiny(device, image_size=(8, 12))
    x = numbers(3, 3, 8, 12, device=device)
    assert p.encoder.pos_embedding.shape == (1, 7, 8)
    same(vit(p, x[1]), vit(p, x)[1])


def test_dropout_by_key(device: torch.device) -> None:
    """A key drops, the same each time, at each of both rates; without one there is no dropout."""
    x = numbers(2, 3, 8, 8, device=device)
    plain = vit(tiny(device), x)
    for rates in ({"dropout": 0.5}, {"attention_dropout": 0.5}):
        p = tiny(device, **rates)
        same(vit(p, x), plain)
        y = vit(p, x, key=key(device))
        assert torch.equal(y, vit(p, x, key=key(device)))
        assert not torch.allclose(y, plain)
        assert not torch.allclose(y, vit(p, x, key=key(device, 1)))


def test_init(device: torch.device) -> None:
    """All classes start with a score of 0; the patches' map has a variance of 1 over its inputs; keys decide all."""
    p = ViT.init(key(device), **TINY)
    assert not vit(p, torch.randn(2, 3, 8, 8, device=device)).any()
    assert pn.tree.equal(p, ViT.init(key(device), **TINY))
    wide = ViT.init(key(device), **{**TINY, "dim": 256})
    assert abs(wide.conv_proj.weight.std() * 48**0.5 - 1) < 0.05
    bound = (6 / (256 + 12)) ** 0.5
    assert 0.95 * bound < wide.encoder.layers["encoder_layer_0"].mlp[0].weight.abs().max() <= bound


def test_errors(device: torch.device) -> None:
    """Sizes are checked when the model is made and when it is applied."""
    with pytest.raises(ArgumentError) as error:
        ViT.init(key(device), image_size=30)
    assert str(error.value) == (
        "ViT.init: an image of 30x30 cannot be cut into patches of 16x16. Choose sizes that are multiples of "
        "patch_size."
    )
    with pytest.raises(ShapeError) as error:
        vit(tiny(device), torch.zeros(1, 3, 8, 12, dtype=torch.float64, device=device))
    assert str(error.value) == (
        "vit: this model was made for images of 8x8 pixels, got an input of shape [1, 3, 8, 12]. Resize the images, or "
        "init the model with another image_size."
    )
