"""Learning to fit sine curves from ten points: MAML's classic example.

    python examples/sinusoid.py
    python examples/sinusoid.py --iterations 1000 --seed 1 --out runs/two

A network is trained so that a few steps of gradient descent on ten points of an unseen sine curve fit it well. The
picture shows one curve before, after one and after ten steps, from the meta-learned start and from one that was trained
on all curves at once; the table gives the mean squared error over 200 new curves.

Source: Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, 2017, section 5.1.
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
from torch import Tensor

import purenn as pn
from purenn.models import MLP

TASKS, SHOTS, RATE, INNER_STEPS = 25, 10, 0.01, 5
SHOWN_STEPS = (0, 1, 10)


def curves(key: Tensor, count: int, points: int) -> tuple[Tensor, Tensor]:
    """Points of random sine curves: inputs in [-5, 5] and targets, both ``[count, points, 1]``."""
    k1, k2, k3 = pn.random.split(key, 3)
    size = pn.random.uniform(k1, (count, 1, 1), low=0.1, high=5.0)
    phase = pn.random.uniform(k2, (count, 1, 1), low=0.0, high=torch.pi)
    x = pn.random.uniform(k3, (count, points, 1), low=-5.0, high=5.0)
    return x, size * (x - phase).sin()


def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(p(x), y)


def tasks(key: Tensor, count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Ten points of each curve to adapt to and ten to judge by."""
    x, y = curves(key, count, 2 * SHOTS)
    return (x[:, :SHOTS], y[:, :SHOTS]), (x[:, SHOTS:], y[:, SHOTS:])


def train(args: argparse.Namespace, console: Console) -> tuple[Any, Any]:
    """The start that MAML finds, and the one of a network that is trained on all curves at once."""
    model, data = pn.random.split(pn.random.key(args.seed))
    maml = start = MLP.init(model, 1, (40, 40), 1)
    optimizer = pn.optim.adam(2e-3)
    maml_state = start_state = optimizer.init(start)
    meta_gradient = pn.meta.value_and_grad(pn.meta.maml(loss, pn.optim.sgd(RATE), INNER_STEPS))
    plain_gradient = pn.grad(lambda p, x, y: loss(p, x.flatten(0, 1), y.flatten(0, 1)))
    with progress_bars(console) as progress:
        bar = progress.add_task("meta-training", total=args.iterations)
        for number in range(args.iterations):
            support, query = tasks(pn.random.fold_in(data, number), TASKS)
            value, grads = meta_gradient(maml, support, query)
            maml, maml_state = optimizer.step(maml, grads, maml_state)
            start, start_state = optimizer.step(start, plain_gradient(start, *support), start_state)
            progress.update(bar, advance=1, description=f"error after {INNER_STEPS} steps {value.item():.3f}")
    return maml, start


def errors(p: Any, data: Any, steps: int) -> float:
    """The mean error on new points of new curves after some steps on ten points of each."""
    adapt = pn.meta.inner_loop(loss, pn.optim.sgd(RATE), steps)
    support, query = data
    return pn.vmap(lambda s, q: loss(adapt(p, *s)[0], *q))(support, query).mean().item()


def draw(models: dict[str, Any], key: Tensor, path: Path) -> None:
    """The classic figure: one curve before, after one and after ten steps."""
    (x, y), _ = tasks(key, 1)
    grid = torch.linspace(-5, 5, 200)[:, None]
    size, phase = _curve_through(x[0], y[0])
    figure, panels = plt.subplots(1, len(models), figsize=(11, 4), sharey=True, layout="constrained")
    for axes, (name, p) in zip(panels, models.items(), strict=True):
        axes.plot(grid, size * (grid - phase).sin(), color="tab:red", label="the curve")
        axes.plot(x[0], y[0], "^", color="tab:purple", label="its ten points")
        for steps, style in zip(SHOWN_STEPS, (":", "--", "-"), strict=True):
            adapted, _ = pn.meta.inner_loop(loss, pn.optim.sgd(RATE), steps)(p, x[0], y[0])
            label = "before" if not steps else f"{steps} step{'s' if steps > 1 else ''}"
            axes.plot(grid, adapted(grid), style, color="tab:green" if steps else "gray", label=label)
        axes.set(title=name, xlabel="x")
        axes.grid(alpha=0.3)
    panels[-1].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve_through(x: Tensor, y: Tensor) -> tuple[float, float]:
    # a sin(x) + b cos(x) by least squares, which is exact.
    a, b = torch.linalg.lstsq(torch.cat([x.sin(), x.cos()], 1), y).solution.flatten()
    return torch.hypot(a, b).item(), torch.atan2(-b, a).item()


def options() -> argparse.Namespace:
    """The command line, checked."""
    parser = parser_for("sinusoid", "MAML on sine curves.", device=False)
    parser.add_argument("--iterations", type=int, default=3000, help="meta-steps (default: 3000)")
    args = parsed(parser, "iterations")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args = options()
    console = Console()
    begun = time.perf_counter()
    maml, plain = train(args, console)
    test = pn.random.fold_in(pn.random.key(args.seed), 1_000_000)
    data = tasks(test, 200)
    models = {"meta-learned start": maml, "trained on all curves": plain}
    table = Table(title=f"Mean squared error on new curves, {SHOTS} points each")
    for heading in ("start", *(f"{steps} step{'s' * (steps != 1)}" for steps in SHOWN_STEPS)):
        table.add_column(heading)
    for name, p in models.items():
        table.add_row(name, *(f"{errors(p, data, steps):.3f}" for steps in SHOWN_STEPS))
    draw(models, pn.random.fold_in(test, 1), args.out / "sinusoid.png")
    console.print(table)
    console.print(f"{time.perf_counter() - begun:.1f} s; picture: {args.out / 'sinusoid.png'}", soft_wrap=True)


if __name__ == "__main__":
    main()
