"""A training that is killed again and again, for `test_checkpointer`: starts it, kills it, starts it anew.

    python _killed_training.py folder kills steps

Everything is imported once and the trainings are forked, so that many of them take little time. Prints how often the
training was killed before it came to its end.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import purenn as pn
from purenn.layers import BatchNorm1d, Linear, batch_norm, linear

torch.set_num_threads(1)


@pn.container
class State:
    """All that the training needs to go on."""

    first: Linear
    norm: BatchNorm1d
    last: Linear
    optimizer: Any
    key: torch.Tensor
    position: torch.Tensor = pn.buffer()


def initial() -> State:
    """Drawn from a fixed key."""
    keys = pn.random.split(pn.random.key(0), 3)
    model = Linear.init(keys[0], 4, 8), BatchNorm1d.init(8), Linear.init(keys[1], 8, 2)
    return State(*model, OPTIMIZER.init(model), keys[2], torch.tensor(0))


OPTIMIZER = pn.optim.adam(1e-2)
DATA = pn.random.normal(pn.random.key(1), (50, 4))


def loss_of(model: tuple[Linear, BatchNorm1d, Linear], x: torch.Tensor) -> tuple[torch.Tensor, BatchNorm1d]:
    """A number that depends on all of the model."""
    h, norm = batch_norm(model[1], linear(model[0], x), train=True)
    return linear(model[2], h.relu()).square().mean(), norm


def step_of(state: State) -> State:
    """One step on the rows of the data that come next, with noise drawn from the state's key."""
    key, noise_key = pn.random.split(state.key)
    rows = (state.position + torch.arange(16)) % len(DATA)
    x = DATA[rows] + pn.random.normal(noise_key, (16, 4))
    model = state.first, state.norm, state.last
    grads, norm = pn.grad(loss_of, has_aux=True)(model, x)
    updates, optimizer = OPTIMIZER.update(grads, state.optimizer, model)
    first, _, last = pn.optim.apply_updates(model, updates)
    return State(first, norm, last, optimizer, key, (state.position + 16) % len(DATA))


def train(folder: Path, steps: int, *, asynchronous: bool, several: bool) -> None:
    """From the newest state to the last step, saving after each, in one file or in several."""
    size = 300 if several else 1 << 30
    with pn.Checkpointer(folder, keep=2, asynchronous=asynchronous, max_shard_size=size) as checkpoints:
        step, state = checkpoints.restore(like=initial()) or (0, initial())
        while step < steps:
            step, state = step + 1, step_of(state)
            checkpoints.save(step, state)


def main() -> None:
    folder, wanted, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    kills, draw = 0, random.Random(0)
    while True:
        asynchronous, several = draw.random() < 0.5, kills < wanted and draw.random() < 0.5
        child = os.fork()
        if child == 0:
            train(folder, steps, asynchronous=asynchronous, several=several)
            os._exit(0)
        if kills < wanted:
            time.sleep(draw.uniform(0.0, 0.03))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, status
            break
        kills += 1
    print(kills)


if __name__ == "__main__":
    main()
