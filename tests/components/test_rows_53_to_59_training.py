"""Rows 53 to 59 of the list of components: watching, saving memory, exporting, training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _reference import numbers, same
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.ao.quantization import default_weight_fake_quant
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import bridge
import purenn as pn
from purenn import layers, losses, models
from purenn.models import MLP, mlp


def key(device: torch.device, seed: int = 0) -> Tensor:
    """A key on the device under test."""
    return pn.random.key(seed, device)


def network(device: torch.device) -> MLP:
    """A small one in float64."""
    return MLP.init(key(device), 4, (6, 5), 3, dtype=torch.float64)


def test_row_53_tensorboard(tmp_path: Path, device: torch.device) -> None:
    """TensorBoard finds a histogram of every parameter and of every gradient under its real path, in every step."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    p, x = network(device), numbers(5, 4, device=device)
    with pn.plots.TensorBoard(tmp_path) as board:
        for step in range(2):
            grads = pn.grad(lambda p: mlp(p, x).square().sum())(p)
            board.histograms("parameters", p, step)
            board.histograms("gradients", grads, step)
            p = pn.tree.map(lambda leaf, grad: leaf - 0.01 * grad, p, grads)
    events = accumulator.EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    paths = [f"{part}.{leaf}" for part in ("blocks.0.linear", "blocks.1.linear", "head") for leaf in ("weight", "bias")]
    assert set(events.Tags()["histograms"]) == {
        f"{kind}/{path}" for kind in ("parameters", "gradients") for path in paths
    }
    for path, leaf in pn.tree.named_leaves(p):
        points = events.Histograms(f"gradients/{path}")
        assert [(point.step, point.histogram_value.num) for point in points] == [(0, leaf.numel()), (1, leaf.numel())]


def test_row_54_activation_checkpointing(device: torch.device) -> None:
    """With remat values and gradients of any order are the same, and a block runs again for its gradient."""
    p, x = network(device), numbers(5, 4, device=device)
    runs = 0

    def counted(p: MLP, x: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        return mlp(p, x)

    block = pn.remat(counted)

    def loss(call: Any, p: MLP) -> Tensor:
        return call(p, x).sin().sum()

    assert pn.tree.allclose(pn.grad(lambda p: loss(block, p))(p), pn.grad(lambda p: loss(mlp, p))(p), atol=1e-12)
    assert runs >= 2

    def penalty(call: Any, p: MLP) -> Tensor:
        grads = pn.grad(lambda p: loss(call, p))(p)
        return sum((leaf.square().sum() for leaf in pn.tree.leaves(grads)), torch.zeros((), dtype=torch.float64))

    again = pn.grad(lambda p: penalty(block, p))(p)
    assert pn.tree.allclose(again, pn.grad(lambda p: penalty(mlp, p))(p), atol=1e-10)


# Models to export, and the shape of one example.
EXPORTED: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...]]] = {
    "mlp": (lambda key: MLP.init(key, 4, (6, 5), 3, dtype=torch.float64), (4,)),
    "convolutional": (
        lambda key: models.ResNet.init(key, (1, 1), width=4, num_classes=3, dtype=torch.float64),
        (3, 32, 32),
    ),
    "attention": (
        lambda key: layers.TransformerEncoderLayer.init(key, 8, 2, 16, dtype=torch.float64),
        (5, 8),
    ),
    "recurrent": (lambda key: layers.GRU.init(key, 3, 4, batch_first=True, dtype=torch.float64), (5, 3)),
    "capsules": (lambda key: layers.DynamicRouting.init(key, 6, 3, in_dim=4, out_dim=2, dtype=torch.float64), (6, 4)),
}


def output(p: Any, x: Tensor) -> Any:
    """What a model gives, without its new container."""
    y = p(x)
    return y[0] if pn.is_stateful(p) else y


@pytest.mark.parametrize("name", EXPORTED)
def test_row_55_export(name: str, device: torch.device) -> None:
    """torch.export takes pure functions and bridged models of every kind, with a batch of any size."""
    make, shape = EXPORTED[name]
    p, x, other = make(key(device)), numbers(5, *shape, device=device), numbers(9, *shape, seed=1, device=device)
    pure = bridge.export(output, p, x, dynamic_shapes=(None, {0: "batch"}))
    carried = bridge.export(bridge.to_module(p).eval(), x, dynamic_shapes=({0: "batch"},))
    expected = output(p, other)
    same(pure.module()(p, other), expected)
    same(carried.module()(other), expected)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pure", "bridged"])
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_row_55_onnx(form: str, tmp_path: Path) -> None:
    """So does ONNX, and its runtime computes the same for another batch size."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    p = pn.tree.to(network(torch.device("cpu")), torch.float32)
    model = bridge.to_module(p).eval() if form == "bridged" else lambda x: mlp(p, x)
    program = bridge.export(model, torch.randn(5, 4), dynamic_shapes=({0: "batch"},))
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(program, (), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = torch.randn(9, 4)
    (found,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), mlp(p, other), rtol=0, atol=1e-5)


def test_row_56_mixed_precision(device: torch.device) -> None:
    """Autocast reaches into pure functions; a tree is cast as a whole, and gradients come back in the tree's dtype."""
    p = pn.tree.to(network(device), torch.float32)
    x = torch.randn(5, 4, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        y = mlp(p, x)
        grads = pn.grad(lambda p: mlp(p, x).float().square().sum())(p)
    assert y.dtype == torch.bfloat16
    assert all(leaf.dtype == torch.float32 for leaf in pn.tree.leaves(grads))
    torch.testing.assert_close(y.float(), mlp(p, x), rtol=0, atol=0.05)
    low = pn.grad(lambda p: mlp(pn.tree.to(p, torch.bfloat16), x.bfloat16()).float().square().sum())(p)
    assert all(leaf.dtype == torch.float32 for leaf in pn.tree.leaves(low))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_row_56_quantisation(device: torch.device) -> None:
    """Weights of a bridged model are quantised by torch.ao: 8 bits in the forward pass, and the model still trains."""
    p, x = pn.tree.to(network(device), torch.float32), numbers(5, 4, device=device).float()
    module = bridge.to_module(p, copy=True)
    quantised = default_weight_fake_quant().to(device)
    parametrizations = torch.nn.utils.parametrize
    parametrizations.register_parametrization(module.head, "weight", quantised)
    y = module(x)
    levels = module.head.weight / quantised.scale
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert levels.abs().max() <= 128
    assert 0 < (y - mlp(p, x)).abs().max() < 0.05
    y.square().sum().backward()
    gradient = module.head.parametrizations.weight.original.grad
    torch.testing.assert_close(gradient, pn.grad(lambda p: mlp(p, x).square().sum())(p).head.weight, rtol=0, atol=0.1)
    assert torch.equal(output(bridge.from_module(module.eval()), x), module(x))


@pytest.mark.filterwarnings("ignore")  # of torchao about what it lacks
def test_row_56_quantisation_by_torchao(device: torch.device) -> None:
    """So are they by torchao, if that is installed, which stores them in 8 bits."""
    quantization = pytest.importorskip("torchao.quantization")
    p = pn.tree.to(network(device), torch.float32)
    module, x = bridge.to_module(p, copy=True).eval(), numbers(5, 4, device=device).float()
    quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
    assert type(module.head.weight) is not nn.Parameter
    assert 0 < (module(x) - mlp(p, x)).abs().max() < 0.05


def test_row_56_pruning_by_a_tree_of_masks(device: torch.device) -> None:
    """Masks are a tree like the model's; what they take away stays away in training."""
    p, x = network(device), numbers(5, 4, device=device)
    masks = pn.tree.map(lambda leaf: leaf.abs() > leaf.abs().median(), p)

    def pruned(p: MLP) -> MLP:
        return pn.tree.map(torch.mul, p, masks)

    optimizer = pn.optim.adam(1e-2)
    state = optimizer.init(p)
    for _ in range(3):
        grads = pn.grad(lambda p: mlp(pruned(p), x).square().sum())(p)
        updates, state = optimizer.update(grads, state, p)
        p = pruned(pn.optim.apply_updates(p, updates))
    kept = [torch.equal(leaf != 0, mask) for leaf, mask in zip(pn.tree.leaves(p), pn.tree.leaves(masks), strict=True)]
    assert all(kept)


def test_row_57_distributed_data_parallel(tmp_path: Path) -> None:
    """A bridged model in DistributedDataParallel, on gloo, has the pure function's gradients.

    Two processes under torchrun, by the bridge and on trees: `test_row_57_two_processes_equal_one` of the examples.
    """
    p, x = network(torch.device("cpu")), numbers(5, 4)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(bridge.to_module(p, copy=True))
        parallel(x).square().sum().backward()
        grads = {name.removeprefix("module."): q.grad for name, q in parallel.named_parameters()}
    finally:
        torch.distributed.destroy_process_group()
    same(grads, dict(pn.tree.named_leaves(pn.grad(lambda p: mlp(p, x).square().sum())(p))))


def test_row_58_training_loop(device: torch.device) -> None:
    """DataLoader, Adam, cross entropy, evaluation and predicted classes, on real digits."""
    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images[order[300:]], torch.tensor(digits.target)[order[300:]])
    batches = DataLoader(data, 64, shuffle=True, generator=torch.Generator().manual_seed(0))
    p = MLP.init(key(device), 64, (64,), 10)
    optimizer = pn.optim.adam(1e-2)
    state = optimizer.init(p)
    gradient = pn.value_and_grad(lambda p, x, y: losses.cross_entropy(mlp(p, x), y))
    for _ in range(3):
        for x, y in batches:
            _, grads = gradient(p, x.to(device), y.to(device))
            updates, state = optimizer.update(grads, state, p)
            p = pn.optim.apply_updates(p, updates)
    with torch.no_grad():
        predicted = mlp(p, images[order[:300]].to(device)).argmax(-1)
    assert (predicted.cpu() == torch.tensor(digits.target)[order[:300]]).double().mean() > 0.9


def test_row_59_meta_learning(device: torch.device) -> None:
    """The gradient through a step of learning has the Hessian in it, for many tasks at once."""
    p = layers.Linear.init(key(device), 3, 1, dtype=torch.float64)
    x, y = numbers(4, 6, 3, device=device), numbers(4, 6, 1, seed=1, device=device)

    def loss(p: layers.Linear, x: Tensor, y: Tensor) -> Tensor:
        return (layers.linear(p, x) - y).square().mean()

    def after(p: layers.Linear, x: Tensor, y: Tensor) -> Tensor:
        grads = pn.grad(loss)(p, x, y)
        return loss(pn.tree.map(lambda leaf, grad: leaf - 0.1 * grad, p, grads), x, y)

    found = pn.vmap(pn.grad(after), (None, 0, 0))(p, x, y)
    for n in range(4):
        # In closed form, with the bias as one more weight: the gradient after the step, times 1 - 0.1 H.
        design = torch.cat((x[n], torch.ones_like(y[n])), 1)
        theta = torch.cat((p.weight, p.bias[:, None]), 1)
        hessian = 2 / 6 * design.mT @ design
        slope = 2 / 6 * (design @ theta.mT - y[n]).mT @ design
        moved = theta - 0.1 * slope
        outer = 2 / 6 * (design @ moved.mT - y[n]).mT @ design
        expected = outer - 0.1 * outer @ hessian
        same(torch.cat((found.weight[n], found.bias[n][:, None]), 1), expected, tolerance=1e-9)


def test_row_59_maml_is_that_gradient(device: torch.device) -> None:
    """`pn.meta` gives the gradient through two steps of learning, averaged over tasks, as by a loop of autograd."""
    p = layers.Linear.init(key(device), 3, 1, dtype=torch.float64)
    x, y = numbers(4, 6, 3, device=device), numbers(4, 6, 1, seed=1, device=device)

    def loss(p: layers.Linear, x: Tensor, y: Tensor) -> Tensor:
        return (layers.linear(p, x) - y).square().mean()

    task_loss = pn.meta.maml(loss, pn.optim.sgd(0.1), steps=2)
    found = pn.meta.grad(task_loss)(p, (x[:, :3], y[:, :3]), (x[:, 3:], y[:, 3:]))
    weight, bias = (leaf.clone().requires_grad_() for leaf in (p.weight, p.bias))
    total = torch.zeros((), dtype=torch.float64, device=device)
    for n in range(4):
        w, b = weight, bias
        for _ in range(2):
            error = (x[n, :3] @ w.mT + b - y[n, :3]).square().mean()
            slopes = torch.autograd.grad(error, (w, b), create_graph=True)
            w, b = w - 0.1 * slopes[0], b - 0.1 * slopes[1]
        total = total + (x[n, 3:] @ w.mT + b - y[n, 3:]).square().mean() / 4
    same((found.weight, found.bias), torch.autograd.grad(total, (weight, bias)), tolerance=1e-9)


def test_row_59_dynamic_architectures(device: torch.device) -> None:
    """How many layers run may differ from call to call, and every call has its own right gradient."""
    p = layers.Linear.init(key(device), 3, 3, dtype=torch.float64)
    x = numbers(2, 3, device=device)

    def deep(p: layers.Linear, depth: int) -> Tensor:
        y = x
        for _ in range(depth):
            y = layers.linear(p, y).tanh()
        return y.sum()

    for depth in (0, 1, 4):
        weight, bias = p.weight.clone().requires_grad_(), p.bias.clone().requires_grad_()
        y = x
        for _ in range(depth):
            y = (y @ weight.mT + bias).tanh()
        expected = torch.autograd.grad(y.sum() + 0 * weight.sum() + 0 * bias.sum(), (weight, bias))
        grads = pn.grad(deep)(p, depth)
        same((grads.weight, grads.bias), expected)
