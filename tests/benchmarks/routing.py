"""Dynamic routing batched by vmap, paired with the form batched by hand: time, peak memory, and how far they differ.

    python tests/benchmarks/routing.py [--device cuda]

Batch 128, 1152 capsules of 8, 10 classes of 16, 3 iterations: the votes alone are 94.4 MB in float32.
"""

import argparse
from collections.abc import Callable

import torch
from _pairing import header, paired, peak_bytes, table
from torch import Tensor

import purenn as pn
from purenn.layers import dynamic_routing
from purenn.ops import squash

BATCH, IN_CAPS, OUT_CAPS, IN_DIM, OUT_DIM = 128, 1152, 10, 8, 16


def by_hand(W: Tensor, u: Tensor, iterations: int = 3) -> Tensor:
    """The same computation with the batch index written out in every product."""
    votes = torch.einsum("oidk,bik->boid", W, u)
    v = squash(votes.sum(2) / W.shape[0])
    state = v
    for iteration in range(1, iterations):
        c = torch.einsum("boid,bod->boi", votes, state).softmax(1)
        v = squash(torch.einsum("boi,boid->bod", c, votes))
        if iteration + 1 < iterations:
            state = state + v
    return v


def naive(W: Tensor, u: Tensor, iterations: int = 3) -> Tensor:
    """One example with torch.einsum: what vmap makes of it without `einsum2`."""
    return by_hand(W, u[None], iterations)[0]


def backward(routing: Callable[[Tensor, Tensor], Tensor], W: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward, with respect to both arguments."""
    leaves = (W.detach().requires_grad_(), u.detach().requires_grad_())
    return torch.autograd.grad(routing(*leaves).square().sum(), leaves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    device = parser.parse_args().device
    torch.set_num_threads(1)
    print(header("Dynamic routing batched by vmap", device))
    k1, k2 = pn.random.split(pn.random.key(0, device))
    W = 0.05 * pn.random.normal(k1, (OUT_CAPS, IN_CAPS, OUT_DIM, IN_DIM))
    u = 0.3 * pn.random.normal(k2, (BATCH, IN_CAPS, IN_DIM))
    vmapped = pn.vmap(dynamic_routing, (None, 0))
    without_primitive = pn.vmap(naive, (None, 0))

    W64, u64 = W.double(), u.double()
    apart = (vmapped(W64, u64) - by_hand(W64, u64)).abs().max()
    pairs = zip(backward(vmapped, W64, u64), backward(by_hand, W64, u64), strict=True)
    apart_gradients = max((a - b).abs().max() for a, b in pairs)
    print(f"float64: values differ by {apart:.1e}, gradients by {apart_gradients:.1e} (goal 1e-12)\n")

    votes = BATCH * OUT_CAPS * IN_CAPS * OUT_DIM * 4
    rows = [["what", "vmap", "by hand", "ratio", "quartiles", "peak / votes: vmap", "by hand", "vmap of torch.einsum"]]
    for name, call in (
        ("forward", lambda routing: routing(W, u)),
        ("forward + backward", lambda routing: backward(routing, W, u)),
    ):
        r = paired(lambda call=call: call(vmapped), lambda call=call: call(by_hand), repeats=15)
        peaks = [
            peak_bytes(lambda f=f, call=call: call(f), device) / votes for f in (vmapped, by_hand, without_primitive)
        ]
        rows.append(
            [
                name,
                f"{r.first * 1e3:.1f} ms",
                f"{r.second * 1e3:.1f} ms",
                f"{r.ratio:.3f}",
                f"{r.low:.3f} to {r.high:.3f}",
                *(f"{peak:.2f}" for peak in peaks),
            ]
        )
    print(table(rows))
    print("\nGoals: time and peak memory at most 1.1 of the form batched by hand.")


if __name__ == "__main__":
    main()
