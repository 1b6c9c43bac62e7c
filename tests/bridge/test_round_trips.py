"""From containers to modules and back, and from modules to containers and back: bit for bit."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import bridge
import purenn as pn
from purenn import models
from purenn.errors import BridgeError
from purenn.layers import BatchNorm1d, Linear, batch_norm, linear

KEY = pn.random.key(0)
SMALL = {"dim": 8, "depth": 2, "num_heads": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "MLP": lambda: models.MLP.init(KEY, 4, (5, 3), 2, dropout=0.1, batch_norm=True),
    "ResNet": lambda: models.ResNet.init(KEY, (1, 1), num_classes=3, width=4),
    "ResNet of bottlenecks": lambda: models.ResNet.init(KEY, (1, 1), bottlenecks=True, num_classes=3, width=4),
    "ScaledResidualBlock": lambda: models.ScaledResidualBlock.init(KEY, 3),
    "Inception": lambda: models.Inception.init(KEY, 8, 4),
    "DenseNet": lambda: models.DenseNet.init(KEY, (1, 2), growth=2, width=4, num_classes=3),
    "FPN": lambda: models.FPN.init(KEY, (2, 4), 3, extra_level=True),
    "UNet": lambda: models.UNet.init(KEY, 1, 1, width=2, depth=2),
    "CapsNet": lambda: models.CapsNet.init(KEY, channels=4, primary_types=1, decoder=(4, 5)),
    "EfficientCapsNet": lambda: models.EfficientCapsNet.init(KEY, channels=(2, 2, 2, 8), decoder=(4,)),
    "MatrixCapsNet": lambda: models.MatrixCapsNet.init(KEY, channels=4, types=(2, 2, 2)),
    "GPT2": lambda: models.GPT2.init(KEY, vocab_size=11, max_length=6, **SMALL),
    "ViT": lambda: models.ViT.init(KEY, image_size=8, patch_size=4, num_classes=3, mlp_dim=8, **SMALL),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    """Every model of the library is itself after the way through a module; state_dict keys are the leaves' paths."""
    p = MODELS[name]()
    module = bridge.to_module(p)
    assert pn.tree.equal(bridge.from_module(module), p)
    assert pn.tree.equal(bridge.convert(module), p)
    places = [path for path, _ in pn.tree.named_leaves(pn.tree.untie(p))]
    assert sorted(module.state_dict()) == sorted(places)
    frozen = pn.tree.freeze(p)
    assert pn.tree.equal(bridge.from_module(bridge.to_module(frozen)), frozen)
    assert pn.tree.equal(bridge.convert(bridge.to_module(frozen)), frozen)


class Residual(nn.Module):
    """Someone's block, with options, a plain list and a tensor that is no buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
        self.scales, self.factor = [1.0, 2.0], torch.tensor(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.body(x) * self.scales[1]


class Tied(nn.Module):
    """A language model with tied embeddings, a shared submodule and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight
        self.norm = self.last_norm = nn.LayerNorm(4)
        self.register_buffer("places", torch.arange(4.0), persistent=False)
        self.norm.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last_norm(self.norm(self.table((x[:, :3] * 3).long() % 7) + self.places)))


class Recurrent(nn.Module):
    """A recurrent network and its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 3, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x.unsqueeze(1))[1].sum(0)


def _old_weight_norm() -> nn.Module:
    made = nn.Linear(4, 4)
    made.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return made


FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Residual(4),
    "tied": Tied,
    "recurrent": Recurrent,
    "convolutional": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 1), nn.InstanceNorm2d(3, affine=True), nn.PReLU(), nn.Flatten()
    ),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False),
    "transformer": lambda: nn.TransformerDecoderLayer(4, 2, 8, batch_first=True),
    "list": lambda: nn.Sequential(
        nn.ModuleList([nn.Linear(4, 4), Residual(4)])[1], nn.ModuleDict({"a": Residual(4)})["a"]
    ),
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh()),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3)), nn.Tanh()),
    "hooked": _old_weight_norm,
    "frozen": lambda: nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Dropout(0.5), nn.Linear(4, 2)),
    "double": lambda: nn.Bilinear(4, 4, 2),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_modules(name: str, device: torch.device) -> None:
    """A foreign module comes back with its state_dict, class tree, modes, flags and outputs."""
    torch.manual_seed(0)
    module = FOREIGN[name]().to(device, torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64, device=device)
    args = (x, x) if name in ("transformer", "double") else (x,)
    args = tuple(a[None] for a in args) if name == "transformer" else args
    p = bridge.from_module(module)
    again = bridge.to_module(p)
    assert list(again.state_dict()) == list(module.state_dict())
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in again.state_dict().items())
    names = [(path, type(child).__name__, child.training) for path, child in module.named_modules()]
    assert [(path, type(child).__name__, child.training) for path, child in again.named_modules()] == names
    flags = [(path, q.requires_grad) for path, q in module.named_parameters()]
    assert [(path, q.requires_grad) for path, q in again.named_parameters()] == flags
    assert pn.tree.equal(bridge.from_module(again), p)
    expected = copy.deepcopy(module).eval()(*args)
    assert torch.equal(again.eval()(*args), expected)
    y = p(*args)
    torch.testing.assert_close(y[0] if pn.is_stateful(p) else y, expected, rtol=0, atol=1e-12)


def test_ties_survive_training(device: torch.device) -> None:
    """Tied embeddings and shared submodules stay tied through training on the tree and on the module, and agree."""
    torch.manual_seed(0)
    module = Tied().to(device, torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64, device=device)
    p = bridge.from_module(module)
    reference = copy.deepcopy(module)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        reference(x).square().mean().backward()
        optimizer.step()
        gradient = pn.grad(lambda p: p(x).square().mean())(p)
        trained, rest = pn.tree.partition(p)
        p = pn.tree.combine(pn.tree.map(lambda leaf, g: leaf - 0.1 * g, trained, gradient), rest)
    again = bridge.to_module(p)
    assert again.head.weight is again.table.weight
    assert again.norm is again.last_norm
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), parameter, rtol=0, atol=1e-12)


# Hooks.


def _fired(module: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    fired: list[tuple[str, str]] = []
    handles = []
    for name, child in module.named_modules():
        handles += [
            child.register_forward_pre_hook(lambda *_, name=name: fired.append(("before", name))),
            child.register_forward_hook(lambda *_, name=name: fired.append(("after", name))),
            child.register_full_backward_pre_hook(lambda *_, name=name: fired.append(("backward", name))),
            child.register_full_backward_hook(lambda *_, name=name: fired.append(("gradient", name))),
        ]
    module(x).sum().backward()
    for handle in handles:
        handle.remove()
    count = len(fired)
    module(x).sum().backward()
    assert len(fired) == count
    return fired


HOOKED: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Sequential(nn.LayerNorm(4))),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0),
}


@pytest.mark.parametrize("name", HOOKED)
def test_hooks_fire_in_order(name: str, device: torch.device) -> None:
    """Hooks of a converted module fire once each, in the order of the original's, and can be removed."""
    torch.manual_seed(0)
    original = HOOKED[name]().to(device, torch.float64)
    carried = bridge.to_module(bridge.convert(original), copy=True)
    x = torch.randn(3, 4, dtype=torch.float64, device=device, requires_grad=True)
    ours, theirs = _fired(carried, x), _fired(original, x)
    ours = [(kind, place.replace("layers.", "")) for kind, place in ours if place != "layers"]
    known = {place.replace("layers.", "") for place, part in carried.named_modules() if isinstance(part, bridge.Module)}
    assert [one for one in ours if one in theirs] == [one for one in theirs if one[1] in known]
    assert len(set(ours)) == len(ours)


# Functions of one's own.


def test_any_function(device: torch.device) -> None:
    """A function that is bound to nothing runs on a tree of parts; hooks fire, and the state_dict has the paths."""
    k = pn.random.split(pn.random.key(0, device), 2)
    p = {"first": Linear.init(k[0], 3, 4), "second": (Linear.init(k[1], 4, 2),), "scale": torch.ones(2, device=device)}

    def f(p: Any, x: Tensor) -> Tensor:
        return linear(p["second"][0], linear(p["first"], x).relu()) * p["scale"]

    module, x = bridge.to_module(p, f), torch.randn(5, 3, device=device)
    assert torch.equal(module(x), f(p, x))
    assert set(module.state_dict()) == {path for path, _ in pn.tree.named_leaves(p)}
    fired: list[str] = []
    module.first.register_forward_hook(lambda *_: fired.append("first"))
    twin = copy.deepcopy(module)
    twin.scale.data.zero_()
    assert not twin(x).any()
    module(x).sum().backward()
    assert fired == ["first", "first"]
    expected = pn.grad(lambda p: f(p, x).sum())(p)
    torch.testing.assert_close(module.first.weight.grad, expected["first"].weight)


def test_ensembles(device: torch.device) -> None:
    """Many models with a leading axis are one module, by vmap of their function; so are their buffers."""
    keys = pn.random.split(pn.random.key(0, device), 3)
    models, x = pn.ensemble(Linear.init)(keys, 4, 2), torch.randn(5, 4, device=device)
    module = bridge.to_module(models, pn.vmap(linear, (0, None)))
    assert module.weight.shape == (3, 2, 4)
    torch.testing.assert_close(module(x), torch.stack([linear(p, x) for p in pn.tree.unstack(models)]))
    module(x).square().sum().backward()
    expected = pn.grad(lambda p: pn.vmap(linear, (0, None))(p, x).square().sum())(models)
    torch.testing.assert_close(module.weight.grad, expected.weight)
    assert pn.tree.equal(bridge.from_module(module), models)

    norms = pn.tree.stack([BatchNorm1d.init(4, device=device)] * 3)

    def each(p: Any, x: Tensor, *, train: bool = False) -> Any:
        return pn.vmap(lambda p, x: batch_norm(p, x, train=train), (0, None))(p, x)

    module = bridge.to_module(norms, each, copy=True)
    _, new = each(norms, x, train=True)
    module(x)
    assert torch.equal(module.running_mean, new.running_mean)
    module.eval()(x)
    assert module.num_batches_tracked.tolist() == [1, 1, 1]


def test_ensembles_of_foreign_modules(device: torch.device) -> None:
    """An opaque container with a leading axis is a module of the original class that runs the given function."""
    torch.manual_seed(0)
    parts = [Residual(4).to(device, torch.float64).eval() for _ in range(2)]
    stacked = pn.tree.stack([bridge.from_module(part) for part in parts])
    module = bridge.to_module(stacked, pn.vmap(lambda p, x: p(x), (0, None)), copy=True)
    x = torch.randn(5, 4, dtype=torch.float64, device=device)
    assert type(module) is Residual
    torch.testing.assert_close(module(x), torch.stack([part(x) for part in parts]), rtol=0, atol=1e-12)


def test_transformations_within(device: torch.device) -> None:
    """A function may differentiate the module it is given, and be differentiated by the module's optimiser."""
    p, x = Linear.init(pn.random.key(0, device), 3, 2), torch.randn(4, 3, device=device)

    def adapted(p: Any, x: Tensor) -> Tensor:
        g = pn.grad(lambda p: linear(p, x).square().sum())(p)
        return F.linear(x, p.weight - 0.1 * g.weight, p.bias - 0.1 * g.bias)

    module = bridge.to_module(p, adapted)
    module(x).sum().backward()
    expected = pn.grad(lambda p: adapted(p, x).sum())(p)
    torch.testing.assert_close(module.weight.grad, expected.weight)


def test_errors() -> None:
    """What is no function, or does not return the new buffers, is refused."""

    def text_of(call: Callable[[], Any]) -> str:
        with pytest.raises(BridgeError) as error:
            call()
        return str(error.value)

    norm = BatchNorm1d.init(3)
    assert (
        text_of(lambda: bridge.to_module(norm, 3)) == "to_module: fn must be a function of the container, got an int."
    )

    def forgetful(p: Any, x: Tensor) -> Tensor:
        return x

    assert text_of(lambda: bridge.to_module(norm, forgetful)(torch.ones(2, 3))) == (
        "to_module: the container is stateful, so forgetful must return the pair of its output and the new container, "
        "got a Tensor."
    )
