"""A training step for 8 small models at once, paired with a Python loop over the models.

    python tests/benchmarks/ensemble.py [--repeats 31] [--device cuda]

The models are MLPs 16-64-64-4 with a state of Adam each and the same batch of 32.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _compiling import one_thread
from _pairing import header, paired, table
from torch import Tensor

import purenn as pn
from purenn.models import MLP

MODELS, BATCH, STEPS = 8, 32, 20


def loss(p: MLP, x: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy of one model."""
    return F.cross_entropy(p(x), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    one_thread(options.device)
    print(header(f"Ensembles: a step of Adam for {MODELS} MLPs 16-64-64-4, batch {BATCH}", options.device))
    init, data, labels = pn.random.split(pn.random.key(0, options.device), 3)
    models = pn.ensemble(lambda key: MLP.init(key, 16, (64, 64), 4))(pn.random.split(init, MODELS))
    batch = pn.random.normal(data, (BATCH, 16)), pn.random.randint(labels, (BATCH,), low=0, high=4)
    optimizer = pn.optim.adam(1e-3)
    states = pn.vmap(optimizer.init)(models)

    def step(p: MLP, state: Any, x: Tensor, target: Tensor) -> tuple[MLP, Any, Tensor]:
        value, grads = pn.value_and_grad(loss)(p, x, target)
        updates, state = optimizer.update(grads, state, p)
        return pn.optim.apply_updates(p, updates), state, value

    many = pn.vmap(step, in_dims=(0, 0, None, None))
    one, all_at_once = pn.jit(step), pn.jit(many)
    pairs = list(zip(pn.tree.unstack(models), pn.tree.unstack(states), strict=True))

    def loop(step: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: [step(p, state, *batch) for p, state in pairs]

    def fit() -> Any:
        return pn.optim.fit_ensemble(loss, optimizer, models, [batch] * STEPS)

    def fit_one_by_one() -> None:
        for p, state in pairs:
            for _ in range(STEPS):
                p, state, _ = step(p, state, *batch)

    # Both sides make the same step.
    losses = many(models, states, *batch)[2], torch.stack([value for _, _, value in loop(step)()])
    torch.testing.assert_close(*losses)
    rows = [["ours", "against", "ours, time", "the other", "ratio", "quartiles", "goal"]]
    for name, call, against, other, goal, repeats in (
        ("vmap", lambda: many(models, states, *batch), "loop", loop(step), "0.5", options.repeats),
        ("jit(vmap)", lambda: all_at_once(models, states, *batch), "loop", loop(step), "0.2", options.repeats),
        ("jit(vmap)", lambda: all_at_once(models, states, *batch), "loop, jitted", loop(one), "-", options.repeats),
        (f"fit_ensemble, {STEPS} steps", fit, "loop", fit_one_by_one, "0.5", max(2, options.repeats // 4)),
    ):
        r = paired(call, other, repeats=repeats)
        times = f"{r.first * 1e3:.2f} ms", f"{r.second * 1e3:.2f} ms"
        rows.append([name, against, *times, f"{r.ratio:.3f}", f"{r.low:.3f} to {r.high:.3f}", goal])
    print(table(rows))


if __name__ == "__main__":
    main()
