"""Gradients of deep stacks with `pn.remat`: peak memory and time against torch.func.grad and plain autograd.

    python tests/benchmarks/remat.py [--only blocks] [--repeats 7] [--device cuda]

The stacks have 32 layers whose outputs are far larger than their parameters.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _compiling import one_thread
from _pairing import header, paired, peak_bytes, table
from torch import Tensor

import purenn as pn
from purenn.layers import GELU, LayerNorm, Linear, Sequential, Stack

LAYERS, WIDTH, BATCH = 32, 64, 2048


def perceptron(key: Tensor) -> Sequential:
    """A linear map and a GELU: of what such a layer keeps, its input is half."""
    return Sequential.of(Linear.init(key, WIDTH, WIDTH), GELU())


def block(key: Tensor) -> Sequential:
    """A normalisation and an MLP with a hidden layer of four times the width: its input is a tenth of what it keeps."""
    k1, k2 = pn.random.split(key)
    return Sequential.of(
        *(LayerNorm.init(WIDTH, device=key.device), Linear.init(k1, WIDTH, 4 * WIDTH), GELU()),
        Linear.init(k2, 4 * WIDTH, WIDTH),
    )


def in_turn(layers: tuple[Any, ...], x: Tensor) -> Tensor:
    """The layers one after the other."""
    for layer in layers:
        x = layer(x)
    return x


def recomputed(layers: tuple[Any, ...], x: Tensor) -> Tensor:
    """The same, each one computed again in the backward pass."""
    for layer in layers:
        x = pn.remat(in_turn)((layer,), x)
    return x


def loss_of(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The mean square of a forward function's result."""
    return lambda p, x: forward(p, x).square().mean()


def by_hand(layers: tuple[Any, ...], x: Tensor) -> Callable[[], Any]:
    """The gradient of the plain stack as one writes it without the library."""
    own = pn.tree.map(lambda leaf: leaf.clone().requires_grad_(), layers)
    leaves = pn.tree.leaves(own)
    return lambda: torch.autograd.grad(loss_of(in_turn)(own, x), leaves)


def cases(make: Callable[[Tensor], Any], every: int, x: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ours and the others by name, as functions without arguments; `every` layers are computed again at once."""

    def group(key: Tensor) -> Sequential:
        return Sequential.of(*(make(part) for part in pn.random.split(key, every)))

    stacked = Stack.init(pn.random.key(0, x.device), LAYERS // every, group, remat=True)
    layers = stacked.unstacked()
    apply = loss_of(lambda p, x: p(x))
    ours = {
        "pn.grad, Stack(remat=True)": partial(pn.grad(apply), stacked, x),
        "pn.grad, pn.remat": partial(pn.grad(loss_of(recomputed)), layers, x),
        "pn.jit(pn.grad), Stack": partial(pn.jit(pn.grad(apply)), stacked, x),
        "pn.jit(pn.grad), pn.remat": partial(pn.jit(pn.grad(loss_of(recomputed))), layers, x),
    }
    others = {
        "torch.func.grad": partial(torch.func.grad(loss_of(in_turn)), layers, x),
        "torch.autograd.grad": by_hand(layers, x),
    }
    return ours, others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"blocks": (block, 1), "linear": (perceptron, 1), "linear, by fours": (perceptron, 4)}
    parser.add_argument("--only", choices=[*kinds])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    one_thread(options.device)
    print(header(f"Recomputation: {LAYERS} layers of width {WIDTH}, batch {BATCH}", options.device))
    x = pn.random.normal(pn.random.key(1, options.device), (BATCH, WIDTH))
    rows = [["stack", "ours", "peak", "of torch.func.grad's", "of autograd's", "time", "of torch.func.grad's"]]
    rows[0] += ["of autograd's", "quartiles"]
    for kind in [options.only] if options.only else kinds:
        ours, others = cases(*kinds[kind], x)
        theirs = [peak_bytes(call, options.device) for call in others.values()]
        for name, call in ours.items():
            mine = peak_bytes(call, options.device)
            ratios = [paired(call, other, repeats=options.repeats) for other in others.values()]
            rows.append(
                [
                    *(kind, name, f"{mine / 2**20:.1f} MiB", *(f"{mine / other:.3f}" for other in theirs)),
                    *(f"{ratios[1].first * 1e3:.0f} ms", *(f"{r.ratio:.3f}" for r in ratios)),
                    f"{ratios[1].low:.3f} to {ratios[1].high:.3f}",
                ]
            )
    print(table(rows))
    print(
        "\nGoals: peak memory at most 0.2 of torch.func.grad's and 0.4 of autograd's, time at most 1.5 of autograd's."
    )


if __name__ == "__main__":
    main()
