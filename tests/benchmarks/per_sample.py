"""Per-sample gradients, paired with the ordinary forward and backward pass of the same batch, and what peers need.

python tests/benchmarks/per_sample.py [--device cuda] [--models mlp cnn encoder wide] [--without-peers] [--repeats 15]

Peers: torch.func, Opacus, BackPACK, JAX (extra bench-peers). Memory is what a step holds at most over what it started
with; of JAX, which has its own allocator, it is not measured. glibc is told to keep freed memory: which step finds it
taken away is chance, and fresh pages cost a virtual machine more than the gradients.
"""

import argparse
import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from _pairing import header, paired, peak_bytes, table
from _per_sample_models import Model, cnn, encoder, mlp, wide_encoder
from _per_sample_peers import CLIPPED, fisher_by_vmap, gradients_by_vmap, gram_by_vmap
from torch import Tensor

import purenn as pn

MODELS: dict[str, tuple[str, Callable[[torch.device], Model]]] = {
    "mlp": ("MLP 784-512-512-10, B=256", mlp),
    "cnn": ("GroupNorm CNN 32x32, B=64", cnn),
    "encoder": ("encoder of 4 layers, d=128, T=64, B=32", encoder),
    "wide": ("encoder of 4 layers, d=512, T=64, B=16", wide_encoder),
}
#: Goals: what -> model -> (eager, jitted).
GOALS: dict[str, dict[str, tuple[str, str]]] = {
    "clipped sum": {
        "mlp": ("1.10", "1.03"),
        "cnn": ("1.12", "-"),
        "encoder": ("1.20", "1.08"),
        "wide": ("1.10", "1.05"),
    },
    "all gradients": {"cnn": ("1.06", "-"), "encoder": ("1.14", "0.94")},
    "Gram matrix": {"mlp": ("1.4", "-")},
    "diagonal Fisher": {"mlp": ("1.7", "-")},
}


#: Traced once, then torch's own kernels without a compiler.
BY_OPERATION = 'purenn, pn.jit(backend="eager")'


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory, and to serve all but the largest requests from it; no other C library."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        mmap_threshold, trim_threshold = -3, -1
        set_option(mmap_threshold, 32 << 20)
        set_option(trim_threshold, 2**31 - 1)


def in_module_order(model: Model, tree: Any) -> list[Tensor]:
    """The leaves of a tree like the parameters, in the order of the module's."""
    named = dict(pn.tree.named_leaves(tree))
    return [named[name] for name, _ in model.module.named_parameters()]


def largest_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest number of each tensor."""
    return max(
        float((a.cpu() - b.cpu()).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(found, wanted, strict=True)
    )


def floor_of(model: Model) -> Callable[[], Any]:
    """The ordinary forward and backward pass of the batch."""
    own = optree.tree_map(lambda leaf: leaf.detach().clone().requires_grad_(), model.p)
    leaves = optree.tree_leaves(own)
    return lambda: torch.autograd.grad(model.total(own, *model.batch), leaves)


def row(name: str, call: Callable[[], Any], floor: Callable[[], Any], goal: str, args: argparse.Namespace) -> list[str]:
    """One line of the table."""
    ratio = paired(call, floor, repeats=args.repeats)
    memory = "-" if name.startswith("JAX") else f"{peak_bytes(call, args.device) / 2**20:.0f}"
    quartiles = f"{ratio.low:.2f} to {ratio.high:.2f}"
    return [name, f"{ratio.first * 1e3:.1f} ms", f"{ratio.ratio:.2f}", quartiles, memory, goal]


def ours(what: str, model: Model, bound: float) -> Callable[[Any, Any], Any]:
    """Our function of parameters and batch."""
    record = functools.partial(pn.per_sample.record, model.loss)
    return {
        "clipped sum": pn.per_sample.clipped_grad(model.loss, bound),
        "all gradients": pn.per_sample.grads(model.loss),
        "Gram matrix": lambda p, batch: record(p, batch).gram(),
        "diagonal Fisher": lambda p, batch: record(p, batch).second_moment(),
    }[what]


def peers_of(what: str) -> dict[str, Callable[..., Any]]:
    """Those that compute it."""
    others = {"all gradients": gradients_by_vmap, "Gram matrix": gram_by_vmap, "diagonal Fisher": fisher_by_vmap}
    return dict(CLIPPED) if what == "clipped sum" else {"vmap(grad)": others[what]}


def rows_of(what: str, short: str, model: Model, args: argparse.Namespace) -> list[list[str]]:
    """Ours, and the peers' if they agree with ours; otherwise why not."""
    floor = floor_of(model)
    bound = statistics.median(pn.per_sample.norms(model.loss)(model.p, model.batch).tolist())
    goals = GOALS[what].get(short, ("-", "-"))
    function = ours(what, model, bound)
    rows = [row("purenn, eager", functools.partial(function, model.p, model.batch), floor, goals[0], args)]
    by_operation = pn.jit(function, backend="eager")
    rows.append(row(BY_OPERATION, functools.partial(by_operation, model.p, model.batch), floor, goals[0], args))
    jitted = pn.jit(function)
    rows.append(row("purenn, jitted", functools.partial(jitted, model.p, model.batch), floor, goals[1], args))
    if (what, short) == ("clipped sum", "encoder"):
        in_halves = pn.jit(pn.per_sample.clipped_grad(model.loss, bound, microbatch=16))
        call = functools.partial(in_halves, model.p, model.batch)
        rows.append(row("the same, microbatches of 16", call, floor, goals[1], args))
    found = function(model.p, model.batch)
    wanted = [found] if isinstance(found, Tensor) else in_module_order(model, found)
    for name, make in {} if args.without_peers else peers_of(what).items():
        try:
            step = make(model, bound) if what == "clipped sum" else make(model)
            error = largest_error(step(), wanted)
            if error > 1e-2:
                raise ArithmeticError(f"wrong by {error:.0e}")
            rows.append(row(name, step, floor, "-", args))
        except Exception as reason:  # a peer may fail in any way; the table says how
            rows.append([name, "-", "-", "-", "-", f"{type(reason).__name__}: {str(reason).splitlines()[0][:70]}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--what", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--default-allocator", action="store_true", help="let glibc return freed memory as it likes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.default_allocator:
        keep_freed_memory()
    logging.disable(logging.WARNING)
    print(header("Per-sample gradients, times the ordinary forward and backward pass", args.device))
    installed = [
        name for name in ("opacus", "backpack-for-pytorch", "jax") if importlib.util.find_spec(name.split("-")[0])
    ]
    print("peers: " + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in installed) + "\n")
    for short in args.models:
        title, make = MODELS[short]
        model = make(args.device)
        memory = peak_bytes(floor_of(model), args.device) / 2**20
        print(f"**{title}**, ordinary pass {memory:.0f} MiB\n")
        for what in args.what:
            if what in ("Gram matrix", "diagonal Fisher") and short != "mlp":
                continue
            heading = [what, "time", "x ordinary", "quartiles", "MiB", "goal"]
            print(table([heading, *rows_of(what, short, model, args)]) + "\n", flush=True)


if __name__ == "__main__":
    main()
