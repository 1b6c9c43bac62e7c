"""Efficient-CapsNet and matrix capsules: parameter counts, parts, training, both carriers with hooks."""

import pytest
import torch
from torch import Tensor

import bridge
import purenn as pn
from purenn.errors import ArgumentError, ShapeError
from purenn.layers import capsule_lengths
from purenn.losses import margin_loss, spread_loss
from purenn.models import EfficientCapsNet, MatrixCapsNet, efficient_capsnet, matrix_capsnet


def small_efficient(device: torch.device, **options: object) -> EfficientCapsNet:
    given = {"image_shape": (1, 14, 14), "num_classes": 3, "channels": (4, 4, 4, 8), "primary_dim": 4, "capsule_dim": 5}
    return EfficientCapsNet.init(pn.random.key(0, device), **{**given, **options})


def small_matrix(device: torch.device) -> MatrixCapsNet:
    return MatrixCapsNet.init(
        pn.random.key(0, device), num_classes=3, channels=4, types=(2, 3, 3), inverse_temperature=0.1
    )


def test_parameter_counts() -> None:
    """Efficient-CapsNet has the paper's 161,248 parameters and 576 of normalisation, matrix capsules about 68,000."""
    p = EfficientCapsNet.init(pn.random.key(0), device="meta")
    of_norms = sum(norm.weight.numel() + norm.bias.numel() for norm in p.norms)
    assert of_norms == 576
    assert pn.tree.count(p) - of_norms == 161_248
    assert p.primary.weight.shape == (128, 1, 9, 9)
    assert p.classes.weight.shape == (10, 16, 16, 8)
    assert 66_000 < pn.tree.count(MatrixCapsNet.init(pn.random.key(0), device="meta")) < 69_000


def test_efficient_capsnet(device: torch.device) -> None:
    """Shapes, ranges, averages, the decoder, and vmap over examples at test time."""
    p, x = small_efficient(device, decoder=(6,)), torch.rand(4, 1, 14, 14, device=device)
    out, new = efficient_capsnet(p, x, train=True)
    assert out.lengths.shape == (4, 3)
    assert ((out.lengths >= 0) & (out.lengths < 1)).all()
    torch.testing.assert_close(out.lengths, capsule_lengths(out.poses))
    assert out.reconstruction is not None
    assert out.reconstruction.shape == x.shape
    assert not torch.equal(new.norms[0].running_mean, p.norms[0].running_mean)
    assert pn.is_stateful(p)
    tested, same = p(x)
    assert pn.tree.equal(same, p)
    rows = pn.vmap(lambda x: p(x.unsqueeze(0))[0].lengths[0])(x)
    torch.testing.assert_close(rows, tested.lengths, rtol=0, atol=1e-5)


def test_matrix_capsnet(device: torch.device) -> None:
    """Shapes and ranges; one example, a batch and vmap agree."""
    p, x = small_matrix(device), torch.rand(4, 1, 17, 17, device=device)
    out = matrix_capsnet(p, x)
    assert out.poses.shape == (4, 3, 16)
    assert ((out.activations > 0) & (out.activations < 1)).all()
    for other in (p(x[0]), [y[0] for y in pn.vmap(lambda x: tuple(p(x)))(x)]):
        for got, expected in zip(other, out, strict=True):
            torch.testing.assert_close(got, expected[0], rtol=0, atol=1e-4)


def test_per_sample_gradients(device: torch.device) -> None:
    """Per-sample gradients through EM routing are the gradients of each example."""
    p, x = pn.tree.to(small_matrix(device), torch.float64), torch.rand(3, 1, 17, 17, device=device).double()
    target = torch.tensor([0, 2, 1], device=device)

    def loss(p: MatrixCapsNet, x: Tensor, target: Tensor) -> Tensor:
        return spread_loss(p(x).activations, target)

    rows = pn.vmap(pn.grad(loss), (None, 0, 0))(p, x, target)
    for n in range(3):
        for got, expected in zip(pn.tree.leaves(rows), pn.tree.leaves(pn.grad(loss)(p, x[n], target[n])), strict=True):
            torch.testing.assert_close(got[n], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("which", ["efficient", "matrix"])
def test_trains(which: str, device: torch.device) -> None:
    """A few steps of Adam lower the loss, with a finite gradient for every parameter."""
    x = torch.rand(6, 1, 17, 17, device=device)
    target = torch.tensor([0, 1, 2, 0, 1, 2], device=device)
    p = small_efficient(device, image_shape=(1, 17, 17)) if which == "efficient" else small_matrix(device)

    def loss(p: EfficientCapsNet | MatrixCapsNet) -> Tensor:
        if isinstance(p, EfficientCapsNet):
            return margin_loss(efficient_capsnet(p, x, train=True)[0].lengths, target)
        return spread_loss(matrix_capsnet(p, x).activations, target, margin=0.5)

    optimizer = pn.optim.adam(0.02)
    state, losses = optimizer.init(p), []
    for _ in range(12):
        value, grads = pn.value_and_grad(loss)(p)
        assert all(g.isfinite().all() for g in pn.tree.leaves(grads) if g.is_floating_point())
        updates, state = optimizer.update(grads, state, p)
        p = pn.optim.apply_updates(p, updates)
        losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("which", ["efficient", "matrix"])
def test_carried_by_a_module(which: str, device: torch.device) -> None:
    """The module gives the same, hooks of inner routings fire, its state keeps the names, and it comes back."""
    p = small_efficient(device) if which == "efficient" else small_matrix(device)
    x = torch.rand(2, 1, 14, 14, device=device) if which == "efficient" else torch.rand(2, 1, 17, 17, device=device)
    module = bridge.to_module(p).eval()
    names: list[str] = []
    for name, inner in module.named_modules():
        if name.endswith("routing"):
            inner.register_forward_hook(lambda *_, name=name: names.append(name))
    out = module(x)
    expected = p(x)[0] if which == "efficient" else p(x)
    for got, right in zip(out[:2], expected[:2], strict=True):
        assert torch.equal(got, right)
    inner_layers = [] if which == "efficient" else ["layers.0.routing", "layers.1.routing"]
    assert names == [*inner_layers, "classes.routing"]
    assert "classes.weight" in module.state_dict()
    assert pn.tree.equal(bridge.from_module(module), p)


def test_errors(device: torch.device) -> None:
    """Images that are too small, or of another shape, are refused."""
    with pytest.raises(ArgumentError) as error:
        EfficientCapsNet.init(pn.random.key(0), image_shape=(1, 10, 10))
    assert str(error.value) == (
        "EfficientCapsNet: an image of 10x10 is too small for kernels of (5, 3, 3, 3). Use smaller kernels."
    )
    with pytest.raises(ShapeError) as error:
        small_efficient(device)(torch.zeros(2, 1, 28, 28, device=device))
    assert str(error.value) == (
        "efficient_capsnet: this network was made for images of shape (1, 14, 14), got (1, 28, 28)."
    )
