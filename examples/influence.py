"""Mislabelled digits found by influence, and a kernel machine made of a network's gradients.

    python examples/influence.py
    python examples/influence.py --wrong 0.1 --seed 3 --out runs/mine

Some labels of scikit-learn's digits (1,437 images for training) are changed at random, and a small network is trained
on them. An image whose label is wrong is learned against all others: the inner product of its gradient with itself,
summed over a few checkpoints, is large (self-influence). The images are ranked by it; the picture shows the first ones.

The same inner products, between gradients of the outputs of the untrained network, are the neural tangent kernel.
Kernel regression with it shows what a wide network of this kind learns.

Sources: Pruthi, Liu, Kale, Sundararajan: Estimating Training Data Influence by Tracing Gradient Descent, 2020;
Jacot, Gabriel, Hongler: Neural Tangent Kernel, 2018; Mohamadi, Bae, Sutherland: A Fast, Well-Founded Approximation to
the Empirical Neural Tangent Kernel, 2023 (one sum of the outputs for the whole kernel).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from _shared import digits, parsed, parser_for
from rich.console import Console
from rich.table import Table
from torch import Tensor

import purenn as pn
from purenn.layers import Linear, ReLU, Sequential, sequential

LEARNING_RATE, RIDGE, SHOWN = 3e-3, 1e-3, 24


def network(key: Tensor, hidden: int) -> Sequential:
    """A network with one hidden layer."""
    first, second = pn.random.split(key)
    return Sequential.of(Linear.init(first, 64, hidden), ReLU(), Linear.init(second, hidden, 10))


def loss(p: Sequential, image: Tensor, target: Tensor) -> Tensor:
    """The loss of one image, or the mean of several."""
    return F.cross_entropy(sequential(p, image), target)


def mislabelled(key: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Labels of which some are changed to another class, and which those are."""
    where_key, what_key = pn.random.split(key)
    is_wrong = pn.random.bernoulli(where_key, targets.shape, p=share)
    shift = pn.random.randint(what_key, targets.shape, low=1, high=10)
    return torch.where(is_wrong, (targets + shift) % 10, targets), is_wrong


def train(p: Any, images: Tensor, targets: Tensor, args: argparse.Namespace) -> list[Sequential]:
    """Train, and return the checkpoints."""
    optimizer = pn.optim.adam(LEARNING_RATE)
    state, checkpoints = optimizer.init(p), []
    for epoch in range(args.epochs):
        key = pn.random.fold_in(pn.random.key(args.seed, args.device), 100 + epoch)
        for drawn in pn.random.permutation(key, len(images)).split(64):
            p, state = optimizer.step(p, pn.grad(loss)(p, images[drawn], targets[drawn]), state)
        if epoch % max(1, args.epochs // 4) == 0:
            checkpoints.append(p)
    return [*checkpoints, p]


def self_influence(checkpoints: list[Sequential], images: Tensor, targets: Tensor) -> Tensor:
    """The squared norm of every image's gradient, summed over the checkpoints."""
    norms = pn.per_sample.norms(loss)
    return torch.stack([norms(p, (images, targets)).square() for p in checkpoints]).sum(0)


def influences_on(p: Sequential, data: dict[str, Tensor], targets: Tensor, row: int) -> Tensor:
    """The influence of every training image on one test image: the inner product of both gradients."""
    mine = pn.per_sample.record(loss, p, (data["test"][[row]], data["test_target"][[row]]))
    return mine.gram(pn.per_sample.record(loss, p, (data["train"], targets)))[0]


def tangent_kernel_accuracy(p: Sequential, data: dict[str, Tensor], targets: Tensor) -> float:
    """Test accuracy of kernel regression on the labels, with the tangent kernel of the network."""

    def output(p: Sequential, image: Tensor) -> Tensor:
        return sequential(p, image).sum() / 10**0.5

    train, test = (pn.per_sample.record(output, p, (data[name],)) for name in ("train", "test"))
    kernel = train.gram()
    scale = kernel.diagonal().mean()
    regularised = kernel + RIDGE * scale * torch.eye(len(kernel), device=kernel.device)
    weights = torch.linalg.solve(regularised, F.one_hot(targets, 10).to(kernel.dtype) - 0.1)
    return ((test.gram(train) @ weights).argmax(-1) == data["test_target"]).double().mean().item()


def draw(data: dict[str, Tensor], labels: Tensor, influence: Tensor, is_wrong: Tensor, path: Path) -> None:
    """The picture: the images of largest influence, and how many wrong labels are found by looking at so many."""
    figure = plt.figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    order = influence.argsort(descending=True)
    left.suptitle("Largest self-influence: the label, and the true digit where it differs")
    for axes, row in zip(left.subplots(3, SHOWN // 3).flat, order[:SHOWN].tolist(), strict=True):
        axes.imshow(data["train"][row].view(8, 8).cpu(), cmap="gray_r")
        wrong = bool(is_wrong[row])
        title = f"{int(labels[row])}, is {int(data['train_target'][row])}" if wrong else f"{int(labels[row])}"
        axes.set_title(title, fontsize=9, color="tab:red" if wrong else "black")
        axes.axis("off")
    axes = right.subplots()
    found = is_wrong[order].double().cumsum(0).cpu()
    looked = torch.arange(1, len(order) + 1) / len(order)
    axes.plot(100 * looked, 100 * found / found[-1], color="tab:red", label="by self-influence")
    axes.plot([0, 100], [0, 100], color="tab:gray", linestyle="--", label="by chance")
    axes.set(xlabel="images looked at (%)", ylabel="wrong labels found (%)", title="Finding wrong labels")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def options() -> argparse.Namespace:
    """The command line, checked."""
    parser = parser_for("influence", "Wrong labels by influence, and the neural tangent kernel.")
    parser.add_argument("--wrong", type=float, default=0.05, help="share of labels that are changed (default: 0.05)")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training images (default: 8)")
    parser.add_argument("--hidden", type=int, default=128, help="width of the hidden layer (default: 128)")
    args = parsed(parser, "epochs", "hidden")
    if not 0 < args.wrong < 1:
        parser.error(f"--wrong must be between 0 and 1, got {args.wrong}")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args = options()
    console, started = Console(), time.perf_counter()
    data = digits(args.device, flat=True)
    label_key, init_key = pn.random.split(pn.random.key(args.seed, args.device))
    labels, is_wrong = mislabelled(label_key, data["train_target"], args.wrong)
    start = network(init_key, args.hidden)
    checkpoints = train(start, data["train"], labels, args)
    influence = self_influence(checkpoints, data["train"], labels)
    draw(data, labels, influence, is_wrong, args.out / "influence.png")

    count = int(is_wrong.sum())
    among = is_wrong[influence.argsort(descending=True)]
    read = sequential(checkpoints[-1], data["test"]).argmax(-1)
    helping = labels[influences_on(checkpoints[-1], data, labels, 0).topk(10).indices]
    table = Table(title="Influence on 8x8 digits", show_header=False)
    for name, value in (
        ("wrong labels", f"{count} of {len(labels)}"),
        (f"found among the {count} most influential", f"{among[:count].double().mean():.1%}"),
        (f"found among {2 * count}", f"{among[: 2 * count].double().sum() / count:.1%}"),
        ("labels that help the first test image most", f"{helping.tolist()}, it is a {int(data['test_target'][0])}"),
        ("test accuracy of the network", f"{(read == data['test_target']).double().mean():.2%}"),
        ("test accuracy of its tangent kernel", f"{tangent_kernel_accuracy(start, data, labels):.2%}"),
        ("picture", str(args.out / "influence.png")),
        ("time", f"{time.perf_counter() - started:.1f} s"),
    ):
        table.add_row(name, value)
    console.print(table)


if __name__ == "__main__":
    main()
