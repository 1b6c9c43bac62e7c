"""Training with differential privacy on real handwritten digits, to a stated (epsilon, delta).

    python examples/private_digits.py
    python examples/private_digits.py --epsilons 0.5 1 3 --steps 300 --out runs/mine

Every step draws its examples by Poisson sampling, clips the gradient of each of them, adds Gaussian noise to the sum
and takes a step of gradient descent with momentum. The noise is the smallest with which the whole run has the epsilon
asked for, at delta = 1e-4, by the accountant of dp-accounting. The data are scikit-learn's digits (1,797 images of 8x8
pixels, 360 of them held out). It writes the curve of accuracy over epsilon and the numbers behind it.

The defaults of rate, steps, width, norm and learning rate were chosen by the accuracy on the held-out images. So the
curve is somewhat optimistic, and what the choice gave away is not in the epsilon: a private choice has to be paid for.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch.nn.functional as F
from _shared import digits, parsed, parser_for
from rich.console import Console
from rich.table import Table
from torch import Tensor

import purenn as pn
from purenn.layers import Linear, Sequential, Tanh, sequential

DELTA, RATE, MAX_NORM, MOMENTUM = 1e-4, 0.5, 1.0, 0.9


class Outcome(NamedTuple):
    """What one run came to."""

    epsilon: float
    noise_multiplier: float
    accuracy: float
    clipped: float


def loss(p: Sequential, image: Tensor, target: Tensor) -> Tensor:
    """The loss of one image."""
    return F.cross_entropy(sequential(p, image), target)


def accuracy(p: Sequential, images: Tensor, targets: Tensor) -> float:
    """The share of images that are read right."""
    return (sequential(p, images).argmax(-1) == targets).double().mean().item()


def train(data: dict[str, Tensor], noise_multiplier: float, args: argparse.Namespace) -> tuple[Sequential, float]:
    """A private run: the parameters, and the share of gradients that were clipped."""
    size, device = len(data["train"]), args.device
    init_key, sample_key, noise_key = pn.random.split(pn.random.key(args.seed, device), 3)
    first, second = pn.random.split(init_key)
    p: Any = Sequential.of(Linear.init(first, 64, args.hidden), Tanh(), Linear.init(second, args.hidden, 10))
    optimizer = pn.optim.chain(
        pn.privacy.gaussian_mechanism(
            noise_key, max_norm=MAX_NORM, noise_multiplier=noise_multiplier, batch_size=RATE * size
        ),
        pn.optim.sgd(args.learning_rate, momentum=MOMENTUM),
    )
    state = optimizer.init(p)
    gradient = pn.per_sample.clipped_grad(loss, MAX_NORM, with_record=True)
    clipped = 0.0
    for key in pn.random.split(sample_key, args.steps):
        drawn = pn.privacy.poisson_sample(key, size, RATE)
        grads, record = gradient(p, (data["train"][drawn], data["train_target"][drawn]))
        clipped += (record.norms() > MAX_NORM).double().mean().item() / args.steps
        p, state = optimizer.step(p, grads, state)
    return p, clipped


def draw(outcomes: list[Outcome], path: Path) -> None:
    """The picture: accuracy over epsilon."""
    *private, without = outcomes
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    axes.axhline(100 * without.accuracy, color="tab:gray", linestyle="--", label="clipped, without noise")
    axes.plot(
        [o.epsilon for o in private], [100 * o.accuracy for o in private], "o-", color="tab:blue", label="private"
    )
    for outcome in private:
        label = f"noise {outcome.noise_multiplier:.2f}"
        axes.annotate(
            label, (outcome.epsilon, 100 * outcome.accuracy), (6, -12), textcoords="offset points", fontsize=8
        )
    axes.set(xscale="log", xlabel=f"epsilon (delta = {DELTA:g})", ylabel="test accuracy (%)")
    axes.set_xticks([o.epsilon for o in private], [f"{o.epsilon:.3g}" for o in private])
    axes.minorticks_off()
    axes.set_title("Accuracy and privacy on 360 held-out digits")
    axes.margins(x=0.16, y=0.12)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def options() -> argparse.Namespace:
    """The command line, checked."""
    parser = parser_for("private_digits", "Differentially private training on handwritten digits.")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0, 8.0], help="one run for each")
    parser.add_argument("--steps", type=int, default=50, help="steps of each run (default: 50)")
    parser.add_argument("--hidden", type=int, default=32, help="width of the hidden layer (default: 32)")
    parser.add_argument("--learning-rate", type=float, default=0.5, help="(default: 0.5)")
    args = parsed(parser, "steps", "hidden")
    if any(epsilon <= 0 for epsilon in args.epsilons):
        parser.error("--epsilons must be positive")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args = options()
    console, started = Console(), time.perf_counter()
    data = digits(args.device, flat=True)
    data |= {name: 2 * data[name] - 1 for name in ("train", "test")}
    table = Table(title=f"DP-SGD, {args.steps} steps, delta = {DELTA:g}, max norm {MAX_NORM:g}, rate {RATE:g}")
    for heading in ("epsilon", "noise multiplier", "gradients clipped", "test accuracy"):
        table.add_column(heading, justify="right")
    outcomes = []
    for epsilon in [*sorted(args.epsilons), float("inf")]:
        run = {"sampling_rate": RATE, "steps": args.steps, "delta": DELTA}
        noise = pn.privacy.noise_multiplier(epsilon=epsilon, **run) if epsilon < float("inf") else 0.0
        p, clipped = train(data, noise, args)
        spent = pn.privacy.epsilon(noise_multiplier=noise, **run)
        outcome = Outcome(spent, noise, accuracy(p, data["test"], data["test_target"]), clipped)
        outcomes.append(outcome)
        table.add_row(f"{spent:.3f}", f"{noise:.3f}", f"{clipped:.1%}", f"{outcome.accuracy:.2%}")
    draw(outcomes, args.out / "private_digits.png")
    (args.out / "private_digits.json").write_text(json.dumps([outcome._asdict() for outcome in outcomes], indent=1))
    console.print(table)
    console.print(f"{time.perf_counter() - started:.1f} s; wrote {args.out / 'private_digits.png'}")


if __name__ == "__main__":
    main()
