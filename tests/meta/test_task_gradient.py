"""The gradient of many tasks: all ways agree, choose rightly, and work for opaque modules and torch.optim."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _meta_references import DOUBLE, adapted_by_hand, agree, leaves, loss_by_hand, mse, network, one_task, tasks
from torch import Tensor, fx, nn

import bridge
import purenn as pn
from purenn.errors import ArgumentError, BatchingError, GradientError
from purenn.layers import Conv1d, Linear

WAYS = ["auto", "vmap", "sum", "loop"]
maml = pn.meta.maml(mse, pn.optim.sgd(0.1), 2)


def expected(p: Any, data: Any, count: int = 3) -> tuple[Tensor, list[Tensor]]:
    """Mean loss and its gradient by torch.autograd."""
    start = leaves(p)
    losses = []
    for number in range(count):
        support, query = one_task(data, number)
        losses.append(loss_by_hand(adapted_by_hand(start, 0.1, 2, *support), *query))
    value = torch.stack(losses).mean()
    return value.detach(), list(torch.autograd.grad(value, start))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_ways(device: torch.device, how: Any, chunk: int | None) -> None:
    """Every way gives the mean gradient of torch.autograd, in chunks as well, in eager and under jit."""
    p, data = network(device), tasks(device)
    value, gradients = expected(p, data)
    both = pn.meta.value_and_grad(maml, how, chunk=chunk)
    for run in (both, pn.jit(both, backend="eager")):
        found, grads = run(p, *data)
        torch.testing.assert_close(found, value, rtol=0, atol=1e-12)
        agree(grads, gradients)
        assert not any(leaf.requires_grad for leaf in pn.tree.leaves(grads))
    agree(pn.meta.grad(maml, how, chunk=chunk)(p, *data), gradients)


@pytest.mark.parametrize("how", ["vmap", "sum"])
def test_compiled_steps_take_the_data_only(device: torch.device, how: Any) -> None:
    """A scanned inner loop carries what changes; besides, a step gets the task's data, and its gradient the inputs."""
    p, data = network(device), tasks(device)
    graphs: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: Any) -> fx.GraphModule:
        graphs.append(graph)
        return graph

    scanned = pn.meta.maml(mse, pn.optim.sgd(0.1), 2, unroll="scan")
    agree(pn.jit(pn.meta.grad(scanned, how), backend=backend)(p, *data), expected(p, data)[1])
    scan = torch.ops.purenn.scan.default
    loops = [node for graph in graphs for node in graph.graph.nodes if node.target is scan]
    constants: list[Any] = [loop.args[2] for loop in loops]
    assert [len(given) for given in constants] == [2, 1]


@pytest.mark.parametrize("how", WAYS)
def test_torch_compile(device: torch.device, how: Any) -> None:
    """torch.compile traces every way as one graph."""
    p, data = network(device), tasks(device)
    torch.compiler.reset()
    compiled = torch.compile(pn.meta.grad(maml, how), fullgraph=True, backend="eager")
    agree(compiled(p, *data), expected(p, data)[1])


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("init", [lambda k: Linear.init(k, 8, 3), lambda k: Conv1d.init(k, 1, 1, 3)])
def test_shapes_on_the_meta_device(how: Any, init: Callable[[Tensor], Any]) -> None:
    """Every way gives the shapes of the gradients for tensors without values."""
    p, x = pn.tree.to(init(pn.random.key(0)), "meta"), torch.empty(4, 2, 1, 8, device="meta")
    learnt = pn.meta.maml(lambda p, x: p(x).square().mean(), pn.optim.sgd(0.1), 2)
    gradients = pn.meta.grad(learnt, how)(p, (x,), (x,))
    assert [(g.shape, g.is_meta) for g in pn.tree.leaves(gradients)] == [(w.shape, True) for w in pn.tree.leaves(p)]


@pytest.mark.parametrize("how", WAYS)
def test_auxiliary_output(device: torch.device, how: Any) -> None:
    """What a task returns besides its loss comes stacked, whatever the way and the chunks."""
    p, data = network(device), tasks(device)

    def task_loss(p: Any, support: Any, query: Any) -> Any:
        return maml(p, support, query), {"first": query[0][0], "sum": query[1].sum()}

    for chunk in (None, 2):
        (value, aux), grads = pn.meta.value_and_grad(task_loss, how, chunk=chunk, has_aux=True)(p, *data)
        torch.testing.assert_close(aux["first"], data[1][0][:, 0])
        torch.testing.assert_close(aux["sum"], data[1][1].sum((1, 2)))
        agree(grads, expected(p, data)[1])
        torch.testing.assert_close(value, expected(p, data)[0])
        assert pn.tree.equal(pn.meta.grad(task_loss, how, chunk=chunk, has_aux=True)(p, *data)[0], grads)


@pytest.mark.parametrize("how", WAYS)
def test_within_transformations(device: torch.device, how: Any) -> None:
    """It can be differentiated again, batched over models, and given parameters that require grad."""
    p, data = network(device), tasks(device)
    gradient = pn.meta.grad(maml, how)

    def norm(p: Any) -> Tensor:
        return sum(leaf.square().sum() for leaf in pn.tree.leaves(gradient(p, *data)))

    def total(p: Any) -> Tensor:
        return sum(maml(p, *one_task(data, n)) for n in range(3)) / 3

    second = pn.grad(lambda p: sum(leaf.square().sum() for leaf in pn.tree.leaves(pn.grad(total)(p))))(p)
    agree(pn.grad(norm)(p), pn.tree.leaves(second))
    models = pn.tree.stack([p, pn.tree.map(lambda w: 1.1 * w, p)])
    many = pn.vmap(lambda p: gradient(p, *data))(models)
    agree(pn.tree.unstack(many)[1], expected(pn.tree.unstack(models)[1], data)[1])


@pytest.mark.parametrize("how", WAYS)
def test_own_inner_loops(device: torch.device, how: Any) -> None:
    """A task loss with `pn.grad` in its own code works as one with an `inner_loop`, shared data included."""
    p, data = network(device), tasks(device)
    shared = data[0][0][0]

    def task_loss(p: Any, support: Any, query: Any) -> Tensor:
        for _ in range(2):
            p = pn.tree.map(lambda w, g: w - 0.1 * g, p, pn.grad(mse)(p, *support))
        return mse(p, *query) + p(shared).square().mean()

    start = leaves(p)
    value: Tensor = torch.zeros(())
    for number in range(3):
        support, query = one_task(data, number)
        adapted = adapted_by_hand(start, 0.1, 2, *support)
        value = value + (loss_by_hand(adapted, *query) + loss_by_hand(adapted, shared, torch.zeros(()))) / 3
    agree(pn.meta.grad(task_loss, how)(p, *data), torch.autograd.grad(value, start))


class Module(nn.Module):
    """A module with every norm on which torch.func is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 1)
        self.batch = nn.BatchNorm1d(4, track_running_stats=False)
        self.layer = nn.LayerNorm(4)
        self.instance = nn.InstanceNorm1d(6, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.layer(self.batch(self.first(x))))
        return self.last(self.instance(y[None])[0])


def module(device: torch.device) -> Module:
    torch.manual_seed(0)
    made = Module().to(device, DOUBLE)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    return made


def module_gradients(made: nn.Module, data: Any) -> list[Tensor]:
    """The mean meta-gradient of a module in evaluation mode, by torch.autograd."""
    made = made.eval()
    names, start = zip(*made.named_parameters(), strict=True)
    value: Tensor = torch.zeros(())

    def loss(w: Any, x: Tensor, y: Tensor) -> Tensor:
        return (torch.func.functional_call(made, dict(zip(names, w, strict=True)), (x,)) - y).square().mean()

    for number in range(3):
        support, query = one_task(data, number)
        value = value + loss(adapted_by_hand(list(start), 0.1, 2, *support, loss=loss), *query) / 3
    return list(torch.autograd.grad(value, start))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("convert", [False, True])
def test_modules(device: torch.device, how: Any, convert: bool) -> None:
    """Opaque and converted modules with affine batch, layer and instance norm have the gradient of torch.autograd."""
    made, data = module(device), tasks(device)
    p = bridge.from_module(made.eval())
    if convert:
        p = bridge.convert(made.eval())
    found = dict(pn.tree.named_leaves(pn.meta.grad(maml, how)(p, *data)))
    for (name, _), gradient in zip(made.named_parameters(), module_gradients(made, data), strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-10)


def test_meta_trained_with_torch_optim(device: torch.device) -> None:
    """A module's own parameters are meta-trained by torch.optim, with our gradients."""
    made, twin, data = module(device), module(device), tasks(device)
    ours, theirs = (torch.optim.Adam(m.parameters(), lr=0.01) for m in (made, twin))
    gradient = pn.meta.value_and_grad(maml)
    for _ in range(3):
        value, grads = gradient(bridge.from_module(made.eval()), *data)
        found = dict(pn.tree.named_leaves(grads))
        for name, parameter in made.named_parameters():
            parameter.grad = found[name]
        ours.step()
        for parameter, grad in zip(twin.parameters(), module_gradients(twin, data), strict=True):
            parameter.grad = grad
        theirs.step()
        assert value.isfinite()
    for one, other in zip(made.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_auto(caplog: pytest.LogCaptureFixture) -> None:
    """It chooses by what the task loss runs, says so once, and `choose` says it as well."""
    conv = Conv1d.init(pn.random.key(0), 1, 1, 3)
    x = torch.ones(4, 1, 8)

    def with_convolution(p: Any, x: Tensor) -> Tensor:
        return p(x).square().mean()

    def without(p: Tensor, x: Tensor) -> Tensor:
        return (p * x).square().mean()

    assert pn.meta.choose(with_convolution, conv, x) == (
        "loop",
        "a task runs 1 convolutions on the CPU, where grouped ones are slow",
    )
    assert pn.meta.choose(without, x[0], x) == ("sum", "the task loss has no convolutions on the CPU")
    assert pn.meta.choose(without, x[0], x[:1]) == ("loop", "there is one task")
    inside = []

    def choosing(p: Tensor) -> Tensor:
        inside.append(pn.meta.choose(without, p, x))
        return p

    pn.vmap(choosing)(x)
    pn.jit(choosing, backend="eager")(x[0])
    assert inside[0] == ("vmap", "another transformation is around")
    assert inside[1] == ("vmap", "the tasks are traced into one graph")
    gradient = pn.meta.grad(with_convolution)
    with caplog.at_level(logging.INFO, "purenn.meta"):
        gradient(conv, x)
        gradient(conv, x)
    assert caplog.messages == [
        "meta.grad: how='auto' takes 'loop': a task runs 1 convolutions on the CPU, where grouped ones are slow."
    ]


@pytest.mark.parametrize("how", ["auto", "vmap", "sum", "loop"])
def test_losses_are_scalars(device: torch.device, how: Any) -> None:
    """What is no scalar is refused in every way, also where the losses of the tasks are added up."""
    p, data = network(device), tasks(device)
    for made, text in (
        (
            lambda value: value[None],
            "meta.grad: the function must return a scalar tensor, got f64[1]. Reduce it with .mean() or .sum(), or use "
            "pn.jacrev for the derivatives of every element.",
        ),
        (lambda _: None, "meta.grad: the function must return a scalar tensor, got a NoneType."),
        (
            lambda value: (value, value),
            "meta.grad: the function must return a scalar tensor, got a tuple. Return it together with has_aux=True.",
        ),
    ):
        with pytest.raises(GradientError) as error:
            pn.meta.grad(lambda *args, made=made: made(maml(*args)), how)(p, *data)
        assert str(error.value) == text


def test_errors(device: torch.device) -> None:
    """Wrong options and data that are no tasks are refused in our words."""
    p, data = network(device), tasks(device)
    for options, text in (
        ({"how": "scan"}, "meta.grad: how must be 'auto', 'vmap', 'sum' or 'loop', got 'scan'."),
        ({"chunk": 0}, "meta.grad: chunk must be at least 1, got 0."),
    ):
        with pytest.raises(ArgumentError) as error:
            pn.meta.grad(maml, **options)
        assert str(error.value) == text
    fix = "Every tensor after the parameters has a leading axis for the tasks."
    for given, text in (
        ((), f"meta.grad: there are no tasks. {fix}"),
        (
            (data[0], (data[1][0][:2], data[1][1])),
            f"meta.grad: the numbers of tasks differ: argument 1, '0', is f64[3,6,2] but argument 2, '0', is "
            f"f64[2,6,2]. {fix}",
        ),
        (
            (torch.tensor(1.0),),
            "meta.grad: argument 1 is f32[] and has no leading axis with tasks.",
        ),
    ):
        with pytest.raises(BatchingError) as error:
            pn.meta.grad(maml)(p, *given)
        assert str(error.value) == text
