"""Containers: flattening, rebuilding and a forward pass, paired with optree's attrs integration, dicts and modules.

python tests/benchmarks/containers.py
"""

import functools

import optree
import optree.integrations.attrs
import torch
from _pairing import header, paired, table
from torch import Tensor, nn

import purenn as pn
from purenn.layers import Linear, linear

PAIRS = 80


@optree.integrations.attrs.frozen(eq=False, slots=True, namespace="benchmark")
class OptreeLinear:
    """The fields of `Linear`, registered by optree's own integration."""

    weight: Tensor
    bias: Tensor


def models() -> dict[str, tuple]:
    """The same 160 tensors in three kinds of tree."""
    parts = [(torch.ones(2, 2), torch.ones(2)) for _ in range(PAIRS)]
    return {
        "purenn": tuple(Linear(w, b) for w, b in parts),
        "optree.integrations.attrs": tuple(OptreeLinear(w, b) for w, b in parts),
        "nested dicts": tuple({"weight": w, "bias": b} for w, b in parts),
    }


def around(tree: object) -> None:
    """Flatten and rebuild."""
    leaves, spec = optree.tree_flatten(tree, namespace="benchmark")
    optree.tree_unflatten(spec, leaves)


def main() -> None:
    torch.set_num_threads(1)
    print(header("Containers"))
    trees = models()
    rows = [["what", "purenn", "the other", "ratio", "quartiles", "goal"]]
    for name, goal in (("optree.integrations.attrs", "0.45"), ("nested dicts", "4")):
        r = paired(
            functools.partial(around, trees["purenn"]), functools.partial(around, trees[name]), repeats=101, number=20
        )
        rows.append(
            [
                f"flatten + unflatten, 160 leaves, against {name}",
                f"{r.first * 1e6:.1f} us",
                f"{r.second * 1e6:.1f} us",
                f"{r.ratio:.3f}",
                f"{r.low:.3f} to {r.high:.3f}",
                goal,
            ]
        )

    keys = pn.random.split(pn.random.key(0), 20)
    layers = tuple(Linear.init(key, 8, 8) for key in keys)
    module = nn.Sequential(*(part for p in layers for part in (as_torch(p), nn.ReLU())))
    x = torch.randn(4, 8)

    def ours() -> Tensor:
        y = x
        for p in layers:
            y = linear(p, y).relu()
        return y

    with torch.no_grad():
        torch.testing.assert_close(ours(), module(x))
        r = paired(ours, lambda: module(x), repeats=101, number=20)
    rows.append(
        [
            "forward of 20 linear + relu, against nn.Sequential",
            f"{r.first * 1e6:.1f} us",
            f"{r.second * 1e6:.1f} us",
            f"{r.ratio:.3f}",
            f"{r.low:.3f} to {r.high:.3f}",
            "0.6",
        ]
    )
    print(table(rows))


def as_torch(p: Linear) -> nn.Linear:
    """The same layer as torch's module."""
    made = nn.Linear(p.weight.shape[1], p.weight.shape[0])
    made.load_state_dict(dict(pn.tree.named_leaves(p)))
    return made


if __name__ == "__main__":
    main()
