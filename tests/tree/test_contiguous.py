"""`contiguous`: the same tree in one buffer."""

from typing import Any

import torch

import purenn as pn
from purenn.layers import BatchNorm2d, Linear, Sequential


def model(device: torch.device) -> Any:
    """Parameters and buffers of two dtypes, and a number."""
    p = Sequential.of(Linear.init(pn.random.key(0), 3, 2), BatchNorm2d.init(5))
    return {"p": pn.tree.to(p, device), "w": torch.ones(3, dtype=torch.float64, device=device), "n": 3}


def test_views_of_one_buffer_for_each_dtype(device: torch.device) -> None:
    """Values, shapes, dtypes and structure stay, the leaves of each dtype share their storage, aligned to 64 bytes."""
    p = model(device)
    joined = pn.tree.contiguous(p)
    assert pn.tree.equal(joined, p)
    storages: dict[torch.dtype, set[int]] = {}
    for leaf in pn.tree.leaves(joined):
        if isinstance(leaf, torch.Tensor):
            assert leaf.is_contiguous()
            assert leaf.storage_offset() * leaf.element_size() % 64 == 0
            storages.setdefault(leaf.dtype, set()).add(leaf.untyped_storage().data_ptr())
    assert {dtype: len(found) for dtype, found in storages.items()} == dict.fromkeys(storages, 1)
    assert {torch.float32, torch.float64} <= set(storages)


def test_copy(device: torch.device) -> None:
    """The tree that is given keeps its own storage, whatever its strides."""
    w = torch.arange(6.0, device=device).view(2, 3).t()
    p = {"w": w, "v": w}
    joined = pn.tree.contiguous(p)
    assert torch.equal(joined["w"], w)
    assert joined["w"].stride() == (2, 1)
    assert joined["w"].data_ptr() not in (w.data_ptr(), joined["v"].data_ptr())


def test_empty(device: torch.device) -> None:
    """Trees without tensors, leaves without elements and without dimensions are possible."""
    assert pn.tree.contiguous({}) == {}
    p = {
        "a": torch.zeros(0, 3, device=device),
        "b": torch.tensor(2.0, device=device),
        "c": torch.ones(2, device=device),
    }
    assert pn.tree.equal(pn.tree.contiguous(p), p)


def test_differentiable_and_batched(device: torch.device) -> None:
    """Gradients pass through, under vmap and jit as well."""
    p = pn.tree.to(Linear.init(pn.random.key(0), 3, 2), device)

    def loss(p: Any) -> torch.Tensor:
        joined = pn.tree.contiguous(p)
        return joined.weight.square().sum() + joined.bias.sum()

    right = pn.grad(lambda p: p.weight.square().sum() + p.bias.sum())(p)
    assert pn.tree.allclose(pn.grad(loss)(p), right, rtol=0, atol=1e-6)
    assert pn.tree.allclose(pn.jit(pn.grad(loss), backend="eager")(p), right, rtol=0, atol=1e-6)
    batched = pn.tree.unstack(pn.vmap(pn.grad(loss))(pn.tree.stack([p, p])))
    assert pn.tree.allclose(batched[1], right, rtol=0, atol=1e-6)


def test_saved(device: torch.device, tmp_path: Any) -> None:
    """A contiguous tree is saved and loaded as any other."""
    p = model(device)["p"]
    pn.save(tmp_path / "p.safetensors", pn.tree.contiguous(p))
    assert pn.tree.equal(pn.load(tmp_path / "p.safetensors", like=p), p)
