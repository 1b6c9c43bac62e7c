"""What two processes do together, run by each of them: `python _two_processes.py RANK FOLDER`.

Every check compares with the same training in one process. What went wrong is written to ``FOLDER/RANK.json``.
"""

import copy
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from packaging.version import Version
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn.parallel import DistributedDataParallel

import bridge
import purenn as pn
from purenn.errors import ArgumentError, CheckpointError, SelectionError, TransformError
from purenn.layers import (
    BatchNorm1d,
    GroupedQueryAttention,
    LayerNorm,
    Linear,
    ReLU,
    Sequential,
    SwiGLU,
    Tanh,
    TransformerEncoderLayer,
)
from purenn.models import GPT2Block

STEPS = 10
TIMEOUT = 60
CHECKS: list[Callable[[DeviceMesh], None]] = []


def check(f: Callable[[DeviceMesh], None]) -> Callable[[DeviceMesh], None]:
    CHECKS.append(f)
    return f


def model() -> Sequential:
    k = pn.random.split(pn.random.key(0), 2)
    p = Sequential.of(Linear.init(k[0], 3, 5), Tanh(), LayerNorm.init(5), Linear.init(k[1], 5, 2))
    return pn.tree.to(p, torch.float64)


def batch() -> tuple[Tensor, Tensor]:
    k = pn.random.split(pn.random.key(1), 2)
    return pn.random.normal(k[0], (8, 3), dtype=torch.float64), pn.random.normal(k[1], (8, 2), dtype=torch.float64)


def loss(p: Any, x: Tensor, t: Tensor) -> Tensor:
    return (p(x) - t).square().mean()


OPTIMIZER = pn.optim.adamw(0.05)


def alone() -> Sequential:
    """The parameters after ten steps in one process."""
    p, (x, t) = model(), batch()
    state = OPTIMIZER.init(p)
    for _ in range(STEPS):
        p, state = OPTIMIZER.step(p, pn.grad(loss)(p, x, t), state)
    return p


def assert_close(one: Any, other: Any, atol: float = 1e-9) -> None:
    same = pn.tree.allclose(one, other, rtol=0, atol=atol)
    assert same, str(same)


def train(m: Any, optimizer: Any) -> None:
    """Ten steps of a module on this process's rows."""
    x, t = pn.distributed.rank_rows(batch())
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(m, x, t).backward()
        optimizer.step()


# ---------------------------------------------------------------------------------------------------- modules


@check
def data_parallel_module(mesh: DeviceMesh) -> None:
    """DistributedDataParallel trains a module from to_module."""
    m = bridge.to_module(model(), copy=True)
    parallel = DistributedDataParallel(m)
    train(parallel, torch.optim.AdamW(parallel.parameters(), 0.05))
    assert_close(bridge.from_module(m), alone())


@check
def data_parallel_module_with_a_pure_optimiser(mesh: DeviceMesh) -> None:
    """So does bridge.Optimizer."""
    m = bridge.to_module(model(), copy=True)
    parallel = DistributedDataParallel(m)
    train(parallel, bridge.Optimizer(parallel.parameters(), pn.optim.adamw, lr=0.05))
    assert_close(bridge.from_module(m), alone())


@check
def data_parallel_buffers(mesh: DeviceMesh) -> None:
    """DistributedDataParallel keeps the buffers of a batch norm as it keeps those of torch.nn."""
    p = pn.tree.to(Sequential.of(Linear.init(pn.random.key(0), 3, 4), BatchNorm1d.init(4), ReLU()), torch.float64)
    mine = bridge.to_module(p, copy=True)
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()).double()
    other.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in bridge.state_dict(p).items()})
    for m in (mine, other):
        parallel = DistributedDataParallel(m)
        optimizer = torch.optim.SGD(m.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            parallel(pn.distributed.rank_rows(batch()[0])).square().sum().backward()
            optimizer.step()
    for one, two in zip(mine.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


def sharded_module(mesh: DeviceMesh) -> Any:
    m: Any = bridge.to_module(model(), copy=True)
    for part in (m.layers[0], m.layers[3], m):
        fully_shard(part, mesh=mesh)
    assert isinstance(m.layers[0].weight, DTensor)
    return m


def gathered(m: nn.Module) -> Any:
    return bridge.load_state_dict(model(), pn.distributed.gather(m.state_dict()))


@check
def fully_sharded_module(mesh: DeviceMesh) -> None:
    """fully_shard trains a module from to_module, layer by layer; its state dict fills the container again."""
    m = sharded_module(mesh)
    train(m, torch.optim.AdamW(m.parameters(), 0.05))
    assert_close(gathered(m), alone())


@check
def fully_sharded_module_with_a_pure_optimiser(mesh: DeviceMesh) -> None:
    """So does bridge.Optimizer, with a sharded state that it saves and loads."""
    m = sharded_module(mesh)
    optimizer = bridge.Optimizer(m.parameters(), pn.optim.adamw, lr=0.05)
    train(m, optimizer)
    assert_close(gathered(m), alone())
    state = copy.deepcopy(optimizer.state_dict())
    assert isinstance(state["state"]["group 0"]["mean.0"], DTensor)
    optimizer.load_state_dict(state)
    train(m, optimizer)


# ---------------------------------------------------------------------------------------------------- trees


@check
def data_parallel_tree(mesh: DeviceMesh) -> None:
    """The mean of the gradients of each process's rows is that of all; parameters are bitwise equal everywhere."""
    p, rows = model(), pn.distributed.rank_rows(batch())
    state = OPTIMIZER.init(p)
    for _ in range(STEPS):
        grads = pn.distributed.mean(pn.grad(loss)(p, *rows))
        p, state = OPTIMIZER.step(p, grads, state)
    assert_close(p, alone())
    assert pn.tree.equal(pn.distributed.from_rank(p, 1), p)


@check
def clipped_sums(mesh: DeviceMesh) -> None:
    """The sum of the processes' sums of clipped per-sample gradients is that of the whole batch."""
    p = model()

    def clipped(x: Tensor, t: Tensor) -> Any:
        each = pn.vmap(pn.grad(loss), (None, 0, 0))(p, x, t)
        norms = torch.stack([leaf.flatten(1).square().sum(1) for leaf in pn.tree.leaves(each)]).sum(0).sqrt()
        return pn.tree.map(lambda g: torch.tensordot((0.1 / norms).clamp(max=1), g, 1), each)

    assert_close(pn.distributed.sum(clipped(*pn.distributed.rank_rows(batch()))), clipped(*batch()))


@check
def meta_batches(mesh: DeviceMesh) -> None:
    """Each process adapts to its own tasks; the mean of the meta-gradients is that of all tasks."""
    p, (x, t) = model(), batch()
    tasks = x.view(4, 2, 3), t.view(4, 2, 2)

    def adapted(p: Any, x: Tensor, t: Tensor) -> Tensor:
        grads = pn.grad(loss)(p, x, t)
        return loss(pn.tree.map(lambda w, g: w - 0.1 * g, p, grads), x, t)

    def meta(tasks: Any) -> Any:
        return pn.tree.map(lambda g: g.mean(0), pn.vmap(pn.grad(adapted), (None, 0, 0))(p, *tasks))

    assert_close(pn.distributed.mean(meta(pn.distributed.rank_rows(tasks))), meta(tasks))


def train_placed(mesh: DeviceMesh, rules: Any, *, optimizer: Any = OPTIMIZER) -> Any:
    p = pn.distributed.shard(model(), mesh, rules)
    x, t = pn.distributed.shard(batch(), mesh, 0)
    state = optimizer.init(p)
    places = [leaf.placements for leaf in pn.tree.leaves(p)]
    for _ in range(STEPS):
        grads = pn.distributed.place_like(pn.grad(loss)(p, x, t), p)
        p, state = optimizer.step(p, grads, state)
    assert [leaf.placements for leaf in pn.tree.leaves(p)] == places
    return p


@check
def replicated_tree(mesh: DeviceMesh) -> None:
    """A tree of replicated DTensors and a batch that is cut by rows train as one process does."""
    p = train_placed(mesh, {})
    assert p.layers[0].weight.placements == (Replicate(),)
    assert_close(pn.distributed.gather(p), alone())


@check
def sharded_tree(mesh: DeviceMesh) -> None:
    """A tree that is cut on every device does too, each device with its part of parameters and optimiser's state."""
    p = train_placed(mesh, {"layers.0.**": 0, "layers.3.weight": 0})
    assert p.layers[0].weight.placements == (Shard(0),)
    assert p.layers[0].weight.to_local().shape[0] in (2, 3)
    assert_close(pn.distributed.gather(p), alone())


@check
def sharded_tree_with_an_optimiser_of_torch(mesh: DeviceMesh) -> None:
    """So does an optimiser of torch.optim as a pure function."""
    p = train_placed(mesh, {"layers.0.weight": 0}, optimizer=bridge.optimizer(torch.optim.AdamW, lr=0.05))
    assert_close(pn.distributed.gather(p), alone())


@check
def tensor_parallel_tree(mesh: DeviceMesh) -> None:
    """Two linear layers cut by outputs and by inputs compute as whole ones, with an uncut batch."""
    rules = {"layers.0.weight": 0, "layers.0.bias": 0, "layers.3.weight": 1}
    p, (x, t) = pn.distributed.shard(model(), mesh, rules), pn.distributed.replicate(batch(), mesh)
    grads = pn.distributed.place_like(pn.grad(loss)(p, x, t), p)
    assert grads.layers[3].weight.placements == (Shard(1),)
    assert_close(pn.distributed.gather(grads), pn.grad(loss)(model(), *batch()))


@check
def tensor_parallel_transformers(mesh: DeviceMesh) -> None:
    """Transformers cut by transformer_rules have the outputs and gradients of whole ones."""
    if Version(torch.__version__) < Version("2.13"):
        return  # torch 2.11's DTensors do not know the operations of an attention's gradient
    k = pn.random.split(pn.random.key(0), 4)
    x = pn.random.normal(k[0], (3, 5, 8), dtype=torch.float64)
    models = [
        TransformerEncoderLayer.init(k[1], 8, 2, dim_feedforward=16, batch_first=True),
        GPT2Block.init(k[2], 8, 2),
        Sequential.of(GroupedQueryAttention.init(k[3], 8, 4, num_kv_heads=2), SwiGLU.init(k[3], 8, 12)),
    ]
    for p in pn.tree.to(models, torch.float64):
        rules = pn.distributed.transformer_rules(p)
        placed, inputs = pn.distributed.shard(p, mesh, rules), pn.distributed.replicate(x, mesh)
        with implicit_replication():  # of the causal masks
            value, grads = pn.value_and_grad(lambda p, x: p(x).square().mean())(placed, inputs)
        expected = pn.value_and_grad(lambda p, x: p(x).square().mean())(p, x)
        assert_close(pn.distributed.gather((value, grads)), expected)


@check
def into_cut_places(mesh: DeviceMesh) -> None:
    """A state dict fills a tree that is cut, each process with its part; such a tree is carried by a module too."""
    p = pn.distributed.shard(pn.tree.map(torch.zeros_like, model()), mesh, {"**.weight": 0})
    loaded = bridge.load_state_dict(p, bridge.state_dict(model()))
    assert loaded.layers[0].weight.placements == (Shard(0),)
    assert pn.tree.equal(pn.distributed.gather(loaded), model())
    m = bridge.to_module(loaded)
    assert m.layers[0].weight.placements == (Shard(0),)
    x = pn.distributed.shard(batch()[0], mesh, 0)
    assert_close(pn.distributed.gather(m(x)), model()(batch()[0]))


@check
def saved_and_loaded(mesh: DeviceMesh) -> None:
    """Every process writes and reads its own part; a tree that was cut in one way is loaded cut in another."""
    folder = Path(sys.argv[2]) / "checkpoint"
    p = pn.distributed.shard(model(), mesh, {"**.weight": 0})
    pn.distributed.save(folder, p)
    other = pn.tree.map(torch.zeros_like, pn.distributed.shard(model(), mesh, {"layers.0.weight": 1}))
    loaded = pn.distributed.load(folder, like=other)
    assert loaded.layers[0].weight.placements == (Shard(1),)
    assert pn.tree.equal(pn.distributed.gather(loaded), model())
    assert not pn.tree.leaves(pn.distributed.gather(other))[0].any()
    assert pn.tree.equal(pn.distributed.load(folder, like=pn.tree.map(torch.zeros_like, model())), model())


# ---------------------------------------------------------------------------------------------------- parts


@check
def ranks(mesh: DeviceMesh) -> None:
    """Each process has a key and rows of its own, the same in every run."""
    rank = dist.get_rank()
    key = pn.distributed.rank_key(pn.random.key(0))
    assert torch.equal(key, pn.random.fold_in(pn.random.key(0), rank))
    rows = pn.distributed.rank_rows({"x": torch.arange(6)})["x"]
    assert rows.tolist() == [3 * rank, 3 * rank + 1, 3 * rank + 2]


@check
def sums_of_every_kind(mesh: DeviceMesh) -> None:
    """Leaves of all dtypes and shapes are summed, with nothing written into the tree that is given."""
    one = dist.get_rank() + 1
    tree = {
        "whole": torch.tensor([one, 10]),
        "complex": torch.tensor([1j * one, one]),
        "half": torch.full((2, 2), 0.5 * one, dtype=torch.bfloat16),
        "none": torch.ones(0, 3),
        "scalar": torch.tensor(float(one)),
        "number": 3,
    }
    before = pn.tree.map(torch.clone, {k: v for k, v in tree.items() if k != "number"})
    total = pn.distributed.sum(tree)
    assert total["whole"].tolist() == [3, 20]
    assert total["complex"].tolist() == [3j, 3]
    assert total["half"].tolist() == [[1.5, 1.5]] * 2
    assert total["none"].shape == (0, 3)
    assert (total["scalar"], total["number"]) == (3, 3)
    assert pn.tree.equal({k: v for k, v in tree.items() if k != "number"}, before)
    assert pn.distributed.mean({"w": tree["scalar"]})["w"] == 1.5
    assert pn.distributed.from_rank({"w": tree["scalar"]}, 1)["w"] == 2


@check
def misuse(mesh: DeviceMesh) -> None:
    """What cannot work is refused in every process, before anything is sent."""
    p = model()
    placed = pn.distributed.replicate(p, mesh)
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (
            lambda: pn.distributed.mean(placed),
            ArgumentError,
            "mean: 'layers.0.weight' is a DTensor, which is of all processes already: bring gradients into the places "
            "of their parameters with pn.distributed.place_like(grads, params).",
        ),
        (
            lambda: pn.distributed.mean({"n": torch.ones(2, dtype=torch.int64)}),
            ArgumentError,
            "mean: 'n' is i64[2], and the mean of integers is none: use sum.",
        ),
        (
            lambda: torch.func.grad(lambda x: pn.distributed.sum(x).sum())(torch.ones(2)),
            TransformError,
            "sum: processes cannot talk within grad, vmap or jit: call it on the result of the transformed function.",
        ),
        (
            lambda: pn.grad(lambda x: pn.distributed.sum(x).sum())(torch.ones(2)),
            TransformError,
            "sum: the tree itself requires grad, which would be cut off: call it after the gradient is taken, or under "
            "torch.no_grad().",
        ),
        (
            lambda: pn.distributed.from_rank(p, 2),
            ArgumentError,
            "from_rank: there is no process 2, they are 0 to 1.",
        ),
        (
            lambda: pn.save(Path(sys.argv[2]) / "placed.safetensors", placed),
            CheckpointError,
            "save: 'layers.0.weight' (f64[5,3]) is a DTensor: for DTensors there is pn.distributed.save, which every "
            "process calls, or save pn.distributed.gather(tree).",
        ),
        (
            lambda: pn.distributed.rank_rows({"x": torch.ones(7, 2)}),
            ArgumentError,
            "rank_rows: 'x' is f32[7,2], whose rows cannot be divided among 2 processes: use a multiple of 2.",
        ),
        (
            lambda: pn.distributed.shard(p, mesh, {"**.bias": 1}),
            ArgumentError,
            "shard: 'layers.0.bias' is f64[5] and has no axis 1 to cut.",
        ),
        (
            lambda: pn.distributed.shard(p, mesh, {"**.bias": (0, 0)}),
            ArgumentError,
            "shard: the rule for '**.bias' has 2 entries, but the mesh has 1 axes: give one for each.",
        ),
        (
            lambda: pn.distributed.shard(p, mesh, {"layers.0": 0, "**.weight": 0}),
            SelectionError,
            "shard: 'layers.0.weight' is hit by two rules, 'layers.0' and '**.weight': make them disjoint.",
        ),
    ]
    for act, kind, message in cases:
        try:
            act()
        except kind as error:
            assert str(error) == message, str(error)  # noqa: PT017
        else:
            raise AssertionError(f"no error: {message}")


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT))
    mesh = init_device_mesh("cpu", (2,))
    failures = {}
    for f in CHECKS:
        failures[f.__name__] = ""
        try:
            f(mesh)
        except Exception:
            failures[f.__name__] = traceback.format_exc()
        dist.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(failures))
    die_in_the_middle(rank, folder)


def die_in_the_middle(rank: int, folder: Path) -> None:
    """The second process is killed while it trains; the first writes down how long it waited for it."""
    p, start = model(), 0.0
    try:
        for step in range(10):
            if rank == 1 and step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            start = time.monotonic()
            p = pn.distributed.mean(p)
    except RuntimeError:
        (folder / "waited").write_text(f"{time.monotonic() - start}")


if __name__ == "__main__":
    main()
