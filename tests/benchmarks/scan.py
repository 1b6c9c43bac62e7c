"""`layers.Stack` under jit: how trace and compile time grow with the number of layers, and what a step costs.

    python tests/benchmarks/scan.py [--only mlp] [--repeats 3] [--device cuda]

The layers are MLP blocks or layers of a transformer encoder, and what is compiled is the gradient of the whole stack.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from _compiling import first_call, one_thread, warm_up
from _pairing import header, paired, table
from torch import Tensor

import purenn as pn
from purenn.layers import GELU, LayerNorm, Linear, Sequential, Stack, TransformerEncoderLayer

NUMBERS = (4, 8, 16, 32)
# So many layers for the time of a step: each one more costs the compiler of an unrolled stack seconds.
DEPTH = 8


class Kind(NamedTuple):
    """A kind of layers and an input for them."""

    make: Callable[[Tensor, float], Any]
    shape: tuple[int, ...]

    def stack(self, number: int, device: torch.device) -> Stack:
        """So many layers.

        `pn.jit` compiles equal steps of loops once in a process, however many layers and functions there are. An eps
        of its own makes every stack's layers differ from all others'.
        """
        eps = 1e-5 + 1e-8 * next(_numbers)
        return Stack.init(pn.random.key(0, device), number, lambda key: self.make(key, eps))


_numbers = itertools.count()


def block(key: Tensor, eps: float) -> Sequential:
    """A normalisation and an MLP."""
    k1, k2 = pn.random.split(key)
    norm = LayerNorm.init(64, eps=eps, device=key.device)
    return Sequential.of(norm, Linear.init(k1, 64, 256), GELU(), Linear.init(k2, 256, 64))


def encoder_layer(key: Tensor, eps: float) -> TransformerEncoderLayer:
    """A layer of an encoder, d = 64, 4 heads."""
    return TransformerEncoderLayer.init(
        *(key, 64, 4, 256, 0.0), activation="gelu", layer_norm_eps=eps, batch_first=True, norm_first=True
    )


KINDS = {"mlp": Kind(block, (128, 64)), "transformer": Kind(encoder_layer, (8, 32, 64))}


def gradient_of(forward: Callable[..., Tensor]) -> Callable[..., Any]:
    """The gradient of the mean square of what comes out."""
    return pn.grad(lambda p, x: forward(p, x).square().mean())


def apply(p: Any, x: Tensor) -> Tensor:
    """A layer's own function."""
    return p(x)


def first_calls(kind: Kind, device: torch.device, repeats: int) -> dict[int, float]:
    """For each number of layers the median seconds of a first call; strictly in turn."""
    x = torch.ones(kind.shape, device=device)
    # The first loop of all pays for what compilers start when they need it.
    first_call(pn.jit(gradient_of(apply)), kind.stack(2, device), x)
    seconds = [
        {number: first_call(pn.jit(gradient_of(apply)), kind.stack(number, device), x) for number in NUMBERS}
        for _ in range(repeats)
    ]
    return {number: statistics.median(each[number] for each in seconds) for number in NUMBERS}


def steps(name: str, kind: Kind, device: torch.device, repeats: int) -> list[list[str]]:
    """Rows of the time of a step of the jitted stack, against its layers one by one."""
    stack = kind.stack(DEPTH, device)
    layers, x = Sequential.of(*stack.unstacked()), torch.ones(kind.shape, device=device)
    jitted, unrolled = pn.jit(gradient_of(apply)), pn.jit(gradient_of(apply))
    seconds = first_call(jitted, stack, x), first_call(unrolled, layers, x)
    ours = partial(jitted, stack, x)
    rows = []
    for against, call, compiling in (
        ("unrolled, jitted", partial(unrolled, layers, x), f"{seconds[1]:.1f} s"),
        ("unrolled, eager", partial(gradient_of(apply), layers, x), "-"),
        ("the stack, eager", partial(gradient_of(apply), stack, x), "-"),
    ):
        r = paired(ours, call, repeats=repeats)
        times = f"{r.first * 1e3:.2f} ms", f"{r.second * 1e3:.2f} ms"
        rows.append([name, against, *times, f"{r.ratio:.3f}", f"{r.low:.3f} to {r.high:.3f}"])
        rows[-1] += [f"{seconds[0]:.1f} s", compiling]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*KINDS])
    parser.add_argument("--repeats", type=int, default=3, help="first calls; there are 10 times as many steps")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    one_thread(options.device)
    print(header("Stacks of equal layers under jit", options.device))
    warm_up(options.device)
    compiled = [["trace and compile", *(f"{number} layers" for number in NUMBERS), "last / first"]]
    timed = [["layers", "against", "jit(grad), Stack", "the other", "ratio", "quartiles", "first call", "the other"]]
    for name in [options.only] if options.only else KINDS:
        found = first_calls(KINDS[name], options.device, options.repeats)
        ratio = found[NUMBERS[-1]] / found[NUMBERS[0]]
        compiled.append([name, *(f"{seconds:.1f} s" for seconds in found.values()), f"{ratio:.2f}"])
        timed += steps(f"{DEPTH}, {name}", KINDS[name], options.device, 10 * options.repeats)
    print(f"{table(compiled)}\n\nGoal: at most 1.3.\n\n{table(timed)}")


if __name__ == "__main__":
    main()
