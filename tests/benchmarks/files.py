"""Saving and loading a tree, paired with plain safetensors, and the most memory that each holds.

    python tests/benchmarks/files.py [--megabytes 1024] [--repeats 5] [--folder .]

Plain safetensors neither waits until the file is on the disk nor finds damage. So it is measured as it is, and with the
disk waited for. Both sides read every number that they have loaded. The peaks are of processes of their own, over what
each held before.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from _pairing import header, paired, table
from safetensors.torch import load_file, save_file

import purenn as pn
from purenn.layers import Linear

WIDTH = 2048


def tree_of(megabytes: int) -> tuple[Linear, ...]:
    """Layers of 16 MiB."""
    return tuple(Linear(torch.randn(WIDTH, WIDTH), torch.randn(WIDTH)) for _ in range(max(1, megabytes // 16)))


def ways(tree: tuple[Linear, ...], folder: Path) -> dict[str, Callable[[], float]]:
    """Ours first; each saves, loads, and reads what it has loaded."""

    def ours() -> float:
        pn.save(folder / "ours", tree)
        return sum(float(leaf.sum()) for leaf in pn.tree.leaves(pn.load(folder / "ours", like=tree)))

    def plain(*, flushed: bool) -> float:
        save_file(dict(pn.tree.named_leaves(tree)), folder / "plain")
        if flushed:
            with open(folder / "plain", "r+b") as file:
                os.fsync(file.fileno())
        return sum(float(leaf.sum()) for leaf in load_file(folder / "plain").values())

    return {
        "ours": ours,
        "safetensors": lambda: plain(flushed=False),
        "safetensors, on the disk": lambda: plain(flushed=True),
    }


def peak_of(name: str, megabytes: int, folder: Path) -> int:
    """The most bytes that one way holds, in a process of its own."""
    command = [sys.executable, __file__, "--only", name, "--megabytes", str(megabytes), "--folder", str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; a temporary one by default")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        tree = tree_of(options.megabytes)
        found = ways(tree, Path(folder))
        if options.only:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found[options.only]()
            print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
            return
        print(header(f"Files of {options.megabytes} MiB: save, load and read"))
        rows = [["against", "ours", "the other", "ratio", "quartiles", "peak: ours", "the other"]]
        size = sum(leaf.nbytes for leaf in pn.tree.leaves(tree))
        ours, *others = found
        peaks = {name: peak_of(name, options.megabytes, Path(folder)) / size for name in found}
        for name in others:
            r = paired(found[ours], found[name], repeats=options.repeats)
            quartiles = f"{r.low:.3f} to {r.high:.3f}"
            both = f"{peaks[ours]:.2f} x the tree", f"{peaks[name]:.2f}"
            rows.append([name, f"{r.first:.2f} s", f"{r.second:.2f} s", f"{r.ratio:.3f}", quartiles, *both])
        print(table(rows))
        print(
            "\nGoals: at most 1.25 of the time of safetensors, which is 0.8 of its speed; at most 1.1 of the tree in "
            "memory, mapped file and all."
        )


if __name__ == "__main__":
    main()
