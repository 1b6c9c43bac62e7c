"""Normalisation: equal to torch.nn's or to its formula, options, sizes and errors."""

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from _norms import numbers, randomised
from _reference import check_equals_module, same, weights_like
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, vmap

import bridge
import purenn as pn
from purenn import layers
from purenn.ops import batch_norm, group_norm, instance_norm, layer_norm

SPACE = {1: (5,), 2: (3, 4), 3: (2, 3, 2)}


def like(p: Any, module: nn.Module) -> Any:
    """The container with copies of the module's parameters and buffers."""
    state = module.state_dict()
    assert [name for name, _ in pn.tree.named_leaves(p)] == list(state)
    return optree.tree_unflatten(optree.tree_structure(p), [value.clone() for value in state.values()])


def check_trains_like(module: nn.Module, p: Any, function: Callable[..., Any], *batches: Tensor) -> None:
    """Check outputs, gradients of two orders and buffers over steps in training, and outputs after them."""
    with torch.no_grad():
        for index, value in enumerate(module.parameters()):
            value.copy_(numbers(*value.shape, seed=index))
    p = like(p, module)
    for step, x in enumerate([*batches, batches[0]]):
        train = step < len(batches)
        module.train(train)
        theirs = _with_gradients(module(given := x.clone().requires_grad_()), given, list(module.parameters()))
        given = x.clone().requires_grad_()
        tracked = pn.tree.map(lambda leaf: leaf.detach(), p)
        parameters = [leaf.requires_grad_() for leaf in (tracked.weight, tracked.bias) if leaf is not None]
        y, p = function(tracked, given, train=train)
        ours = _with_gradients(y, given, parameters)
        same(ours, theirs)
        for (name, leaf), value in zip(pn.tree.named_leaves(p), module.state_dict().values(), strict=True):
            torch.testing.assert_close(leaf.detach(), value, rtol=1e-12, atol=1e-12, msg=name)
        assert all(not leaf.requires_grad for leaf in (p.running_mean, p.running_var) if leaf is not None)
        p = pn.tree.map(lambda leaf: leaf.detach(), p)


def _with_gradients(y: Tensor, x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    first = torch.autograd.grad((torch.sin(y) * weights_like(y)).sum(), [x, *parameters], create_graph=True)
    total = sum((g * weights_like(g)).sum() for g in first)
    return [y, *first, *torch.autograd.grad(total, [x, *parameters])]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@given(
    momentum=st.sampled_from([0.1, 0.0, 1.0, 0.37, None]),
    eps=st.sampled_from([1e-5, 1e-2]),
    affine=st.booleans(),
    track=st.booleans(),
    vectors=st.booleans(),
)
def test_batch_norm_equals_torch(
    dimensions: int,
    momentum: float | None,
    eps: float,
    affine: bool,
    track: bool,
    vectors: bool,
    device: torch.device,
) -> None:
    """Outputs, gradients of two orders and all buffers are torch's over three training steps and in evaluation."""
    options = {"eps": eps, "momentum": momentum, "affine": affine, "track_running_stats": track}
    module = getattr(nn, f"BatchNorm{dimensions}d")(4, **options, device=device, dtype=torch.float64)
    p = getattr(layers, f"BatchNorm{dimensions}d").init(4, **options, device=device, dtype=torch.float64)
    space = () if vectors and dimensions == 1 else SPACE[dimensions]
    batches = [numbers(size, 4, *space, seed=size, device=device) for size in (3, 5, 2)]
    check_trains_like(module, p, layers.batch_norm, *batches)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@given(
    momentum=st.sampled_from([0.1, 1.0, 0.37, None]),
    eps=st.sampled_from([1e-5, 1e-2]),
    affine=st.booleans(),
    track=st.booleans(),
    single=st.booleans(),
)
def test_instance_norm_equals_torch(
    dimensions: int, momentum: float | None, eps: float, affine: bool, track: bool, single: bool, device: torch.device
) -> None:
    """Outputs, gradients and buffers are torch's over training steps and in evaluation, for batches and for one."""
    options = {"eps": eps, "momentum": momentum, "affine": affine, "track_running_stats": track}
    module = getattr(nn, f"InstanceNorm{dimensions}d")(4, **options, device=device, dtype=torch.float64)
    p = getattr(layers, f"InstanceNorm{dimensions}d").init(4, **options, device=device, dtype=torch.float64)
    shapes = [(4, *SPACE[dimensions])] * 2 if single else [(3, 4, *SPACE[dimensions]), (2, 4, *SPACE[dimensions])]
    batches = [numbers(*shape, seed=seed, device=device) for seed, shape in enumerate(shapes)]
    check_trains_like(module, p, layers.instance_norm, *batches)


@given(
    shape=st.sampled_from([(5,), (3, 4), (2, 3, 2)]),
    batch=st.sampled_from([(), (1,), (2, 3)]),
    eps=st.sampled_from([1e-5, 0.1]),
    affine=st.booleans(),
    bias=st.booleans(),
)
def test_layer_norm_equals_torch(
    shape: tuple[int, ...], batch: tuple[int, ...], eps: float, affine: bool, bias: bool, device: torch.device
) -> None:
    """Values and gradients of two orders are torch's over one and several last dimensions."""
    options = {"eps": eps, "elementwise_affine": affine, "bias": bias}
    module = nn.LayerNorm(shape, **options, device=device, dtype=torch.float64)
    p = layers.LayerNorm.init(shape, **options)
    check_equals_module(p, layers.layer_norm, _shaken(module), numbers(*batch, *shape, device=device))


@given(
    shape=st.sampled_from([(5,), (3, 4)]),
    batch=st.sampled_from([(), (2, 3)]),
    eps=st.sampled_from([None, 0.1]),
    affine=st.booleans(),
)
def test_rms_norm_equals_torch(
    shape: tuple[int, ...], batch: tuple[int, ...], eps: float | None, affine: bool, device: torch.device
) -> None:
    """Values and gradients of two orders are torch's over one and several last dimensions."""
    module = nn.RMSNorm(shape, eps=eps, elementwise_affine=affine, device=device, dtype=torch.float64)
    p = layers.RMSNorm.init(shape, eps=eps, elementwise_affine=affine)
    check_equals_module(p, layers.rms_norm, _shaken(module), numbers(*batch, *shape, device=device))


@given(
    groups=st.sampled_from([1, 2, 6]),
    shape=st.sampled_from([(2, 6), (3, 6, 4), (0, 6, 3), (2, 6, 2, 3)]),
    eps=st.sampled_from([1e-5, 0.1]),
    affine=st.booleans(),
)
def test_group_norm_equals_torch(
    groups: int, shape: tuple[int, ...], eps: float, affine: bool, device: torch.device
) -> None:
    """Values and gradients of two orders are torch's for any number of groups, and for a batch of no examples."""
    module = nn.GroupNorm(groups, 6, eps=eps, affine=affine, device=device, dtype=torch.float64)
    p = layers.GroupNorm.init(groups, 6, eps=eps, affine=affine)
    alone = groups == 6 and len(shape) == 2  # one value in a group: constant, so torch has no second derivative
    x = numbers(*shape, device=device)
    check_equals_module(p, layers.group_norm, _shaken(module), x, second_order=bool(x.numel()) and not alone)


def _shaken(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for index, value in enumerate(module.parameters()):
            value.copy_(numbers(*value.shape, seed=index))
    return module


@pytest.mark.parametrize("shape", [(32, 10, 768)])
def test_layer_norm_of_the_transformer_example(shape: tuple[int, ...], device: torch.device) -> None:
    """[32, 10, 768] over 768: every token gets mean 0 and variance 1."""
    y = layers.layer_norm(layers.LayerNorm.init(768, device=device), numbers(*shape, device=device).float())
    assert y.shape == shape
    assert y.mean(-1).abs().max() < 1e-5
    assert (y.var(-1, correction=0) - 1).abs().max() < 1e-3


def test_unbiased_layer_norm_is_its_formula(device: torch.device) -> None:
    """``gamma (x - mean) / (std + eps) + beta`` with the unbiased deviation: LayerNorm times a known ratio."""
    p = randomised(layers.UnbiasedLayerNorm.init((3, 4), device=device))
    x = numbers(5, 3, 4, device=device)
    flat = x.flatten(1)
    mean, std = flat.mean(1)[:, None, None], (flat.var(1) ** 0.5)[:, None, None]
    same(layers.unbiased_layer_norm(p, x), p.gamma * (x - mean) / (std + 1e-6) + p.beta)
    options = {"eps": 0.0, "dtype": torch.float64, "device": device}
    unbiased = layers.unbiased_layer_norm(layers.UnbiasedLayerNorm.init(12, **options), flat)
    same(unbiased, layers.layer_norm(layers.LayerNorm.init(12, **options), flat) * (11 / 12) ** 0.5)


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 2, 5)])
def test_running_norm_is_its_formula(shape: tuple[int, ...], device: torch.device) -> None:
    """Batch statistics in training, running ones after it; the running variance is the biased one."""
    p, x = randomised(layers.RunningNorm.init(4, momentum=0.3, device=device)), numbers(*shape, device=device)
    y, new = layers.running_norm(p, x, train=True)
    over = (0, *range(2, x.dim()))
    mean, var = x.mean(over), x.var(over, correction=0)
    view = (1, 4, *[1] * (x.dim() - 2))
    same(y, (x - mean.view(view)) / (var.view(view) + 1e-5).sqrt())
    same((new.running_mean, new.running_var), (0.7 * p.running_mean + 0.3 * mean, 0.7 * p.running_var + 0.3 * var))
    after, unchanged = layers.running_norm(new, x)
    same(after, (x - new.running_mean.view(view)) / (new.running_var.view(view) + 1e-5).sqrt())
    assert unchanged is new


def test_running_norm_of_one_example_and_of_none(device: torch.device) -> None:
    """One example gives 0 and moves the averages towards a variance of 0; none leaves them as they are."""
    p = layers.RunningNorm.init(3, device=device, dtype=torch.float64)
    y, new = layers.running_norm(p, numbers(1, 3, device=device), train=True)
    same(y, torch.zeros_like(y))
    same(new.running_var, torch.full_like(new.running_var, 0.9))
    y, same_p = layers.running_norm(p, torch.empty(0, 3, device=device), train=True)
    assert y.shape == (0, 3)
    assert same_p is p


def test_running_statistics_carry_no_gradient(device: torch.device) -> None:
    """New averages are detached from the input, outside transformations and inside them."""
    for p, function in (
        (layers.RunningNorm.init(3, device=device), layers.running_norm),
        (layers.BatchNorm1d.init(3, device=device), layers.batch_norm),
    ):
        x = torch.rand(4, 3, device=device, requires_grad=True)
        _, new = function(p, x, train=True)
        assert not new.running_mean.requires_grad
        assert not new.running_var.requires_grad
        for name in ("running_mean", "running_var"):
            gradient = grad(lambda x, name, p=p, f=function: getattr(f(p, x, train=True)[1], name).sum())(x, name)
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_centered_is_its_formula(device: torch.device) -> None:
    """The default centres every example, None everything at once, and numbers the dimensions that they name."""
    x = numbers(3, 4, 5, device=device)
    same(layers.centered(layers.Centered(), x), x - x.mean((1, 2), keepdim=True))
    same(layers.centered(layers.Centered(dim=None), x), x - x.mean())
    same(layers.centered(layers.Centered(dim=-1), x), x - x.mean(-1, keepdim=True))
    same(layers.centered(layers.Centered(dim=(0, 2)), x), x - x.mean((0, 2), keepdim=True))
    same(vmap(layers.Centered(dim=None))(x), layers.centered(layers.Centered(), x))


@pytest.mark.parametrize("transformed", [False, True])
def test_batch_of_no_examples(transformed: bool, device: torch.device) -> None:
    """It is counted but leaves the averages as they are, as in torch, and parameters get a gradient of 0."""
    p = randomised(layers.BatchNorm2d.init(3, device=device))
    x = torch.empty(2, 0, 3, 4, 4, dtype=torch.float64, device=device)
    run = vmap(lambda x: layers.batch_norm(p, x, train=True)) if transformed else None
    y, new = run(x) if run else layers.batch_norm(p, x[0], train=True)
    assert y.shape == (x.shape if transformed else x.shape[1:])
    for old, stored in ((p.running_mean, new.running_mean), (p.running_var, new.running_var)):
        same(stored, old.expand_as(stored))
    assert torch.all(new.num_batches_tracked == 1)
    gradient = grad(lambda w: layers.batch_norm(pn.replace(p, weight=w), x[0], train=True)[0].sum())(p.weight)
    same(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["BatchNorm", "InstanceNorm"])
@pytest.mark.parametrize("opaque", [False, True])
def test_one_example_in_any_memory_layout(
    opaque: bool, name: str, train: bool, dimensions: int, device: torch.device
) -> None:
    """With channels last in memory, its own or its gradient's, one example has the gradients of the same one twice.

    torch's kernels for the CPU give silently wrong ones, also in a module that from_module has made a container of.
    """
    module = getattr(nn, f"{name}{dimensions}d")(4, affine=True, track_running_stats=True)
    p = randomised(
        bridge.from_module(module) if opaque else getattr(layers, f"{name}{dimensions}d").init(4, affine=True)
    )
    p = pn.tree.to(p, device)
    images = numbers(*SPACE[dimensions], 4, device=device)
    first, last = images.movedim(-1, 0).unsqueeze(0), images.movedim(-1, 0).contiguous().unsqueeze(0)

    def loss(p: Any, x: Tensor) -> Tensor:
        out = p(x, train=train)
        y = out[0] if isinstance(out, tuple) else out
        # By way of a form with the channels last, in which the gradient comes back.
        y = y.squeeze(0).movedim(0, -1) if len(y) == 1 else (y[0] + y[1]).movedim(0, -1) / 2
        return (y * weights_like(y)).contiguous().sin().sum()

    expected = pn.grad(loss)(p, torch.cat([last, last]))
    for x in (first, last):
        for found in (pn.grad(loss)(p, x), grad(lambda w, x=x: loss(pn.replace(p, weight=w), x))(p.weight)):
            weight = found if isinstance(found, Tensor) else found.weight
            torch.testing.assert_close(weight, expected.weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("module", "function", "shape"),
    [
        (nn.BatchNorm1d(3), layers.batch_norm, (4, 3)),
        (nn.BatchNorm2d(3, momentum=None), layers.batch_norm, (4, 3, 2, 2)),
        (nn.BatchNorm3d(3, track_running_stats=False), layers.batch_norm, (4, 3, 2, 1, 2)),
        (nn.InstanceNorm1d(3, affine=True), layers.instance_norm, (3, 4)),
        (nn.InstanceNorm2d(3, track_running_stats=True), layers.instance_norm, (3, 2, 2)),
        (nn.InstanceNorm2d(3, track_running_stats=True), layers.instance_norm, (2, 3, 2, 2)),
        (nn.InstanceNorm3d(3, affine=True), layers.instance_norm, (2, 3, 2, 2, 2)),
    ],
)
def test_modules_of_torch_in_the_place_of_the_container(
    module: nn.Module, function: Callable[..., Any], shape: tuple[int, ...], train: bool, device: torch.device
) -> None:
    """A torch.nn module is read like a container, and its own buffers take the new averages."""
    module = module.to(device)
    reference = type(module)(**_options(module)).to(device).train(train)
    reference.load_state_dict(module.state_dict())
    x = numbers(*shape, device=device).float()
    y, new = function(module, x, train=train)
    torch.testing.assert_close(y, reference(x), rtol=0, atol=1e-6)
    assert new is module
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=1e-6)


def _options(module: nn.Module) -> dict[str, Any]:
    names = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    return {name: getattr(module, name) for name in names}


@given(data=st.data())
def test_modules_that_normalise_last_dimensions(data: st.DataObject, device: torch.device) -> None:
    """torch.nn's LayerNorm, RMSNorm and GroupNorm serve as containers too."""
    module, function = data.draw(
        st.sampled_from(
            [
                (nn.LayerNorm((2, 4)), layers.layer_norm),
                (nn.RMSNorm(4), layers.rms_norm),
                (nn.GroupNorm(2, 2), layers.group_norm),
            ]
        )
    )
    module, x = module.double().to(device), numbers(3, 2, 4, device=device)
    same(function(module, x), module(x))


@pytest.mark.parametrize(
    ("name", "shape"), [("BatchNorm2d", (2, 3, 4, 4)), ("InstanceNorm2d", (2, 3, 4, 4)), ("InstanceNorm2d", (3, 4, 4))]
)
def test_bridged_module_equals_torch(name: str, shape: tuple[int, ...], device: torch.device) -> None:
    """Carried by a module, a norm updates its own buffers and is torch's in output, buffers and state_dict keys."""
    options = {"affine": True, "track_running_stats": True, "device": device}
    theirs = getattr(nn, name)(3, **options)
    ours = bridge.to_module(getattr(layers, name).init(3, **options))
    x = numbers(*shape, device=device).float()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (
            layers.BatchNorm2d.init(64),
            "BatchNorm2d(64, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)",
        ),
        (
            layers.InstanceNorm1d.init(8),
            "InstanceNorm1d(eps=1e-05, momentum=0.1, affine=False, bias=False, track_running_stats=False)",
        ),
        (layers.LayerNorm.init(768), "LayerNorm((768,), eps=1e-05, elementwise_affine=True, bias=True)"),
        (layers.RMSNorm.init((2, 3), eps=0.1), "RMSNorm((2, 3), eps=0.1, elementwise_affine=True)"),
        (layers.GroupNorm.init(2, 4, bias=False), "GroupNorm(2, 4, eps=1e-05, affine=True, bias=False)"),
        (layers.GroupNorm.init(2, 4, affine=False), "GroupNorm(2, eps=1e-05, affine=False, bias=False)"),
        (layers.UnbiasedLayerNorm.init(5), "UnbiasedLayerNorm((5,), eps=1e-06)"),
        (layers.RunningNorm.init(5), "RunningNorm(5, momentum=0.1, eps=1e-05)"),
        (layers.Centered(), "Centered(dim='example')"),
    ],
)
def test_repr(p: Any, text: str) -> None:
    """A norm is written with its sizes and options, as torch writes the module."""
    assert repr(p) == text


@pytest.mark.parametrize(
    ("init", "shapes"),
    [
        (lambda **o: layers.BatchNorm3d.init(5, **o), [(5,), (5,), (5,), (5,), ()]),
        (lambda **o: layers.BatchNorm1d.init(5, bias=False, track_running_stats=False, **o), [(5,)]),
        (lambda **o: layers.InstanceNorm2d.init(5, **o), []),
        (lambda **o: layers.LayerNorm.init((2, 3), **o), [(2, 3), (2, 3)]),
        (lambda **o: layers.RMSNorm.init(3, **o), [(3,)]),
        (lambda **o: layers.GroupNorm.init(2, 6, **o), [(6,), (6,)]),
        (lambda **o: layers.UnbiasedLayerNorm.init(3, **o), [(3,), (3,)]),
        (lambda **o: layers.RunningNorm.init(3, **o), [(3,), (3,)]),
    ],
)
def test_init_on_meta(init: Callable[..., Any], shapes: list[tuple[int, ...]]) -> None:
    """Norms are made without a key, of the shapes of torch's, in the dtype and on the device that are asked for."""
    leaves = pn.tree.leaves(init(dtype=torch.bfloat16, device="meta"))
    assert [tuple(leaf.shape) for leaf in leaves] == shapes
    assert all(leaf.device.type == "meta" for leaf in leaves)
    assert all(leaf.dtype == torch.bfloat16 for leaf in leaves if leaf.is_floating_point())


ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: layers.batch_norm(layers.BatchNorm2d.init(3), torch.zeros(3, 4, 4)),
        "batch_norm: expected an input of 4 dimensions, got shape [3, 4, 4]. Add or merge dimensions, or use the layer "
        "that is made for inputs of this kind.",
    ),
    (
        lambda: layers.batch_norm(layers.BatchNorm1d.init(3), torch.zeros(2, 3, 4, 4)),
        "batch_norm: expected an input of 2 or 3 dimensions, got shape [2, 3, 4, 4]. Add or merge dimensions, or use "
        "the layer that is made for inputs of this kind.",
    ),
    (
        lambda: layers.batch_norm(nn.BatchNorm1d(3), torch.zeros(3)),
        "batch_norm: expected an input of at least 2 dimensions, got shape [3]. Add or merge dimensions, or use the "
        "layer that is made for inputs of this kind.",
    ),
    (
        lambda: layers.batch_norm(layers.BatchNorm1d.init(3), torch.zeros(5, 1)),
        "batch_norm: expected 3 channels in dimension 1, got an input of shape [5, 1]. Move the channels there, or "
        "init the layer with num_features=1.",
    ),
    (
        lambda: layers.batch_norm(layers.BatchNorm2d.init(3), torch.zeros(1, 3, 1, 1), train=True),
        "batch_norm: expected more than one value per channel to take statistics from, got an input of shape [1, 3, 1, "
        "1]. Use a larger batch, or train=False in a layer that tracks running statistics.",
    ),
    (
        lambda: layers.batch_norm(layers.BatchNorm1d.init(3, track_running_stats=False), torch.zeros(1, 3)),
        "batch_norm: expected more than one value per channel to take statistics from, got an input of shape [1, 3]. "
        "Use a larger batch, or train=False in a layer that tracks running statistics.",
    ),
    (
        lambda: layers.instance_norm(layers.InstanceNorm2d.init(3, affine=True), torch.zeros(4, 5, 5)),
        "instance_norm: expected 3 channels in dimension 0, got an input of shape [4, 5, 5]. Move the channels there, "
        "or init the layer with num_features=4.",
    ),
    (
        lambda: layers.instance_norm(layers.InstanceNorm2d.init(3), torch.zeros(2, 3, 1, 1)),
        "instance_norm: expected more than one position to take statistics from, got an input of shape [2, 3, 1, 1]. "
        "Use a larger input, or train=False in a layer that tracks running statistics.",
    ),
    (
        lambda: layers.instance_norm(layers.InstanceNorm1d.init(3), torch.zeros(3)),
        "instance_norm: expected an input of 2 or 3 dimensions, got shape [3]. Add or merge dimensions, or use the "
        "layer that is made for inputs of this kind.",
    ),
    (
        lambda: layers.layer_norm(layers.LayerNorm.init((2, 3)), torch.zeros(4, 3)),
        "layer_norm: expected an input whose last dimensions are [2, 3], got shape [4, 3]. Move those dimensions last, "
        "or init the layer with other sizes.",
    ),
    (
        lambda: layers.rms_norm(layers.RMSNorm.init(3), torch.zeros(())),
        "rms_norm: expected an input whose last dimensions are [3], got shape []. Move those dimensions last, or init "
        "the layer with other sizes.",
    ),
    (
        lambda: layers.unbiased_layer_norm(layers.UnbiasedLayerNorm.init(3), torch.zeros(3, 1)),
        "unbiased_layer_norm: expected an input whose last dimensions are [3], got shape [3, 1]. Move those dimensions "
        "last, or init the layer with other sizes.",
    ),
    (
        lambda: layers.UnbiasedLayerNorm.init(1),
        "UnbiasedLayerNorm.init: normalized_shape must have at least 2 elements, got (1,): a single value has no "
        "sample standard deviation. Use LayerNorm.",
    ),
    (
        lambda: layers.GroupNorm.init(4, 6),
        "GroupNorm.init: num_channels=6 must be a multiple of num_groups=4, which must be positive.",
    ),
    (
        lambda: layers.group_norm(layers.GroupNorm.init(2, 4), torch.zeros(4)),
        "group_norm: expected an input of shape [batch, channels, *space] with channels 4, got shape [4]. An input "
        "without a batch dimension needs x.unsqueeze(0).",
    ),
    (
        lambda: layers.group_norm(layers.GroupNorm.init(2, 4, affine=False), torch.zeros(4, 3)),
        "group_norm: expected an input of shape [batch, channels, *space] with channels a multiple of 2, got shape [4, "
        "3]. An input without a batch dimension needs x.unsqueeze(0).",
    ),
    (
        lambda: layers.running_norm(layers.RunningNorm.init(4), torch.zeros(2, 3, 4)),
        "running_norm: expected an input of shape [batch, 4, *space], got shape [2, 3, 4]. Move the features to "
        "dimension 1, or init the layer with another num_features.",
    ),
    (
        lambda: layers.centered(layers.Centered(), torch.zeros(3)),
        "centered: expected a batch of examples, at least 2 dimensions, got shape [3]. For a single example use "
        "Centered(dim=None).",
    ),
]


@pytest.mark.parametrize(("wrong", "text"), ERRORS)
def test_errors(wrong: Callable[[], Any], text: str) -> None:
    """Inputs and options that cannot work are refused with the shape, what was expected, and what to do."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared below
        wrong()
    assert isinstance(caught.value, pn.errors.PurennError)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "function",
    [
        lambda x, bias: batch_norm(x, bias=bias, train=True)[0],
        lambda x, bias: instance_norm(x, bias=bias)[0],
        lambda x, bias: group_norm(x, 2, bias=bias),
        lambda x, bias: layer_norm(x.movedim(1, -1), (4,), bias=bias),
    ],
    ids=["batch", "instance", "group", "layer"],
)
def test_second_derivatives_with_a_bias_alone(device: torch.device, function: Callable[..., Tensor]) -> None:
    """Without a weight the bias has second derivatives too, where torch's kernels have none or wrong ones."""
    generator = torch.Generator().manual_seed(0)
    x, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 4, 3), (4,)))
    inputs = [tensor.to(device).requires_grad_() for tensor in (x, bias)]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
