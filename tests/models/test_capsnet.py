"""The capsule network: the paper's parameter counts, its parts, both carriers."""

import pytest
import torch

import bridge
import purenn as pn
from purenn.errors import ArgumentError, ShapeError
from purenn.losses import margin_loss
from purenn.models import CapsNet, capsnet, decode

SMALL = {
    "image_shape": (1, 8, 8),
    "num_classes": 3,
    "channels": 8,
    "kernel_size": 3,
    "primary_types": 2,
    "primary_dim": 4,
    "primary_kernel_size": 3,
    "capsule_dim": 5,
    "decoder": (6,),
}


def small(device: torch.device, **options: object) -> CapsNet:
    return CapsNet.init(pn.random.key(0, device), **{**SMALL, **options})


def test_parameter_counts() -> None:
    """With the defaults it has the paper's 8,215,568 parameters, 6,804,224 without the decoder."""
    p = CapsNet.init(pn.random.key(0), device="meta")
    assert pn.tree.count(p) == 8_215_568
    assert pn.tree.count(CapsNet.init(pn.random.key(0), decoder=None, device="meta")) == 6_804_224
    assert p.primary.conv.weight.shape == (256, 256, 9, 9)
    assert p.classes.weight.shape == (10, 1152, 16, 8)


def test_shapes_and_ranges(device: torch.device) -> None:
    """Lengths are in [0, 1), poses and reconstructions have their shapes, batched or not."""
    p, x = small(device), torch.rand(4, 1, 8, 8, device=device)
    out = capsnet(p, x)
    assert out.lengths.shape == (4, 3)
    assert ((out.lengths >= 0) & (out.lengths < 1)).all()
    assert out.poses.shape == (4, 3, 5)
    assert out.reconstruction.shape == x.shape
    one = capsnet(p, x[0])
    torch.testing.assert_close(one.lengths, out.lengths[0])
    torch.testing.assert_close(one.reconstruction, out.reconstruction[0])
    assert capsnet(small(device, decoder=None), x).reconstruction is None


def test_decoder_uses_the_label_or_the_prediction(device: torch.device) -> None:
    """Without a label the predicted class is decoded."""
    # Large inputs, because the poses of small ones are so short that every class's decoding looks the same.
    p, x = small(device), 10 * torch.rand(4, 1, 8, 8, device=device)
    out = capsnet(p, x)
    predicted = out.lengths.argmax(-1)
    torch.testing.assert_close(capsnet(p, x, label=predicted).reconstruction, out.reconstruction)
    torch.testing.assert_close(decode(p, out.poses), out.reconstruction)
    other = (predicted + 1) % 3
    assert not torch.allclose(capsnet(p, x, label=other).reconstruction, out.reconstruction)


def test_per_sample_gradients(device: torch.device) -> None:
    """Per-sample gradients through routing and decoder equal the loop, with and without a decoder."""
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64, device=device)
    target = torch.tensor([0, 2, 1], device=device)
    for p in (small(device, dtype=torch.float64), small(device, dtype=torch.float64, decoder=None)):

        def loss(p: CapsNet, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            out = capsnet(p, x, label=target)
            extra = 0 if out.reconstruction is None else out.reconstruction.square().sum()
            return margin_loss(out.lengths, target) + extra

        rows = pn.vmap(pn.grad(loss), (None, 0, 0))(p, x, target)
        looped = pn.tree.stack([pn.grad(loss)(p, a, b) for a, b in zip(x, target, strict=True)])
        assert pn.tree.allclose(rows, looped, rtol=0, atol=1e-12)
        assert pn.vmap(capsnet, (None, 0))(p, x).lengths.shape == (3, 3)


def test_both_carriers(device: torch.device) -> None:
    """As a module it gives the same outputs and gradients; hooks fire on its five parts."""
    p, x = small(device), torch.rand(4, 1, 8, 8, device=device)
    module = bridge.to_module(p)
    seen = []
    for name, child in module.named_modules():
        if isinstance(child, bridge.Module):
            child.register_forward_hook(lambda m, i, o, name=name: seen.append(name))
    out, pure = module(x), capsnet(p, x)
    torch.testing.assert_close(out.lengths, pure.lengths, rtol=0, atol=1e-6)
    torch.testing.assert_close(out.reconstruction, pure.reconstruction, rtol=0, atol=1e-6)
    assert seen == ["conv", "primary.conv", "primary", "classes", "decoder.0", "decoder.1", ""]
    out.lengths.sum().backward()
    grads = pn.grad(lambda p: capsnet(p, x).lengths.sum())(p)
    torch.testing.assert_close(module.classes.weight.grad, grads.classes.weight, rtol=0, atol=1e-6)


def test_compiles_whole(device: torch.device) -> None:
    """torch.compile traces the network, vmapped routing included, without a graph break."""
    p, x = small(device), torch.rand(4, 1, 8, 8, device=device)
    compiled = torch.compile(lambda p, x: capsnet(p, x).lengths, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(p, x), capsnet(p, x).lengths, rtol=0, atol=1e-6)


def test_errors(device: torch.device) -> None:
    """Image sizes are checked when the network is made and when it is applied."""
    with pytest.raises(ArgumentError) as error:
        CapsNet.init(pn.random.key(0), image_shape=(1, 8, 8))
    assert str(error.value) == (
        "CapsNet: an image of 8x8 is too small for kernels of 9 and 9: they need at least 17 pixels. Use smaller "
        "kernels."
    )
    with pytest.raises(ShapeError) as error:
        capsnet(small(device), torch.rand(2, 1, 9, 9, device=device))
    assert str(error.value) == ("capsnet: this network was made for images of shape (1, 8, 8), got (1, 9, 9).")
    p = small(device, decoder=None)
    with pytest.raises(ArgumentError) as error:
        decode(p, torch.rand(1, 3, 5, device=device))
    assert str(error.value) == (
        "decode: this network has no decoder; make it with CapsNet.init(key, decoder=(512, 1024))."
    )
