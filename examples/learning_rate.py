"""Learning the learning rate: gradients of a validation loss with respect to an optimiser's hyper-parameters.

    python examples/learning_rate.py
    python examples/learning_rate.py --iterations 20 --rate 0.001 --seed 1 --out runs/two

A classifier of handwritten digits is trained by twenty steps of gradient descent with momentum. The loss on held-out
digits after those steps is a function of the learning rate, the momentum and the weight decay, and it is differentiated
through all twenty steps: Adam then improves the three. The picture shows the way of the learning rate over the curve
that a search over many rates would have found.

Source: Maclaurin, Duvenaud, Adams: Gradient-based Hyperparameter Optimization through Reversible Learning, 2015.
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
from _shared import parsed, parser_for, progress_bars
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

import purenn as pn
from purenn.models import MLP

STEPS, BATCH, META_RATE = 20, 48, 0.15


@pn.container
class Hyper:
    """What is learned, as numbers without bounds.

    Attributes:
        rate: logarithm of the learning rate.
        momentum: of which the momentum is the sigmoid.
        decay: logarithm of the weight decay.
    """

    rate: Tensor
    momentum: Tensor
    decay: Tensor

    @classmethod
    def of(cls, rate: float, momentum: float = 0.5, decay: float = 1e-3) -> "Hyper":
        """From the values themselves."""
        values = torch.tensor([rate, momentum, decay])
        return cls(values[0].log(), values[1].logit(), values[2].log())

    def values(self) -> tuple[Tensor, Tensor, Tensor]:
        """Learning rate, momentum and weight decay."""
        return self.rate.exp(), self.momentum.sigmoid(), self.decay.exp()


def load_data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images and labels to train with, to choose hyper-parameters by, and to judge by."""
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16.0, dtype=torch.float32).flatten(1), torch.tensor(digits.target)
    train, rest = train_test_split(torch.arange(len(x)), test_size=600, stratify=y, random_state=0)
    choose, judge = train_test_split(rest, test_size=300, stratify=y[rest], random_state=0)
    return (x[train], y[train]), (x[choose], y[choose]), (x[judge], y[judge])


def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(p(x), y)


def trained(hyper: Hyper, p: Any, batches: tuple[Tensor, Tensor]) -> Any:
    """The network after a step on each batch; a differentiable function of the hyper-parameters."""
    rate, momentum, decay = hyper.values()
    optimizer = pn.optim.sgd(rate, momentum=momentum, weight_decay=decay)
    return pn.meta.inner_loop(loss, optimizer, STEPS, batches=True)(p, *batches)[0]


def start_and_batches(key: Tensor, data: tuple[Tensor, Tensor]) -> tuple[Any, tuple[Tensor, Tensor]]:
    """A new network and the batches of its steps."""
    model, order = pn.random.split(key)
    rows = pn.random.permutation(order, len(data[0]))[: STEPS * BATCH].reshape(STEPS, -1)
    return MLP.init(model, 64, (32,), 10), (data[0][rows], data[1][rows])


def learn(args: argparse.Namespace, data: Any, console: Console) -> list[tuple[Hyper, float]]:
    """The hyper-parameters of every meta-step, with the validation loss that they gave."""
    train, choose, _ = data
    key = pn.random.key(args.seed)

    def validation(hyper: Hyper, p: Any, batches: Any) -> Tensor:
        return loss(trained(hyper, p, batches), *choose)

    hyper, optimizer = Hyper.of(args.rate), pn.optim.adam(META_RATE)
    state, way = optimizer.init(hyper), []
    gradient = pn.value_and_grad(validation)
    with progress_bars(console) as progress:
        bar = progress.add_task("learning", total=args.iterations)
        for number in range(args.iterations):
            value, grads = gradient(hyper, *start_and_batches(pn.random.fold_in(key, number), train))
            way.append((hyper, value.item()))
            hyper, state = optimizer.step(hyper, grads, state)
            rate = hyper.values()[0].item()
            progress.update(bar, advance=1, description=f"rate {rate:.4f}, validation loss {value.item():.3f}")
    return [*way, (hyper, way[-1][1])]


def accuracy(hyper: Hyper, data: Any, seed: int) -> float:
    """On the third part of the data, of five new networks."""
    train, _, (x, y) = data
    keys = [pn.random.fold_in(pn.random.key(seed), 100_000 + n) for n in range(5)]
    networks = [trained(hyper, *start_and_batches(key, train)) for key in keys]
    return sum((p(x).argmax(-1) == y).double().mean().item() for p in networks) / len(networks)


def draw(way: list[tuple[Hyper, float]], data: Any, seed: int, path: Path) -> None:
    """The way of the learning rate over the losses that other rates give."""
    train, choose, _ = data
    last = way[-1][0]
    p, batches = start_and_batches(pn.random.fold_in(pn.random.key(seed), 99_999), train)
    rates = torch.logspace(-3, 0.7, 40)
    at = [pn.replace(last, rate=rate.log()) for rate in rates]
    curve = [loss(trained(hyper, p, batches), *choose).item() for hyper in at]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot(rates, curve, color="gray", label="all learning rates, at the learned momentum and decay")
    found = [hyper.values()[0].item() for hyper, _ in way]
    left.scatter(found[:-1], [value for _, value in way[:-1]], c=range(len(way) - 1), cmap="viridis", s=16)
    left.axvline(found[-1], color="tab:green", label=f"learned: {found[-1]:.3f}")
    left.set(xscale="log", xlabel="learning rate", ylabel=f"validation loss after {STEPS} steps")
    left.legend()
    right.plot(found, label="learning rate")
    right.plot([hyper.values()[1].item() for hyper, _ in way], label="momentum")
    right.set(xlabel="meta-step", yscale="log", title="What is learned")
    right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def options() -> argparse.Namespace:
    """The command line, checked."""
    parser = parser_for("learning_rate", "Learning rates learned by gradient descent.", device=False)
    parser.add_argument("--iterations", type=int, default=60, help="meta-steps (default: 60)")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate at the start (default: 0.01)")
    args = parsed(parser, "iterations")
    if not args.rate > 0:
        parser.error(f"--rate must be above 0, got {args.rate}")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args = options()
    console = Console()
    begun = time.perf_counter()
    data = load_data()
    way = learn(args, data, console)
    draw(way, data, args.seed, args.out / "learning_rate.png")
    table = Table(title=f"Digits after {STEPS} steps of gradient descent")
    for heading in ("", "learning rate", "momentum", "weight decay", "test accuracy"):
        table.add_column(heading)
    for name, hyper in (("at the start", way[0][0]), ("learned", way[-1][0])):
        values = (f"{value.item():.2g}" for value in hyper.values())
        table.add_row(name, *values, f"{accuracy(hyper, data, args.seed):.1%}")
    console.print(table)
    console.print(f"{time.perf_counter() - begun:.1f} s; picture: {args.out / 'learning_rate.png'}", soft_wrap=True)


if __name__ == "__main__":
    main()
