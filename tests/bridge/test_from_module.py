"""`bridge.from_module`: containers of bridged modules, and any other module as a pure function."""

import copy
import pickle

import pytest
import torch
from _carried import inputs, make, net
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.errors import BridgeError, ContainerError


def test_round_trip(device: torch.device) -> None:
    """from_module(to_module(p)) is p: structure, values, marks and storage."""
    p = pn.tree.freeze(make(device), ["blocks.0.fc.weight", "scales.0"])
    back = bridge.from_module(bridge.to_module(p))
    assert pn.tree.equal(back, p)
    assert back.blocks[1].fc.weight.data_ptr() == p.blocks[1].fc.weight.data_ptr()
    assert not any(leaf.requires_grad for leaf in pn.tree.leaves(back))
    assert torch.equal(net(back, inputs(device))[0], net(p, inputs(device))[0])


def test_ties_made_in_torch_are_found(device: torch.device) -> None:
    """A parameter shared by assignment becomes a tie."""
    module = bridge.to_module(make(device))
    module.blocks[1].norm.weight = module.blocks[0].norm.weight
    p = bridge.from_module(module)
    assert p.blocks[1].norm.weight == pn.tree.Alias("blocks.0.norm.weight")
    assert pn.tree.count(p) == sum(parameter.numel() for parameter in module.parameters())


class Foreign(nn.Module):
    """A module of someone else: nested, with a buffer, a tied weight, a frozen bias and an option."""

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh())
        self.head = nn.Linear(4, 4)
        self.head.weight = self.body[0].weight
        self.head.bias.requires_grad_(False)
        self.register_buffer("shift", torch.ones(4))
        self.scale = scale

    def forward(self, x: Tensor, *, extra: float = 0.0) -> Tensor:
        return self.head(self.body(x)) * self.scale + self.shift + extra


def foreign(device: torch.device, scale: float = 2.0) -> Foreign:
    torch.manual_seed(0)
    return Foreign(scale).double().to(device).eval()


def test_opaque_container(device: torch.device) -> None:
    """Names, kinds, ties and frozen parameters of a foreign module are those of its container."""
    module = foreign(device)
    p = bridge.from_module(module)
    names = [path for path, _ in pn.tree.named_leaves(p)]
    assert set(names) == set(module.state_dict()) - {"head.weight"}
    assert pn.tree.count(p) == sum(q.numel() for q in module.parameters())
    assert pn.tree.count(p, trainable=True) == sum(q.numel() for q in module.parameters() if q.requires_grad)
    assert torch.equal(getattr(p.body, "0").weight, module.body[0].weight)
    assert repr(p).startswith("opaque Foreign(shift=f64[4]\n  (body): opaque Sequential(")
    assert [pn.is_stateful(part) for part in (p, p.body, p.head)] == [True, True, False]


def test_opaque_values_and_gradients(device: torch.device) -> None:
    """Applied purely, it gives the module's outputs and gradients; parts can be applied alone."""
    module, x = foreign(device), torch.randn(5, 4, dtype=torch.float64, device=device)
    p = bridge.from_module(module)
    y, new = p(x, extra=1.0)
    assert torch.equal(y, module(x, extra=1.0))
    assert pn.tree.equal(new, p)
    assert torch.equal(p.body(x)[0], module.body(x))
    module(x).square().sum().backward()
    grads = pn.grad(lambda p: p(x)[0].square().sum())(p)
    for path, gradient in pn.tree.named_leaves(grads):
        torch.testing.assert_close(gradient, module.get_parameter(path).grad, rtol=0, atol=1e-12)
    rows = pn.vmap(pn.grad(lambda p, row: p(row[None])[0].square().sum()), (None, 0))(p, x)
    summed = pn.tree.map(lambda leaf: leaf.sum(0), rows)
    assert pn.tree.allclose(summed, grads, rtol=0, atol=1e-10)


def test_opaque_leaves_the_module_alone(device: torch.device) -> None:
    """The module, its mode and its tensors are not touched, also when its code raises."""
    module, x = foreign(device).train(), torch.randn(5, 4, dtype=torch.float64, device=device)
    before = copy.deepcopy(module.state_dict())
    p = bridge.from_module(module)
    p(x)
    with pytest.raises(RuntimeError):
        p(x[:, :2])
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(p(x)[0], module.eval()(x))


def test_opaque_ensemble(device: torch.device) -> None:
    """Containers of equally built modules stack; other options are another structure."""
    x = torch.randn(5, 4, dtype=torch.float64, device=device)
    modules = [foreign(device), foreign(device)]
    with torch.no_grad():
        modules[1].head.bias.add_(1)
    stacked = pn.tree.stack([bridge.from_module(m) for m in modules])
    both = pn.vmap(lambda p, x: p(x)[0], (0, None))(stacked, x)
    torch.testing.assert_close(both, torch.stack([m(x) for m in modules]), rtol=0, atol=1e-12)
    with pytest.raises(pn.errors.StructureError):
        pn.tree.stack([bridge.from_module(foreign(device)), bridge.from_module(foreign(device, scale=3.0))])


def test_opaque_is_an_immutable_tree(device: torch.device) -> None:
    """replace, partition, freeze, select, save, copy and pickle work on it."""
    p, x = bridge.from_module(foreign(device)), torch.randn(2, 4, dtype=torch.float64, device=device)
    moved = pn.replace(p, shift=p.shift + 1)
    torch.testing.assert_close(moved(x)[0], p(x)[0] + 1)
    assert pn.tree.equal(pn.tree.combine(*pn.tree.partition(p)), p)
    assert pn.tree.count(pn.tree.freeze(p), trainable=True) == 0
    zeroed = pn.tree.select(p).paths("head.bias").apply(torch.zeros_like)
    torch.testing.assert_close(zeroed(x)[0], p(x)[0] - 2 * p.head.bias)
    assert torch.equal(copy.deepcopy(p)(x)[0], p(x)[0])
    assert torch.equal(pickle.loads(pickle.dumps(p.body))(x)[0], p.body(x)[0])
    with pytest.raises(AttributeError, match="containers are immutable"):
        p.shift = 1
    with pytest.raises(ContainerError) as error:
        pn.replace(p, shfit=1)
    assert str(error.value) == "Foreign has no field 'shfit'; its fields are: shift, body, head."
    with pytest.raises(AttributeError, match="the module Foreign has no parameter, buffer or submodule 'tail'"):
        _ = p.tail


def test_shared_submodule(device: torch.device) -> None:
    """A submodule that is used twice has one set of leaves, and the module keeps its own weights."""
    layer = nn.Linear(3, 3, dtype=torch.float64, device=device)
    module = nn.Sequential(layer, nn.Tanh(), layer)
    before = layer.weight.clone()
    p, x = bridge.from_module(module), torch.randn(2, 3, dtype=torch.float64, device=device)
    assert pn.tree.count(p) == 12
    assert torch.equal(p(x), module(x))
    doubled = pn.tree.map(lambda leaf: 2 * leaf, p)
    expected = torch.tanh(x @ (2 * before).T + 2 * layer.bias) @ (2 * before).T + 2 * layer.bias
    torch.testing.assert_close(doubled(x), expected)
    assert torch.equal(layer.weight, before)


class Hidden(nn.Module):
    """Writes into its buffer by a way that its code does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        own = self.calls
        own += 1
        return x


def test_errors(device: torch.device) -> None:
    """What cannot be a pure function is refused with the reason."""

    def text_of(call: object) -> str:
        with pytest.raises(BridgeError) as error:
            call()
        return str(error.value)

    assert text_of(lambda: bridge.from_module(3)) == "from_module takes a module, got int."
    p = bridge.from_module(Hidden().to(device))
    assert text_of(lambda: p(torch.ones(1, device=device))) == (
        "from_module: Hidden writes into its parameters or buffers, which was not to be seen from its code, and the "
        "new values would be lost: make the container by from_module(module, stateful=True), and applying it returns "
        "them, or by stateful=False to do without them."
    )
    assert p.calls == 0
    lazy = nn.Sequential(nn.LazyLinear(3))
    assert text_of(lambda: bridge.from_module(lazy)) == (
        "from_module: '0' (LazyLinear) is lazy and has no parameters yet: call the module once on an example input "
        "first, or give one: from_module(module, example=(x,))."
    )


def test_opaque_containers_become_modules_again(device: torch.device) -> None:
    """to_module gives back the original class with the container's values, ties and frozen parameters."""
    module = foreign(device)
    p = pn.tree.map(lambda leaf: leaf * 2 if leaf.is_floating_point() else leaf, bridge.from_module(module))
    again = bridge.to_module(p, copy=True)
    assert type(again) is Foreign
    assert again.head.weight is again.body[0].weight
    assert not again.head.bias.requires_grad
    assert list(again.state_dict()) == list(module.state_dict())
    assert pn.tree.equal(bridge.from_module(again), p)
    x = torch.linspace(-1, 1, 24, dtype=torch.float64, device=device).reshape(6, 4)
    assert torch.equal(again.eval()(x), p(x)[0])
    # The container is not touched by what happens to the module.
    before = pn.tree.map(torch.clone, p)
    again.train()(x).square().sum().backward()
    torch.optim.SGD(again.parameters(), 0.1).step()
    assert pn.tree.equal(p, before)


def test_opaque_parts_of_modules(device: torch.device) -> None:
    """A foreign module within native containers runs as itself when they are carried by a module, hooks included."""
    p = pn.layers.Sequential.of(
        pn.layers.Linear.init(pn.random.key(0), 4, 4, dtype=torch.float64, device=device),
        bridge.from_module(foreign(device)),
        pn.layers.Tanh(),
    )
    m = bridge.to_module(p, copy=True).eval()
    x = torch.linspace(-1, 1, 24, dtype=torch.float64, device=device).reshape(6, 4)
    called = []
    m.layers[1].register_forward_hook(lambda module, inputs, output: called.append(type(module)))
    torch.testing.assert_close(m(x), p(x)[0], rtol=0, atol=1e-14)
    assert called == [Foreign]
    m.train()
    m(x)
    assert not torch.equal(m.layers[1].body[1].running_mean, getattr(p.layers[1].body, "1").running_mean)


def test_opaque_recurrent_modules(device: torch.device) -> None:
    """Modules that keep a list of their weights run on the container's."""
    torch.manual_seed(0)
    module = nn.LSTM(4, 3, batch_first=True).double().to(device)
    p = pn.tree.map(lambda leaf: leaf * 2, bridge.from_module(module))
    x = torch.linspace(-1, 1, 24, dtype=torch.float64, device=device).reshape(1, 6, 4)
    torch.testing.assert_close(bridge.to_module(p)(x)[0], p(x)[0])
