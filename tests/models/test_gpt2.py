"""GPT-2: published size and names, the same network in torch.nn, causality, masks, transformations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _reference import numbers, same
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.errors import ArgumentError, ShapeError
from purenn.models import GPT2, GPT2Model, TransposedLinear, gpt2, gpt2_model, transposed_linear

TINY: dict[str, Any] = {"vocab_size": 11, "max_length": 6, "dim": 8, "depth": 2, "num_heads": 2, "dropout": 0.5}


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device=device)


def tiny(device: torch.device, seed: int = 0, **options: Any) -> GPT2:
    """A small model in float64 whose maps are not nearly zero."""
    p = GPT2.init(key(device, seed), **{**TINY, **options}, dtype=torch.float64)
    return pn.tree.map(lambda leaf: leaf + 0.2 * numbers(*leaf.shape, seed=seed, device=device), p)


def text(*shape: int, seed: int = 0, device: torch.device) -> Tensor:
    """Random tokens."""
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed)).to(device)


class Stored(nn.Module):
    """A linear map that is stored as [in, out]."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(n, m)), nn.Parameter(torch.empty(m))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Causal attention by its formula."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj, self.heads = Stored(dim, 3 * dim), Stored(dim, dim), heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).movedim(-2, 1) for part in self.c_attn(x).chunk(3, -1))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        y = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
        return self.c_proj(y.movedim(1, -2).flatten(-2))


class Hidden(nn.Module):
    """The hidden features, with GELU's approximation written out."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Stored(dim, 4 * dim), Stored(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)
        return self.c_proj(0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3))))


class Block(nn.Module):
    """One block with the public names."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.ln_2, self.mlp = nn.LayerNorm(dim), Hidden(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Reference(nn.Module):
    """The whole model with the public names."""

    def __init__(self, vocab_size: int, max_length: int, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, dim),
                "wpe": nn.Embedding(max_length, dim),
                "h": nn.Sequential(*(Block(dim, num_heads) for _ in range(depth))),
                "ln_f": nn.LayerNorm(dim),
            }
        )
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.transformer
        x = parts["wte"](tokens) + parts["wpe"].weight[: tokens.shape[-1]]
        return self.lm_head(parts["ln_f"](parts["h"](x)))


def test_size_and_public_names() -> None:
    """The defaults have 124,439,808 parameters, with the names and shapes of the public checkpoints."""
    p = GPT2.init(pn.random.key(0), device="meta")
    assert pn.tree.count(p) == 124_439_808
    with torch.device("meta"):
        module = Reference(50257, 1024, 768, 12, 12)
    expected = {name: value.shape for name, value in module.state_dict().items()}
    assert {name: value.shape for name, value in bridge.to_module(p).state_dict().items()} == expected
    # The tied weight is no leaf of its own.
    del expected["lm_head.weight"]
    assert {path: leaf.shape for path, leaf in pn.tree.named_leaves(p)} == expected
    assert expected["transformer.h.11.attn.c_attn.weight"] == (768, 2304)
    assert {"transformer." + path for path, _ in pn.tree.named_leaves(p.transformer)} == set(expected)
    assert gpt2(p, torch.zeros(2, 1024, dtype=torch.int64, device="meta")).shape == (2, 1024, 50257)


@pytest.mark.slow
def test_small_equals_modules() -> None:
    """GPT-2 small, with all its 124 million parameters, gives the scores of torch.nn's modules in float64."""
    p = GPT2.init(pn.random.key(0), dtype=torch.float64)
    with torch.device("meta"):
        module = Reference(50257, 1024, 768, 12, 12)
    module.load_state_dict(bridge.to_module(p).state_dict(), assign=True)
    tokens = text(1, 5, device=torch.device("cpu")) * 5000
    with torch.no_grad():
        same(gpt2(p, tokens), module(tokens), tolerance=1e-9)


@pytest.mark.parametrize("shape", [(2, 6), (1, 1)])
def test_equals_modules(shape: tuple[int, ...], device: torch.device, check_equals_module: Callable[..., None]) -> None:
    """Names, outputs and gradients are those of torch.nn's modules, and the tied weight's gradients add up."""
    p = GPT2.init(key(device), **{**TINY, "dropout": 0.0}, dtype=torch.float64)
    sizes = {name: value for name, value in TINY.items() if name != "dropout"}
    check_equals_module(p, Reference(**sizes).to(device).double(), text(*shape, device=device))


def test_transposed_linear(device: torch.device) -> None:
    """Its weight is the transpose of a linear layer's; it starts with zero biases and the given deviation."""
    p = TransposedLinear.init(key(device), 40, 50, std=0.1)
    x = torch.randn(2, 40, device=device)
    same(transposed_linear(p, x), x @ p.weight + p.bias, tolerance=1e-5)
    assert abs(p.weight.std() - 0.1) < 0.01
    assert not p.bias.any()
    assert repr(p) == "TransposedLinear(in_features=40, out_features=50)"


@pytest.mark.parametrize("shape", [(2, 4), (2, 2, 4)])
def test_promises(shape: tuple[int, ...], device: torch.device, check_promises: Callable[..., None]) -> None:
    """It keeps what all models promise, ties included: purity, batching, derivatives, compilation, both carriers."""
    options = {"dim": 4, "depth": 1, "dropout": 0.0}
    check_promises(lambda seed: tiny(device, seed, **options), text(*shape, device=device))


def test_is_causal(device: torch.device) -> None:
    """A position's scores do not change with what comes after it, and do with what comes before."""
    p, tokens = tiny(device), text(1, 6, device=device)
    other = torch.cat((tokens[:, :3], (tokens[:, 3:] + 1) % 11), 1)
    same(gpt2(p, tokens)[:, :3], gpt2(p, other)[:, :3])
    assert not torch.isclose(gpt2(p, tokens)[:, 3:], gpt2(p, other)[:, 3:]).all(-1).any()
    same(gpt2(p, tokens[0]), gpt2(p, tokens)[0])


def test_padding_mask(device: torch.device) -> None:
    """What a mask hides has no influence on the others, boolean or added to the scores."""
    p, tokens = tiny(device), text(2, 6, device=device)
    taking_part = torch.tensor([[True, False, True, True, True, True], [True] * 6], device=device)
    mask = taking_part.reshape(2, 1, 1, 6)
    y = gpt2(p, tokens, mask=mask)
    other = torch.where(taking_part, tokens, (tokens + 1) % 11)
    same(gpt2(p, other, mask=mask)[taking_part], y[taking_part])
    assert not torch.allclose(gpt2(p, other)[0], y[0])
    same(y[1], gpt2(p, tokens)[1])
    added = torch.where(mask, 0.0, -torch.inf).double()
    same(gpt2(p, tokens, mask=added)[taking_part], y[taking_part])


def test_dropout_by_key(device: torch.device) -> None:
    """A key drops, the same each time; without one, and at rate zero, there is no dropout."""
    p, tokens = tiny(device), text(2, 6, device=device)
    y = gpt2(p, tokens, key=key(device))
    assert torch.equal(y, gpt2(p, tokens, key=key(device)))
    assert not torch.allclose(y, gpt2(p, tokens, key=key(device, 1)))
    same(gpt2(p, tokens), gpt2(tiny(device, dropout=0.0), tokens, key=key(device)))


def test_files_without_prefix(device: torch.device) -> None:
    """A state dict of the part without the head, with masks as some files have them, is read into the model."""
    p, q, tokens = tiny(device), tiny(device, 1), text(2, 6, device=device)
    state = bridge.to_module(q.transformer).state_dict()
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 6, 6).tril() for i in range(2)}
    missing, unexpected = bridge.to_module(p.transformer).load_state_dict({**state, **masks}, strict=False)
    assert missing == []
    assert unexpected == list(masks)
    assert torch.equal(gpt2(p, tokens), gpt2(q, tokens))


def test_model_without_head(device: torch.device) -> None:
    """The scores are products of the last vectors and those of the tokens; an ensemble is drawn by vmap."""
    p, tokens = tiny(device), text(2, 6, device=device)
    same(gpt2(p, tokens), F.linear(gpt2_model(p.transformer, tokens), p.transformer.wte.weight))
    several = pn.ensemble(lambda k: GPT2.init(k, **TINY))(pn.random.split(key(device), 3))
    assert pn.vmap(gpt2, (0, None))(several, tokens).shape == (3, 2, 6, 11)


def test_init(device: torch.device) -> None:
    """Maps have a deviation of 0.02, those that write into the sum a smaller one; biases are 0."""
    p = GPT2Model.init(key(device), vocab_size=50, max_length=8, dim=64, depth=8, num_heads=2)
    block = p.h[3]
    for value, std in ((p.wte.weight, 0.02), (block.attn.c_attn.weight, 0.02), (block.mlp.c_proj.weight, 0.02 / 4)):
        assert abs(value.std() / std - 1) < 0.05
    assert not block.attn.c_attn.bias.any()
    half = GPT2Model.init(key(device), **TINY, dtype=torch.bfloat16)
    assert {leaf.dtype for leaf in pn.tree.leaves(half)} == {torch.bfloat16}


def test_errors(device: torch.device) -> None:
    """Texts that are too long, and heads that do not divide the size, are refused."""
    with pytest.raises(ShapeError) as error:
        gpt2(tiny(device), text(1, 7, device=device))
    assert str(error.value) == (
        "gpt2: this model has vectors for 6 positions, got 7 tokens. Cut the text, or init the model with a larger "
        "max_length."
    )
    with pytest.raises(ArgumentError) as error:
        GPT2.init(key(device), dim=8, num_heads=3)
    assert str(error.value) == (
        "GPT2Block.init: dim must be a multiple of num_heads, so that all heads have the same size, got dim=8 and "
        "num_heads=3."
    )
