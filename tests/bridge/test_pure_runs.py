"""What an opaque container's call may not do: touch the module or the trees, whatever the module's code does."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _module_inputs import DOUBLE, randn
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import bridge
import purenn as pn


def network(device: torch.device) -> nn.Sequential:
    """A module with everything that writes: statistics, a spectral norm, activations and dropout in place."""
    return nn.Sequential(
        nn.ReLU(inplace=True),
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        nn.BatchNorm1d(4),
        nn.Dropout(0.5, inplace=True),
        nn.Embedding(3, 4, max_norm=0.1),
    ).to(device, DOUBLE)


class Whole(nn.Module):
    """Runs the parts of `network`, and then fails in some way."""

    def __init__(self, parts: nn.Sequential, failure: BaseException | None = None) -> None:
        super().__init__()
        self.parts, self.failure, self.log = parts, failure, []
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(x)
        self.last = x
        y = self.parts[:4](x) + self.parts[4](torch.zeros(len(x), dtype=torch.int64, device=x.device))
        if self.failure is not None:
            raise self.failure
        return y


def snapshot(module: nn.Module, *trees: Any) -> Callable[[], None]:
    """A function that checks that neither the module nor the trees have changed since."""
    state = copy.deepcopy({**dict(module.named_parameters()), **dict(module.named_buffers())})
    modes = [child.training for child in module.modules()]
    attributes = [dict(child.__dict__) for child in module.modules()]
    before = pn.tree.map(torch.clone, trees)

    def check() -> None:
        now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        assert all(torch.equal(now[name], value) for name, value in state.items())
        assert [child.training for child in module.modules()] == modes
        assert [child.__dict__ for child in module.modules()] == attributes
        assert pn.tree.equal(trees, before)

    return check


@pytest.mark.parametrize(
    "failure", [None, ValueError("failed"), KeyboardInterrupt()], ids=["none", "error", "interrupt"]
)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("transform", ["plain", "grad", "vmap"])
def test_nothing_is_touched(failure: BaseException | None, train: bool, transform: str, device: torch.device) -> None:
    """Module, container and input stay bitwise the same, also if the module's code fails or is interrupted."""
    module = Whole(network(device), failure).to(device)
    p, x = bridge.from_module(module), randn(device, 5, 4)
    check = snapshot(module, p, x)
    key = pn.random.key(0, device)

    def value(p: Any, x: Tensor) -> Tensor:
        return p(x, train=train, key=key)[0].square().sum()

    run = {"plain": value, "grad": pn.grad(value), "vmap": pn.vmap(value, (None, 0))}[transform]
    given = x.repeat(2, 1, 1) if transform == "vmap" else x
    if failure is None:
        run(p, given)
    else:
        with pytest.raises(type(failure)):
            run(p, given)
    check()
    module.failure = None
    again = bridge.from_module(module)
    assert torch.equal(again(x, train=train, key=key)[0], again(x, train=train, key=key)[0])


def test_new_buffers(device: torch.device) -> None:
    """Step by step the new container has the buffers of the module in training."""
    module = Whole(network(device)).to(device)
    module.parts[3].p = 0.0
    p = bridge.from_module(module)
    for _ in range(3):
        x = randn(device, 5, 4)
        y, p = p(x, train=True)
        torch.testing.assert_close(y, module.train()(x.clone()), rtol=0, atol=1e-12)
        now = dict(module.named_buffers())
        for path, leaf in pn.tree.named_leaves(pn.tree.partition(p, kind="buffer")[0]):
            torch.testing.assert_close(leaf, now[path], rtol=0, atol=1e-12)
    assert p.calls == 3


def test_failing_hooks(device: torch.device) -> None:
    """A hook of the module runs in the pure call as well, and may fail."""
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(device, DOUBLE)
    x, called = randn(device, 5, 4), []

    def hook(part: nn.Module, args: Any, y: Tensor) -> Tensor:
        called.append(type(part).__name__)
        if len(called) == 3:
            raise ValueError("in a hook")
        return 2 * y

    module[1].register_forward_hook(hook)
    p = bridge.from_module(module)
    check = snapshot(module, p, x)
    y, _ = p(x)
    assert torch.equal(y, module.eval()(x))
    module.train()
    with pytest.raises(ValueError, match="in a hook"):
        p(x, train=True)
    check()
    assert called == ["BatchNorm1d"] * 3


def test_threads(device: torch.device) -> None:
    """Several threads apply one container at once, each with its own values and mode."""
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()).to(device, DOUBLE)
    p, x = bridge.from_module(module), randn(device, 5, 4)
    check = snapshot(module, p, x)
    models = [pn.tree.map(lambda leaf, n=n: leaf * n if leaf.is_floating_point() else leaf, p) for n in range(1, 5)]
    expected = [q(x, train=n % 2 == 0)[0] for n, q in enumerate(models)]
    wrong: list[int] = []

    def work(n: int) -> None:
        torch.set_num_threads(1)
        for _ in range(20):
            if not torch.equal(models[n](x, train=n % 2 == 0)[0], expected[n]):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    check()


def test_within_itself(device: torch.device) -> None:
    """A container may be applied while the same one is being applied."""

    class Outer(nn.Linear):
        def forward(self, x: Tensor, f: Callable[[Tensor], Tensor] | None = None) -> Tensor:
            y = super().forward(x)
            return y if f is None else y + f(y) + super().forward(y)

    module = Outer(3, 3).to(device, DOUBLE)
    p, x = bridge.from_module(module), randn(device, 2, 3)
    q = pn.tree.map(lambda leaf: 2 * leaf, p)
    y = module(x)
    torch.testing.assert_close(p(x, q), y + q(y) + module(y), rtol=0, atol=1e-12)


class Clipped(nn.Module):
    """Writes into its parameter in three ways, and into its input."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.weight, self.way = nn.Parameter(torch.linspace(-1, 1, 4, dtype=DOUBLE)), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "data":
            self.weight.data.clamp_(0, 0.5)
        elif self.way == "no_grad":
            with torch.no_grad():
                self.weight.clamp_(0, 0.5)
        else:
            self.weight.data = self.weight.data.clamp(0, 0.5)
        x.mul_(2)
        return (x * self.weight).sum()


@pytest.mark.parametrize("way", ["data", "no_grad", "assigned"])
def test_writes_into_parameters_and_inputs(way: str, device: torch.device) -> None:
    """They give the values and gradients that they give in torch; parameter and input stay as they are."""
    module = Clipped(way).to(device)
    p, x = bridge.from_module(module), randn(device, 4)
    check = snapshot(module, p, x)
    y, new = p(x)
    gradient = pn.grad(lambda p: p(x)[0])(p).weight
    rows = pn.vmap(pn.grad(lambda p, x: p(x)[0]), (None, 0))(p, x.repeat(3, 1)).weight
    check()
    expected = module(x.clone())
    expected.backward()
    assert torch.equal(y, expected)
    assert torch.equal(new.weight, module.weight)
    assert torch.equal(gradient, module.weight.grad)
    assert torch.equal(rows, gradient.repeat(3, 1))
