#!/usr/bin/env bash
# The wheel in an empty environment, with nothing but the core dependencies: does it import and work there?
#
#     tests/release.sh [REQUIREMENT OF TORCH]      by default torch==2.13.0
#
# What is committed is what is built. It downloads the dependencies, so it takes minutes and is no part of the tests.
# Everything is made in a folder of its own, which is removed at the end.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
torch=${1:-torch==2.13.0}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

# From a clean clone, so that nothing that lies about on this disk can make it work.
git clone --quiet "$root" clone
python3 -m venv build
build/bin/pip --quiet --disable-pip-version-check wheel --no-deps --wheel-dir wheels ./clone
echo "built $(ls wheels)"

python3 -m venv empty
empty/bin/pip --quiet --disable-pip-version-check install "$torch" wheels/*.whl
empty/bin/pip --disable-pip-version-check list

# Away from the tree, isolated from its environment, warnings as errors.
env -u PYTHONPATH OMP_NUM_THREADS=1 empty/bin/python -I -W error::UserWarning - <<'PYTHON'
import tempfile
from pathlib import Path

import torch

import bridge
import purenn as pn
from purenn.layers import BatchNorm1d, Linear, Sequential, Tanh

assert "site-packages" in pn.__file__ and "site-packages" in bridge.__file__
for package in (pn, bridge, pn.layers, pn.losses, pn.models, pn.ops, pn.optim, pn.random, pn.tree, pn.transforms):
    assert all(hasattr(package, name) for name in package.__all__), package.__name__

k1, k2 = pn.random.split(pn.random.key(0))
p = Sequential.of(Linear.init(k1, 4, 8), Tanh(), Linear.init(k2, 8, 1))
x = pn.random.normal(pn.random.key(1), (64, 4))
y = x.sum(1, keepdim=True)


def loss(p, x, y):
    return (p(x) - y).square().mean()


optimizer = pn.optim.adam(1e-2)
state, before = optimizer.init(p), loss(p, x, y)
step = pn.jit(lambda p, state: optimizer.step(p, pn.grad(loss)(p, x, y), state), backend="eager")
for _ in range(200):
    p, state = step(p, state)
assert loss(p, x, y) < 0.1 * before
print(f"trained: {before:.3f} -> {loss(p, x, y):.3f}")

rows = pn.vmap(pn.grad(loss), (None, 0, 0))(p, x, y)
assert rows.layers[0].weight.shape == (64, 8, 4)
norms = pn.per_sample.norms(loss)(p, (x, y))
assert norms.shape == (64,)
print(f"per-sample gradients: norms {norms.min():.3f} to {norms.max():.3f}")

with tempfile.TemporaryDirectory() as folder:
    pn.save(Path(folder) / "model.safetensors", p)
    assert pn.tree.equal(pn.load(Path(folder) / "model.safetensors", like=p), p)
    checkpoints = pn.Checkpointer(Path(folder) / "states")
    checkpoints.save(200, {"p": p, "state": state})
    number, resumed = checkpoints.restore(like={"p": p, "state": state})
    assert number == 200 and pn.tree.equal(resumed["p"], p)
print("saved, loaded, resumed")

module = bridge.to_module(p, copy=True)
torch.testing.assert_close(module(x), p(x))
assert pn.tree.equal(bridge.from_module(module), p)
converted = bridge.convert(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)))
assert isinstance(converted[1], BatchNorm1d)
program = bridge.export(p, x)
torch.testing.assert_close(program.module()(x), p(x))
print("bridged and exported")
print(pn.summary(p, x))
PYTHON
echo "the wheel works in an empty environment"
