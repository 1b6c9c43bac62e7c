"""A training step with Adam of four models: `pn.jit` paired with eager, with torch.compile, and with JAX.

    python tests/benchmarks/jit_models.py [--only mlp] [--repeats 21] [--donate] [--device cuda]

The models are those of `_training_steps.py`. JAX's (`_jax_models.py`; needs the extra `bench`) start with the same
weights, and the losses of the first steps are compared before anything is timed. By default no side donates its
arguments; with --donate `pn.jit` and JAX write parameters and state in place, while eager and torch.compile, which
cannot, stay as they are. First calls find an empty inductor cache, but compilers that have compiled something before.
"""

import argparse
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from _compiling import first_call, jax_side, one_thread, warm_up
from _pairing import header, paired, table
from _training_steps import LEARNING_RATE, MODELS, Training

import purenn as pn

# How far the first losses may be apart, as a part of the first one: this is float32.
TOLERANCE = 1e-4


class Steps:
    """A training that goes on where it was, for functions that take the storage of their arguments.

    Args:
        step: takes what is carried from step to step, and then a batch; returns the new carry and the loss.
        args: the first carry, and inputs and targets.
    """

    def __init__(self, step: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.step, self.carry, self.batch = step, args[:-2], args[-2:]

    def __call__(self) -> Any:
        *self.carry, loss = self.step(*self.carry, *self.batch)
        return loss


def first_losses(steps: Steps) -> list[float]:
    """The losses of three steps."""
    return [float(steps()) for _ in range(3)]


def compare(name: str, training: Training, jax: ModuleType) -> None:
    """Print how far JAX's first losses are from ours in eager.

    Raises:
        AssertionError: the two are not the same model.
    """
    step, args = jax.training(name, training.args[0], *training.args[2:], LEARNING_RATE)
    ours = sum(leaf.numel() for leaf in pn.tree.leaves(pn.tree.partition(training.args[0])[0]))
    theirs = jax.parameter_count(args[0])
    assert ours == theirs, f"we have {ours} parameters, JAX {theirs}"
    losses = first_losses(Steps(*training)), first_losses(Steps(jax.jitted(step), args))
    worst = max(abs(a - b) for a, b in zip(*losses, strict=True)) / losses[0][0]
    values = ", ".join(f"{loss:.4f}" for loss in losses[0])
    print(f"{name}: {ours:,} parameters; first losses {values}; JAX's differ by {worst:.0e} of the first at most")
    assert worst < TOLERANCE, f"the first losses differ by {worst}"


def measured(name: str, device: torch.device, repeats: int, donate: bool, jax: ModuleType | None) -> list[list[str]]:
    """The rows of one model."""
    training = MODELS[name](device)
    p, state, *batch = training.args
    others: dict[str, Callable[[], Any]] = {
        "eager": functools.partial(training.step, *training.args),
        "torch.compile": functools.partial(torch.compile(training.step, fullgraph=True), *training.args),
    }
    if jax is not None:
        compare(name, training, jax)
        step, args = jax.training(name, p, *batch, LEARNING_RATE)
        others["JAX"] = _running(jax.jitted(step, (0, 1, 2) if donate else ()), args, donate)
    own = pn.tree.map(torch.clone, p), pn.tree.map(torch.clone, state), *batch
    ours = _running(pn.jit(training.step, donate_argnums=(0, 1) if donate else ()), own, donate)
    first = first_call(ours)
    rows = []
    for against, call in others.items():
        seconds = f"{first_call(call):.1f} s" if against != "eager" else "-"
        r = paired(ours, call, repeats=repeats)
        times = f"{r.first * 1e3:.2f} ms", f"{r.second * 1e3:.2f} ms"
        rows.append(
            [name, against, *times, f"{r.ratio:.3f}", f"{r.low:.3f} to {r.high:.3f}", f"{first:.1f} s", seconds]
        )
    return rows


def _running(step: Callable[..., Any], args: tuple[Any, ...], donate: bool) -> Callable[[], Any]:
    return Steps(step, args) if donate else functools.partial(step, *args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*MODELS], action="append", help="a model; may be given several times")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--donate", action="store_true")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    one_thread(options.device)
    print(header("A training step: jit against eager, torch.compile and JAX", options.device))
    jax = jax_side(options.device)
    print(f"{'No JAX here' if jax is None else jax.NAMES}; arguments donated: {'yes' if options.donate else 'no'}\n")
    warm_up(options.device)
    rows = [["model", "against", "jit", "the other", "ratio", "quartiles", "first call: jit", "the other"]]
    for name in options.only or MODELS:
        rows += measured(name, options.device, options.repeats, options.donate, jax)
    print()
    print(table(rows))
    print("\nGoals: at most torch.compile's time everywhere, at most JAX's on three of four.")


if __name__ == "__main__":
    main()
