"""What `torch.func` refuses, within an opaque container."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _module_inputs import DOUBLE, randn
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.errors import BatchingError, GradientError
from purenn.layers import Linear


class Exponential(torch.autograd.Function):
    """Without setup_context; saves an input, an output and an intermediate value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        y = x.exp()
        ctx.factor = factor
        ctx.twice = 2 * y
        ctx.save_for_backward(x, y)
        return factor * y, (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors
        return gradient * (ctx.twice - y) * ctx.factor + 0 * x, None


class WithFunction(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.ones(3, dtype=DOUBLE)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x * self.weight, 3.0)[0]


def test_autograd_functions(device: torch.device) -> None:
    """One of the old form, without setup_context, is batched and differentiated by its own backward."""
    module = WithFunction(Exponential).to(device)
    p, x = bridge.from_module(module), randn(device, 4, 3)
    found = pn.vmap(pn.grad(lambda p, x: p(x).sum()), (None, 0))(p, x).weight
    torch.testing.assert_close(found, 3 * x * x.exp(), rtol=0, atol=1e-12)


class Reversed(torch.autograd.Function):
    """Returns its input as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> tuple[Tensor]:
        ctx.factor = factor
        return (x,)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None


def test_autograd_functions_that_return_an_input(device: torch.device) -> None:
    """So does one that reverses the gradient and nothing else."""
    p, x = bridge.from_module(WithFunction(Reversed).to(device)), randn(device, 4, 3)
    found = pn.vmap(pn.grad(lambda p, x: p(x).sum()), (None, 0))(p, x).weight
    torch.testing.assert_close(found, -3 * x, rtol=0, atol=1e-12)


class Numpy(torch.autograd.Function):
    """Computes where no transformation can follow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> tuple[Tensor]:
        return (torch.from_numpy(x.detach().cpu().numpy() * factor),)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def test_autograd_functions_without_a_rule() -> None:
    """If its forward cannot be batched, the error names function and module."""
    p = bridge.from_module(nn.Sequential(nn.Tanh(), WithFunction(Numpy)))
    with pytest.raises(GradientError) as error:
        pn.vmap(lambda x: p(x))(torch.ones(2, 3, dtype=DOUBLE))
    text = str(error.value)
    assert text.startswith("'1' (WithFunction): the autograd.Function Numpy has no setup_context, and no derivative")
    assert text.endswith("Write its forward without ctx, and a staticmethod setup_context.")


def test_backward_hooks(device: torch.device) -> None:
    """They run in a gradient; where torch cannot run them, the error names the module."""
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).to(device, DOUBLE)
    module[1].register_full_backward_hook(lambda module, inputs, outputs: (3 * inputs[0],))
    p, x = bridge.from_module(module), randn(device, 2, 3)
    module(x[0]).sum().backward()
    found = pn.grad(lambda p: p(x[0]).sum())(p)
    torch.testing.assert_close(dict(pn.tree.named_leaves(found))["0.weight"], module[0].weight.grad, rtol=0, atol=1e-12)
    with pytest.raises(GradientError) as error:
        pn.vmap(pn.grad(lambda p, x: p(x).sum()), (None, 0))(p, x)
    assert str(error.value) == (
        "'1' (Tanh) has a backward hook, which torch's transformations cannot run. Remove it, or take the gradient by "
        "pn.grad outside of pn.vmap."
    )


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_questions(device: torch.device) -> None:
    """Code that branches on a value runs under vmap if all examples go one way; else it is refused, and named."""
    p, x = bridge.from_module(nn.Sequential(nn.Tanh(), Branching())), randn(device, 2, 3).abs()
    assert torch.equal(p(-x), x.tanh())
    torch.func.grad(lambda x: p(x).sum())(x)
    assert torch.equal(pn.vmap(lambda x: p(x))(-x), x.tanh())
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(pn.vmap(pn.grad(lambda x: p(x).sum()))(-x), x.tanh().square() - 1, **close)
    x[0] *= -1
    with pytest.raises(BatchingError) as error:
        pn.vmap(lambda x: p(x))(x)
    assert str(error.value) == (
        "'1' (Branching) looks at the value of a tensor by bool(), but under vmap a tensor stands for many values and "
        "while tracing for none. Compute both cases and choose with torch.where; for a helper of a library that only "
        "takes a short cut, see bridge.register_helper."
    )


def skips(mask: Tensor) -> bool:
    """A library's helper."""
    return bool(mask.all())


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x if skips(mask) else torch.where(mask, x, 0)


def test_helpers(device: torch.device) -> None:
    """A registered helper is told in transformations that it is traced, and is itself elsewhere and afterwards."""
    original = skips
    bridge.register_helper(f"{__name__}.skips", traced=lambda mask: False)
    p, x = bridge.from_module(Masked()), randn(device, 2, 3)
    masks = torch.tensor([[True, False, True], [True, True, True]], device=device)
    assert torch.equal(pn.vmap(lambda x, mask: p(x, mask))(x, masks), torch.where(masks, x, 0))
    assert skips is original
    assert torch.equal(p(x, masks), torch.where(masks, x, 0))


def test_jit(device: torch.device) -> None:
    """A jitted training step of an opaque container is the step in eager."""
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh()).to(device, DOUBLE)
    p, x, key = bridge.from_module(module), randn(device, 5, 4), pn.random.key(0, device)

    def step(p: Any, x: Tensor, key: Tensor) -> Any:
        def loss(p: Any) -> tuple[Tensor, Any]:
            y, new = p(x, train=True, key=key)
            return y.square().sum(), new

        return pn.grad(loss, has_aux=True)(p)

    for found, expected in zip(pn.jit(step)(p, x, key), step(p, x, key), strict=True):
        assert pn.tree.allclose(found, expected, rtol=0, atol=1e-10)


class Selecting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0].sum() + x.nonzero().sum()


class Masking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.masked_select(x > 0)


@pytest.mark.parametrize(("cls", "function"), [(Selecting, "__getitem__"), (Masking, "masked_select")])
def test_shapes_that_depend_on_values(cls: type[nn.Module], function: str, device: torch.device) -> None:
    """So is code whose shapes depend on values."""
    p, x = bridge.from_module(nn.Sequential(nn.Tanh(), cls())), randn(device, 2, 3)
    assert torch.equal(p(x), cls()(x.tanh()))
    with pytest.raises(BatchingError) as error:
        pn.vmap(lambda x: p(x))(x)
    assert str(error.value) == (
        f"'1' ({cls.__name__}) calls {function}, whose result has a shape that depends on the values of a tensor, or "
        "which looks at them. Under vmap a tensor stands for many values: compute all cases and choose with "
        "torch.where."
    )


def test_casts_within(device: torch.device) -> None:
    """A module that casts one of its parts while it runs does so to copies, batched as well."""

    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.part = self.part.to(torch.float32)
            return self.part(x.float()).to(x.dtype)

    module, x = Casting().to(device, DOUBLE), randn(device, 4, 3)
    p = bridge.from_module(module)
    y = p(x)
    assert module.part.weight.dtype == p.part.weight.dtype == DOUBLE
    torch.testing.assert_close(pn.vmap(lambda x: p(x))(x), y, rtol=0, atol=1e-6)
    torch.testing.assert_close(y, module(x), rtol=0, atol=1e-6)


class Masking(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = x.clone()
        y[mask] = 0.5
        return y


def test_masks(device: torch.device) -> None:
    """A number written where a mask says so is written for each example."""
    p, x, mask = bridge.from_module(Masking()), randn(device, 4, 3), torch.eye(4, 3, dtype=torch.bool, device=device)
    assert torch.equal(pn.vmap(p, (0, 0))(x, mask), torch.where(mask, 0.5, x))


def test_pooling_of_images_with_channels_last(device: torch.device) -> None:
    """It is batched without torch's slow loop, which would warn."""
    p, x = bridge.from_module(nn.AdaptiveAvgPool2d(1)), randn(device, 3, 2, 4, 4, 5).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(pn.vmap(p)(x), x.mean((-1, -2), keepdim=True), rtol=0, atol=1e-12)


def test_a_part_named_self(device: torch.device) -> None:
    """Parts and buffers may have any name that Python allows."""
    module = nn.Module()
    module.self = nn.BatchNorm1d(3)
    module.forward = lambda x: module.self(x)
    p, weight = bridge.from_module(module.to(device)), torch.zeros(3, device=device)
    assert pn.replace(p, self=pn.replace(p.self, weight=weight)).self.weight is weight


class Telling(nn.Module):
    """Has a text with values for an error that it does not raise, and sizes that are tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.tensor([4, 6]))

    def forward(self, x: Tensor) -> Tensor:
        text = f"the sum is {x.sum()}"
        assert text.startswith("the sum is")
        return F.interpolate(x, (self.size[0], self.size[1]))


def test_texts_and_sizes(device: torch.device) -> None:
    """Values in texts are not looked at; sizes may be tensors, if they are the same for all examples and models."""
    module = Telling().to(device)
    p, x = bridge.from_module(module), randn(device, 2, 1, 3, 2, 3)
    expected = torch.stack([module(example) for example in x])
    assert torch.equal(pn.vmap(p)(x), expected)
    assert torch.equal(pn.vmap(lambda p, x: p(x))(pn.tree.stack([p, p]), x), expected)


def equal_by_name(x: Tensor) -> Tensor:
    """Questions about values that have no Python number."""
    return x * 2 if torch.equal(input=x, other=x) and torch.allclose(x, x, rtol=1e-3) else x


def cell_by_name(x: Tensor) -> Tensor:
    """One step of a recurrent layer."""
    return torch.gru_cell(input=x, hx=x, w_hh=x.new_ones(9, 3), w_ih=x.new_ones(9, 3) / 2)


def sequences_by_name(x: Tensor) -> Tensor:
    """A recurrent layer, of padded sequences and of packed ones."""
    params = [x.new_ones(12, 3) / 2, x.new_ones(12, 3) / 3, x.new_zeros(12), x.new_ones(12)]
    options = {"params": params, "has_biases": True, "num_layers": 1, "dropout": 0.0, "train": False}
    state = x.new_zeros(1, 1, 3), x.new_zeros(1, 1, 3)
    padded = torch.lstm(x[:, None], state, bidirectional=False, batch_first=False, **options)[0]
    sizes = torch.ones(len(x), dtype=torch.int64)
    packed = torch.lstm(data=x, batch_sizes=sizes, hx=state, bidirectional=False, **options)[0]
    return padded[:, 0] + packed


class Applied(nn.Module):
    """A function of what its layer gives."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(3, 3, dtype=DOUBLE), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


@pytest.mark.parametrize("function", [cell_by_name, sequences_by_name, equal_by_name])
def test_arguments_by_name(function: Callable[[Tensor], Tensor], device: torch.device) -> None:
    """Functions of torch that have rules of ours are told their arguments by name, too."""
    module, x = Applied(function).to(device), randn(device, 5, 2, 3)
    p, wanted = bridge.from_module(module), torch.stack([module(each) for each in x])
    torch.testing.assert_close(torch.stack([p(each) for each in x]), wanted, rtol=0, atol=1e-12)
    if function is not equal_by_name:
        torch.testing.assert_close(pn.vmap(p)(x), wanted, rtol=0, atol=1e-12)


def test_torch_compile(device: torch.device) -> None:
    """torch.compile traces the call of an opaque container in evaluation mode, with layers of ours in it as well."""
    ours = bridge.to_module(Linear.init(pn.random.key(0, device), 4, 3, dtype=DOUBLE))
    inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).to(device, DOUBLE)
    p = bridge.from_module(nn.Sequential(inner, ours).eval())
    x = randn(device, 5, 3)
    torch.compiler.reset()
    compiled = torch.compile(lambda p, x: p(x)[0], fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(p, x), p(x)[0], rtol=0, atol=1e-12)
    trained, rest = pn.tree.partition(p)
    live = pn.tree.map(lambda w: w.clone().requires_grad_(), trained)
    found = torch.autograd.grad(compiled(pn.tree.combine(live, rest), x).square().sum(), pn.tree.leaves(live))
    expected = pn.grad(lambda p: p(x)[0].square().sum())(p)
    for one, other in zip(found, pn.tree.leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
