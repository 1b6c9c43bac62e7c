"""Meta-gradients by MAML: against plain forms of torch.autograd, higher, learn2learn, TorchOpt, and against JAX.

    python tests/benchmarks/meta.py [--only eager|jitted|conv4|memory] [--repeats 15] [--device cuda]

The problems are those of `_meta_tasks.py`; peers that are not installed are left out. All gradients are compared with
torch.autograd's before anything is timed. The sinusoid in eager is timed with several calls in a row, as the steps of a
training follow each other, and once more in turn with the other, call by call. ``--first-call how steps unroll`` prints
the seconds of a first call in this process, with the cache that the environment names; the benchmark runs it for the
warm second process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _compiling import first_call, jax_side, one_thread, warm_up
from _meta_peers import peers
from _meta_tasks import Problem, autograd_loop, batched_by_hand, conv4, ours, sinusoid, sum_of_tasks
from _pairing import header, paired, peak_bytes, table

import purenn as pn

HEADING = ["what", "against", "ours", "the other", "ratio", "quartiles"]
MEGABYTE = 2**20
# How many are timed in a row.
CALLS = 20
IN_A_ROW = f"{CALLS} in a row"


def differing(found: Any, expected: Any) -> str:
    """The largest difference of two gradients, as a part of the largest number."""
    pairs = list(zip(pn.tree.leaves(found), expected, strict=True))
    largest = max(float(b.abs().max()) for _, b in pairs)
    return f"{max(float((a - b).abs().max()) for a, b in pairs) / largest:.0e}"


def row(
    what: str, against: str, first: Callable[[], Any], second: Callable[[], Any], repeats: int, calls: int = 1
) -> list[str]:
    """A row of a paired measurement, of so many calls of one and then of the other."""
    r = paired(first, second, repeats=repeats, number=calls)
    times = f"{r.first * 1e3:.2f} ms", f"{r.second * 1e3:.2f} ms"
    return [what, against, *times, f"{r.ratio:.3f}", f"{r.low:.3f} to {r.high:.3f}"]


def correctness(make: Callable[..., Problem], device: torch.device, steps: int) -> None:
    """Print how far all ways are from torch.autograd in float64."""
    problem = make(device, torch.float64)
    expected = autograd_loop(problem, steps)()
    for how in ("vmap", "sum", "loop"):
        for options in ({}, {"unroll": "scan"}, {"unroll": "vjp"}):
            found = ours(problem, steps, how, **options)(problem.p, *problem.data)
            print(
                f"{make.__name__}, {how}, {options or 'unrolled'}: differs by {differing(found, expected)} in float64"
            )


def eager(device: torch.device, repeats: int) -> list[list[str]]:
    """The sinusoid problem without a compiler."""
    correctness(sinusoid, device, 5)
    problem = sinusoid(device)
    loop = autograd_loop(problem, 5)
    forms: dict[str, Callable[[], Any]] = {
        f"eager, {how}": partial(ours(problem, 5, how), problem.p, *problem.data) for how in ("sum", "vmap", "loop")
    }
    forms["eager, sum, scan"] = partial(ours(problem, 5, "sum", unroll="scan"), problem.p, *problem.data)
    forms["stacked, torch.vmap"], forms["stacked, by hand"] = sum_of_tasks(problem, 5), batched_by_hand(problem, 5)
    rows, few = [HEADING], max(repeats // 3, 5)
    for name, form in forms.items():
        print(f"{name}: differs by {differing(form(), loop())}")
        for calls, timed, pairs in ((CALLS, IN_A_ROW, few), (1, "in turn", repeats)):
            rows.append(row(f"{name}, {timed}", "torch.autograd, a loop", form, loop, pairs, calls))
    for name, peer in peers(problem, 5).items():
        for mine in ("eager, sum", "eager, sum, scan"):
            rows.append(row(f"{mine}, {IN_A_ROW}", name, forms[mine], peer, few, CALLS))
    return rows


def jitted(device: torch.device, repeats: int) -> list[list[str]]:
    """The sinusoid problem compiled, with 5 and 20 steps."""
    warm_up(device)
    jax = jax_side(device)
    rows = [[*HEADING, "first call", "the other"]]
    for steps in (5, 20):
        problem = sinusoid(device)
        expected = autograd_loop(problem, steps)()
        others: dict[str, Callable[[], Any]] = {"torch.autograd, a loop": autograd_loop(problem, steps)}
        if jax is not None:
            import _meta_jax

            others |= _meta_jax.gradients(problem, steps)
        seconds = {name: _seconds(call) for name, call in others.items()}
        for how, unroll in [("sum", "scan"), ("vmap", "scan"), ("sum", 5), ("vmap", 5)]:
            call = partial(pn.jit(ours(problem, steps, how, unroll=unroll)), problem.p, *problem.data)
            first = first_call(call)
            print(f"{steps} steps, {how}, {unroll}: differs by {differing(call(), expected)}")
            for name, other in others.items():
                measured = row(f"{steps} steps, {how}, {unroll}", name, call, other, repeats)
                rows.append([*measured, f"{first:.1f} s", f"{seconds[name]:.1f} s"])
    with tempfile.TemporaryDirectory() as folder:
        texts = [_in_new_process(folder) for _ in range(2)]
    print(
        f"first call in a new process, 5 steps, sum, scan: {texts[0]} s; in a second one with its cache: {texts[1]} s"
    )
    return rows


def _seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _in_new_process(folder: str) -> str:
    command = [sys.executable, __file__, "--first-call", "sum", "5", "scan"]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()[-1]


def first_call_here(device: torch.device, how: str, steps: int, unroll: str) -> None:
    """Print the processor seconds of a first call in this process."""
    problem = sinusoid(device)
    call = partial(pn.jit(ours(problem, steps, how, unroll=unroll)), problem.p, *problem.data)
    before = os.times()
    call()
    after = os.times()
    print(f"{sum(after[:4]) - sum(before[:4]):.1f}")


def convolutions(device: torch.device, repeats: int) -> list[list[str]]:
    """The conv4 problem: time and memory."""
    correctness(conv4, device, 2)
    problem = conv4(device)
    rows = [[*HEADING, "our peak", "its peak"]]
    others = {"torch.autograd, a loop": autograd_loop(problem, 5), **peers(problem, 5)}
    calls = {"auto": {}, "auto, vjp": {"unroll": "vjp"}}
    for number, (name, options) in enumerate(calls.items()):
        call = partial(ours(problem, 5, "auto", **options), problem.p, *problem.data)
        peak = peak_bytes(call, device) / MEGABYTE
        for other_name, other in others.items() if not number else [*others.items()][:1]:
            theirs = peak_bytes(other, device) / MEGABYTE
            measured = row(f"conv4, {name}", other_name, call, other, max(repeats // 3, 3))
            rows.append([*measured, f"{peak:.0f} MiB", f"{theirs:.0f} MiB"])
    return rows


def memory(device: torch.device, repeats: int) -> list[list[str]]:
    """Peak memory by the number of inner steps."""
    rows = [["what", "1 step", "5 steps", "20 steps", "growth"]]
    for name, make, how in (("sinusoid", sinusoid, "sum"), ("conv4", conv4, "loop")):
        problem = make(device)
        for options in ({}, {"remat": True}, {"unroll": "vjp"}):
            peaks = [
                peak_bytes(partial(ours(problem, steps, how, **options), problem.p, *problem.data), device) / MEGABYTE
                for steps in (1, 5, 20)
            ]
            label = ", ".join([name, how, *(f"{key}={value}" for key, value in options.items())])
            rows.append([label, *(f"{peak:.1f} MiB" for peak in peaks), f"{peaks[2] / peaks[0]:.2f}"])
    return rows


PARTS = {"eager": eager, "jitted": jitted, "conv4": convolutions, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*PARTS], action="append", help="a part; may be given several times")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--first-call", nargs=3, metavar=("HOW", "STEPS", "UNROLL"))
    options = parser.parse_args()
    one_thread(options.device)
    if options.first_call:
        how, steps, unroll = options.first_call
        first_call_here(options.device, how, int(steps), unroll)
        return
    print(header("Meta-gradients", options.device))
    for name in options.only or PARTS:
        found = PARTS[name](options.device, options.repeats)
        print(f"\n{table(found)}\n", flush=True)


if __name__ == "__main__":
    main()
