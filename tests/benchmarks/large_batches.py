"""Norms and pooling of large batches of images, forward and with the backward pass, paired with torch.nn.

python tests/benchmarks/large_batches.py [--repeats 31] [--device cuda]
"""

import argparse
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _pairing import header, paired, table
from torch import Tensor

from purenn import ops
from purenn.layers import MaxPool2d, max_pool2d

Function = Callable[[Tensor, Tensor, Tensor], Tensor]

SHAPES = [(64, 64, 32, 32), (75, 64, 28, 28), (16, 64, 56, 56)]
FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "batch norm": (
        lambda x, w, b: ops.batch_norm(x, None, None, w, b)[0],
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
    ),
    "instance norm": (
        lambda x, w, b: ops.instance_norm(x, None, None, w, b)[0],
        lambda x, w, b: F.instance_norm(x, None, None, w, b),
    ),
    "max pooling by 2": (
        lambda x, w, b: max_pool2d(MaxPool2d(2), x),
        lambda x, w, b: F.max_pool2d(x, 2),
    ),
}


def gradients(function: Function, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward and backward pass."""
    return torch.autograd.grad(function(*inputs).sum(), inputs, allow_unused=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(header("Norms and pooling of large batches", options.device))
    rows = [["function", "shape", "pass", "purenn", "torch.nn", "ratio", "quartiles"]]
    for name, (ours, theirs) in FUNCTIONS.items():
        for shape in SHAPES:
            x = torch.randn(shape, device=options.device)
            inputs = x, *(torch.randn(shape[1], device=options.device) for _ in range(2))
            learned = tuple(tensor.clone().requires_grad_() for tensor in inputs)
            calls = {
                "forward": [functools.partial(function, *inputs) for function in (ours, theirs)],
                "and backward": [functools.partial(gradients, function, learned) for function in (ours, theirs)],
            }
            for label, (first, second) in calls.items():
                r = paired(first, second, repeats=options.repeats, number=1)
                times = (f"{seconds * 1e3:.2f} ms" for seconds in (r.first, r.second))
                sizes = "x".join(map(str, shape))
                rows.append([name, sizes, label, *times, f"{r.ratio:.3f}", f"{r.low:.3f} to {r.high:.3f}"])
    print(table(rows))


if __name__ == "__main__":
    main()
