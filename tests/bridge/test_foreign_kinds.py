"""Which modules `bridge.from_module` takes, in which form, and which it refuses."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _module_inputs import DOUBLE, randn
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import bridge
import purenn as pn
from purenn.errors import BridgeError


def test_older_weight_norm(device: torch.device) -> None:
    """The hooks of torch.nn.utils.weight_norm and spectral_norm run purely."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.utils.spectral_norm(nn.Linear(4, 2)))
    module.to(device, DOUBLE)
    p, x = bridge.from_module(module), randn(device, 5, 3)
    torch.testing.assert_close(p(x)[0], module.eval()(x), rtol=0, atol=1e-12)
    y, new = p(x, train=True)
    torch.testing.assert_close(y, module.train()(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(getattr(new, "1").weight_u, module[1].weight_u, rtol=0, atol=1e-12)
    module(x).sum().backward()
    found = pn.vmap(pn.grad(lambda p, x: p(x[None])[0].sum()), (None, 0))(bridge.from_module(module.eval()), x)
    module.zero_grad()
    module(x).sum().backward()
    torch.testing.assert_close(getattr(found, "0").weight_v.sum(0), module[0].weight_v.grad, rtol=0, atol=1e-12)


def test_parametrizations(device: torch.device) -> None:
    """Parametrized modules run, are differentiated, and stack with others that are built alike."""

    def make() -> nn.Module:
        normed, orthogonal = parametrizations.weight_norm(nn.Linear(3, 3)), parametrizations.orthogonal(nn.Linear(3, 3))
        return nn.Sequential(normed, orthogonal).to(device, DOUBLE)

    modules, x = [make(), make()], randn(device, 2, 3)
    both = pn.tree.stack([bridge.from_module(module) for module in modules])
    y = pn.vmap(lambda p, x: p(x), (0, None))(both, x)
    torch.testing.assert_close(y, torch.stack([module(x) for module in modules]), rtol=0, atol=1e-12)


def test_complex_integer_and_absent(device: torch.device) -> None:
    """Complex and integer parameters, absent ones, and buffers that are not saved are leaves under their names."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.complex = nn.Parameter(torch.ones(2, dtype=torch.complex128))
            self.whole = nn.Parameter(torch.tensor([2, 3]), requires_grad=False)
            self.register_parameter("absent", None)
            self.register_buffer("cache", torch.ones(2, dtype=DOUBLE), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return (self.complex * x).abs() * self.whole + self.cache

    module = Odd().to(device)
    p, x = bridge.from_module(module), randn(device, 2)
    assert [path for path, _ in pn.tree.named_leaves(p)] == ["complex", "whole", "cache"]
    assert p.absent is None
    assert torch.equal(p(x), module(x))
    module(x).sum().backward()
    torch.testing.assert_close(pn.grad(lambda p: p(x).sum())(p).complex, module.complex.grad)
    again = bridge.to_module(p)
    assert list(again.state_dict()) == ["complex", "whole"]
    assert pn.tree.equal(bridge.from_module(again), p)


def test_compiled_and_wrapped_modules(device: torch.device) -> None:
    """A compiled module stands for what was compiled, also within another; so does one in DataParallel."""
    inner = nn.Linear(3, 3).to(device, DOUBLE)
    x = randn(device, 2, 3)
    for module in (torch.compile(inner), nn.Sequential(torch.compile(inner), nn.Tanh()), nn.DataParallel(inner)):
        p = bridge.from_module(module)
        assert not any("_orig_mod" in path or path.startswith("module") for path, _ in pn.tree.named_leaves(p))
        expected = inner(x).tanh() if isinstance(module, nn.Sequential) else inner(x)
        assert torch.equal(p(x), expected)


def test_lazy_modules(device: torch.device) -> None:
    """An example gives a lazy module its shapes, in a copy."""
    module = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()).to(device, DOUBLE)
    x = randn(device, 2, 3, 5, 5)
    p = bridge.from_module(module, example=(x,))
    assert getattr(p, "0").weight.shape == (4, 3, 3, 3)
    assert p(x)[0].shape == (2, 4, 3, 3)
    assert isinstance(module[0], nn.LazyConv2d)


class Sharded(Tensor):
    """What a tensor that is spread over processes looks like from here."""


Sharded.__name__ = "DTensor"


def test_refused_modules() -> None:
    """Modules whose code cannot run on other tensors are refused with the reason."""

    def text_of(call: Callable[[], Any]) -> str:
        with pytest.raises(BridgeError) as error:
            call()
        return str(error.value)

    module = nn.Sequential(nn.Linear(2, 2))
    module[0]._parameters["weight"] = torch.ones(2, 2).as_subclass(Sharded)
    assert text_of(lambda: bridge.from_module(module)) == (
        "from_module: '0' (Linear) is sharded over several processes, and its code gathers the parts by hooks, which a "
        "container has not: make the container of the whole module, before fully_shard, and distribute its leaves."
    )
    module = nn.Linear(2, 2)
    module.lock = threading.Lock()
    assert text_of(lambda: bridge.from_module(module)) == (
        "from_module: the module (Linear) cannot be copied, because something in it cannot: cannot pickle "
        "'_thread.lock' object. Keep that out of the module's attributes, or give its class a __deepcopy__."
    )


def test_mixed_up_parts(device: torch.device) -> None:
    """Containers of other modules cannot take the place of a part, and one submodule has one set of tensors."""
    layer = nn.Linear(3, 3)
    p = bridge.from_module(nn.Sequential(layer, nn.Tanh(), layer).to(device))
    with pytest.raises(BridgeError) as error:
        pn.tree.map(lambda leaf: leaf.clone(), pn.tree.untie(p))(torch.ones(1, 3, device=device))
    assert str(error.value) == (
        "from_module: '2' and '0' are one submodule that is used twice, so they must have the same 'weight': leave "
        "them tied."
    )
    q = pn.replace(p, **{"1": bridge.from_module(nn.ReLU())})
    with pytest.raises(BridgeError) as error:
        q(torch.ones(1, 3, device=device))
    assert str(error.value) == (
        "from_module: '1' is the container of a ReLU, but the module's code is written for another there. Containers "
        "can change places only if their modules are equally built."
    )


def test_options_of_that_name(device: torch.device) -> None:
    """Arguments of the module that are named key or train are the module's."""

    class Named(nn.Module):
        def forward(self, x: Tensor, train: int = 1) -> Tensor:
            return F.dropout(x, 0.5, self.training) * train

    p, x = bridge.from_module(Named()), randn(device, 20)
    assert torch.equal(p(x, train=3), 3 * x)
    attention = nn.MultiheadAttention(4, 2).to(device, DOUBLE)
    q = randn(device, 3, 2, 4)
    found = bridge.from_module(attention)(query=q, key=q, value=q)[0]
    torch.testing.assert_close(found, attention(q, q, q)[0], rtol=0, atol=1e-12)


def test_stateful_option(device: torch.device) -> None:
    """What cannot be seen from the code can be said; new values can also be dropped."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            own = self.calls[0]
            own += 1
            return x * self.calls

    module = Hidden().to(device)
    p = bridge.from_module(module, stateful=True)
    y, new = p(torch.ones(2, device=device))
    assert y.tolist() == new.calls.tolist() == [1.0, 0.0]
    assert p.calls.tolist() == [0.0, 0.0]
    norm = bridge.from_module(nn.BatchNorm1d(3).to(device), stateful=False)
    assert not pn.is_stateful(norm)
    assert norm(torch.randn(4, 3, device=device), train=True).shape == (4, 3)
