"""Draws from keys against torch's generator, eager and compiled, and under vmap.

python tests/benchmarks/random_draws.py [--device cuda]
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _pairing import header, paired, table
from torch import Tensor

from purenn import random

SIZES = (10**4, 10**5, 10**6)
EXAMPLES = 100


def pairs(key: Tensor, size: int) -> list[tuple[str, Callable[[], Any], str, Callable[[], Any]]]:
    """What is measured at one size: a name and a call of ours, a name and a call of torch's."""
    device = key.device
    keys = random.split(key, EXAMPLES)
    each = size // EXAMPLES

    def torch_uniform() -> Tensor:
        return torch.rand(size, device=device)

    def torch_normal() -> Tensor:
        return torch.randn(size, device=device)

    def batched_uniform(keys: Tensor) -> Tensor:
        return torch.func.vmap(lambda key: random.uniform(key, each))(keys)

    uniform, normal, batched, rand, randn = (
        torch.compile(function, fullgraph=True)
        for function in (
            lambda key: random.uniform(key, size),
            lambda key: random.normal(key, size),
            batched_uniform,
            torch_uniform,
            torch_normal,
        )
    )
    return [
        ("uniform", lambda: random.uniform(key, size), "rand", torch_uniform),
        ("normal", lambda: random.normal(key, size), "randn", torch_normal),
        (f"uniform, vmap over {EXAMPLES} keys", lambda: batched_uniform(keys), "rand", torch_uniform),
        ("uniform compiled", lambda: uniform(key), "rand compiled", rand),
        ("normal compiled", lambda: normal(key), "randn compiled", randn),
        ("uniform compiled", lambda: uniform(key), "rand", torch_uniform),
        ("normal compiled", lambda: normal(key), "randn", torch_normal),
        (f"uniform compiled, vmap over {EXAMPLES} keys", lambda: batched(keys), "rand", torch_uniform),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda. Default: cpu")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    key = random.key(0, device)
    print(header("Random draws, float32", device))
    rows = [["ours", "torch's", "size", "ours, ms", "torch's, ms", "ratio", "quartiles"]]
    for size in SIZES:
        torch._dynamo.reset()
        for ours_name, ours, other_name, other in pairs(key, size):
            r = paired(ours, other, repeats=41, number=max(1, 10**5 // size))
            rows.append(
                [
                    ours_name,
                    other_name,
                    f"{size:,}",
                    f"{r.first * 1e3:.3f}",
                    f"{r.second * 1e3:.3f}",
                    f"{r.ratio:.2f}",
                    f"{r.low:.2f} to {r.high:.2f}",
                ]
            )
    print(table(rows))


if __name__ == "__main__":
    main()
