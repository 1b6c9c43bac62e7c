"""The gradient at the outermost level, paired with torch.autograd.grad written by hand and with torch.func.grad.

python tests/benchmarks/gradients.py [--device cuda]
"""

import argparse
import functools

import optree
import torch
from _pairing import header, paired, peak_bytes, table
from torch import Tensor

import purenn as pn
from purenn.layers import Linear, linear


def loss(p: tuple[Linear, ...], x: Tensor) -> Tensor:
    """A stack of linear layers and ReLUs."""
    for layer in p:
        x = linear(layer, x).relu()
    return x.square().mean()


def stack(n: int, width: int, device: torch.device) -> tuple[Linear, ...]:
    """`n` square layers."""
    return tuple(Linear.init(key, width, width) for key in pn.random.split(pn.random.key(0, device), n))


def differentiated_by_hand(p: tuple[Linear, ...], leaves: list[Tensor], x: Tensor) -> tuple[Tensor, ...]:
    """What one would write without the library, with leaves that require grad already."""
    return torch.autograd.grad(loss(p, x), leaves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    device = parser.parse_args().device
    torch.set_num_threads(1)
    print(header("Gradients at the outermost level", device))

    rows = [["what", "purenn", "the other", "ratio", "quartiles", "goal"]]
    for name, (n, width, batch) in {
        "time, 160 leaves": (80, 16, 16),
        "time, 160 leaves, wider": (80, 64, 64),
    }.items():
        p, x = stack(n, width, device), torch.randn(batch, width, device=device)
        ours, raw = pn.grad(loss), torch.func.grad(loss)
        own = optree.tree_map(lambda leaf: leaf.clone().requires_grad_(), p)
        by_hand = functools.partial(differentiated_by_hand, own, optree.tree_leaves(own), x)
        for other, call, goal in (
            ("torch.autograd.grad", by_hand, "1.2"),
            ("torch.func.grad", functools.partial(raw, p, x), "-"),
        ):
            r = paired(functools.partial(ours, p, x), call, repeats=61, number=5)
            rows.append(
                [
                    f"{name}, against {other}",
                    f"{r.first * 1e6:.0f} us",
                    f"{r.second * 1e6:.0f} us",
                    f"{r.ratio:.3f}",
                    f"{r.low:.3f} to {r.high:.3f}",
                    goal,
                ]
            )

    p, x = stack(16, 64, device), torch.randn(8192, 64, device=device)
    own = optree.tree_map(lambda leaf: leaf.clone().requires_grad_(), p)
    mine = peak_bytes(lambda: pn.grad(loss)(p, x), device)
    for other, call, goal in (
        ("torch.autograd.grad", lambda: torch.autograd.grad(loss(own, x), optree.tree_leaves(own)), "1.1"),
        ("torch.func.grad", lambda: torch.func.grad(loss)(p, x), "-"),
    ):
        theirs = peak_bytes(call, device)
        rows.append(
            [
                f"peak memory, activation-heavy, against {other}",
                f"{mine / 2**20:.1f} MiB",
                f"{theirs / 2**20:.1f} MiB",
                f"{mine / theirs:.3f}",
                "-",
                goal,
            ]
        )
    print(table(rows))


if __name__ == "__main__":
    main()
