"""Modules from `bridge.to_module` are of torch's classes too, and other modules may take the places of their parts."""

import copy
from typing import Any

import pytest
import torch
from _carried import inputs, make
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrizations, prune
from torch.optim import swa_utils

import bridge
import purenn as pn
from purenn import layers
from purenn.layers import BatchNorm2d, Conv2d, Linear

DOUBLE = torch.float64


def leaves(p: Any) -> dict[str, Tensor]:
    return dict(pn.tree.named_leaves(p))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Linear", (3, 4)),
        ("Bilinear", (2, 3, 4)),
        ("Embedding", (5, 3)),
        ("EmbeddingBag", (5, 3)),
        ("Conv1d", (2, 4, 3)),
        ("Conv3d", (2, 4, 1)),
        ("ConvTranspose2d", (2, 4, 3)),
        ("BatchNorm1d", (4,)),
        ("InstanceNorm2d", (4, 1e-5, 0.1, True)),
        ("LayerNorm", (4,)),
        ("GroupNorm", (2, 4)),
        ("RMSNorm", (4,)),
    ],
)
def test_torch_sees_its_own_class(name: str, arguments: tuple[Any, ...], device: torch.device) -> None:
    """The module of a layer is an instance of torch's class of that name, with the attributes that torch's has."""
    original = getattr(nn, name)(*arguments, device=device, dtype=DOUBLE)
    module = bridge.to_module(bridge.convert(original))
    assert isinstance(module, getattr(nn, name))
    assert isinstance(module, bridge.Module)
    for attribute in original.__constants__:
        if hasattr(original, attribute):
            assert getattr(module, attribute) == getattr(original, attribute)
    assert isinstance(bridge.from_module(module), getattr(layers, name))
    module.load_state_dict(original.state_dict())
    state, expected = module.state_dict(), original.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_statistics_are_estimated_anew(device: torch.device) -> None:
    """swa_utils.update_bn makes the averages of all batches, as in torch.nn."""
    original = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(device, DOUBLE)
    module = bridge.to_module(bridge.convert(original), copy=True)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(6, 3, generator=generator, dtype=DOUBLE).to(device) + n for n in range(3)]
    for model in (original, module):
        swa_utils.update_bn(batches, model)
    torch.testing.assert_close(module.layers[1].running_var, original[1].running_var, rtol=0, atol=1e-12)
    assert module.layers[1].num_batches_tracked == 3
    assert module.layers[1].momentum == 0.1


def test_synchronised_batch_norms(device: torch.device) -> None:
    """convert_sync_batchnorm replaces the batch norms; functions, also as pure containers again, run the new ones."""
    module, x = bridge.to_module(make(device, rate=0.0), copy=True), inputs(device)
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(module))
    assert [type(block.norm) for block in other.blocks] == [nn.SyncBatchNorm] * 2
    calls: list[Any] = []
    for block in other.blocks:
        block.norm.register_forward_hook(lambda *args: calls.append(args))
    for model in (module.train(), other.train()):
        model(x)
    assert len(calls) == 2
    torch.testing.assert_close(other.state_dict(), module.state_dict(), rtol=0, atol=1e-12)
    p = bridge.from_module(other)
    assert pn.is_stateful(p)
    y, new = p(x, train=True)
    torch.testing.assert_close(y, module(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(leaves(new), dict(module.state_dict()), rtol=0, atol=1e-12)


@pn.container
class ConvBlock(pn.Layer):
    """A convolution with its batch norm."""

    conv: Conv2d
    norm: BatchNorm2d


@pn.applies(ConvBlock)
def conv_block(p: ConvBlock, x: Tensor, *, train: bool = False) -> tuple[Tensor, ConvBlock]:
    y, norm = layers.batch_norm(p.norm, layers.conv2d(p.conv, x), train=train)
    return y, pn.replace(p, norm=norm)


def test_fused_batch_norms(device: torch.device) -> None:
    """A convolution fused with its batch norm, and nothing in the place of that, compute the same."""
    p = ConvBlock(Conv2d.init(pn.random.key(0, device), 2, 3, 3), BatchNorm2d.init(3, device=device))
    module, x = bridge.to_module(p, copy=True), torch.linspace(-1, 1, 100, device=device).reshape(2, 2, 5, 5)
    module(x)
    y = module.eval()(x)
    module.conv, module.norm = fusion.fuse_conv_bn_eval(module.conv, module.norm), nn.Identity()
    torch.testing.assert_close(module(x), y, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_quantisation_of_linear_layers(device: torch.device) -> None:
    """torchao.quantize_ finds the linear layers; what they compute is near, and kept by from_module."""
    quantization = pytest.importorskip("torchao.quantization")
    p = layers.Sequential.of(
        Linear.init(pn.random.key(0, device), 32, 16), Linear.init(pn.random.key(1, device), 16, 3)
    )
    module, x = bridge.to_module(p, copy=True).eval(), torch.linspace(-1, 1, 64, device=device).reshape(2, 32)
    y = module(x)
    quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
    assert all(type(layer.weight) is not nn.Parameter for layer in module.layers)
    assert 0 < (module(x) - y).abs().max() < 0.05
    assert torch.equal(bridge.from_module(module)(x), module(x))


@pytest.mark.filterwarnings("ignore")
def test_exact_classes_are_not_found() -> None:
    """Code that compares classes exactly, as torch.ao.quantization does, leaves the layers as they are."""
    module = bridge.to_module(Linear.init(pn.random.key(0), 3, 2))
    other = torch.ao.quantization.quantize_dynamic(nn.Sequential(module, nn.Linear(3, 2)), {nn.Linear})
    assert type(other[0]) is type(module)
    assert type(other[1]) is torch.ao.nn.quantized.dynamic.Linear


@pytest.mark.parametrize("change", ["parametrized", "pruned"])
def test_what_others_put_in_is_kept(change: str, device: torch.device) -> None:
    """A bridged module with a parametrized or pruned layer becomes an opaque container, and that the same module."""
    module, x = bridge.to_module(make(device, rate=0.0), copy=True), inputs(device)
    if change == "parametrized":
        parametrizations.weight_norm(module.blocks[0].fc, "weight")
    else:
        prune.l1_unstructured(module.blocks[0].fc, "weight", 0.5)
    p = bridge.from_module(module)
    paths = set(leaves(p))
    assert paths == set(module.state_dict())
    key = pn.random.key(0, device)
    y, new = p(x, train=True, key=key)
    torch.testing.assert_close(y, module(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(leaves(new), dict(module.state_dict()), rtol=0, atol=1e-12)
    found = leaves(pn.grad(lambda p: p(x)[0].square().sum())(new))
    module.eval()(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-9)
    back = bridge.to_module(new).eval()
    assert torch.equal(back(x), module(x))
    assert back.state_dict().keys() == module.state_dict().keys()
    row = bridge.report(nn.Sequential(module)).rows[1]
    assert (row.container, row.reason) == (None, "others have put parameters, buffers or modules into it")


def test_ties_of_a_part(device: torch.device) -> None:
    """The ties of a bridged module that is a part of a foreign one are ties of the whole."""
    p = pn.tree.tie(
        layers.Sequential.of(*[Linear.init(pn.random.key(n, device), 3, 3) for n in range(2)]),
        {"layers.1.weight": "layers.0.weight"},
    )
    whole = bridge.from_module(nn.Sequential(bridge.to_module(p), nn.Tanh()))
    assert "0.layers.1.weight" not in leaves(whole)
    back = bridge.to_module(whole)
    assert back[0].layers[0].weight is back[0].layers[1].weight


def test_hooks_are_not_taken_along(device: torch.device) -> None:
    """from_module of a bridged module gives the container as it is without hooks."""
    p = Linear.init(pn.random.key(0, device), 3, 2)
    module, x = bridge.to_module(p), torch.ones(3, device=device)
    module.register_forward_hook(lambda *args: 2 * args[2])
    assert torch.equal(module(x), 2 * p(x))
    assert torch.equal(bridge.from_module(module)(x), p(x))
