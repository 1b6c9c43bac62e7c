"""Products of many small matrices under `pn.jit`, paired with the same where the compiler calls torch's `bmm` for them.

python tests/benchmarks/small_products.py [--repeats 301]
"""

import argparse
import functools

import torch
from _compiling import one_thread
from _pairing import header, paired, table
from torch import Tensor
from torch._inductor import config

import purenn as pn

# Products, rows, terms and columns.
SIZES = [
    (25, 10, 40, 40),
    (25, 40, 10, 40),
    (16, 5, 5, 5),
    (16, 32, 32, 32),
    (128, 64, 32, 64),
    (32, 128, 64, 128),
    (32, 512, 64, 128),
    (8, 256, 128, 256),
]
# Which of the two lies transposed in memory.
FORMS = {"x @ y": (False, False), "x.mT @ y": (True, False), "x @ y.mT": (False, True)}


def matrices(count: int, rows: int, columns: int, dtype: torch.dtype, transposed: bool) -> Tensor:
    """Random matrices."""
    if transposed:
        return torch.randn(count, columns, rows, dtype=dtype).mT
    return torch.randn(count, rows, columns, dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=301)
    options = parser.parse_args()
    device = torch.device("cpu")  # others are not concerned
    one_thread(device)
    print(header("Products of small matrices", device))
    rows = [["product", "sizes", "dtype", "purenn", "torch.bmm", "ratio", "quartiles"]]
    for dtype in (torch.float32, torch.float64):
        for count, height, terms, width in SIZES:
            for name, (left, right) in FORMS.items():
                pair = matrices(count, height, terms, dtype, left), matrices(count, terms, width, dtype, right)
                ours, theirs = pn.jit(torch.bmm), pn.jit(torch.bmm)
                ours(*pair)
                # Any pass of the user's takes the place of the one that makes these products.
                with config.patch(post_grad_custom_post_pass=lambda graph: None, fx_graph_cache=False):
                    theirs(*pair)
                r = paired(functools.partial(ours, *pair), functools.partial(theirs, *pair), repeats=options.repeats)
                sizes = f"{count} x {height} x {terms} x {width}"
                times = f"{r.first * 1e6:.0f} us", f"{r.second * 1e6:.0f} us"
                rows.append([name, sizes, str(dtype)[6:], *times, f"{r.ratio:.2f}", f"{r.low:.2f} to {r.high:.2f}"])
    print(f"\n{table(rows)}\n")


if __name__ == "__main__":
    main()
