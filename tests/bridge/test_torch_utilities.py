"""What torch offers for modules, on modules from `bridge.to_module`: it sees them as its own.

Where it fits, a torch.nn twin with the same parameters goes through the same, and both must end alike.
"""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import bridge
import purenn as pn
from purenn.layers import BatchNorm1d, Dropout, Linear, ReLU, Sequential


def make(device: torch.device, dtype: torch.dtype = torch.float64) -> bridge.Module:
    """Linear, batch norm, ReLU, dropout, linear."""
    k = pn.random.split(pn.random.key(0, device), 2)
    parts = BatchNorm1d.init(4, device=device), ReLU(), Dropout(0.5)
    p = Sequential.of(Linear.init(k[0], 3, 4), *parts, Linear.init(k[1], 4, 2))
    return bridge.to_module(pn.tree.to(p, dtype), copy=True)


def twin(m: bridge.Module) -> nn.Sequential:
    """The same of torch.nn, with the same tensors."""
    parts = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)
    made = nn.Sequential(*parts).to(next(m.parameters()))
    made.load_state_dict({name.removeprefix("layers."): tensor.clone() for name, tensor in m.state_dict().items()})
    return made.train(m.training)


def data(device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    return pn.random.normal(pn.random.key(7, device), (6, 3), dtype=dtype)


def assert_alike(m: nn.Module, other: nn.Module, atol: float = 1e-9) -> None:
    """Parameters and buffers agree in order, names but for the field `layers`, and values."""
    mine, theirs = m.state_dict(), other.state_dict()
    assert [name.replace("layers.", "") for name in mine] == list(theirs)
    for one, two in zip(mine.values(), theirs.values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=atol)


def test_weights_only_file(device: torch.device) -> None:
    """A state_dict goes through torch.save and torch.load(weights_only=True), also into the torch.nn twin."""
    m, file = make(device), io.BytesIO()
    torch.save(m.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = make(device)
    with torch.no_grad():
        other.layers[0].weight.zero_()
    other.load_state_dict(state)
    assert_alike(other, twin(m), 0.0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(copied: Any, device: torch.device) -> None:
    """A copy computes the same and trains by itself."""
    m, x = make(device), data(device)
    other = copied(m)
    assert torch.equal(other.eval()(x), m.eval()(x))
    with torch.no_grad():
        other.layers[0].weight.zero_()
    assert m.layers[0].weight.any()


@pytest.mark.parametrize("train", [False, True])
def test_compile(train: bool, device: torch.device) -> None:
    """torch.compile traces the module without a graph break, in both modes."""
    m, x = make(device).train(train), data(device)
    m.layers[3].eval()
    other = copy.deepcopy(m)
    compiled = torch.compile(m, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), other(x), rtol=0, atol=1e-12)
    compiled(x).sum().backward()
    assert_alike(m, twin(m), 0.0)
    assert m.layers[0].weight.grad is not None


def test_pruning(device: torch.device) -> None:
    """Local, global and permanent pruning act as on the torch.nn twin."""
    m, x = make(device).eval(), data(device)
    other = twin(m)
    for model, first, last in ((m, m.layers[0], m.layers[4]), (other, other[0], other[4])):
        prune.l1_unstructured(first, "weight", 0.25)
        both = [(first, "weight"), (last, "weight")]
        prune.global_unstructured(both, pruning_method=prune.L1Unstructured, amount=0.5)
        model(x).sum().backward()
    assert_alike(m, other)
    torch.testing.assert_close(m.layers[0].weight_orig.grad, other[0].weight_orig.grad, rtol=0, atol=1e-9)
    for first in (m.layers[0], other[0]):
        prune.remove(first, "weight")
    assert_alike(m, other)
    torch.testing.assert_close(m(x), other(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "parametrization", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrizations(parametrization: Any, device: torch.device) -> None:
    """Parametrised weights are computed, trained and made permanent as on the torch.nn twin."""
    m, x = make(device).eval(), data(device)
    other = twin(m)
    for model, first in ((m, m.layers[0]), (other, other[0])):
        torch.manual_seed(0)
        parametrization(first, "weight")
        model(x).square().sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    assert_alike(m, other)
    y = m(x)
    parametrize.remove_parametrizations(m.layers[0], "weight")
    torch.testing.assert_close(m(x), y, rtol=0, atol=1e-9)
    assert isinstance(m.layers[0].weight, nn.Parameter)


def test_clipping(device: torch.device) -> None:
    """Gradients are clipped by norm and by value as on the torch.nn twin."""
    m, x = make(device), data(device)
    m.layers[3].eval()
    other = twin(m)
    other[3].eval()
    norms = []
    for model in (m, other):
        model(x).square().sum().backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1))
        nn.utils.clip_grad_value_(model.parameters(), 0.05)
    torch.testing.assert_close(norms[0], norms[1], rtol=0, atol=1e-9)
    for one, two in zip(m.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-12)


def test_averages(device: torch.device) -> None:
    """swa_utils averages parameters, and buffers if asked, as of the torch.nn twin."""
    m = make(device)
    other = twin(m)
    averages = []
    for model in (m, other):
        average = swa_utils.AveragedModel(
            model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True, device=device
        )
        for _ in range(3):
            with torch.no_grad():
                for tensor in (*model.parameters(), *model.buffers()):
                    tensor.add_(1)
            average.update_parameters(model)
        averages.append(average)
    assert_alike(averages[0].module, averages[1].module)
    assert averages[0](data(device)).shape == (6, 2)


def test_autocast_and_gradient_scaler(device: torch.device) -> None:
    """Mixed precision runs the linear layers in the low dtype, and a GradScaler trains it, as the torch.nn twin."""
    m, x = make(device, torch.float32), data(device, torch.float32)
    m.layers[3].eval()
    other = twin(m)
    other[3].eval()
    for model in (m, other):
        scaler, optimizer = torch.amp.GradScaler(device.type, init_scale=4.0), torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                y = model(x)
            assert y.dtype == torch.bfloat16
            scaler.scale(y.float().square().mean()).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    assert_alike(m, other, 1e-5)


class Int8Weight(Tensor):
    """A weight in eight bits with a scale for each row: what quantisation libraries put in the place of a weight."""

    whole: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, whole: Tensor, scale: Tensor) -> "Int8Weight":
        made = Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scale.dtype, device=scale.device)
        made.whole, made.scale = whole, scale
        return made

    @classmethod
    def of(cls, weight: Tensor) -> "Int8Weight":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def __repr__(self, **_: Any) -> str:
        return f"Int8Weight{tuple(self.shape)}"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            x, weight, *rest = args
            return func(x, weight.whole.to(x.dtype) * weight.scale, *rest, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        assert func is torch.ops.aten.detach.default
        return cls(args[0].whole, args[0].scale)


def test_quantised_weights(device: torch.device) -> None:
    """A quantised tensor in the place of a linear layer's weight is what the layer computes with."""
    m, x = make(device).eval(), data(device)
    y, repr_before = m(x), repr(m)
    for layer in (m.layers[0], m.layers[4]):
        weight = layer.weight.detach().clone()
        layer.weight = nn.Parameter(Int8Weight.of(weight), requires_grad=False)
        rounded = layer.weight.whole.to(x.dtype) * layer.weight.scale
        assert 0 < (rounded - weight).abs().max() < 0.01
    assert 0 < (m(x) - y).abs().max() < 0.05
    assert repr(m) == repr_before


def test_checkpointing(device: torch.device) -> None:
    """torch.utils.checkpoint computes the module's activations again, dropout included."""
    m, x = make(device), data(device)
    m.layers[1].eval()
    results = []
    for run in (m, lambda x: checkpoint(m, x, use_reentrant=False)):
        torch.manual_seed(3)
        m.zero_grad()
        run(x).square().sum().backward()
        results.append([p.grad.clone() for p in m.parameters()])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_counting_flops_by_module(device: torch.device) -> None:
    """The flop counter sees the inner layers by their names."""
    m = make(device).eval()
    with FlopCounterMode(display=False) as counter:
        m(data(device))
    counts = counter.get_flop_counts()
    assert counter.get_total_flops() == 2 * 6 * (3 * 4 + 4 * 2)
    assert {"Module.layers.0", "Module.layers.4"} <= set(counts)


def test_meta_and_back(device: torch.device) -> None:
    """A module on the meta device is given storage, and then values by assignment."""
    m = make(device).eval()
    empty = make(device).eval().to("meta")
    empty.load_state_dict(m.state_dict(), assign=True)
    assert torch.equal(empty(data(device)), m(data(device)))
    assert make(device).to("meta").to_empty(device=device).layers[0].weight.device == m.layers[0].weight.device


def test_lazy_neighbours(device: torch.device) -> None:
    """It stands among lazy modules."""
    m = nn.Sequential(make(device), nn.LazyLinear(3, device=device, dtype=torch.float64))
    assert m(data(device)).shape == (6, 3)
