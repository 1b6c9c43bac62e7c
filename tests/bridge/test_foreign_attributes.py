"""What modules keep in their attributes, within an opaque container: written parameters, results, hooks, functions."""

import copy

import optree
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import bridge
import purenn as pn
from purenn.errors import BridgeError


def test_written_parameters(device: torch.device) -> None:
    """A module that writes into parameters, and has no buffers, can be said to do so as well."""

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pupil, self.average = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                for mean, value in zip(self.average.parameters(), self.pupil.parameters(), strict=True):
                    mean.lerp_(value, 0.1)
            return self.pupil(x) - self.average(x)

    module = Teacher().to(device)
    before = copy.deepcopy(module.state_dict())
    p, x = bridge.from_module(module, stateful=True), torch.ones(2, device=device)
    assert pn.is_stateful(p)
    y, new = p(x)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    torch.testing.assert_close(y, module(x).detach())
    torch.testing.assert_close(bridge.state_dict(new), module.state_dict())


def test_results_that_a_module_keeps(device: torch.device) -> None:
    """Those of earlier calls, which torch cannot copy, are no obstacle, and are forgotten as the module does it."""

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(2))
            self.kept: dict[str, list[Tensor]] = {}

        def train(self, mode: bool = True) -> "Keeping":
            if mode:
                self.kept = {}
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            if self.training or "exp" not in self.kept:
                self.kept["exp"] = [self.scale.exp()]
            return x * self.kept["exp"][0]

    module, x = Keeping().to(device).eval(), torch.ones(2, device=device)
    module(x)
    p = bridge.from_module(module)
    for scale in (0.0, 1.0):
        q = pn.replace(p, scale=torch.full((2,), scale, device=device))
        torch.testing.assert_close(q(x), q.scale.exp())
        torch.testing.assert_close(pn.grad(lambda q: q(x).sum())(q).scale, q.scale.exp())


def test_hooks_that_a_call_registers(device: torch.device) -> None:
    """They are forgotten after the call, as attributes are, also those of layers within; others stay."""

    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = nn.Linear(2, 2), []
            self.layer.register_forward_hook(lambda module, inputs, output: output + 1)

        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            self.layer.register_forward_hook(lambda module, inputs, output: self.seen.append(output))
            y = self.layer(self.layer(x))
            return y, len(self.seen)

    module, x = Recording().to(device), torch.ones(2, device=device)
    p = bridge.from_module(module)
    expected = module.layer(module.layer(x)).detach()
    for _ in range(3):
        y, count = p(x)
        assert torch.equal(y, expected)
        assert count == 2
    assert len(module.layer._forward_hooks) == 1


def test_parametrizations_that_are_kept(device: torch.device) -> None:
    """Within torch's cache of parametrized tensors, each call has those of its own container."""
    module = parametrizations.weight_norm(nn.Linear(2, 2)).to(device)
    p, x = bridge.from_module(module), torch.ones(2, device=device)
    q = pn.tree.map(lambda leaf: 2 * leaf, p)
    with nn.utils.parametrize.cached():
        found = p(x), q(x), p(x)
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[1], q(x))
    assert not torch.allclose(found[0], found[1])


class Referring(nn.Module):
    """With functions that know the module, or another one, by a variable or a default."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Linear(2, 2)
        self.scaled = lambda x: x * self.weight
        self.steps = {"bias": [lambda x, other=self.other: x + other.bias]}
        plain = self.other.forward
        self.other.forward = lambda x: 2 * plain(x)
        self.other.register_forward_hook(lambda module, inputs, output: output + self.weight.sum())

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.steps["bias"][0](self.scaled(x)))


def test_functions_that_refer_to_the_module(device: torch.device) -> None:
    """Lambdas, replaced methods and hooks compute with the container's tensors, also in a module of it."""
    module, x = Referring().to(device), torch.ones(2, device=device)
    p = bridge.from_module(module)
    q = pn.tree.map(lambda leaf: 3 * leaf, p)
    x = torch.tensor([1.0, -1.0], device=device)
    inner = (x * q.weight + q.other.bias) @ q.other.weight.T + q.other.bias
    expected = 2 * inner + q.weight.sum()
    torch.testing.assert_close(q(x), expected)
    torch.testing.assert_close(bridge.to_module(q)(x).detach(), expected)
    module(x).sum().backward()
    found = dict(pn.tree.named_leaves(pn.grad(lambda p: p(x).sum())(p)))
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_hooks_that_take_notes(device: torch.device) -> None:
    """A list of somebody else that a hook of the module fills is filled by the container as well."""
    notes: list[tuple[nn.Module, Tensor]] = []
    module, x = nn.Linear(2, 2).to(device), torch.ones(2, device=device)
    module.register_forward_hook(lambda module, inputs, output: notes.append((module, output)))
    module(x)
    p = bridge.from_module(module)
    y = p(x)
    assert len(notes) == 2
    assert notes[1][1] is y


def test_functions_that_refer_to_a_tensor() -> None:
    """They could never have the container's, so the module is refused."""
    module = nn.Linear(2, 2)
    weight = module.weight
    module.register_forward_hook(lambda module, inputs, output: output + weight.sum())
    with pytest.raises(BridgeError) as error:
        bridge.from_module(module)
    assert str(error.value) == (
        "from_module: the module (Linear) cannot be copied, because something in it cannot: the function "
        "test_functions_that_refer_to_a_tensor.<locals>.<lambda> refers to a parameter or buffer by a variable, where "
        "it can have no other value; let it refer to the module. Keep that out of the module's attributes, or give its "
        "class a __deepcopy__."
    )


def test_generators_that_modules_keep() -> None:
    """Containers of modules with generators are of one structure if the generators are in the same state."""

    def module(seed: int) -> nn.Module:
        made = nn.Linear(2, 2)
        made.generator = torch.Generator().manual_seed(seed)
        return made

    one, alike, other = [optree.tree_structure(bridge.from_module(module(seed))) for seed in (1, 1, 2)]
    assert one == alike
    assert one != other
