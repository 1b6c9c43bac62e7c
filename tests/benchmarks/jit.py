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

    cases: dict[str, tuple[Callable[..., Any], tuple[Any, ...], bool]] = {
        "trivial work on 160 leaves": (scale, (leaves,), True),
        "per-sample gradients of an 80-layer MLP": (
            pn.vmap(pn.grad(loss), (None, 0)),
            (leaves, pn.random.normal(key, (8, 4))),
            False,
        ),
        "Adam step, MLP 784-512-256-10, batch 128": (*training_step(device), False),
    }
    rows = [["what", "jit", "eager", "jit / eager", "torch.compile", "jit / torch.compile", "first call of jit"]]
    for name, (fn, args, comparable) in cases.items():
        jitted = pn.jit(fn)
        start = time.perf_counter()
        jitted(*args)
        first = time.perf_counter() - start
        eager = paired(lambda j=jitted, a=args: j(*a), lambda f=fn, a=args: f(*a), repeats=31, number=3)
        row = [name, f"{eager.first * 1e6:.0f} us", f"{eager.second * 1e6:.0f} us", f"{eager.ratio:.3f}"]
        if comparable:
            compiled = torch.compile(fn, fullgraph=True)
            other = paired(lambda j=jitted, a=args: j(*a), lambda c=compiled, a=args: c(*a), repeats=31, number=3)
            row += [f"{other.second * 1e6:.0f} us", f"{other.ratio:.3f}"]
        else:
            row += ["does not trace purenn's gradients", "-"]
        rows.append([*row, f"{first:.1f} s"])
    print(table(rows))


if __name__ == "__main__":
    main()
