"""A step of Adam on a tree, paired with torch.optim.Adam(fused=True) on the same tensors.

python tests/benchmarks/optimizers.py [--device cuda] [--quick]
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from _pairing import Ratio, header, paired, table
from torch import Tensor

import purenn as pn

Shapes = list[tuple[int, ...]]


@pn.container
class Model:
    """Any number of tensors to train."""

    layers: tuple[Tensor, ...]


def tiny_shapes() -> Shapes:
    """As many leaves as ResNet-50 has, of almost no size: what is measured is the work around the kernels."""
    return [(4, 4)] * 161


def resnet50_shapes() -> Shapes:
    """The shapes of ResNet-50's 161 parameters, 25.6 million numbers."""

    def norm(width: int) -> Shapes:
        return [(width,), (width,)]

    shapes: Shapes = [(64, 3, 7, 7), *norm(64)]
    width_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, width_in, 1, 1), *norm(width), (width, width, 3, 3), *norm(width)]
            shapes += [(4 * width, width, 1, 1), *norm(4 * width)]
            if block == 0:
                shapes += [(4 * width, width_in, 1, 1), *norm(4 * width)]
            width_in = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def stepper(p: Model, grads: Model, optimizer: pn.optim.GradientTransformation, donate: bool) -> Callable[[], None]:
    """A function that makes one step from where the last one ended."""
    held: list[Any] = [p, optimizer.init(p)]

    def step() -> None:
        held[:] = optimizer.step(held[0], grads, held[1], donate=donate)

    return step


def torch_step(p: Model, grads: Model) -> Callable[[], Any]:
    """A step of torch.optim's fused Adam on copies of the same tensors."""
    leaves = [leaf.clone().requires_grad_() for leaf in pn.tree.leaves(p)]
    for leaf, grad in zip(leaves, pn.tree.leaves(grads), strict=True):
        leaf.grad = grad
    return torch.optim.Adam(leaves, fused=True).step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see that it runs")
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(1)
    print(header("A step of Adam on 161 leaves", device))

    rows = [["leaves", "storage", "purenn", "torch.optim fused", "ratio", "quartiles", "goal"]]
    goals = {"tiny": ("0.6", "0.05", "1.5"), "ResNet-50": ("0.95", "0.9", "2.7")}
    for name, shapes, number in (("tiny", tiny_shapes(), 20), ("ResNet-50", resnet50_shapes(), 1)):
        p = Model(tuple([torch.randn(shape, device=device) * 0.01 for shape in shapes]))
        grads = pn.tree.map(torch.randn_like, p)
        optimizer = pn.optim.adam(1e-3)
        donated, flat, pure = goals[name]
        for storage, given, given_grads, donate, goal in (
            ("donated", p, grads, True, donated),
            ("contiguous, donated", pn.tree.contiguous(p), pn.tree.contiguous(grads), True, flat),
            ("pure", p, grads, False, pure),
        ):
            ours = stepper(pn.tree.map(torch.clone, given) if given is p else given, given_grads, optimizer, donate)
            measure = functools.partial(paired, ours, torch_step(p, grads), number=number)
            r: Ratio = measure(repeats=7 if arguments.quick else 31)
            rows.append(
                [
                    name,
                    storage,
                    f"{r.first * 1e3:.3f} ms",
                    f"{r.second * 1e3:.3f} ms",
                    f"{r.ratio:.3f}",
                    f"{r.low:.3f} to {r.high:.3f}",
                    goal,
                ]
            )
    print(table(rows))


if __name__ == "__main__":
    main()
