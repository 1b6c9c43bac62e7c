"""What a call of `pn.jit` costs, paired with eager, with torch.compile of the same function, and with JAX's jit.

    python tests/benchmarks/jit.py [--repeats 31] [--device cuda]

The functions do next to nothing on trees of 160 leaves, so that what is left is the cost of a call, and of tracing and
compiling. JAX needs the extra `bench`; it has Equinox's own layers. Training steps are in `jit_models.py`.
"""

import argparse
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from _compiling import first_call, jax_side, one_thread, warm_up
from _pairing import header, paired, table
from torch import Tensor

import purenn as pn
from purenn.layers import Linear, linear

LAYERS, WIDTH, SAMPLES = 80, 4, 8


def scale(p: Any) -> Any:
    """Trivial work on many leaves."""
    return pn.tree.map(lambda leaf: leaf * 0.5, p)


def loss(p: tuple[Linear, ...], x: Tensor) -> Tensor:
    """The mean square of a deep stack's output."""
    for layer in p:
        x = linear(layer, x).relu()
    return x.square().mean()


def jax_calls(jax: ModuleType | None, x: Tensor) -> list[Callable[[], Any] | None]:
    """The same two functions in JAX, if there is one."""
    if jax is None:
        return [None, None]
    layers = jax.tiny_layers(LAYERS, WIDTH)
    return [
        partial(jax.jitted(jax.scale), layers),
        partial(jax.jitted(jax.per_sample_gradients), layers, jax.copied(x)),
    ]


def measured(
    name: str, fn: Callable[..., Any], args: tuple[Any, ...], jax: Callable[[], Any] | None, repeats: int
) -> list[list[str]]:
    """The rows of one function."""
    ours = partial(pn.jit(fn), *args)
    others: dict[str, Callable[[], Any]] = {
        "eager": partial(fn, *args),
        "torch.compile": partial(torch.compile(fn, fullgraph=True), *args),
        **({} if jax is None else {"JAX": jax}),
    }
    first = first_call(ours)
    rows = []
    for against, call in others.items():
        seconds = first_call(call) if against != "eager" else None
        r = paired(ours, call, repeats=repeats, number=3)
        compiling = ["-"] * 3 if seconds is None else [f"{first:.2f} s", f"{seconds:.2f} s", f"{first / seconds:.2f}"]
        times = f"{r.first * 1e6:.0f} us", f"{r.second * 1e6:.0f} us"
        rows.append([name, against, *times, f"{r.ratio:.3f}", f"{r.low:.3f} to {r.high:.3f}", *compiling])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    one_thread(options.device)
    print(header("jit: calls and first calls", options.device))
    jax = jax_side(options.device)
    print(f"{'No JAX here' if jax is None else jax.NAMES}\n")
    layers = tuple(Linear.init(key, WIDTH, WIDTH) for key in pn.random.split(pn.random.key(0, options.device), LAYERS))
    x = pn.random.normal(pn.random.key(1, options.device), (SAMPLES, WIDTH))
    warm_up(options.device)
    rows = [["what", "against", "jit", "the other", "ratio", "quartiles", "first call: jit", "the other", "ratio"]]
    of_scale, of_gradients = jax_calls(jax, x)
    rows += measured(f"trivial work on {2 * LAYERS} leaves", scale, (layers,), of_scale, options.repeats)
    per_sample = pn.vmap(pn.grad(loss), (None, 0))
    name = f"vmap(grad), {LAYERS} layers"
    rows += measured(name, per_sample, (layers, x), of_gradients, options.repeats)
    print(table(rows))
    print(
        "\nGoals: trivial work in at most half of torch.compile's time and at most 50 us more than JAX's; the first "
        "call\nof vmap(grad) in at most 0.6 of torch.compile's."
    )


if __name__ == "__main__":
    main()
