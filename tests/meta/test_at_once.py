"""Losses whose functions, and their gradients, are computed of all tasks at once: nothing but the time differs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _meta_references import DOUBLE, agree, leaves, tasks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import purenn as pn
from purenn.errors import BatchingError, MutationError
from purenn.layers import Linear, Sequential
from purenn.optim._row import Row
from purenn.transforms import _nested
from purenn.transforms._at_once_loss import Loss
from purenn.transforms._written import Writer

SGD = pn.optim.sgd(0.1)
# By "scan" the steps repeat what the first does.
UNROLLS: tuple[Any, ...] = ("python", "scan")


def network(device: torch.device, outputs: int = 1) -> Sequential:
    """Two linear maps, 2 -> 5 -> `outputs`, the last without a bias."""
    one, two = pn.random.split(pn.random.key(0, device))
    last = Linear.init(two, 5, outputs, bias=False, dtype=DOUBLE)
    return Sequential.of(Linear.init(one, 2, 5, dtype=DOUBLE), last)


def classes(device: torch.device) -> Any:
    """Tasks of `tasks` with classes from 0 to 2 in the place of targets."""
    (x, y), (u, v) = tasks(device)
    return (x, _as_class(y)), (u, _as_class(v))


def _as_class(y: Tensor) -> Tensor:
    return (y[..., 0] * 3).long().clamp(-1, 1) + 1


def both_ways(loss: Callable[..., Tensor], p: Any, data: Any, steps: int = 3) -> None:
    """The mean loss and the meta-gradient of stacked tasks are those of one task after the other."""
    value, gradient = pn.meta.value_and_grad(pn.meta.maml(loss, SGD, steps), "loop")(p, *data)
    for unroll in UNROLLS:
        task_loss = pn.meta.maml(loss, SGD, steps, unroll=unroll)
        stacked = pn.meta.value_and_grad(task_loss, "sum")(p, *data)
        torch.testing.assert_close(stacked[0], value, rtol=0, atol=1e-12)
        agree(stacked[1], leaves(gradient))


@pytest.fixture
def by_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """No inner gradient may be taken by autograd of what has been stacked."""
    pulled = _nested.pulled

    def refused(roots: Any, leaves: Any, *rest: Any) -> Any:
        assert not roots or not roots[0].dim(), "autograd has taken the gradient of stacked tasks"
        return pulled(roots, leaves, *rest)

    monkeypatch.setattr(_nested, "pulled", refused)


ACTIVATIONS = {
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "x.relu": Tensor.relu,
    "a layer": pn.layers.ReLU(),
    "F.tanh": F.tanh,
    "torch.tanh": torch.tanh,
    "F.sigmoid": F.sigmoid,
    "torch.sigmoid": torch.sigmoid,
    "x.sigmoid": Tensor.sigmoid,
    "F.gelu": F.gelu,
    "torch.square": torch.square,
    "two in a row": lambda x: torch.tanh(torch.square(x)),
    "used twice": lambda x: torch.tanh(x) - torch.sigmoid(x),
}
ERRORS = {
    "mse_loss": F.mse_loss,
    "square": lambda x, y: (x - y).square().mean(),
    "power": lambda x, y: ((x - y) ** 2).mean(),
    "pow": lambda x, y: torch.mean(torch.sub(x, y).pow(2)),
    "both": lambda x, y: F.mse_loss(y - x, x - y),
    "further": lambda x, y: torch.tanh(torch.square(x - y)).mean(),
    "of errors": lambda x, y: F.mse_loss(torch.square(x - y), y),
}


@pytest.mark.usefixtures("by_formulas")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(device: torch.device, name: str) -> None:
    """Of networks with these activations the formulas give autograd's gradients."""

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(p[1](ACTIVATIONS[name](p[0](x))), y)

    both_ways(loss, network(device), tasks(device))


@pytest.mark.usefixtures("by_formulas")
@pytest.mark.parametrize("name", ERRORS)
def test_errors(device: torch.device, name: str) -> None:
    """And of squared errors in all the ways in which they are written."""
    both_ways(
        lambda p, x, y: ERRORS[name](p[1](torch.relu(p[0](x))), y),
        network(device),
        tasks(device),
    )


@pytest.mark.usefixtures("by_formulas")
def test_single_features(device: torch.device) -> None:
    """And of layers with a single input, whose products are no sums."""
    one, two, three = pn.random.split(pn.random.key(0, device), 3)
    p = (
        Linear.init(one, 1, 3, dtype=DOUBLE),
        Linear.init(two, 3, 1, dtype=DOUBLE),
        Linear.init(three, 1, 1, dtype=DOUBLE),
    )
    both_ways(lambda p, x, y: F.mse_loss(p[2](torch.tanh(p[1](torch.tanh(p[0](x[:, :1]))))), y), p, tasks(device))


STEPS = {
    "by a number": SGD,
    "of length one": pn.optim.sgd(1),
    "by a schedule": pn.optim.sgd(lambda done: 0.1 / (1 + done)),
    "by a tensor": pn.optim.sgd(torch.tensor(0.1)),
    "uphill": pn.optim.sgd(0.1, maximize=True),
    "with decay": pn.optim.sgd(0.1, weight_decay=0.2),
    "with momentum": pn.optim.sgd(0.1, momentum=0.9),
    "of adam": pn.optim.adam(0.1),
}


@pytest.mark.usefixtures("by_formulas")
@pytest.mark.parametrize("name", STEPS)
def test_steps(device: torch.device, name: str) -> None:
    """Whatever the optimiser does with the gradients, and of parameters that the loss does not use as well."""
    p = {"network": network(device), "shift": torch.ones(1, dtype=DOUBLE, device=device)}

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(p["network"][1](torch.tanh(p["network"][0](x))), y)

    def task_loss(p: Any, support: tuple, query: tuple, unroll: Any = "python") -> Tensor:
        adapted, losses = pn.meta.inner_loop(loss, STEPS[name], 3, unroll=unroll)(p, *support)
        return F.mse_loss(adapted["network"](query[0]) + adapted["shift"], query[1]) + losses.square().sum()

    expected = leaves(pn.meta.grad(task_loss, "loop")(p, *tasks(device)))
    for unroll in UNROLLS:
        agree(pn.meta.grad(partial(task_loss, unroll=unroll), "sum")(p, *tasks(device)), expected)


BOUNDED = sorted(ACTIVATIONS.keys() - {"torch.square", "two in a row"})  # squares of squares grow beyond all numbers


@given(st.lists(st.sampled_from(BOUNDED), max_size=3), st.sampled_from(sorted(ERRORS)), st.booleans())
def test_compositions(device: torch.device, names: list[str], error: str, is_tied: bool) -> None:
    """And of these functions one after the other, with a weight that is used once or after each of them."""
    key = pn.random.key(0, device)
    p = [Linear.init(each, 2, 2, dtype=DOUBLE) for each in pn.random.split(key, len(names) + 1)]

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        for number, name in enumerate(names):
            x = ACTIVATIONS[name](p[0 if is_tied else number](x))
        return ERRORS[error](p[-1](x), y.expand_as(x))

    both_ways(loss, p, tasks(device), steps=2)


def test_products_with_the_hessian(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Second derivatives are one product for each step, and a plain step is made with its gradient."""
    products: list[Any] = []
    changes = Loss.changes
    monkeypatch.setattr(Loss, "changes", lambda *given: products.append(given) or changes(*given))
    stepped: list[Any] = []
    step = Row.step
    monkeypatch.setattr(Row, "step", lambda *given: stepped.append(given) or step(*given))
    for optimizer, apart in ((SGD, 0), (STEPS["with momentum"], 3)):
        for unroll in UNROLLS:
            products.clear()
            stepped.clear()
            pn.meta.grad(pn.meta.maml(_of_two_layers, optimizer, 3, unroll=unroll), "sum")(
                network(device), *tasks(device)
            )
            assert (len(products), len(stepped)) == (3, apart)


def _of_two_layers(p: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(p[1](torch.tanh(p[0](x))), y)


@pytest.mark.parametrize("unroll", UNROLLS)
def test_written_once(device: torch.device, monkeypatch: pytest.MonkeyPatch, unroll: Any) -> None:
    """The formulas of a loss are those of all data and of all networks of its form, whatever the sizes."""
    gradient = pn.meta.grad(pn.meta.maml(_of_two_layers, SGD, 3, unroll=unroll), "sum")
    expected = gradient(network(device), *tasks(device))
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "function", lambda *_, **__: pytest.fail("written again"))
        agree(gradient(network(device), *tasks(device)), leaves(expected))
        support, query = [[part.repeat(1, 2, 1) for part in parts] for parts in tasks(device)]
        one, two = pn.random.split(pn.random.key(1, device))
        p = Sequential.of(Linear.init(one, 2, 7, dtype=DOUBLE), Linear.init(two, 7, 1, bias=False, dtype=DOUBLE))
        found = gradient(p, support, query)
    agree(found, leaves(pn.meta.grad(pn.meta.maml(_of_two_layers, SGD, 3), "loop")(p, support, query)))


REPEATED: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], int]] = {
    "what is known": (_of_two_layers, 1),
    "the mean as the value": (lambda p, x, y: (p[1](p[0](x)) - y).square().mean(), 1),
    "a difference as the value": (lambda p, x, y: _of_two_layers(p, x, y) - F.mse_loss(p[1](p[0](x)), y), 1),
    "a constant of the parameters": (lambda p, x, y: F.mse_loss(p[1](p[0](x)), torch.tanh(p[1](p[0](x))).detach()), 3),
    "a constant of the data": (lambda p, x, y: F.mse_loss(p[1](p[0](x)), y.exp()), 3),
    "something unknown": (lambda p, x, y: F.mse_loss(p[1](torch.cos(p[0](x))), y), 3),
    "a write after use": (lambda p, x, y: _written_after(p, x, y), 1),
}


@pytest.mark.parametrize("name", REPEATED)
def test_repeated(device: torch.device, name: str) -> None:
    """By "scan" the loss is called for the first step alone, if nothing but parameters and data makes its value."""
    function, expected = REPEATED[name]
    calls: list[None] = []
    both_ways(function, network(device), tasks(device))
    for unroll, count in (("scan", expected), (2, expected), ("python", 3)):
        calls.clear()
        adapt = pn.meta.inner_loop(_counting(function, calls), SGD, 3, unroll=unroll)

        def task_loss(p: Any, support: tuple, query: tuple, adapt: Any = adapt) -> Tensor:
            return _of_two_layers(adapt(p, *support)[0], *query)

        pn.meta.grad(task_loss, "sum")(network(device), *tasks(device))
        assert len(calls) == count


@pytest.mark.parametrize(
    ("optimizer", "options", "expected"),
    [
        (pn.optim.adam(0.1), {}, 1),
        (SGD, {"truncate": 1}, 3),
        (SGD, {"truncate": 2}, 2),
        (SGD, {"first_order": True}, 3),
        (SGD, {"remat": True}, 6),
        (STEPS["by a schedule"], {}, 3),
        (pn.optim.chain(pn.optim.clip_by_global_norm(1.0), SGD), {}, 3),
    ],
)
def test_repeated_by_optimizers(
    device: torch.device, optimizer: pn.optim.GradientTransformation, options: dict[str, Any], expected: int
) -> None:
    """By an optimiser that steps each number alone, and only as far as gradients are no constants."""
    calls: list[None] = []
    adapt = pn.meta.inner_loop(_counting(_of_two_layers, calls), optimizer, 3, unroll="scan", **options)
    pn.meta.grad(lambda p, s, q: _of_two_layers(adapt(p, *s)[0], *q), "sum")(network(device), *tasks(device))
    assert len(calls) == expected


def _counting(loss: Callable[..., Tensor], calls: list[None]) -> Callable[..., Tensor]:
    def counted(*args: Any) -> Tensor:
        calls.append(None)
        return loss(*args)

    return counted


def test_repeated_for_the_query(device: torch.device) -> None:
    """The loss of query data is repeated as well if they are like the support's; in all derivatives."""
    p, (support, other) = network(device), tasks(device)
    query = support[0].sin(), support[1].exp()
    both_ways(_of_two_layers, p, (support, query))
    number, text = 2.0, "mean"

    def with_options(p: Any, x: Tensor, y: Tensor, by: float, reduction: str) -> Tensor:
        return (
            F.mse_loss(p[1](torch.tanh(p[0](x))), y, reduction=reduction) if by == number else _of_two_layers(p, x, x)
        )

    calls: list[None] = []
    for loss, data, count in (
        (_of_two_layers, (support, other), 1),
        (_of_two_layers, (support, [part[:, :3] for part in other]), 2),
        (with_options, ((*support, number, text), (*query, number, text)), 1),
        (with_options, ((*support, number, text), (*query, number, "sum")), 2),
    ):
        calls.clear()
        pn.meta.grad(pn.meta.maml(_counting(loss, calls), SGD, 3, unroll="scan"), "sum")(p, *data)
        assert len(calls) == count

    def squares(how: Any, unroll: Any) -> Callable[[Any], Tensor]:
        grad = pn.meta.grad(pn.meta.maml(_of_two_layers, SGD, 2, unroll=unroll), how)
        return lambda p: sum(leaf.square().sum() for leaf in pn.tree.leaves(grad(p, support, query)))

    agree(pn.grad(squares("sum", "scan"))(p), leaves(pn.grad(squares("loop", "python"))(p)))


def test_learned_query(device: torch.device) -> None:
    """Query data that have a gradient of their own get it."""
    p, (support, _) = network(device), tasks(device)
    task_loss = pn.meta.maml(_of_two_layers, SGD, 2, unroll="scan")

    def total(shift: Tensor, how: Any) -> Tensor:
        return pn.meta.value_and_grad(task_loss, how)(p, support, (support[0] + shift, support[1]))[0]

    shift = torch.tensor(0.3, dtype=DOUBLE, device=device)
    found, expected = (pn.grad(partial(total, how=how))(shift) for how in ("sum", "loop"))
    assert expected != 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_repeated_with_other_data(device: torch.device) -> None:
    """With data of its own for each step, keyword arguments, and parameters that are not adapted."""
    (x, y), query = tasks(device)
    support = [torch.stack([part, part.sin(), part.cos()], 1) for part in (x, y)]

    def task_loss(p: Any, support: list, query: tuple, unroll: Any = "python") -> Tensor:
        adapt = pn.meta.inner_loop(
            lambda p, x, y, by: F.mse_loss(F.linear(torch.tanh(p["one"](x)), p["w"]), torch.sub(y, by)),
            SGD,
            3,
            batches=True,
            select="one.**",
            unroll=unroll,
        )
        adapted, losses = adapt(p, *support, by=query[1])
        return F.mse_loss(F.linear(adapted["one"](query[0]), adapted["w"]), query[1]) + losses.sum()

    one, last = network(device).layers
    p = {"one": one, "w": last.weight.detach()}
    expected = leaves(pn.meta.grad(task_loss, "loop")(p, support, query))
    for unroll in UNROLLS:
        agree(pn.meta.grad(partial(task_loss, unroll=unroll), "sum")(p, support, query), expected)


@pytest.mark.usefixtures("by_formulas")
@pytest.mark.parametrize("ignored", [None, 0, -7])
def test_classes(device: torch.device, ignored: int | None) -> None:
    """And of the cross-entropy, with classes that do not count."""
    options = {} if ignored is None else {"ignore_index": ignored}
    (x, y), (u, v) = classes(device)
    y, v = (torch.where(y == 0, ignored, y) if ignored else y for y in (y, v))
    if ignored is not None:
        y = y.clone()
        y[0] = ignored  # the mean of no example is NaN, and its gradient zero
    both_ways(
        lambda p, x, y: F.cross_entropy(p[1](torch.tanh(p[0](x))), y, **options),
        network(device, 3),
        ((x, y), (u, v)),
    )


def test_class_that_is_none(device: torch.device) -> None:
    """A class that is not there is an error, as it is for a single task."""
    (x, y), query = classes(device)
    task_loss = pn.meta.maml(lambda p, x, y: F.cross_entropy(p[1](p[0](x)), y), SGD, 1)
    if device.type == "cpu":  # elsewhere it stops the device
        with pytest.raises(IndexError, match="Target 5 is out of bounds"):
            pn.meta.grad(task_loss, "sum")(network(device, 3), (x, y + 3), query)


OTHERS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "gelu by tanh": lambda p, x, y: F.mse_loss(p[1](F.gelu(p[0](x), approximate="tanh")), y),
    "an operator": lambda p, x, y: F.mse_loss(p[1](torch.relu(p[0](x)) * 2), y),
    "an activation in place": lambda p, x, y: F.mse_loss(p[1](F.relu(p[0](x), inplace=True)), y),
    "a write into a result": lambda p, x, y: F.mse_loss(p[1](torch.tanh(p[0](x).mul_(2))), y),
    "a write after use": lambda p, x, y: _written_after(p, x, y),
    "a result that is no constant": lambda p, x, y: F.mse_loss(p[1](torch.relu(p[0](x))), y * p[0].bias.sum()),
    "a detached result": lambda p, x, y: F.mse_loss(p[1](torch.relu(p[0](x).detach())), y),
    "no gradients recorded": lambda p, x, y: _without_gradients(p, x, y),
    "a function of its own": lambda p, x, y: F.mse_loss(p[1](_Doubled.apply(p[0](x))), y),
    "a gradient within": lambda p, x, y: F.mse_loss(p[1](p[0](x)), y) + _slope(p, x),
    "a parameter as the value": lambda p, x, y: p[0].bias.sum(),
    "a mean along an axis": lambda p, x, y: (p[1](torch.relu(p[0](x))) - y).square().mean(0).sum(),
    "a mean in another dtype": lambda p, x, y: (p[1](p[0](x)) - y).square().mean(dtype=torch.float64),
    "a mean of a number": lambda p, x, y: torch.tanh((p[1](p[0](x)) - y).square().mean()).mean(),
    "numbers of a task": lambda p, x, y: (p[0].bias.sum() - y.sum()).square(),
    "another exponent": lambda p, x, y: ((p[1](p[0](x)) - y) ** 4.0).mean(),
    "a scaled difference": lambda p, x, y: torch.sub(p[1](p[0](x)), y, alpha=2).square().mean(),
    "one minus": lambda p, x, y: (1 - torch.sigmoid(p[1](p[0](x)))).square().mean(),
    "products with itself": lambda p, x, y: torch.tanh(F.linear(p[0](x), p[0](x))).mean() + _with_itself(p[0](x)),
    "a write into the value": lambda p, x, y: F.mse_loss(p[1](p[0](x)), y).mul_(2),
    "rows of a single example": lambda p, x, y: F.mse_loss(p[1](torch.relu(p[0](x[0]))), y[0]),
    "half of the sum": lambda p, x, y: F.mse_loss(p[1](p[0](x)), y, reduction="sum") / 2,
    "single precision between": lambda p, x, y: F.mse_loss(p[1](p[0](x.float().double()).float().double()), y),
}


def _written_after(p: Any, x: Tensor, y: Tensor) -> Tensor:
    hidden = p[0](x)
    value = F.mse_loss(p[1](torch.tanh(hidden)), y)
    hidden.add_(1)
    return value


def _with_itself(x: Tensor) -> Tensor:
    return F.linear(torch.tanh(x), torch.tanh(x)).square().mean() + F.linear(x, x).square().mean()


def _without_gradients(p: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = torch.relu(p[0](x))
    return F.mse_loss(p[1](hidden), y)


def _slope(p: Any, x: Tensor) -> Tensor:
    return pn.grad(lambda x: p[1](torch.tanh(p[0](x))).sum())(x).square().mean()


class _Doubled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * gradient


def test_bias_of_all_outputs(device: torch.device) -> None:
    """A bias with a single number, which torch adds to all outputs, has a gradient with a single number."""
    p, shift = network(device), torch.ones(1, dtype=DOUBLE, device=device)
    both_ways(
        lambda p, x, y: F.mse_loss(p["n"][1](F.linear(x, p["n"][0].weight, p["shift"])), y),
        {"n": p, "shift": shift},
        tasks(device),
    )


def _by_addresses(p: Any, x: Tensor, y: Tensor) -> Tensor:
    one, two = p["w"].as_strided((2, 5), (1, 2)), torch.as_strided(p["w"], (5, 1), (2, 1), p["w"].storage_offset())
    return F.mse_loss(torch.tanh(x @ one) @ two, y)


@pytest.mark.parametrize("is_turned", [False, True])
def test_views_by_addresses(device: torch.device, is_turned: bool) -> None:
    """All tasks have the memory of one at the first step, and gradients of their own; also if it is compiled."""
    w = pn.random.normal(pn.random.key(0, device), (5, 2), dtype=DOUBLE)
    p, data = {"w": w.T if is_turned else w}, tasks(device)
    both_ways(_by_addresses, p, data)
    adapted = pn.meta.maml(_by_addresses, SGD, 2)
    agree(pn.jit(pn.meta.grad(adapted, "sum"))(p, *data), leaves(pn.meta.grad(adapted, "loop")(p, *data)))


def test_views_by_addresses_with_gaps(device: torch.device) -> None:
    """Where copies would have other addresses, there is an error."""
    p = {"w": pn.random.normal(pn.random.key(0, device), (5, 3), dtype=DOUBLE)[:, :2]}
    with pytest.raises(
        BatchingError, match=r"^vmap: the function uses as_strided on a tensor whose examples do not lie"
    ):
        pn.meta.grad(pn.meta.maml(_by_addresses, SGD, 2), "sum")(p, *tasks(device))


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", OTHERS)
def test_other_losses(device: torch.device, name: str) -> None:
    """Where a loss does anything else, autograd takes its gradient, and the numbers are the same."""
    both_ways(OTHERS[name], network(device), tasks(device))


def test_targets_of_the_parameters(device: torch.device) -> None:
    """Both sides of an error may be adapted, and one may be what is learned outside."""
    p, data = {"one": network(device), "two": network(device, 1)}, tasks(device)
    both_ways(lambda p, x, y: F.mse_loss(p["one"][1](p["one"][0](x)), p["two"][1](torch.tanh(p["two"][0](x)))), p, data)
    task_loss = pn.meta.cavia(
        lambda p, context, x, y: F.mse_loss(F.linear(x, p["w"]), y - context.expand_as(y)),
        torch.zeros(1, dtype=DOUBLE, device=device),
        SGD,
        2,
    )
    w = {"w": torch.tensor([[1.0, 2.0]], dtype=DOUBLE, device=device)}
    agree(pn.meta.grad(task_loss, "sum")(w, *data), leaves(pn.meta.grad(task_loss, "loop")(w, *data)))


def test_written_later(device: torch.device) -> None:
    """What the derivatives of a gradient need must not be written into before they are taken, or between its parts."""
    p, data = network(device), tasks(device)

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(p[1](torch.tanh(p[0](x))), y)

    def written(p: Any, x: Tensor, y: Tensor) -> Tensor:
        own = x + 0
        hidden = p[0](own)
        own.add_(1)
        return F.mse_loss(p[1](torch.tanh(hidden)), y)

    def later(p: Any, support: tuple, query: tuple, unroll: Any = "python") -> Tensor:
        x = support[0] + 0
        adapted, _ = pn.meta.inner_loop(loss, SGD, 2, unroll=unroll)(p, x, support[1])
        x.add_(1)
        return loss(adapted, *query)

    def between(p: Any, support: tuple, query: tuple) -> Tensor:
        return loss(pn.meta.inner_loop(written, SGD, 2, first_order=True)(p, *support)[0], *query)

    for task_loss in (later, partial(later, unroll="scan"), between):
        with pytest.raises(MutationError, match="overwrites in place a value that the gradient needs"):
            pn.meta.grad(task_loss, "sum")(p, *data)


def test_many_directions(device: torch.device) -> None:
    """Derivatives of a meta-gradient along many directions at once, by torch's own batches of cotangents."""
    for unroll in UNROLLS:
        _along_many(device, unroll)


def _along_many(device: torch.device, unroll: Any) -> None:
    p, data = pn.tree.map(lambda w: w.clone().requires_grad_(), network(device)), tasks(device)

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(p[1](torch.tanh(p[0](x))), y)

    gradient = pn.meta.grad(pn.meta.maml(loss, SGD, 2, unroll=unroll), "sum")(p, *data)[0].bias
    parameters, basis = pn.tree.leaves(p), torch.eye(len(gradient), dtype=DOUBLE, device=device)
    batched = torch.autograd.grad(gradient, parameters, basis, is_grads_batched=True, retain_graph=True)
    rows = [torch.autograd.grad(gradient, parameters, row, retain_graph=True) for row in basis]
    for found, expected in zip(batched, zip(*rows, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["F.relu", "F.gelu", "F.tanh", "F.sigmoid", "torch.square"])
def test_third_derivatives(device: torch.device, name: str) -> None:
    """The formulas can be differentiated as often as anybody wants."""
    p, data = network(device), tasks(device)

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(p[1](ACTIVATIONS[name](p[0](x))), y)

    def meta_gradient(how: Any, unroll: Any = "python") -> Callable[[Any], Tensor]:
        def task_loss(p: Any, support: tuple, query: tuple) -> Tensor:
            adapted, losses = pn.meta.inner_loop(loss, SGD, 2, unroll=unroll)(p, *support)
            return loss(adapted, *query) + losses.square().sum()

        grad = pn.meta.grad(task_loss, how)
        return lambda p: sum(leaf.square().sum() for leaf in pn.tree.leaves(grad(p, *data)))

    expected = leaves(pn.grad(meta_gradient("loop"))(p))
    for unroll in UNROLLS:
        agree(pn.grad(meta_gradient("sum", unroll))(p), expected)


def test_third_derivatives_of_classes(device: torch.device) -> None:
    """Those of the cross-entropy too."""
    p, data = network(device, 3), classes(device)

    def meta_gradient(how: Any) -> Callable[[Any], Tensor]:
        loss = pn.meta.maml(lambda p, x, y: F.cross_entropy(p[1](torch.tanh(p[0](x))), y).square(), SGD, 2)
        grad = pn.meta.grad(loss, how)
        return lambda p: sum(leaf.square().sum() for leaf in pn.tree.leaves(grad(p, *data)))

    agree(pn.grad(meta_gradient("sum"))(p), leaves(pn.grad(meta_gradient("loop"))(p)))


@pytest.mark.usefixtures("by_formulas")
def test_constant_gradients(device: torch.device) -> None:
    """First-order steps and Reptile's take them as well, and leave no graph."""
    p, data = network(device), tasks(device)

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(p[1](torch.tanh(p[0](x))), y)

    for unroll in UNROLLS:
        task_loss = pn.meta.maml(loss, SGD, 3, first_order=True, unroll=unroll)
        agree(pn.meta.grad(task_loss, "sum")(p, *data), leaves(pn.meta.grad(task_loss, "loop")(p, *data)))
        assert not _has_graph(pn.meta.reptile(loss, SGD, 3, unroll=unroll)(p, *data[0]))


def test_constant_gradients_of_other_losses(device: torch.device) -> None:
    """Those that autograd takes leave no graph either, nor do parameters that are not used."""
    p, data = {"network": network(device), "unused": torch.ones(2, dtype=DOUBLE, device=device)}, tasks(device)
    losses: list[Callable[..., Tensor]] = [
        lambda p, x, y: F.mse_loss(p["network"][1](torch.tanh(p["network"][0](x))), y),
        lambda p, x, y: F.mse_loss(p["network"][1](torch.cos(p["network"][0](x))), y),
    ]
    for loss in losses:
        assert not _has_graph(pn.meta.reptile(loss, SGD, 3)(p, *data[0]))


def _has_graph(tree: Any) -> bool:
    return any(leaf.requires_grad for leaf in pn.tree.leaves(tree))


def test_half_precision(device: torch.device) -> None:
    """A mean of numbers whose sum is too large for half precision is finite, as torch's is."""
    p = {"w": torch.full((1, 1), 200.0, dtype=torch.float16, device=device)}
    x = torch.ones(2, 40, 1, dtype=torch.float16, device=device)
    task_loss = pn.meta.maml(lambda p, x, y: F.mse_loss(F.linear(x, p["w"]), y), pn.optim.sgd(0.0), 1)
    value, gradient = pn.meta.value_and_grad(task_loss, "sum")(p, (x, 0 * x), (x, 0 * x))
    assert float(value) == 40000
    assert float(gradient["w"]) == 400


def test_autocast(device: torch.device) -> None:
    """Under autocast, where results have another dtype than parameters, autograd takes the gradient."""
    p, data = pn.tree.to(network(device), torch.float32), tasks(device)
    data = tuple(tuple(x.float() for x in part) for part in data)

    def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return p[1](torch.tanh(p[0](x))).square().mean()

    stacked, one_by_one = (pn.meta.grad(pn.meta.maml(loss, SGD, 2), how)(p, *data) for how in ("sum", "loop"))
    for found, expected in zip(pn.tree.leaves(stacked), pn.tree.leaves(one_by_one), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def test_autocast_to_single_precision(device: torch.device) -> None:
    """Functions that autocast computes in single precision are, of all tasks at once too."""
    outputs = torch.linspace(-1, 1, 60, device=device).view(2, 30, 1).bfloat16()

    def value(p: Any, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return F.mse_loss(x * p, y)

    stacked, one_by_one = (
        pn.meta.value_and_grad(pn.meta.maml(value, SGD, 1), how)(
            torch.ones((), dtype=torch.bfloat16, device=device), (outputs, -outputs), (outputs, -outputs)
        )[0]
        for how in ("sum", "loop")
    )
    assert stacked.dtype is one_by_one.dtype is torch.float32
    torch.testing.assert_close(stacked, one_by_one, rtol=1e-6, atol=0)
