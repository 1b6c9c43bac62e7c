"""What modules keep in lists, dicts and objects: parameters once more, and notes that a call leaves no trace in."""

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.errors import BridgeError


class Listing(nn.Module):
    """Uses its parameters and its buffer by other attributes that hold them as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
        self.register_buffer("count", torch.tensor(0.0))
        self.layer = nn.Linear(2, 2)
        self.weights, self.named = [self.first, (self.second,)], {"count": self.count}
        self.place = Place()
        self.place.tensor = self.second
        object.__setattr__(self, "alias", self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        self.named["count"].add_(1)
        scale = self.weights[0] * self.weights[1][0] + self.place.tensor + self.count
        return (x @ self.alias + self.layer.bias).tanh() * scale


def test_parameters_in_attributes(device: torch.device) -> None:
    """There, too, are the container's, those of `to_module` in the module that this makes, and new buffers are seen."""
    module = Listing()
    if device.type != "cpu":
        pytest.skip("a module that is moved loses its buffers' other places, in torch as well")
    p, x = bridge.from_module(module, stateful=True), torch.randn(3, 2)
    q = pn.tree.map(lambda leaf: leaf + 0.5, p)
    again = bridge.to_module(q, copy=True)
    for container, reference in ((p, copy.deepcopy(module)), (q, again)):
        y, new = container(x)
        torch.testing.assert_close(y, reference(x).detach())
        assert torch.equal(new.count, reference.count)
        found = pn.vmap(pn.grad(lambda p, x: p(x)[0].sum()), (None, 0))(container, x)
        for name in ("first", "second", "layer.weight"):
            rows = [pn.grad(lambda p, x: p(x)[0].sum())(container, row) for row in x]
            each = [dict(pn.tree.named_leaves(row))[name] for row in rows]
            torch.testing.assert_close(dict(pn.tree.named_leaves(found))[name], torch.stack(each))
    assert again.weights[0] is again.first
    assert again.alias is again.layer.weight
    again.zero_grad()
    again(x).sum().backward()
    assert again.second.grad is not None


class Place:
    """An object of somebody's own."""

    def __init__(self) -> None:
        self.count, self.tensor, self.inner = 0.0, torch.zeros(()), {"counts": [0.0]}

    def noticed(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.count += 1


class Sharing(nn.Module):
    """Leaves something in what its parent has given it."""

    def __init__(self, shared: dict[str, Any]) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        self.shared["seen"] = [*self.shared.get("seen", ()), x]
        return x


class Remembering(nn.Module):
    """Changes all that its attributes hold, and says what it has found there."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.tensor, self.tensors = nn.Parameter(torch.ones(())), torch.zeros(()), [torch.zeros(2)]
        self.place, self.nested, self.counter = Place(), {"a": [[]], "b": {1.0}}, Counter()
        self.lists, self.ordered, self.deque = defaultdict(list), OrderedDict(a=1.0, b=2.0), deque([0.0], maxlen=9)
        self.shared: dict[str, Any] = {}
        self.part = Sharing(self.shared)
        self.part.register_forward_hook(self.place.noticed)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        x = self.part(x) * self.weight
        self.tensor.add_(1)
        self.tensors[0][0] += 1
        self.place.tensor.mul_(2).add_(1)
        self.place.inner["counts"][0] += 1
        self.nested["a"][0].append(x)
        self.nested["b"].add(len(self.nested["b"]) + 1.0)
        self.counter["calls"] += 1
        self.lists["new"].append(x)
        self.ordered.move_to_end("a")
        self.deque.append(1.0)
        found = [len(self.nested["a"][0]), sum(self.nested["b"]), self.counter["calls"], len(self.lists["new"])]
        found += [next(iter(self.ordered.values())), len(self.deque), len(self.shared["seen"])]
        found += [self.place.count, self.place.inner["counts"][0]]
        tensors = torch.stack([self.tensor, self.tensors[0][0], self.place.tensor])
        return x * torch.cat([torch.tensor(found), tensors]).sum(), (self.place, self.nested, [self.deque], tensors)


def test_what_attributes_hold(device: torch.device) -> None:
    """Lists, dicts and objects of all kinds, and tensors, are in each call as the first one found them."""
    module, x = Remembering().to(device), torch.tensor(2.0, device=device)
    if device.type != "cpu":
        pytest.skip("its tensors are no buffers, and stay on the CPU")
    p, expected = bridge.from_module(module), copy.deepcopy(module)(x)[0].detach()
    for _ in range(3):
        y, (place, nested, (kept,), tensors) = p(x)
        assert torch.equal(y, expected)
        # What is returned stays with the caller as the call has left it.
        assert place.count == 1
        assert len(nested) == 2
        assert list(kept) == [0.0, 1.0]
        assert tensors.tolist() == [1, 1, 1]
    torch.testing.assert_close(pn.grad(lambda p: p(x)[0])(p).weight, expected)
    torch.testing.assert_close(pn.vmap(lambda x: p(x)[0])(torch.stack([x, x])), torch.stack([expected, expected]))
    assert (module.tensor, module.place.count, module.nested["a"], dict(module.counter)) == (0, 0, [[]], {})


def test_notes_of_a_hook(device: torch.device) -> None:
    """A list that a hook fills by a variable is the module's own, if that has it as an attribute."""

    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, notes = nn.Linear(2, 2), []
            self.notes: list[Tensor] = notes
            self.layer.register_forward_hook(lambda module, inputs, output: notes.append(output))

        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return self.layer(x).tanh() + self.notes[-1], len(self.notes)

    module, x = Noting().to(device), torch.ones(2, device=device)
    p, expected = bridge.from_module(module), module(x)[0].detach()
    for _ in range(2):
        y, count = p(x)
        torch.testing.assert_close(y, expected)
        assert count == 1
    assert len(module.notes) == 1


def test_statistics_of_a_hidden_module(device: torch.device) -> None:
    """A module in a plain list has no place in the container, so its buffers cannot be renewed: that is refused."""

    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [nn.BatchNorm1d(2, device=device)]

        def forward(self, x: Tensor) -> Tensor:
            return self.hidden[0](x)

    p, x = bridge.from_module(Hiding()), torch.randn(3, 2, device=device)
    for _ in range(2):
        with pytest.raises(BridgeError, match="updates running statistics that are not known to be its own"):
            p(x)
