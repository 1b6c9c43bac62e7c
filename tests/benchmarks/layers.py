"""Every layer paired with torch's module of the same class, on the same weights and inputs, forward and with backward.

    python tests/benchmarks/layers.py [--rows ReLU LSTM ...] [--repeats 31] [--device cuda]

The rows are those of the conformance matrix, `tests/conformance`, and so are the containers, which are converted from
the modules. Both sides are differentiated by torch's autograd with respect to the same tensors. Recurrent layers run
under `pn.jit` too, against the module as it is.
"""

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _compiling import one_thread
from _pairing import Ratio, header, paired, table
from torch import Tensor

_TESTS = Path(__file__).resolve().parent.parent
# The root comes first, because a script beside this one may have the name of a package.
sys.path[:0] = [str(_TESTS.parent), str(_TESTS / "conformance"), str(_TESTS / "layers")]

from _cases import Case, tensors  # noqa: E402
from _layers_sizes import SIZES  # noqa: E402
from _rows import ROWS  # noqa: E402

import purenn as pn  # noqa: E402

GOAL, LIMIT, LIMIT_OF_JIT = 1.0, 1.3, 1.5
RECURRENT = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
# Half a pair takes at least so many seconds.
LEAST = 1e-3


class Sides(NamedTuple):
    """A layer and the module on the same numbers.

    Attributes:
        ours: gives the layer's result.
        theirs: gives the module's result.
        leaves: what ours is differentiated with respect to.
        parameters: the same for the module.
    """

    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    leaves: list[Tensor]
    parameters: list[Tensor]


def sides(row: str, device: torch.device, *, jit: bool = False) -> Sides:
    """Both sides of a row, in float32."""
    case = Case.of(SIZES[row]()).moved(torch.float32)
    case = case if device.type == "cpu" else case.moved(device)
    module = case.fresh_module().float().to(device).train(case.sample.train)
    floats, others = ([x.detach().clone() for x in kind] for kind in case.inputs())
    for x in floats:
        x.requires_grad_()
    p = pn.tree.map(lambda leaf: leaf.detach().clone(), case.p)
    trained = [leaf.requires_grad_() for leaf in pn.tree.leaves(pn.tree.partition(p)[0])]
    args, options = case.arguments(floats, others)
    call, named = case.arguments_of_module(floats, others)
    stateful = pn.is_stateful(p)
    layer = functools.partial(pn.jit(_applied), p, args, options) if jit else functools.partial(p, *args, **options)
    return Sides(
        (lambda: layer()[0]) if stateful else layer,
        functools.partial(module, *call, **named),
        [*trained, *floats],
        [*module.parameters(), *floats],
    )


def _applied(p: Any, args: tuple, options: dict[str, Any]) -> Any:
    return p(*args, **options)


def with_backward(call: Callable[[], Any], leaves: Sequence[Tensor]) -> Callable[[], Any]:
    """The call, and the gradient of all its outputs, weighted by fixed numbers."""

    def outputs() -> list[Tensor]:
        return [y for y in tensors(call()) if y.requires_grad]

    weights = [torch.rand_like(y) for y in outputs()]
    return lambda: torch.autograd.grad(outputs(), leaves, weights, allow_unused=True)


def without_graph(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as it is made in evaluation."""

    def evaluated() -> Any:
        with torch.no_grad():
            return call()

    return evaluated


class Row(NamedTuple):
    """What was measured of one row."""

    name: str
    forward: Ratio
    backward: Ratio | None
    limit: float

    @property
    def worst(self) -> float:
        """The larger ratio."""
        return max(self.forward.ratio, 0 if self.backward is None else self.backward.ratio)


def measured(row: str, device: torch.device, repeats: int, *, jit: bool = False) -> Row:
    """Both ratios of a row."""
    both = sides(row, device, jit=jit)
    forward = _ratio(without_graph(both.ours), without_graph(both.theirs), repeats)
    backward = None
    if any(y.requires_grad for y in tensors(both.theirs())):
        ours, theirs = with_backward(both.ours, both.leaves), with_backward(both.theirs, both.parameters)
        backward = _ratio(ours, theirs, repeats)
    return Row(f"{row}, jit" if jit else row, forward, backward, LIMIT_OF_JIT if jit else LIMIT)


def _ratio(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> Ratio:
    once = paired(ours, theirs, repeats=3)
    return paired(ours, theirs, repeats=repeats, number=max(1, math.ceil(LEAST / max(once.second, 1e-7))))


def printed(rows: Sequence[Row]) -> str:
    """The table, and a line that sums it up."""
    lines = [["layer", "forward: purenn", "torch.nn", "ratio", "and backward: purenn", "torch.nn", "ratio"]]
    lines += [[row.name, *_cells(row.forward), *_cells(row.backward)] for row in rows]
    eager = [row for row in rows if row.limit == LIMIT]
    text = [table(lines), ""]
    if eager:
        ratios = [r.ratio for row in eager for r in (row.forward, row.backward) if r is not None]
        medians = [
            statistics.median(r.ratio for row in eager if (r := getattr(row, kind)) is not None)
            for kind in ("forward", "backward")
        ]
        text.append(
            f"{len(eager)} layers: median ratio {statistics.median(ratios):.3f}, forward {medians[0]:.3f}, with "
            f"backward {medians[1]:.3f} (goal {GOAL})."
        )
    above = [f"{row.name} {row.worst:.2f}" for row in rows if row.worst > row.limit]
    text.append(f"Above their limit ({LIMIT}, under jit {LIMIT_OF_JIT}): {', '.join(above) or 'none'}.")
    return "\n".join(text)


def _cells(r: Ratio | None) -> list[str]:
    if r is None:
        return ["-", "-", "-"]
    return [f"{r.first * 1e6:.0f} us", f"{r.second * 1e6:.0f} us", f"{r.ratio:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="CLASS")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    one_thread(options.device)
    assert set(SIZES) == set(ROWS), set(SIZES) ^ set(ROWS)
    print(header("Layers against torch.nn, float32", options.device))
    rows = [measured(row, options.device, options.repeats) for row in options.rows]
    rows += [measured(row, options.device, options.repeats, jit=True) for row in RECURRENT if row in options.rows]
    print(printed(rows))


if __name__ == "__main__":
    main()
