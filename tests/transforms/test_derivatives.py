"""vjp, jvp, jacrev, jacfwd and hessian over whole models."""

import pytest
import torch
from _transform_models import DOUBLE, Affine, Net, inputs, loss, make, net
from torch import Tensor

import purenn as pn
from purenn.tree import HOLE


def flat_jacobian(p: Net, x: Tensor, fn: object) -> dict[str, Tensor]:
    """The Jacobian by torch.func on a plain dict, by path."""
    trained, rest = pn.tree.partition(p)
    paths = [path for path, _ in pn.tree.named_leaves(trained)]

    def of(leaves: dict[str, Tensor]) -> Tensor:
        values = iter(leaves[path] for path in paths)
        return fn(pn.tree.combine(pn.tree.map(lambda _: next(values), trained), rest), x)

    return torch.func.jacrev(of)(dict(pn.tree.named_leaves(trained)))


@pytest.mark.parametrize("name", ["jacrev", "jacfwd"])
def test_jacobians(device: torch.device, name: str) -> None:
    """The Jacobian is a tree like the model with leaves [*output, *leaf]."""
    p, x = make(device), inputs(device)
    jacobian = getattr(pn, name)(net)(p, x)
    assert isinstance(jacobian, Net)
    assert jacobian.first.weight.shape == (5, 2, 4, 3)
    assert jacobian.first.bias is HOLE
    for path, right in flat_jacobian(p, x, net).items():
        torch.testing.assert_close(dict(pn.tree.named_leaves(jacobian))[path], right, rtol=0, atol=1e-10)


def test_jacobian_of_trees_and_several_arguments(device: torch.device) -> None:
    """Outputs may be trees, with auxiliary output, and several arguments give tuples."""
    p, x = make(device), inputs(device)

    def fn(p: Net, x: Tensor) -> tuple[dict, str]:
        return {"y": net(p, x), "s": loss(p, x)}, "aux"

    tree, aux = pn.jacrev(fn, (0, 1), has_aux=True)(p, x)
    assert aux == "aux"
    assert tree["y"][1].shape == (5, 2, 5, 3)
    assert pn.tree.allclose(tree["s"][0], pn.grad(loss)(p, x), rtol=0, atol=1e-10)
    chunked, _ = pn.jacrev(fn, (0, 1), has_aux=True, chunk_size=3)(p, x)
    assert pn.tree.allclose(chunked, tree, rtol=0, atol=1e-12)
    forward, _ = pn.jacfwd(fn, (0, 1), has_aux=True)(p, x)
    assert pn.tree.allclose(forward, tree, rtol=0, atol=1e-12)


def test_hessian(device: torch.device) -> None:
    """The Hessian is a tree of trees, symmetric, and equal to the Jacobian of the gradient."""
    p, x = make(device), inputs(device)
    hessian = pn.hessian(loss)(p, x)
    mixed = hessian.first.weight.second.weight
    assert mixed.shape == (4, 3, 2, 4)
    torch.testing.assert_close(mixed, hessian.second.weight.first.weight.permute(2, 3, 0, 1), rtol=0, atol=1e-9)
    again = pn.jacrev(pn.grad(loss))(p, x)
    assert pn.tree.allclose(hessian, again, rtol=0, atol=1e-9)


def test_vjp(device: torch.device) -> None:
    """The pullback is the transposed Jacobian; one primal gives one tree, several give a tuple."""
    p, x = make(device), inputs(device)
    y, pull = pn.vjp(net, p, x)
    torch.testing.assert_close(y, net(p, x))
    cotangent = torch.randn(5, 2, dtype=DOUBLE, device=device, generator=None)
    dp, dx = pull(cotangent)
    assert pn.tree.allclose(dp, pn.grad(lambda p: (net(p, x) * cotangent).sum())(p), rtol=0, atol=1e-12)
    torch.testing.assert_close(dx, pn.grad(lambda x: (net(p, x) * cotangent).sum())(x), rtol=0, atol=1e-12)
    out, single, aux = pn.vjp(lambda p: ({"y": net(p, x)}, [x, "word"]), p, has_aux=True)
    assert pn.tree.equal(single({"y": cotangent}), dp)
    assert aux[1] == "word"
    assert set(out) == {"y"}


def test_jvp(device: torch.device) -> None:
    """The directional derivative is the Jacobian times the direction."""
    p, x = make(device), inputs(device)
    direction = pn.tree.map(torch.cos, pn.tree.partition(p)[0])
    y, moved = pn.jvp(lambda p: net(p, x), (p,), (direction,))
    torch.testing.assert_close(y, net(p, x))
    expected = sum(
        torch.tensordot(jacobian, dict(pn.tree.named_leaves(direction))[path], jacobian.dim() - 2)
        for path, jacobian in flat_jacobian(p, x, net).items()
    )
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-10)
    _, along_x, aux = pn.jvp(lambda p, x: (net(p, x), "aux"), (p, x), (None, x), has_aux=True)
    assert aux == "aux"
    torch.testing.assert_close(along_x, torch.func.jvp(lambda x: net(p, x), (x,), (x,))[1])


@pytest.mark.parametrize("inner", ["grad", "jacrev", "jacfwd", "vjp", "jvp"])
def test_compose_with_vmap(device: torch.device, inner: str) -> None:
    """Every derivative can be batched, and equals the loop."""
    p, x = make(device), inputs(device)
    direction = pn.tree.partition(p)[0]

    def one(row: Tensor) -> object:
        if inner == "vjp":
            return pn.vjp(lambda p: loss(p, row), p)[1](torch.ones((), dtype=DOUBLE, device=device))
        if inner == "jvp":
            return pn.jvp(lambda p: net(p, row), (p,), (direction,))[1]
        return getattr(pn, inner)(loss)(p, row)

    assert pn.tree.allclose(pn.vmap(one)(x), pn.tree.stack([one(row) for row in x]), rtol=0, atol=1e-11)


def raised(call: object) -> str:
    with pytest.raises(pn.errors.PurennError) as error:
        call()
    return str(error.value)


def test_errors(device: torch.device) -> None:
    """Outputs, cotangents and tangents that do not fit are named with their paths."""
    p, x = make(device), inputs(device)
    direction = pn.tree.partition(p)[0]
    assert raised(lambda: pn.jacrev(lambda p: {"n": x.long()})(p)) == (
        "jacrev: the function must return floating-point tensors, got i64[5,3] at 'n'. Return everything else with "
        "has_aux=True, as (output, auxiliary)."
    )
    z = torch.complex(x, x)
    assert raised(lambda: pn.jacfwd(lambda x: {"z": torch.complex(x, x)})(x)) == (
        "jacfwd: the function must return floating-point tensors, got c128[5,3] at 'z'. Return everything else with "
        "has_aux=True, as (output, auxiliary). A complex z can be returned as torch.view_as_real(z)."
    )
    assert raised(lambda: pn.jacrev(lambda x, tree: tree["z"].abs(), 1)(x, {"z": z})) == (
        "jacrev: argument 1, 'z', is c128[5,3], but Jacobians are of real tensors: pass torch.view_as_real(z), and "
        "make it complex again in the function."
    )
    _, pull = pn.vjp(lambda p: {"y": net(p, x)}, p)
    assert raised(lambda: pull(x)) == (
        "vjp: the cotangent must have the structure of the output; they differ at the top: a dict against a Tensor."
    )
    assert raised(lambda: pull({"y": x})) == (
        "vjp: the cotangent at 'y' must look like the output, f64[5,2], got f64[5,3]."
    )
    assert raised(lambda: pull({"y": torch.ones(5, 2, device=device) * 1j})) == (
        "vjp: the cotangent at 'y' must look like the output, f64[5,2], got c64[5,2]."
    )
    assert raised(lambda: pn.jvp(net, (p, x), (direction,))) == (
        "jvp: primals and tangents must be tuples of the same length, one tangent for each argument, got 2 and 1."
    )
    assert raised(lambda: pn.jvp(net, p, direction)) == (
        "jvp: primals and tangents must be tuples of the same length, one tangent for each argument, got a Net and a "
        "Net."
    )
    assert raised(lambda: pn.jvp(net, (p, x), (None, None))) == (
        "jvp: all tangents are None, so there is no direction."
    )
    assert raised(lambda: pn.jvp(net, (p, x), (direction.first, None))) == (
        "jvp: the tangent of argument 0 must have the argument's structure; they differ at the top: a Net against an "
        "Affine."
    )
    assert raised(lambda: pn.jvp(net, (p, x), (p, None))) == (
        "jvp: argument 0, 'first.bias' is not differentiated and cannot have a tangent: put pn.tree.HOLE there, as "
        "pn.tree.partition(p)[0] does."
    )
    wrong = pn.tree.map(lambda leaf: leaf[0], direction)
    assert raised(lambda: pn.jvp(net, (p, x), (wrong, None))) == (
        "jvp: the tangent of argument 0, 'first.weight' must look like f64[4,3], got f64[3]."
    )
    assert raised(lambda: pn.jvp(torch.sin, (x,), (x.long(),))) == (
        "jvp: the tangent of argument 0 must look like f64[5,3], got i64[5,3]."
    )
    assert raised(lambda: pn.jacrev(net, chunk_size=0)) == ("jacrev: chunk_size must be an int of at least 1, got 0.")
    assert raised(lambda: pn.jacrev(loss)(torch.tensor(1, device=device), x)).startswith(
        "jacrev: there is nothing to differentiate: argument 0 is i64[], which has no derivative."
    )


def test_bare_tensors(device: torch.device) -> None:
    """A tensor is a tree of one leaf."""
    x = inputs(device)
    torch.testing.assert_close(pn.grad(lambda x: x.square().sum())(x), 2 * x)
    assert pn.hessian(lambda x: x.square().sum())(x).shape == (5, 3, 5, 3)
    assert isinstance(pn.grad(lambda p: p.weight.sum())(Affine(x)), Affine)
