"""Rows 17 to 22 of the list of components: attention, recurrent layers, gates, lazy sizes, shared weights."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from _matrix import check_cell
from _reference import numbers, same
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn import layers
from purenn.errors import ArgumentError


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device)


def softmax(scores: Tensor) -> Tensor:
    """Shares of the last dimension, by hand."""
    powers = (scores - scores.max(-1, keepdim=True).values).exp()
    return powers / powers.sum(-1, keepdim=True)


def test_row_17_single_head_self_attention(device: torch.device) -> None:
    """Scores are scaled by sqrt(E), there are three maps and none of the result."""
    p = layers.SelfAttention.init(key(device), 6, dtype=torch.float64)
    assert [path for path, _ in pn.tree.named_leaves(p)] == [
        f"{part}.{leaf}" for part in ("query", "key", "value") for leaf in ("weight", "bias")
    ]
    x = numbers(2, 5, 6, device=device)
    q, k, v = (x @ part.weight.mT + part.bias for part in (p.query, p.key, p.value))
    same(layers.self_attention(p, x), softmax(q @ k.mT / math.sqrt(6)) @ v)
    same(layers.self_attention(p, x), nn.functional.scaled_dot_product_attention(q, k, v))


def attention(device: torch.device, heads: int = 2, **options: Any) -> tuple[layers.MultiheadAttention, nn.Module]:
    """A container with a module of the same numbers."""
    module = nn.MultiheadAttention(8, heads, batch_first=True, **options, device=device, dtype=torch.float64)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = numbers(*parameter.shape, seed=seed, device=device) / 2
    return bridge.convert(module), module


@pytest.mark.parametrize("average", [True, False])
def test_row_18_multi_head_attention(average: bool, device: torch.device) -> None:
    """[b, t, e] becomes ([b, t, e], weights), averaged or per head, and it is nn.MultiheadAttention."""
    p, module = attention(device)
    x = numbers(3, 5, 8, device=device)
    y, weights = layers.multihead_attention(p, x, average_attn_weights=average)
    assert y.shape == (3, 5, 8)
    assert weights.shape == ((3, 5, 5) if average else (3, 2, 5, 5))
    same((y, weights), module(x, x, x, average_attn_weights=average))


@pytest.mark.parametrize("floating", [False, True])
def test_row_18_masks(floating: bool, device: torch.device) -> None:
    """Masks [t, s], [b, t, s] and [b, h, t, s], boolean and float; [b, t, s] is never per head where b = heads."""
    p, module = attention(device)
    x = numbers(2, 4, 8, device=device)  # as many examples as heads
    blocked = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)).to(device) < 0.4
    blocked[..., 0] = False
    added = numbers(2, 2, 4, 4, seed=1, device=device)

    def own(place: Any) -> Tensor:
        return (added if floating else blocked)[place]

    def expected(mask: Tensor) -> Tensor:
        return module(x, x, x, attn_mask=mask.reshape(4, 4, 4))[0]

    every = own(slice(None))
    same(layers.multihead_attention(p, x, attn_mask=own((0, 0)))[0], expected(own((0, 0)).expand(2, 2, 4, 4)))
    by_example = own((slice(None), 0))
    same(layers.multihead_attention(p, x, attn_mask=by_example)[0], expected(by_example[:, None].expand(2, 2, 4, 4)))
    same(layers.multihead_attention(p, x, attn_mask=every)[0], expected(every))


def test_row_18_padding_and_causal(device: torch.device) -> None:
    """A padding mask is torch's; `is_causal=True` needs no mask beside it; what is fully masked gets zeros, not NaN."""
    p, module = attention(device)
    x = numbers(2, 4, 8, device=device)
    padding = torch.tensor([[False, False, True, True], [False] * 4], device=device)
    same(layers.multihead_attention(p, x, key_padding_mask=padding), module(x, x, x, key_padding_mask=padding))
    later = torch.ones(4, 4, dtype=torch.bool, device=device).triu(1)
    for need_weights in (True, False):
        y, _ = layers.multihead_attention(p, x, is_causal=True, need_weights=need_weights)
        same(y, module(x, x, x, attn_mask=later)[0])
    nothing = torch.zeros(4, 4, dtype=torch.bool, device=device)
    nothing[1] = True
    y, weights = layers.multihead_attention(p, x, attn_mask=nothing)
    assert (weights[:, 1] == 0).all()
    same(y[:, 1], module.out_proj.bias.expand(2, 8))
    assert y.isfinite().all()


def test_row_18_head_sizes_and_second_derivatives(device: torch.device) -> None:
    """Heads that do not divide the size are a clear error; double backward and vmap agree with the module's."""
    with pytest.raises(ArgumentError) as error:
        layers.MultiheadAttention.init(key(device), 10, 3)
    assert str(error.value) == (
        "MultiheadAttention.init: embed_dim must be a positive multiple of num_heads, so that all heads have the same "
        "size, got embed_dim=10 and num_heads=3."
    )
    p, module = attention(device)
    x = numbers(3, 4, 8, device=device)

    def loss(y: Tensor) -> Tensor:
        return y.square().sum()

    def second(call: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        first = torch.autograd.grad(loss(call(x)), x, create_graph=True)[0]
        return torch.autograd.grad(first.sin().sum(), x)[0]

    def ours(x: Tensor) -> Tensor:
        return layers.multihead_attention(p, x, need_weights=False)[0]

    same(second(ours, x), second(lambda x: module(x, x, x)[0], x), tolerance=1e-9)
    same(pn.vmap(ours)(x[:, None])[:, 0], module(x, x, x)[0])


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("promise", ["forward", "gradients", "vmap over models", "vmap(grad)"])
def test_row_19_recurrent(name: str, promise: str, device: torch.device) -> None:
    """Layers and cells are torch.nn's, and they work under vmap, vmap(grad) and as ensembles, where torch's do not."""
    check_cell(name, promise, device)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_row_19_options(name: str, device: torch.device) -> None:
    """Several layers, both directions, dropout between layers by key, and for the LSTM projections."""
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    for more in ({}, *(({"proj_size": 2},) if name == "LSTM" else ())):
        module = getattr(nn, name)(3, 4, **options, **more, device=device, dtype=torch.float64)
        x = numbers(2, 5, 3, device=device)
        same(bridge.convert(module)(x), module(x))
    p = getattr(layers, name).init(key(device), 3, 4, dropout=0.5, **options, dtype=torch.float64)
    y = p(x, key=key(device))[0]
    assert torch.equal(y, p(x, key=key(device))[0])
    assert not torch.equal(y, p(x, key=key(device, 1))[0])
    same(p(x)[0], pn.replace(p, dropout=0.0)(x, key=key(device))[0])


@pytest.mark.parametrize(("bias", "parameters"), [(True, 580), (False, 512)])
def test_row_20_squeeze_and_excitation(bias: bool, parameters: int, device: torch.device) -> None:
    """At 64 channels it has 580 parameters, 512 without biases; fewer channels than `reduction` are an error."""
    p = layers.SqueezeExcitation.init(key(device), 64, bias=bias, dtype=torch.float64)
    assert pn.tree.count(p) == parameters
    x = numbers(2, 64, 3, 5, device=device)
    means = x.sum((2, 3)) / 15
    hidden = means @ p.squeeze.weight.mT
    hidden = (hidden + p.squeeze.bias if bias else hidden).clamp(min=0)
    passes = hidden @ p.excite.weight.mT
    passes = 1 / (1 + (-(passes + p.excite.bias if bias else passes)).exp())
    same(layers.squeeze_excitation(p, x), x * passes[:, :, None, None])
    with pytest.raises(ArgumentError):
        layers.SqueezeExcitation.init(key(device), 8)


def test_row_21_lazy_sizes(device: torch.device) -> None:
    """Sizes come from an example that may lie on meta; nothing is allocated before, and no value is left undrawn."""
    example = torch.empty(10**9, 784, device="meta")
    p = layers.init_like(key(device), layers.Linear, example, out_features=10)
    assert p.weight.is_meta
    assert p.weight.shape == (10, 784)
    p = layers.init_like(key(device), layers.Linear, example, out_features=10, device=device)
    again = layers.Linear.init(key(device), 784, 10)
    assert torch.equal(p.weight, again.weight)
    assert torch.equal(p.bias, again.bias)
    lazy = [name for name in dir(nn) if name.startswith("Lazy")]
    assert len(lazy) == 13
    for name in lazy:
        dimensions = int(name[-2]) if name[-1] == "d" else 0
        x = torch.ones(2, 5, *[4] * dimensions, device=device)
        options = {"out_features": 3} if dimensions == 0 else {"out_channels": 3, "kernel_size": 2}
        made = layers.init_like(key(device), getattr(layers, name[4:]), x, **({} if "Norm" in name else options))
        y = made(x)[0] if pn.is_stateful(made) else made(x)
        assert y.shape == getattr(nn, name)(*({} if "Norm" in name else options).values()).to(device)(x).shape


def test_row_22_shared_weights(device: torch.device, tmp_path: Path) -> None:
    """One linear used twice: 110 parameters, one leaf; gradients add up; file, module and optimiser keep it shared."""
    shared = layers.Linear.init(key(device), 10, 10, dtype=torch.float64)
    p = pn.tree.tie(layers.Sequential.of(shared, layers.Tanh(), shared))
    assert pn.tree.count(p) == 110
    assert [path for path, _ in pn.tree.named_leaves(p)] == ["layers.0.weight", "layers.0.bias"]
    x = numbers(4, 10, device=device)

    def loss(p: Any) -> Tensor:
        return p(x).square().sum()

    weight = shared.weight.clone().requires_grad_()
    y = (x @ weight.mT + shared.bias).tanh() @ weight.mT + shared.bias
    gradient = torch.autograd.grad(y.square().sum(), weight)[0]
    same(dict(pn.tree.named_leaves(pn.grad(loss)(p)))["layers.0.weight"], gradient)
    pn.save(tmp_path / "shared.safetensors", p)
    assert pn.tree.equal(pn.load(tmp_path / "shared.safetensors", like=pn.tree.map(torch.zeros_like, p)), p)
    module = bridge.to_module(p)
    assert sum(parameter.numel() for parameter in module.parameters()) == 110
    assert pn.tree.equal(bridge.from_module(module), p)
    optimizer = pn.optim.adam(1e-2)
    updates, _ = optimizer.update(pn.grad(loss)(p), optimizer.init(p), p)
    new = pn.optim.apply_updates(p, updates)
    assert pn.tree.count(new) == 110
    assert loss(new) < loss(p)
