"""`bridge.convert`: whole modules as native containers, what stays opaque and why, and the report on it."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _carried import Net, inputs, make
from _module_inputs import randn
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import bridge
import purenn as pn
from purenn.errors import BridgeError


def names_of(p: Any) -> list[str]:
    return [path for path, _ in pn.tree.named_leaves(p)]


def reasons(module: nn.Module) -> dict[str, str]:
    return {row.path: row.reason for row in bridge.report(module).rows if row.container is None}


# Whole trees.


def test_perceptron(device: torch.device) -> None:
    """A Sequential becomes a Sequential: same outputs and gradients, shared storage, plain tensors."""
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)).to(device, torch.float64)
    p, x = bridge.convert(module), randn(device, 3, 4)
    assert isinstance(p, pn.layers.Sequential)
    assert torch.equal(p(x), module(x))
    assert p[0].weight.data_ptr() == module[0].weight.data_ptr()
    assert not any(leaf.requires_grad or isinstance(leaf, nn.Parameter) for leaf in pn.tree.leaves(p))
    module(x).square().sum().backward()
    for path, gradient in pn.tree.named_leaves(pn.grad(lambda p: p(x).square().sum())(p)):
        expected = module.get_parameter(path.removeprefix("layers.")).grad
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def convolutional(device: torch.device) -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    head = nn.Sequential()
    head.add_module("flat", nn.Flatten())
    head.add_module("drop", nn.Dropout(0.5))
    head.add_module("affine", nn.Linear(16, 3))
    return nn.Sequential(body, head).to(device, torch.float64)


def test_convolutional_network(device: torch.device) -> None:
    """In evaluation and in training without dropout, step after step, outputs and statistics are the module's."""
    module, x = convolutional(device), randn(device, 5, 2, 4, 4)
    p = bridge.convert(module)
    assert torch.equal(p(x)[0], module.eval()(x))
    module.train()[1].drop.eval()
    p = pn.tree.map(torch.clone, p)
    for _ in range(3):
        y, p = p(x, train=True)
        torch.testing.assert_close(y, module(x), rtol=0, atol=1e-12)
    state = module.state_dict()
    for name, path in bridge.report(module).paths.items():
        torch.testing.assert_close(dict(pn.tree.named_leaves(p))[path], state[name], rtol=0, atol=1e-12)


def test_paths(device: torch.device) -> None:
    """Paths are state_dict keys, but for the field of Sequential; the report says which key is which path."""
    module = convolutional(device)
    paths = bridge.report(module).paths
    assert set(paths) == set(module.state_dict())
    assert set(paths.values()) == set(names_of(bridge.convert(module)))
    assert paths["0.1.running_var"] == "layers.0.layers.1.running_var"
    assert paths["1.affine.bias"] == "layers.1.layers.affine.bias"
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2, nn.LayerNorm(4))
    paths = bridge.report(encoder).paths
    assert list(paths) == list(paths.values())
    assert set(paths) == set(encoder.state_dict())


@pytest.mark.parametrize("activation", ["relu", "gelu", F.silu, nn.Tanh()], ids=["relu", "gelu", "function", "module"])
def test_transformer_encoder(device: torch.device, activation: Any) -> None:
    """An encoder is native throughout, with any activation."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=activation, batch_first=True)
    module = nn.TransformerEncoder(layer, 2, nn.LayerNorm(4), enable_nested_tensor=False).to(device, torch.float64)
    p, x = bridge.convert(module.eval()), randn(device, 3, 5, 4)
    assert reasons(module) == {}
    padding = torch.arange(5, device=device) >= torch.tensor([[5], [3], [4]], device=device)
    expected = module(x, src_key_padding_mask=padding)
    y = p(x, src_key_padding_mask=padding)
    torch.testing.assert_close(y[~padding], expected[~padding], rtol=0, atol=1e-12)


def test_training_mode_does_not_matter(device: torch.device) -> None:
    """A module in training mode becomes the same container as in evaluation mode."""
    module = convolutional(device)
    assert pn.tree.equal(bridge.convert(module.train()), bridge.convert(module.eval()))


def test_the_module_is_not_touched(device: torch.device) -> None:
    """Conversion leaves tensors, modes and flags alone."""
    module = convolutional(device)
    module[0][0].weight.requires_grad_(False)
    before, flags = copy.deepcopy(module.state_dict()), [q.requires_grad for q in module.parameters()]
    bridge.convert(module)
    assert module.training
    assert [q.requires_grad for q in module.parameters()] == flags
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_lists_and_dicts(device: torch.device) -> None:
    """A ModuleList becomes a tuple and a ModuleDict a dict, with the keys as paths."""
    one, two = nn.Linear(2, 2), nn.Tanh()
    module = nn.ModuleDict({"a": nn.ModuleList([one, two]), "b": nn.PReLU()}).to(device, torch.float64)
    p, x = bridge.convert(module), randn(device, 3, 2)
    assert set(names_of(p)) == set(module.state_dict())
    assert isinstance(p["a"], tuple)
    assert torch.equal(p["a"][1](p["a"][0](x)), two(one(x)))


def test_bridged_modules_become_their_containers(device: torch.device) -> None:
    """A module that to_module has made is its container, ties included, also as a part of another."""
    p = pn.tree.tie(make(device), {"blocks.1.norm.weight": "blocks.0.norm.weight"})
    p = pn.tree.freeze(p, "blocks.0.fc.weight")
    module = bridge.to_module(p)
    assert pn.tree.equal(bridge.convert(module), p)
    whole = bridge.convert(nn.Sequential(module, nn.Tanh().to(device)))
    assert isinstance(whole[0], Net)
    assert torch.equal(whole(inputs(device))[0], p(inputs(device))[0].tanh())


# Ties and frozen parameters.


def test_ties_and_frozen_parameters(device: torch.device) -> None:
    """A shared tensor is one leaf wherever it is, in native and opaque parts; frozen parameters are frozen."""
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), Doubled(3, 3), nn.Linear(3, 3)).to(device, torch.float64)
    module[2].weight = module[3].weight = module[0].weight
    module[0].bias.requires_grad_(False)
    module[2].bias.requires_grad_(False)
    p, x = bridge.convert(module), randn(device, 2, 3)
    assert p.layers[2].weight == p.layers[3].weight == pn.tree.Alias("layers.0.weight")
    assert pn.tree.count(p) == sum(q.numel() for q in module.parameters())
    assert names_of(pn.tree.partition(p)[0]) == ["layers.0.weight", "layers.3.bias"]
    assert torch.equal(p(x), module(x))
    module(x).sum().backward()
    gradient = pn.grad(lambda p: p(x).sum())(p).layers[0].weight
    torch.testing.assert_close(gradient, module[0].weight.grad, rtol=0, atol=1e-12)


def test_shared_submodules(device: torch.device) -> None:
    """A layer that is used twice has one set of leaves; one whose buffers change in each place keeps all opaque."""
    layer = nn.Linear(3, 3)
    module, x = nn.Sequential(layer, nn.Tanh(), layer).to(device, torch.float64), randn(device, 4, 3)
    p = bridge.convert(module)
    assert pn.tree.count(p) == 12
    weight, bias = 2 * layer.weight, 2 * layer.bias
    doubled = pn.tree.map(lambda leaf: 2 * leaf, p)
    assert torch.equal(doubled(x), F.linear(F.linear(x, weight, bias).tanh(), weight, bias))
    norm = nn.BatchNorm1d(3)
    twice = nn.Sequential(norm, nn.Sequential(nn.Tanh(), norm)).to(device, torch.float64).eval()
    assert reasons(twice) == {"": "'0' and '1' share a BatchNorm1d, whose buffers change in each of them"}
    assert torch.equal(bridge.convert(twice)(x)[0], twice(x))


# What stays opaque.


class Doubled(nn.Linear):
    """A layer that is not what its base class is."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Mixed(nn.Module):
    """Someone's module of known and unknown parts."""

    def __init__(self) -> None:
        super().__init__()
        self.known = nn.Linear(3, 3)
        self.unknown = Doubled(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.unknown(self.known(x))


def test_unknown_classes_are_opaque_as_a_whole(device: torch.device) -> None:
    """A user's module is opaque with all its parts, alone as from_module makes it, and within native ones."""
    module, x = Mixed().to(device, torch.float64), randn(device, 2, 3)
    p = bridge.convert(module)
    assert names_of(p) == names_of(bridge.from_module(module)) == list(module.state_dict())
    assert torch.equal(p(x), module(x))
    whole = nn.Sequential(nn.Tanh(), module, Doubled(3, 2).to(device, torch.float64))
    assert torch.equal(bridge.convert(whole)(x), whole(x))
    assert reasons(whole) == {"1": "its class has no conversion", "2": "a subclass of Linear may differ from it"}


def edited(module: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, args, y: y + 1)
    module.register_full_backward_hook(lambda module, before, after: None)
    return module


def without(module: nn.Module, name: str) -> nn.Module:
    value = getattr(module, name).detach()
    delattr(module, name)
    module.register_buffer(name, value)
    return module


OPAQUE = {
    "it has forward hooks and backward hooks": lambda: hooked(nn.Linear(3, 3)),
    "it is parametrized": lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
    "it has a forward of its own": lambda: edited(nn.Linear(3, 3), forward=torch.tanh),
    "its parameter 'extra' has no place in a Linear": lambda: edited(
        nn.Linear(3, 3), extra=nn.Parameter(torch.ones(1))
    ),
    "its buffer 'weight' has no place in a Linear": lambda: without(nn.Linear(3, 3), "weight"),
    "dim=None has no counterpart": lambda: nn.LogSoftmax(),
    "track_running_stats=False, but it has running averages": lambda: edited(
        nn.BatchNorm1d(3), track_running_stats=False
    ),
    "its part 'linear1' is or has an opaque Doubled, expected Linear": lambda: edited(
        nn.TransformerEncoderLayer(3, 1, 3), linear1=Doubled(3, 3)
    ),
    "its part 'norm' is or has a RMSNorm, expected LayerNorm": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(3, 1, 3), 1, nn.RMSNorm(3), enable_nested_tensor=False
    ),
    "its activation updates buffers": lambda: nn.TransformerEncoderLayer(3, 1, 3, activation=nn.BatchNorm1d(3)),
    "Upsample: recompute_scale_factor needs scale_factor; with size there is none.": lambda: nn.Upsample(
        3, recompute_scale_factor=True
    ),
    "its distance_function is a module, not a function": lambda: nn.TripletMarginWithDistanceLoss(
        distance_function=nn.PairwiseDistance(1)
    ),
}


@pytest.mark.parametrize("reason", OPAQUE)
def test_reasons(reason: str) -> None:
    """What no native container can stand for is opaque, and the report says why."""
    module = OPAQUE[reason]()
    assert reasons(module) == {"": reason}
    assert set(names_of(bridge.convert(module))) == {
        name for name, _ in (*module.named_parameters(), *module.named_buffers())
    }


def test_opaque_parts_run_as_they_did(device: torch.device) -> None:
    """Hooks, parametrizations and options still work in an opaque part of a native tree."""
    module = nn.Sequential(
        hooked(nn.Linear(3, 3)), parametrizations.weight_norm(nn.Linear(3, 3)), edited(nn.Tanh(), forward=torch.sin)
    ).to(device, torch.float64)
    p, x = bridge.convert(module), randn(device, 2, 3)
    torch.testing.assert_close(p(x), module(x), rtol=0, atol=1e-12)
    table = bridge.convert(nn.Embedding(5, 2, sparse=True, device=device))
    assert reasons(nn.Embedding(5, 2, sparse=True)) == {"": "sparse=True has no counterpart"}
    assert table(torch.tensor([1], device=device)).shape == (1, 2)


# The report.


def test_report_text() -> None:
    """The report is a table of what became of each module, with parameters counted once."""
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), Doubled(3, 3), Mixed())
    module[2].weight = module[0].weight
    module[2].bias.requires_grad_(False)
    module[3].unknown.weight = module[0].weight
    module.append(nn.MultiheadAttention(2, 1))
    assert str(bridge.report(module)) == "\n".join(
        [
            "path        class                            becomes             parameters  remarks",
            "(whole)     Sequential                       Sequential                   0",
            "0           Linear                           Linear                      12",
            "1           Tanh                             Tanh                         0",
            "2           Doubled                          (opaque)                     3  a subclass of Linear may "
            "differ from it; weight tied to 0.weight; frozen: bias",
            "3           Mixed                            (opaque)                    15  its class has no conversion; "
            "unknown.weight tied to 0.weight",
            "4           MultiheadAttention               MultiheadAttention          18",
            "4.out_proj  NonDynamicallyQuantizableLinear  Linear                       6",
            "5 native, 2 opaque, 54 parameters",
        ]
    )
    assert sum(row.parameters for row in bridge.report(module).rows) == sum(q.numel() for q in module.parameters())


# Errors.


def test_errors() -> None:
    """What cannot be converted at all is refused with the reason."""

    def text_of(call: object) -> str:
        with pytest.raises(BridgeError) as error:
            call()
        return str(error.value)

    p = bridge.convert(nn.Tanh())
    assert text_of(lambda: bridge.convert(3)) == "convert takes a module, got int."
    assert text_of(lambda: bridge.report(p)) == "report takes a module, got Tanh. It is a container already."
    assert text_of(lambda: bridge.convert(nn.Sequential(nn.LazyLinear(3)))) == (
        "convert: '0' (LazyLinear) is lazy and has no parameters yet: call the module once on an example input first, "
        "or give one: convert(module, example=(x,))."
    )
    assert text_of(lambda: bridge.report(nn.LazyBatchNorm1d())) == (
        "report: the module (LazyBatchNorm1d) is lazy and has no parameters yet: call the module once on an example "
        "input first, or give one: report(module, example=(x,))."
    )
    layer = nn.Linear(2, 2)
    assert text_of(lambda: bridge.convert(nn.ModuleList([nn.Sequential(layer), layer]))) == (
        "convert: '0.layers.0.weight' and '1.weight' are one tensor, but only a container can hold a tie: convert the "
        "members together, as torch.nn.Sequential(*members), or register a conversion for what holds them."
    )
    assert text_of(lambda: bridge.register_conversion(layer, to=bridge.convert)) == (
        "register_conversion takes a module class, got a Linear."
    )
    assert text_of(lambda: bridge.register_conversion(Mixed, to=3)) == (
        "register_conversion: to must be a function of a module and its parts, got an int."
    )
    assert text_of(lambda: bridge.register_conversion(Mixed, to=bridge.convert, back=3)) == (
        "register_conversion: back must be a function of a container and its parts, got an int."
    )
