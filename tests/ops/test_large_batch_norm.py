"""Batch norm of batches that are large enough for the way by rows: it is torch's in all that is asked of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

import purenn as pn
from purenn.ops import batch_norm, instance_norm

SHAPES = [(9, 4, 64, 65), (1, 8, 16400), (2, 1, 16, 64, 65)]
AFFINE = [(True, True), (True, False), (False, True), (False, False)]


def _inputs(device: torch.device, shape: tuple[int, ...], affine: tuple[bool, bool]) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    size = 1, shape[1], *[1] * (len(shape) - 2)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x * torch.arange(1.0, shape[1] + 1, dtype=torch.float64).view(size) + 3
    given = [torch.randn(shape[1], generator=generator, dtype=torch.float64) if some else None for some in affine]
    return [None if tensor is None else tensor.to(device).requires_grad_() for tensor in (x, *given)]


def _derivatives(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    first = torch.autograd.grad((y * weights).mean() + y.pow(3).mean(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs, allow_unused=True)
    return [*first, *(torch.zeros(()) if gradient is None else gradient for gradient in second)]


@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_torch(device: torch.device, shape: tuple[int, ...], affine: tuple[bool, bool]) -> None:
    """Result, running statistics, first and second derivatives are those of torch's batch norm."""
    x, weight, bias = _inputs(device, shape, affine)
    running = [torch.full((shape[1],), value, dtype=x.dtype, device=device) for value in (0.3, 0.7)]
    theirs = [statistic.clone() for statistic in running]
    y, updated = batch_norm(x, *running, weight, bias, train=True, momentum=0.2)
    expected = F.batch_norm(x, *theirs, weight, None, True, 0.2)
    if bias is not None:  # torch has no second derivative of a bias alone
        expected = expected + bias.view(-1, *[1] * (x.dim() - 2))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    for ours, other in zip(updated, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=0)
    assert torch.equal(running[0], torch.full_like(running[0], 0.3))

    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    for ours, other in zip(_derivatives(y, inputs), _derivatives(expected, inputs), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)


def _in_operations(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    over, of_channels = (0, *range(2, x.dim())), (-1, *[1] * (x.dim() - 2))
    centred = x - x.mean(over, keepdim=True)
    y = centred * (centred.square().mean(over, keepdim=True) + 1e-5).rsqrt()
    y = y if weight is None else y * weight.view(of_channels)
    return y if bias is None else y + bias.view(of_channels)


@pytest.mark.parametrize("wanted", ["all", "input", "affine"])
@pytest.mark.parametrize("affine", AFFINE)
def test_derivatives_of_every_order(device: torch.device, affine: tuple[bool, bool], wanted: str) -> None:
    """Plain autograd gives the derivatives of plain operations, three times over, by whatever it is asked for."""
    given = _inputs(device, (2, 3, 150, 151), affine)
    of_kind = {"all": given, "input": given[:1], "affine": given[1:]}[wanted]
    inputs = [tensor for tensor in of_kind if tensor is not None]
    given = [None if x is None else x.requires_grad_(any(x is y for y in inputs)) for x in given]
    weights = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=device).view_as(x) for x in inputs]

    def derivatives(value: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for _ in range(3):
            if not value.requires_grad:
                break
            gradients = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
            found += gradients
            value = sum((g.square() * w).sum() for g, w in zip(gradients, weights, strict=True))
        return found

    x, *rest = given
    of_y = torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=device).view_as(x)
    ours, expected = [
        derivatives((y.pow(3) * of_y).mean()) for y in (batch_norm(x, None, None, *rest)[0], _in_operations(x, *rest))
    ]
    for found, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-10 * float(other.detach().abs().max()))


def test_rows_of_second_derivatives_at_once(device: torch.device) -> None:
    """Batched second derivatives are those taken one by one."""
    x, weight, bias = _inputs(device, (1, 2, 256, 257), (True, True))

    def value(weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm(x.detach(), None, None, weight, bias)[0].pow(3).mean()

    batched, single = [
        torch.autograd.functional.hessian(value, (weight, bias), vectorize=at_once) for at_once in (True, False)
    ]
    torch.testing.assert_close(batched, single, rtol=1e-12, atol=1e-12)


def test_float32_keeps_its_digits_far_from_zero(device: torch.device) -> None:
    """The variance of values whose mean is large beside their spread is as exact as torch's."""
    x = torch.randn(4, 2, 200, 200, generator=torch.Generator().manual_seed(0)).to(device) + 1000
    exact = F.batch_norm(x.double(), None, None, training=True)
    y, _ = batch_norm(x, train=True)
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=1e-3)


def test_derivatives_of_all_kinds(device: torch.device) -> None:
    """Rows of a Jacobian, a forward derivative and transformed gradients are those of plain operations."""
    x, _, _ = _inputs(device, (2, 1, 256, 257), (False, False))
    x, direction = x.detach(), torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=device).view_as(x)

    def in_operations(x: Tensor) -> Tensor:
        centred = x - x.mean((0, 2, 3), keepdim=True)
        return (centred * (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).rsqrt())[0, 0, 0, :3]

    def normalised(x: Tensor) -> Tensor:
        return batch_norm(x, train=True)[0][0, 0, 0, :3]

    def close(ours: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-12)

    close(pn.jacrev(normalised)(x), pn.jacrev(in_operations)(x))
    close(pn.jvp(normalised, (x,), (direction,))[1], pn.jvp(in_operations, (x,), (direction,))[1])
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(normalised(forward_ad.make_dual(x, direction))).tangent
    close(dual, pn.jvp(in_operations, (x,), (direction,))[1])

    def curvature(fn: object) -> Tensor:
        return pn.grad(lambda x: (pn.grad(lambda x: fn(x).pow(3).sum())(x) * direction).sum())(x)

    close(curvature(normalised), curvature(in_operations))
    rows = torch.autograd.functional.jacobian(normalised, x, vectorize=True)
    close(rows, pn.jacrev(in_operations)(x))


def test_instance_norm_equals_torch(device: torch.device) -> None:
    """Without running statistics instance norm has torch's result, first and second derivatives."""
    x, weight, bias = _inputs(device, (3, 4, 5, 6), (True, True))
    y, running = instance_norm(x, None, None, weight, bias)
    assert running == (None, None)
    expected = F.instance_norm(x, None, None, weight, bias)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    for ours, other in zip(_derivatives(y, [x, weight, bias]), _derivatives(expected, [x, weight, bias]), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)
