"""`pn.jit` paired with eager and with torch.compile of the same function on the same containers.

python tests/benchmarks/jit.py [--device cuda]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _pairing import header, paired, table
from torch import Tensor

import purenn as pn
from purenn.layers import Linear, ReLU, Sequential, linear


def scale(p: Any) -> Any:
    """Trivial work on many leaves: what is left is the cost of a call."""
    return pn.tree.map(lambda leaf: leaf * 0.5, p)


def training_step(device: torch.device) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A step of Adam on an MLP 784-512-256-10 with a batch of 128."""
    k = pn.random.split(pn.random.key(0, device), 5)
    p = Sequential.of(
        Linear.init(k[0], 784, 512), ReLU(), Linear.init(k[1], 512, 256), ReLU(), Linear.init(k[2], 256, 10)
    )
    x, target = pn.random.normal(k[3], (128, 784)), pn.random.randint(k[4], (128,), low=0, high=10)
    optimizer = pn.optim.adam(1e-3)

    def step(p: Sequential, state: Any, x: Tensor, target: Tensor) -> tuple[Any, Any, Tensor]:
        loss, grads = pn.value_and_grad(lambda p: F.cross_entropy(p(x), target))(p)
        updates, state = optimizer.update(grads, state, p)
        return pn.optim.apply_updates(p, updates), state, loss

    return step, (p, optimizer.init(p), x, target)


def first_call(fn: Callable[..., Any], args: tuple[Any, ...]) -> float:
    """Seconds of a call that traces and compiles."""
    start = time.perf_counter()
    fn(*args)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    device = parser.parse_args().device
    torch.set_num_threads(1)
    print(header("jit", device))
    leaves = tuple(Linear.init(key, 4, 4) for key in pn.random.split(pn.random.key(0, device), 80))
    key = pn.random.key(1, device)

    def loss(p: tuple[Linear, ...], x: Tensor) -> Tensor:
        for layer in p:
            x = linear(layer, x).relu()
        return x.square().mean()

    cases: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "trivial work on 160 leaves": (scale, (leaves,)),
        "per-sample gradients of an 80-layer MLP": (
            pn.vmap(pn.grad(loss), (None, 0)),
            (leaves, pn.random.normal(key, (8, 4))),
        ),
        "Adam step, MLP 784-512-256-10, batch 128": training_step(device),
    }
    rows = [["what", "jit", "eager", "ratio", "torch.compile", "ratio", "first call: jit", "torch.compile"]]
    for name, (fn, args) in cases.items():
        jitted, compiled = pn.jit(fn), torch.compile(fn, fullgraph=True)
        first = [first_call(f, args) for f in (jitted, compiled)]
        eager = paired(lambda j=jitted, a=args: j(*a), lambda f=fn, a=args: f(*a), repeats=31, number=3)
        other = paired(lambda j=jitted, a=args: j(*a), lambda c=compiled, a=args: c(*a), repeats=31, number=3)
        times = f"{eager.first * 1e6:.0f} us", f"{eager.second * 1e6:.0f} us", f"{other.second * 1e6:.0f} us"
        rows.append(
            [name, times[0], times[1], f"{eager.ratio:.3f}", times[2], f"{other.ratio:.3f}"]
            + [f"{seconds:.1f} s" for seconds in first]
        )
    print(table(rows))


if __name__ == "__main__":
    main()
