"""Few-shot classification of handwritten digits: learned on the classes 0 to 5, tried on 6 to 9.

    python examples/few_shot_digits.py
    python examples/few_shot_digits.py --iterations 200 --shots 5 --seed 1 --out runs/two

A task is to tell four classes apart, given a few images of each. Tasks for meta-training are made of scikit-learn's
digits 0 to 5; a quarter turn or a mirror makes another class of each digit, so there are forty-eight, and every image
is turned by a small angle besides. MAML looks for parameters from which a few steps of gradient descent learn such a
task, and ANIL for parameters of which only the last layer need be adapted. Both are then tried on the digits 6 to 9,
which neither has seen, against a network that starts from random numbers.

Sources: Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, 2017; Raghu et al.: Rapid Learning or Feature Reuse?, 2020.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from _shared import parsed, parser_for, progress_bars
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor

import purenn as pn
from purenn.layers import Conv2d, Flatten, GroupNorm, Linear, MaxPool2d, ReLU, Sequential, Unflatten

WAYS, QUERIES, TASKS, RATE, INNER_STEPS = 4, 10, 8, 0.03, 5
TURNED = math.radians(12)
Data = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def load_classes() -> tuple[Tensor, Tensor]:
    """Images ``[classes, n, 8, 8]``: the digits 0 to 5 in eight orientations, and 6 to 9 as they are."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16.0, dtype=torch.float32), torch.tensor(digits.target)
    fewest = int(labels.bincount().min())
    each = torch.stack([images[labels == digit][:fewest] for digit in range(10)])
    both = torch.cat([each[:6], each[:6].flip(3)])
    return torch.cat([torch.rot90(both, turns, (2, 3)) for turns in range(4)]), each[6:]


def turned(key: Tensor, images: Tensor) -> Tensor:
    """Every image turned by a small angle."""
    angle = pn.random.uniform(key, (len(images),), low=-TURNED, high=TURNED)
    rows = torch.stack([angle.cos(), -angle.sin(), 0 * angle, angle.sin(), angle.cos(), 0 * angle], 1)
    grid = F.affine_grid(rows.reshape(-1, 2, 3), [len(images), 1, 8, 8], align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def tasks(key: Tensor, classes: Tensor, count: int, shots: int, *, turn: bool) -> Data:
    """Support and query data: images ``[count, ways * shots, 64]`` and labels."""
    k1, k2, k3 = pn.random.split(key, 3)
    ways = pn.random.uniform(k1, (count, len(classes))).topk(WAYS).indices
    rows = pn.random.uniform(k2, (count, WAYS, classes.shape[1])).topk(shots + QUERIES).indices
    images = classes[ways[..., None], rows]
    images = (turned(k3, images.flatten(0, 2)) if turn else images).reshape(count, WAYS, shots + QUERIES, 64)
    labels = torch.arange(WAYS)[:, None].expand(count, WAYS, shots + QUERIES)

    def part(x: Tensor, place: slice) -> Tensor:
        return x[:, :, place].flatten(1, 2)

    support, query = slice(0, shots), slice(shots, None)
    return (part(images, support), part(labels, support)), (part(images, query), part(labels, query))


def network(key: Tensor) -> Sequential:
    """Two convolutions of 32 channels, each with group norm and pooling, and a linear layer: 64 pixels to 4 classes."""
    k = pn.random.split(key, 3)
    layers = {
        "image": Unflatten(1, (1, 8, 8)),
        "first": block(k[0], 1),
        "second": block(k[1], 32),
        "flat": Flatten(),
        "last": Linear.init(k[2], 128, WAYS),
    }
    return Sequential.named(**layers)


def block(key: Tensor, channels: int) -> Sequential:
    return Sequential.of(Conv2d.init(key, channels, 32, 3, padding=1), GroupNorm.init(4, 32), ReLU(), MaxPool2d(2))


def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(p(x), y)


# What each method adapts: all leaves, or those of the last layer.
METHODS: dict[str, dict[str, Any]] = {"MAML": {}, "ANIL": {"select": "layers.last"}}


def train(args: argparse.Namespace, seen: Tensor, console: Console) -> dict[str, Any]:
    """The parameters that each method finds, and random ones."""
    model, data = pn.random.split(pn.random.key(args.seed))
    start = network(model)
    optimizer = pn.optim.adam(2e-3)
    found = {name: (start, optimizer.init(start)) for name in METHODS}
    gradients = {
        # On images this small all tasks at once are faster than one after the other, as "auto" has convolutions.
        name: pn.meta.value_and_grad(pn.meta.maml(loss, pn.optim.sgd(RATE), INNER_STEPS, **chosen), "sum")
        for name, chosen in METHODS.items()
    }
    with progress_bars(console) as progress:
        bar = progress.add_task("meta-training", total=args.iterations)
        for number in range(args.iterations):
            batch = tasks(pn.random.fold_in(data, number), seen, TASKS, args.shots, turn=True)
            text = []
            for name, (p, state) in found.items():
                value, grads = gradients[name](p, *batch)
                found[name] = optimizer.step(p, grads, state)
                text.append(f"{name} {value.item():.3f}")
            progress.update(bar, advance=1, description=f"loss after {INNER_STEPS} steps: {', '.join(text)}")
    return {**{name: p for name, (p, _) in found.items()}, "random start": start}


def accuracies(p: Any, data: Data, steps: int, chosen: dict[str, Any]) -> float:
    """The share of right answers to the query images after some steps on the support images."""
    adapt = pn.meta.inner_loop(loss, pn.optim.sgd(RATE), steps, **chosen)

    def right(support: Any, query: Any) -> Tensor:
        return (adapt(p, *support)[0](query[0]).argmax(-1) == query[1]).float().mean()

    return pn.vmap(right)(*data).mean().item()


def draw(results: dict[str, list[float]], data: Data, shots: int, path: Path) -> None:
    """Accuracy by the number of steps, and one of the tasks."""
    figure = plt.figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.4, 1))
    axes = left.subplots()
    for name, values in results.items():
        axes.plot(range(len(values)), [100 * value for value in values], "o-", label=name)
    axes.axhline(100 / WAYS, color="gray", linestyle=":", label="by chance")
    axes.set(xlabel="steps of gradient descent", ylabel="accuracy (%)", title=f"Digits 6 to 9, {shots}-shot")
    axes.grid(alpha=0.3)
    axes.legend()
    right.suptitle("One task: what it learns from")
    pictures = data[0][0][0].reshape(WAYS, shots, 8, 8).transpose(0, 1)
    for axes, image in zip(right.subplots(shots, WAYS, squeeze=False).flat, pictures.flatten(0, 1), strict=True):
        axes.imshow(image, cmap="gray_r")
        axes.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def options() -> argparse.Namespace:
    """The command line, checked."""
    parser = parser_for("few_shot_digits", "Few-shot digits by MAML and ANIL.", device=False)
    parser.add_argument("--iterations", type=int, default=200, help="meta-steps (default: 200)")
    parser.add_argument("--shots", type=int, default=1, help="images of each class to learn from (default: 1)")
    args = parsed(parser, "iterations", "shots")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args = options()
    console = Console()
    begun = time.perf_counter()
    seen, unseen = load_classes()
    models = train(args, seen, console)
    data = tasks(pn.random.fold_in(pn.random.key(args.seed), 1_000_000), unseen, 100, args.shots, turn=False)
    results = {
        name: [accuracies(p, data, steps, METHODS.get(name, {})) for steps in range(INNER_STEPS + 1)]
        for name, p in models.items()
    }
    draw(results, data, args.shots, args.out / "few_shot_digits.png")
    table = Table(title=f"Accuracy on the digits 6 to 9, never seen before, {args.shots} of each to learn from")
    table.add_column("start")
    for steps in range(INNER_STEPS + 1):
        table.add_column(f"{steps} step{'s' * (steps != 1)}")
    for name, values in results.items():
        table.add_row(name, *(f"{value:.1%}" for value in values))
    console.print(table)
    console.print(f"{time.perf_counter() - begun:.1f} s; picture: {args.out / 'few_shot_digits.png'}", soft_wrap=True)


if __name__ == "__main__":
    main()
