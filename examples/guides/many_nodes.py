"""How training scales to many nodes: what each way sends in a step, worked out.

    python examples/guides/many_nodes.py

A step on many devices is computing, which gets shorter with more devices, and sending, which does not. This guide
counts the bytes that each device sends in a step of four ways to train, for models that are measured without being
allocated, and says from what batch on the sending is hidden behind the computing. Nothing here needs a second process:
it is arithmetic, and every formula is code. For the training itself see examples/data_parallel.py.

The pieces, for N devices and a message of V bytes, in rings, as NCCL and gloo do it for large messages:

    reduce-scatter    every device ends with the sum of one piece       (N - 1) / N * V   sent by each device
    all-gather        every device ends with all pieces                 (N - 1) / N * V
    all-reduce        the one, then the other                       2 * (N - 1) / N * V

None of them grows with N beyond a factor of two: bandwidth is no limit to the number of nodes. Latency is, since a ring
takes N - 1 turns (and trees log N), which is why leaves travel together in one message.

Sources: Patarasuk, Yuan: Bandwidth optimal all-reduce algorithms for clusters of workstations, 2009; Rajbhandari et
al.: ZeRO, Memory Optimizations Toward Training Trillion Parameter Models, 2020, section 7; Shoeybi et al.: Megatron-LM,
2019.
"""

from typing import Any, NamedTuple

import torch

import purenn as pn
from purenn.models import GPT2, ResNet


class Machine(NamedTuple):
    """What a cluster is made of. The defaults are round numbers of one with eight H100 and 400 Gbit/s each."""

    flops: float = 400e12  # of a device, reached in practice with bfloat16
    within: float = 400e9  # bytes per second from a device to others of its node
    between: float = 50e9  # bytes per second from a device to other nodes
    latency: float = 10e-6  # seconds per turn of a ring between nodes
    devices_per_node: int = 8


def reduce_scatter(volume: float, devices: int) -> float:
    """Bytes that each device sends."""
    return (devices - 1) / devices * volume


all_gather = reduce_scatter


def all_reduce(volume: float, devices: int) -> float:
    """Bytes that each device sends."""
    return reduce_scatter(volume, devices) + all_gather(volume, devices)


# --- What each way sends in a step ---


def data_parallel(parameters: int, devices: int, bytes_each: int = 4) -> float:
    """Every device has the model, and gradients are averaged: ``pn.distributed.mean(grads)``, or DDP of a module.

    With per-sample clipping it is the same: a clipped sum (``pn.per_sample.clipped_grad``, then ``pn.distributed.sum``)
    is as large as a gradient, however many samples there are. So is the mean of meta-gradients over tasks: the inner
    loops of a device's tasks never leave it.
    """
    return all_reduce(parameters * bytes_each, devices)


def fully_sharded(parameters: int, devices: int, bytes_each: int = 4) -> float:
    """Every device has a piece of each weight: ``pn.distributed.shard(p, mesh, {"**.weight": 0})``, or FSDP2.

    Weights are gathered for the forward pass, again for the backward pass, and gradients go in pieces to their owners:
    half as much again as data parallelism, for a memory that shrinks with the number of devices. That is for batches
    whose activations are larger than the weights; for small ones DTensors send activations instead, which are less.
    """
    volume = parameters * bytes_each
    return 2 * all_gather(volume, devices) + reduce_scatter(volume, devices)


def hybrid(parameters: int, nodes: int, per_node: int, bytes_each: int = 4) -> tuple[float, float]:
    """Sharded within a node, data parallel between nodes: a mesh of two axes. Bytes within, and between nodes.

    Between nodes only the pieces of one device travel, an eighth of the gradients: this is what scales to many nodes.
    """
    return (
        fully_sharded(parameters, per_node, bytes_each),
        data_parallel(parameters // per_node, nodes, bytes_each),
    )


def tensor_parallel(layers: int, width: int, tokens: int, devices: int, bytes_each: int = 2) -> float:
    """Devices share the work of every layer: ``pn.distributed.transformer_rules(p)``.

    Attention and MLP each add up their outputs in the forward pass and the gradients of their inputs in the backward
    pass: four all-reduces of an activation ``[tokens, width]`` for each layer. It grows with the batch, so it belongs
    within a node.
    """
    return 4 * layers * all_reduce(tokens * width * bytes_each, devices)


# --- Models, measured on meta: shapes without data ---


class Measured(NamedTuple):
    """A model in numbers."""

    name: str
    parameters: int
    flops: float  # of the forward pass of one sample
    unit: str
    leaves: int


def trained(p: Any) -> int:
    """How many leaves have gradients."""
    return len(pn.tree.leaves(pn.tree.partition(p)[0]))


def measured() -> list[Measured]:
    key = pn.random.key(0)
    resnet = ResNet.init(key, (3, 4, 6, 3), bottlenecks=True, device="meta")
    gpt2 = GPT2.init(key, device="meta")
    image = pn.summary(resnet, torch.empty(1, 3, 224, 224, device="meta"))
    text = pn.summary(gpt2, torch.empty(1, 1024, dtype=torch.int64, device="meta"))
    assert image.parameters == 25_557_032
    assert text.parameters == 124_439_808
    return [
        Measured("ResNet-50", image.parameters, float(image.flops or 0), "images of 224x224", trained(resnet)),
        Measured("GPT-2 small", text.parameters, float(text.flops or 0), "sequences of 1,024 tokens", trained(gpt2)),
    ]


def hidden_from(model: Measured, sent: float, bandwidth: float, machine: Machine) -> int:
    """The samples per device from which on the sending fits into the backward pass, in which it can be hidden."""
    each = 2 * model.flops / machine.flops  # a backward pass is two forward passes
    return int(-(-sent / bandwidth // each))


def volumes(model: Measured, machine: Machine) -> None:
    print(f"\n{model.name}: {model.parameters:,} parameters, {model.flops / 1e9:.1f} GFLOPs forward per sample")
    print("each device sends in a step (float32 gradients), in MB:")
    print(f"{'devices':>8} {'data parallel':>14} {'fully sharded':>14} {'hybrid: within':>15} {'between nodes':>14}")
    per_node = machine.devices_per_node
    for nodes in (1, 2, 16, 128, 1024):
        devices = nodes * per_node
        within, between = hybrid(model.parameters, nodes, per_node)
        all_of_it, sharded = data_parallel(model.parameters, devices), fully_sharded(model.parameters, devices)
        print(f"{devices:>8} {all_of_it / 1e6:14.1f} {sharded / 1e6:14.1f} {within / 1e6:15.1f} {between / 1e6:14.1f}")

    # Data parallelism never sends more than twice the gradients, sharding never more than three times.
    volume = 4 * model.parameters
    assert data_parallel(model.parameters, 8192) < 2 * volume
    assert fully_sharded(model.parameters, 8192) < 3 * volume

    # Rings that span nodes are as fast as the link between nodes. `between` is used by all eight devices of a node at
    # once, each with a link of its own.
    for name, sent in (
        ("data parallel", data_parallel(model.parameters, 1024)),
        ("hybrid", hybrid(model.parameters, 128, per_node)[1]),
    ):
        batch = hidden_from(model, sent, machine.between, machine)
        print(f"on 1,024 devices {name} is hidden behind the backward pass from {batch} {model.unit} per device on")


def latency(model: Measured, machine: Machine) -> None:
    # Why leaves travel together. A ring of 128 nodes takes 2 * 127 turns for every message.
    wait = 1e3 * 2 * (128 - 1) * machine.latency
    print(f"{model.leaves} gradients in as many messages wait {model.leaves * wait:.0f} ms, in one {wait:.1f} ms")


def one_process() -> None:
    # The calls are the same in one process, where there is nothing to send.
    p = pn.layers.Linear.init(pn.random.key(1), 4, 2)
    x = torch.randn(8, 4)
    grads: Any = pn.grad(lambda p: p(pn.distributed.rank_rows(x)).square().mean())(p)
    assert pn.tree.equal(pn.distributed.mean(grads), grads)


def main() -> None:
    machine = Machine()
    one_process()
    for model in measured():
        volumes(model, machine)
        latency(model, machine)

    # Tensor parallelism, by contrast, sends activations.
    sent = tensor_parallel(layers=12, width=768, tokens=8 * 1024, devices=8)
    print("\na transformer of 12 layers of width 768, tensor parallel on 8 devices: each sends")
    print(f"{sent / 1e6:.0f} MB (bfloat16) for 8 sequences of 1,024 tokens, twice that for 16")
    assert tensor_parallel(12, 768, 16 * 1024, 8) == 2 * sent


if __name__ == "__main__":
    main()
