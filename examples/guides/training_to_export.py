"""The whole way of a model: trained, stopped, resumed, saved, loaded, made a module, exported.

    python examples/guides/training_to_export.py

A small network learns scikit-learn's digits. Its training is killed half-way and started again; the trained network is
then carried to all the places where it may be needed: a file, an nn.Module with an optimiser of torch's, and a program
without Python.
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

import bridge
import purenn as pn
from purenn.layers import Dropout, Linear, ReLU, Sequential, sequential

STEPS, BATCH = 60, 128
KEY = pn.random.key(0)


def network(key: Tensor) -> Sequential:
    k1, k2 = pn.random.split(key)
    return Sequential.of(Linear.init(k1, 64, 96), ReLU(), Dropout(0.2), Linear.init(k2, 96, 10))


def train(data: tuple[Tensor, Tensor], folder: Path, *, killed_at: int | None = None) -> Sequential | None:
    """The trained network, or None if the power fails before."""
    optimizer = pn.optim.adamw(3e-3, weight_decay=1e-3)
    p = network(KEY)

    # All that the training needs to go on is one tree. Batches and dropout masks need no place in it: they are drawn
    # from a key that is made of the step's number.
    state = {"network": p, "optimizer": optimizer.init(p)}
    checkpoints = pn.Checkpointer(folder, keep=2)
    first, state = checkpoints.restore(like=state) or (0, state)
    if first:
        print(f"   goes on after step {first}")

    def loss(p: Sequential, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        return F.cross_entropy(sequential(p, x, key=key), y)

    gradient = pn.grad(loss)
    for step in range(first, STEPS):
        batch_key, mask_key = pn.random.split(pn.random.fold_in(KEY, step))
        rows = pn.random.randint(batch_key, (BATCH,), low=0, high=len(data[0]))
        grads = gradient(state["network"], data[0][rows], data[1][rows], mask_key)
        p, optimizer_state = optimizer.step(state["network"], grads, state["optimizer"])
        state = {"network": p, "optimizer": optimizer_state}
        if (step + 1) % 10 == 0:
            checkpoints.save(step + 1, state)
        if step + 1 == killed_at:
            return None
    return state["network"]


def accuracy(p: Sequential, data: tuple[Tensor, Tensor]) -> float:
    # Without a key nothing is dropped.
    return (sequential(p, data[0]).argmax(1) == data[1]).double().mean().item()


def main() -> None:
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    learned, held_out = (x[:1437], y[:1437]), (x[1437:], y[1437:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        print("1. trained, and again with the power off after step 37")
        p = train(learned, folder / "undisturbed")
        assert train(learned, folder / "disturbed", killed_at=37) is None
        resumed = train(learned, folder / "disturbed")
        assert pn.tree.equal(p, resumed)
        print(f"   bitwise the same network; {accuracy(p, held_out):.0%} of the held-out digits are right")

        print("2. saved and loaded")
        pn.save(folder / "digits.safetensors", p, metadata={"accuracy": f"{accuracy(p, held_out):.4f}"})
        # `like` says what to make of the file. It may be on the device meta, where it costs no memory.
        blank = pn.tree.to(network(KEY), "meta")
        loaded = pn.load(folder / "digits.safetensors", like=blank)
        assert pn.tree.equal(p, loaded)
        print(f"   {list(pn.tree.metadata(folder / 'digits.safetensors'))}, {pn.tree.count(loaded):,} parameters")

        print("3. as a module, trained further by torch.optim")
        module = bridge.to_module(loaded)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        before = F.cross_entropy(module(learned[0]), learned[1])
        before.backward()
        optimizer.step()
        assert F.cross_entropy(module(learned[0]), learned[1]) < before
        torch.save(module.state_dict(), folder / "digits.pt")
        print(f"   state_dict: {list(module.state_dict())}")
        # And back: the module's parameters as a container.
        p = bridge.from_module(module)

        print("4. exported: a program without Python, for any number of images")
        program = bridge.export(p, learned[0][:2], dynamic_shapes=({0: "batch"},))
        torch.export.save(program, folder / "digits.pt2")
        restored = torch.export.load(folder / "digits.pt2").module()
        torch.testing.assert_close(restored(held_out[0]), p(held_out[0]), rtol=0, atol=1e-5)
        print(f"   {(folder / 'digits.pt2').stat().st_size // 1024} KiB; for ONNX: torch.onnx.export(program, f=path)")


if __name__ == "__main__":
    main()
