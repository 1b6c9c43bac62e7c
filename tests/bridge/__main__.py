"""``python -m tests.bridge classes|huggingface``: check the bridge on many modules, and print a table."""

import argparse
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "conformance"), str(_HERE.parent / "layers")]


def main() -> int:
    """Check, print, and say by the exit code whether something failed without a reason."""
    parser = argparse.ArgumentParser(prog="python -m tests.bridge", description=__doc__)
    parser.add_argument("what", choices=("classes", "huggingface"))
    parser.add_argument("--samples", type=int, default=24, help="of each class of torch.nn, at most")
    parser.add_argument("--only", nargs="+", help="names of classes or architectures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "huggingface":
        from _huggingface import print_table

        return print_table(options.only)
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)
    warnings.simplefilter("error")
    for deprecated in ("`torch.jit.script(_method)?` is deprecated", ".*should not be instantiated"):
        warnings.filterwarnings("ignore", deprecated, DeprecationWarning)
    return _classes(options.samples, options.only)


def _classes(count: int, only: list[str] | None) -> int:
    from _opaque_cases import COLUMNS, EXCEPTIONS, OpaqueCase, opaque_samples
    from _rows import ROWS

    passed: Counter[str] = Counter()
    total = failures = 0
    for row in only or ROWS:
        for sample in opaque_samples(row, count):
            total += 1
            for column, check in COLUMNS.items():
                try:
                    check(OpaqueCase.of(sample))
                    passed[column] += 1
                # Whatever goes wrong is the result.
                except Exception as error:
                    reason = EXCEPTIONS.get((row, column, sample.name))
                    failures += reason is None
                    text = reason or f"{type(error).__name__}: {' '.join(str(error).split())}"
                    print(f"{row} {sample.name}, {column}: {text}", flush=True)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    print("| " + " | ".join(f"{passed[column]} of {total}" for column in COLUMNS) + " |")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
