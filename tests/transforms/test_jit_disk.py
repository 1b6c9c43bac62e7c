"""Compiled graphs on disk: what a second process finds."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

import purenn as pn


def test_graphs_are_found_on_disk(device: torch.device) -> None:
    """What has been compiled once, a scanned step included, is not compiled again for another jitted function."""

    def loss(w: Tensor) -> Tensor:
        return pn.scan(lambda carry, _: ((carry * w).tanh(), None), w, length=3)[0].sum()

    w = torch.linspace(0, 1, 5, device=device)
    with fresh_cache():
        first = pn.jit(pn.grad(loss))(w)
        counters.clear()
        again = pn.jit(pn.grad(loss))(w + 1)
        found, missed = counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]
    assert (found > 0, missed) == (True, 0)
    torch.testing.assert_close(first, pn.grad(loss)(w))
    torch.testing.assert_close(again, pn.grad(loss)(w + 1))


OUTSIDE = """
import sys, torch, purenn as pn
device = torch.device(sys.argv[1])
w = torch.linspace(0, 1, 5, device=device, dtype=torch.float64).requires_grad_()

def loop(w):
    return pn.scan(lambda carry, _: ((carry * w).tanh(), None), w, length=3)[0].sum()

def choice(w):
    return pn.cond(w.sum() > 1, lambda w: w.sin(), lambda w: w.cos(), w).sum()

clipped = pn.custom_vjp(lambda w: w.sin())
clipped.defvjp(lambda w: (w.sin(), w), lambda w, g: (3 * g * w,))

def ruled(w):
    return (pn.scan(lambda carry, _: (clipped(carry) * w, None), w, length=2)[0] * clipped(w)).sum()

for loss in (loop, choice, ruled):
    (expected,) = torch.autograd.grad(loss(w), w)
    (found,) = torch.autograd.grad(pn.jit(loss)(w), w)
    torch.testing.assert_close(found, expected)
"""


def test_backward_graphs_on_disk_are_right_in_a_second_process(device: torch.device, tmp_path: Path) -> None:
    """`backward` through a jitted loop or branch works in a process that finds another's compiled graphs."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", OUTSIDE, str(device)], check=True, env=environment)
