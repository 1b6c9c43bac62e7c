"""``python -m tests.conformance``: run the matrix, print it as a table, and write it as Markdown if asked.

With ``--rows`` and ``--columns`` parts of it; the exit code is 1 if a cell fails without a reason, or passes with one.
"""

import argparse
import sys
import warnings
from pathlib import Path

import torch

# The matrix is made of modules that pytest finds by its `pythonpath`, and shares helpers with the tests of layers.
_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "layers")]

from _columns import COLUMNS  # noqa: E402
from _exceptions import KNOWN_BUGS, REASONS, reason  # noqa: E402
from _matrix import CellError, check_cell  # noqa: E402
from _rows import ROWS, samples  # noqa: E402

PASS, REASON, BUG, FAIL = "ok", "reason", "bug", "FAIL"


def main() -> int:
    """Run the matrix, print it, and write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="CLASS")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), metavar="COLUMN")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)
    warnings.simplefilter("error")
    for deprecated in ("`torch.jit.script(_method)?` is deprecated", ".*should not be instantiated"):
        warnings.filterwarnings("ignore", deprecated, DeprecationWarning)
    table: dict[str, list[str]] = {}
    print(_line(["row", *map(str, range(1, len(options.columns) + 1))]))
    for row in options.rows:
        table[row] = [_result(row, column, options.device) for column in options.columns]
        print(_line([row, *table[row]]), flush=True)
    text = _markdown(table, options.columns)
    print(f"\n{_summary(table)}")
    if options.out is not None:
        options.out.write_text(text)
    return int(any(cell == FAIL for cells in table.values() for cell in cells))


def _result(row: str, column: str, device: torch.device) -> str:
    try:
        check_cell(row, column, device)
    except CellError as error:
        print(error, file=sys.stderr)
        return FAIL
    if reason(row, column) is None:
        return PASS
    return REASON if (row, column) in REASONS else BUG


def _line(cells: list[str]) -> str:
    return f"{cells[0]:30s}" + "".join(f"{cell:>7s}" for cell in cells[1:])


def _summary(table: dict[str, list[str]]) -> str:
    cells = [cell for row in table.values() for cell in row]
    counts = {name: cells.count(name) for name in (PASS, REASON, BUG, FAIL)}
    shown = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{len(table)} rows, {len(cells)} cells: {shown}."


def _markdown(table: dict[str, list[str]], columns: list[str]) -> str:
    promises = [f"{i}. **{name}** {COLUMNS[name].check.__doc__}" for i, name in enumerate(columns, 1)]
    head = ["torch.nn", "samples", *map(str, range(1, len(columns) + 1))]
    rows = [[row, str(len(samples(row))), *(_SIGNS[cell] for cell in cells)] for row, cells in table.items()]
    lines = [head, ["---"] * len(head), *rows]
    known = {cell: why for cell, why in {**REASONS, **KNOWN_BUGS}.items() if cell[0] in table and cell[1] in columns}
    reasons = [
        f"- {row}, {column} ({'all samples' if why.samples is None else ', '.join(why.samples)}): {why.text}"
        for (row, column), why in known.items()
    ]
    parts = [
        "# Conformance with torch.nn",
        f"Written by `python -m tests.conformance` with torch {torch.__version__}. {_summary(table)}",
        "\n".join(promises),
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        *(["Cells with a reason:", "\n".join(reasons)] if reasons else []),
        "Where something else than torch's module as it stands is the measure, for some of the samples or all:",
        "\n".join(f"- {row}: {note}" for row in table for note in _notes(row)),
    ]
    return "\n\n".join(parts) + "\n"


def _notes(row: str) -> list[str]:
    # What the samples do to the measure is said by the functions that do it.
    kinds = ("differentiable", "differentiable_twice", "before", "expected")
    used = {getattr(sample, kind): None for sample in samples(row) for kind in kinds}
    return sorted({str(function.__doc__) for function in used if function is not None})


_SIGNS = {PASS: "✓", REASON: "reason", BUG: "bug", FAIL: "FAIL"}


if __name__ == "__main__":
    sys.exit(main())
