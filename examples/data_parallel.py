"""Training in several processes: the same numbers as in one.

    python examples/data_parallel.py
    torchrun --nproc-per-node 2 examples/data_parallel.py

A small network learns scikit-learn's digits in five ways: as a tree whose gradients are averaged over the processes, as
a tree whose parameters are cut into pieces (fully sharded), with clipped per-sample gradients that are summed, by MAML
with the tasks divided among the processes, and as an nn.Module in DistributedDataParallel. Every process works on its
rows or tasks of each batch. A step sends all gradients once; in the second way the parameters twice and the gradients
once, in pieces. What that means on many nodes: examples/guides/many_nodes.py.
"""

import argparse
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import bridge
import purenn as pn
from purenn.layers import Linear, ReLU, Sequential

BATCH, LEARNING_RATE, MAX_NORM = 64, 1e-2, 1.0

Batches = list[tuple[Tensor, Tensor]]


def make_model(key: Tensor) -> Sequential:
    """Two linear layers in float64, the same in every process, since they have the same key."""
    k1, k2 = pn.random.split(key)
    p = Sequential.of(Linear.init(k1, 64, 32), ReLU(), Linear.init(k2, 32, 10))
    return pn.tree.to(p, torch.float64)


def make_batches(steps: int) -> Batches:
    """Batches of images in [0, 1], flattened, and their classes."""
    digits = load_digits()
    images, classes = torch.tensor(digits.data / 16.0), torch.tensor(digits.target)
    places = [torch.arange(step * BATCH, (step + 1) * BATCH) % len(images) for step in range(steps)]
    return [(images[place], classes[place]) for place in places]


def loss(p: Any, x: Tensor, target: Tensor) -> Tensor:
    """The mean cross entropy."""
    return F.cross_entropy(p(x), target)


def train_tree(p: Sequential, batches: Batches) -> Sequential:
    """Every process has the whole tree; the gradients of its rows are averaged over the processes."""
    optimizer = pn.optim.adam(LEARNING_RATE)
    state = optimizer.init(p)
    for batch in batches:
        x, target = pn.distributed.rank_rows(batch)
        grads = pn.distributed.mean(pn.grad(loss)(p, x, target))
        p, state = optimizer.step(p, grads, state)
    return p


def train_sharded(p: Sequential, batches: Batches) -> Sequential:
    """Every process has a piece of each weight, of its gradient and of the optimiser's state."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = pn.distributed.shard(p, mesh, {"**.weight": 0})
    optimizer = pn.optim.adam(LEARNING_RATE)
    state = optimizer.init(p)
    for batch in batches:
        x, target = pn.distributed.shard(batch, mesh, 0)
        grads = pn.distributed.place_like(pn.grad(loss)(p, x, target), p)
        p, state = optimizer.step(p, grads, state)
    return pn.distributed.gather(p)


def train_clipped(p: Sequential, batches: Batches) -> Sequential:
    """The gradient of every sample is clipped to a norm, in the process that has the sample; then they are summed."""
    clipped_sum = pn.per_sample.clipped_grad(loss, MAX_NORM)
    optimizer = pn.optim.sgd(50 * LEARNING_RATE / BATCH)
    state = optimizer.init(p)
    for batch in batches:
        grads = pn.distributed.sum(clipped_sum(p, pn.distributed.rank_rows(batch)))
        p, state = optimizer.step(p, grads, state)
    return p


def train_meta(p: Sequential, batches: Batches) -> Sequential:
    """A batch is eight tasks. Each is adapted to in the process that has it; the meta-gradients are averaged."""
    meta_gradient = pn.meta.grad(pn.meta.maml(loss, pn.optim.sgd(10 * LEARNING_RATE), steps=2))
    optimizer = pn.optim.adam(LEARNING_RATE)
    state = optimizer.init(p)
    for batch in batches:
        tasks = pn.tree.map(lambda rows: rows.unflatten(0, (8, -1)), batch)
        support, query = (pn.tree.map(lambda rows, n=n: rows[:, n::2], tasks) for n in (0, 1))
        grads = pn.distributed.mean(meta_gradient(p, *pn.distributed.rank_rows((support, query))))
        p, state = optimizer.step(p, grads, state)
    return p


def train_module(p: Sequential, batches: Batches) -> Sequential:
    """The tree as an nn.Module, in torch's own data-parallel wrapper, with an optimiser of pn.optim."""
    module = bridge.to_module(p, copy=True)
    parallel = DistributedDataParallel(module)
    optimizer = bridge.Optimizer(parallel.parameters(), pn.optim.adam, lr=LEARNING_RATE)
    for batch in batches:
        x, target = pn.distributed.rank_rows(batch)
        optimizer.zero_grad()
        loss(parallel, x, target).backward()
        optimizer.step()
    return bridge.from_module(module)


WAYS: dict[str, Callable[[Sequential, Batches], Sequential]] = {
    "tree": train_tree,
    "sharded": train_sharded,
    "clipped": train_clipped,
    "meta": train_meta,
    "module": train_module,
}


def join(minutes: float) -> None:
    """Join the other processes; without torchrun there are none."""
    timeout = timedelta(minutes=minutes)
    if "RANK" in os.environ:
        dist.init_process_group("gloo", timeout=timeout)
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def main() -> None:
    """Train in all ways, print the losses and save the parameters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="steps of each way (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first parameters (default: 0)")
    parser.add_argument("--timeout", type=float, default=1.0, help="minutes to wait for a process (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/data_parallel"), help="folder for the parameters")
    options = parser.parse_args()
    torch.set_num_threads(1)
    join(options.timeout)
    batches, start = make_batches(options.steps), make_model(pn.random.key(options.seed))
    trained = {name: train(start, batches) for name, train in WAYS.items()}
    if dist.get_rank() == 0:
        options.out.mkdir(parents=True, exist_ok=True)
        pn.save(options.out / "parameters.safetensors", trained)
        print(f"{dist.get_world_size()} processes, {options.steps} steps of {BATCH} rows")
        for name, p in {"before": start, **trained}.items():
            print(f"{name:8} loss {loss(p, *batches[-1]).item():.6f}")
    dist.barrier()  # so that none leaves while another still needs it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
