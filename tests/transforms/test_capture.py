"""`capture`, `perturb` and `intervene`: intermediate values by path, under every transformation."""

import pytest
import torch
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.errors import ArgumentError, NumericsError, SelectionError, StructureError, TransformError
from purenn.layers import BatchNorm1d, Linear, ReLU, Sequential, Tanh, batch_norm, linear, sequential
from purenn.models import CapsNet, capsnet

DOUBLE = torch.float64


@pn.container
class Net(pn.Layer):
    """A body, a layer that is applied twice, a stateful norm, and an in-place write after a layer."""

    body: Sequential
    shared: Linear
    norm: BatchNorm1d


@pn.applies(Net)
def net(p: Net, x: Tensor, *, train: bool = False) -> tuple[Tensor, Net]:
    h = sequential(p.body, x)
    h = linear(p.shared, linear(p.shared, h).mul_(2))
    y, norm = batch_norm(p.norm, h, train=train)
    return y, pn.replace(p, norm=norm)


def make(device: torch.device) -> Net:
    k = pn.random.split(pn.random.key(0, device), 2)
    body = Sequential.of(Linear.init(k[0], 3, 4), ReLU())
    return pn.tree.to(Net(body, Linear.init(k[1], 4, 4), BatchNorm1d.init(4, device=device)), DOUBLE)


def inputs(device: torch.device, n: int = 5) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE).to(device)


def test_capture_equals_computing_by_hand(device: torch.device) -> None:
    """Every call of every selected layer is there, in order, and a write in place does not reach it."""
    p, x = make(device), inputs(device)
    (y, new), outputs = pn.capture(net, ["body.*.*", "shared", "norm"])(p, x, train=True)
    right, right_new = net(p, x, train=True)
    assert torch.equal(y, right)
    assert pn.tree.equal(new, right_new)
    assert list(outputs) == ["body.layers.0", "body.layers.1", "shared", "shared:1", "norm"]
    last = pn.capture(lambda x, p: net(p, x, train=True), ["body.*.*", "shared", "norm"], argnum=-1)(x, p)[1]
    assert pn.tree.equal(last, outputs)
    h = linear(p.body[0], x)
    assert torch.equal(outputs["body.layers.0"], h)
    assert torch.equal(outputs["body.layers.1"], h.relu())
    assert torch.equal(outputs["shared"], linear(p.shared, h.relu()))
    assert torch.equal(outputs["shared:1"], linear(p.shared, 2 * outputs["shared"]))
    assert torch.equal(outputs["norm"], y)


def test_they_nest(device: torch.device) -> None:
    """Each sees the layers that it has selected and no others; the outer one what the inner one has put there."""
    p, x = make(device), inputs(device)
    put = torch.ones(5, 4, dtype=DOUBLE, device=device)

    def applied(p: Net, x: Tensor) -> Tensor:
        return net(p, x)[0]

    replaced = pn.intervene(applied, {"shared": put})
    y, outputs = pn.capture(replaced, ["shared", "norm"])(p, x)
    assert torch.equal(y, replaced(p, x))
    assert list(outputs) == ["shared", "shared:1", "norm"]
    assert torch.equal(outputs["shared:1"], put)
    (same, inner), outer = pn.capture(pn.capture(applied, "norm"), lambda s: s.instances(Linear))(p, x)
    assert torch.equal(same, applied(p, x))
    assert (list(inner), list(outer)) == (["norm"], ["body.layers.0", "shared", "shared:1"])
    (_, new), again = pn.capture(pn.capture(net, "norm"), "norm")(p, x, train=True)
    assert list(new) == list(again) == ["norm"]
    with pytest.raises(NumericsError) as error:
        pn.check_numerics(pn.capture(applied, "norm"))(p, x / 0)
    assert str(error.value).startswith("check_numerics: the output of 'body.layers.0' (Linear), f64[5,4], has ")


def test_replacements_are_not_written_to(device: torch.device) -> None:
    """A write in place that follows the layer reaches a copy of what was put there."""
    p, x = make(device), inputs(device)
    put = torch.ones(5, 4, dtype=DOUBLE, device=device)
    y, _ = pn.intervene(net, {"shared": put})(p, x)
    assert torch.equal(put, torch.ones_like(put))
    assert torch.equal(y, batch_norm(p.norm, put)[0])


def test_selection_by_class_and_nested_layers(device: torch.device) -> None:
    """Layers are selected by class too; an outer and an inner layer may both be selected, and the model itself."""
    p, x = make(device), inputs(device)
    _, outputs = pn.capture(net, lambda s: s.instances((Linear, Sequential)))(p, x)
    assert list(outputs) == ["body.layers.0", "body", "shared", "shared:1"]
    (y, _), whole = pn.capture(net, lambda s: s)(p, x)
    assert torch.equal(whole[""], y)


def test_capture_under_transformations(device: torch.device) -> None:
    """Under vmap over inputs and models, as auxiliary output of a gradient, and under jit, it equals the loop."""
    p, x = make(device), inputs(device)
    one = pn.capture(lambda p, row: net(p, row[None])[0], "**.0")
    # A product of more rows may add its terms in another order, which whole numbers do not feel.
    whole, numbers = pn.tree.map(lambda leaf: (8 * leaf).round(), (p, x))
    _, rows = pn.vmap(one, (None, 0))(whole, numbers)
    assert torch.equal(rows["body.layers.0"], torch.stack([one(whole, row)[1]["body.layers.0"] for row in numbers]))
    models = pn.tree.stack([p, pn.tree.map(lambda leaf: 2 * leaf, p)])
    _, both = pn.vmap(one, (0, None))(models, x[0])
    assert both["body.layers.0"].shape == (2, 1, 4)

    def loss(p: Net) -> tuple[Tensor, dict]:
        (y, _), outputs = pn.capture(net, "shared")(p, x)
        return y.square().sum(), outputs

    grads, outputs = pn.grad(loss, has_aux=True)(p)
    assert pn.tree.allclose(grads, pn.grad(lambda p: net(p, x)[0].square().sum())(p), rtol=0, atol=1e-11)
    assert not outputs["shared"].requires_grad
    through = pn.grad(lambda p: pn.capture(net, "shared")(p, x)[1]["shared"].sum())(p)
    assert through.shared.bias.sum() == 20
    traced = pn.jit(pn.capture(net, "shared"), backend="aot_eager")(p, x)
    assert pn.tree.allclose(traced, pn.capture(net, "shared")(p, x), rtol=0, atol=1e-11)
    inlined = pn.capture(pn.jit(net, backend="eager"), "shared")(p, x)
    assert pn.tree.equal(inlined, pn.capture(net, "shared")(p, x))


def test_marks_do_not_leak(device: torch.device) -> None:
    """What comes back has the structure of what went in, with ties and frozen leaves."""
    p = pn.tree.freeze(make(device), "norm.weight")
    (_, new), _ = pn.capture(net, ["shared", "norm", "body"])(p, inputs(device), train=True)
    assert pn.tree.allclose(pn.replace(new, norm=p.norm), p)
    tied = pn.tree.tie(Sequential.of(Linear.init(pn.random.key(0), 4, 4), Tanh(), Linear.init(pn.random.key(1), 4, 4)))
    tied = pn.tree.tie(tied, {"layers.2.weight": "layers.0.weight"})
    x = torch.randn(2, 4)
    y, outputs = pn.capture(sequential, "layers.*")(tied, x)
    assert torch.equal(y, tied(x))
    assert torch.equal(outputs["layers.2"], y)


def test_perturb_gives_gradients_of_intermediate_values(device: torch.device) -> None:
    """The gradient at zero is the gradient with respect to the output, per example under vmap."""
    p, x = make(device), inputs(device)
    _, outputs = pn.capture(net, ["shared", "body.layers.1"])(p, x)
    zeros = pn.tree.map(torch.zeros_like, outputs)

    def loss(d: dict, x: Tensor) -> Tensor:
        return pn.perturb(net, ["shared", "body.layers.1"])(d, p, x)[0].square().sum()

    assert torch.equal(loss(zeros, x), net(p, x)[0].square().sum())
    grads = pn.grad(loss)(zeros, x)
    h = outputs["shared"].clone().requires_grad_()
    tail = batch_norm(p.norm, linear(p.shared, 2 * h))[0].square().sum()
    torch.testing.assert_close(grads["shared"], torch.autograd.grad(tail, h)[0], rtol=0, atol=1e-11)
    rows = pn.vmap(pn.grad(lambda d, row: loss(d, row[None])))(pn.tree.map(lambda z: z[:, None], zeros), x)
    torch.testing.assert_close(rows["shared"][:, 0], grads["shared"], rtol=0, atol=1e-10)
    part = pn.grad(loss)({"shared:1": zeros["shared:1"]}, x)
    assert torch.equal(part["shared:1"], grads["shared:1"])


def test_intervene(device: torch.device) -> None:
    """An output is replaced by a value or by a function of it; a path means every call, a number one of them."""
    p, x = make(device), inputs(device)
    ablated, _ = pn.intervene(net, {"body.layers.0": lambda h: h * 0})(p, x)
    zeros = torch.zeros(5, 4, dtype=DOUBLE, device=device)
    expected, _ = batch_norm(p.norm, linear(p.shared, 2 * linear(p.shared, zeros)))
    torch.testing.assert_close(ablated, expected)
    value = torch.ones(5, 4, dtype=DOUBLE, device=device)
    torch.testing.assert_close(pn.intervene(net, {"shared": value})(p, x)[0], batch_norm(p.norm, value)[0])
    first = pn.intervene(net, {"shared:1": value})(p, x)[0]
    torch.testing.assert_close(first, batch_norm(p.norm, value)[0])
    patched = pn.vmap(lambda row: pn.intervene(net, {"body": lambda h: h.neg()})(p, row[None])[0])(x)
    looped = [pn.intervene(net, {"body": lambda h: h.neg()})(p, row[None])[0] for row in x]
    torch.testing.assert_close(patched, torch.stack(looped), rtol=0, atol=1e-12)


def test_models_and_opaque_containers(device: torch.device) -> None:
    """It works on whole models, routing by vmap included, and on containers made of modules."""
    options = {"image_shape": (1, 8, 8), "num_classes": 3, "channels": 4, "kernel_size": 3, "primary_types": 2}
    p = CapsNet.init(pn.random.key(0, device), **options, primary_kernel_size=3, decoder=(5,))
    out, outputs = pn.capture(capsnet, ["primary", "classes"])(p, torch.rand(2, 1, 8, 8, device=device))
    assert torch.equal(outputs["classes"], out.poses)
    opaque = bridge.from_module(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh()))
    result, outputs = pn.capture(lambda p, x: p(x), lambda s: s)(opaque, torch.ones(3))
    assert torch.equal(outputs[""], result)


def text_of(call: object, kind: type[Exception]) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


def test_errors(device: torch.device) -> None:
    """Unknown names, things that are no layers, shapes that do not fit and calls out of reach are named."""
    p, x = make(device), inputs(device)
    assert text_of(lambda: pn.capture(net, "head")(p, x), SelectionError).startswith(
        "capture: the selection (paths 'head') is empty in this Net; its nodes are: body, body.layers,"
    )
    assert text_of(lambda: pn.capture(net, "shared.weight")(p, x), SelectionError) == (
        "capture: 'shared.weight' is f64[4,4], no layer with a function, so it has no output. Select layers, for "
        "example with lambda s: s.instances(Linear)."
    )
    assert text_of(lambda: pn.capture(net, "body.layers")(p, x), SelectionError).startswith(
        "capture: 'body.layers' is a tuple, no layer with a function"
    )
    assert text_of(lambda: pn.capture(net, "shared")(x=x, p=p), ArgumentError) == (
        "capture: argnum must be the number of the positional argument that is the model, got 0 for a call with 0."
    )
    assert text_of(lambda: pn.capture(net, lambda s: s.tree)(p, x), ArgumentError) == (
        "capture: the function that selects must return a selection, as lambda s: s.instances(Linear), got a Net."
    )
    assert text_of(lambda: pn.intervene(net, ["shared"]), ArgumentError) == (
        "intervene: replacements must be a dict from paths to what is put there, got a list."
    )
    assert text_of(lambda: pn.intervene(net, {"shared": lambda y: y.float()})(p, x), StructureError) == (
        "intervene: what is given for 'shared' must look like the layer's output, f64[5,4], got f32[5,4]."
    )
    batched = pn.capture(lambda p, x: pn.vmap(linear, (None, 0))(p.shared, x), "shared")
    assert text_of(lambda: batched(p, torch.ones(2, 4, dtype=DOUBLE, device=device)), TransformError) == (
        "capture: 'shared' is applied inside a transformation (vmap, a gradient ...) that the function itself makes, "
        "so its output cannot leave it. Put capture inside: pn.vmap(pn.capture(f, ...))."
    )
    inner = pn.capture(lambda p, x: pn.grad(lambda p: net(p, x)[0].sum())(p), "shared")
    assert text_of(lambda: inner(p, x), TransformError).startswith(
        "capture: 'shared' is applied inside a transformation"
    )
    wrong = {"shared": torch.ones(2, device=device)}
    assert text_of(lambda: pn.intervene(net, wrong)(p, x), StructureError) == (
        "intervene: what is given for 'shared' must look like the layer's output, f64[5,4], got f32[2]."
    )
    assert text_of(lambda: pn.perturb(net, "shared")(wrong, p, x), StructureError) == (
        "perturb: what is given for 'shared' must look like the layer's output, f64[5,4], got f32[2]."
    )
    unused = {"shared:2": torch.ones(5, 4, dtype=DOUBLE, device=device)}
    assert text_of(lambda: pn.perturb(net, "shared")(unused, p, x), SelectionError) == (
        "perturb: 'shared:2' was not reached: no selected layer of that path was applied (that often)."
    )


def test_layers_within_foreign_modules(device: torch.device) -> None:
    """Layers of a module that is carried whole are seen, perturbed and replaced like any others, and no hook stays."""
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).to(device, torch.float64)
    p, x = bridge.from_module(module), torch.linspace(-1, 1, 15, dtype=torch.float64, device=device).view(5, 3)

    def apply(p: pn.Layer, x: Tensor) -> Tensor:
        return p(x)

    for captured in (pn.capture(apply, "0"), pn.vmap(pn.capture(apply, "0"), (None, 0))):
        y, outputs = captured(p, x)
        torch.testing.assert_close(outputs, {"0": module[0](x)}, rtol=0, atol=1e-12)
        torch.testing.assert_close(y, module(x), rtol=0, atol=1e-12)
    zeros = {"0": torch.zeros(5, 4, dtype=torch.float64, device=device)}
    found = pn.grad(lambda d: pn.perturb(apply, "0")(d, p, x).sum())(zeros)
    expected = (module[0](x) > 0) * module[2].weight.sum(0)
    torch.testing.assert_close(found, {"0": expected}, rtol=0, atol=1e-12)
    ones = torch.ones(5, 4, dtype=torch.float64, device=device)
    torch.testing.assert_close(pn.intervene(apply, {"0": ones})(p, x), module[2](ones), rtol=0, atol=1e-12)
    assert list(pn.capture(apply, "2")(p, x)[1]) == ["2"]
