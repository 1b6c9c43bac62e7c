"""`einsum2` equals torch.einsum under every transformation and never expands an operand."""

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from purenn.errors import ArgumentError, ShapeError
from purenn.ops import einsum2

CASES = [
    ("ijk,jkl->il", (3, 4, 5), (4, 5, 2)),
    ("ij,jk->ik", (4, 5), (5, 2)),
    ("oidk,ik->oid", (2, 3, 4, 5), (3, 5)),
    ("ij,j->", (4, 5), (5,)),
    ("i,j->ij", (4,), (5,)),
    ("ij,k->i", (4, 5), (3,)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
]


def operands(first: tuple, second: tuple, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*s, generator=generator, dtype=torch.float64).to(device) for s in (first, second))


def results(f: object, a: Tensor, b: Tensor) -> list[Tensor]:
    """Values and derivatives of many orders and batchings."""
    many = torch.stack([b, 2 * b], dim=-1)
    loss = lambda x, y: f(x, y).sin().sum()  # noqa: E731
    return [
        f(a, b),
        *grad(loss, (0, 1))(a, b),
        jacfwd(f, 1)(a, b),
        jacrev(f, 0)(a, b),
        hessian(lambda x: loss(x, b))(a),
        jvp(f, (a, b), (b.sum() * a, a.sum() * b))[1],
        vmap(f, (None, -1))(a, many),
        vmap(f, (0, None))(torch.stack([a, -a]), b),
        *vmap(grad(loss, (0, 1)), (None, -1))(a, many),
        grad(lambda x: vmap(grad(loss, 1), (None, -1))(x, many).square().sum())(a),
        vmap(vmap(f, (None, 0)), (0, None))(torch.stack([a, -a]), torch.stack([b, 3 * b])),
    ]


@pytest.mark.parametrize(("equation", "first", "second"), CASES)
def test_equals_einsum_under_all_transformations(
    equation: str, first: tuple, second: tuple, device: torch.device
) -> None:
    """Values, gradients, Jacobians, Hessians and their batched forms are those of torch.einsum."""
    a, b = operands(first, second, device)
    ours = results(lambda x, y: einsum2(equation, x, y), a, b)
    right = results(lambda x, y: torch.einsum(equation, x, y), a, b)
    for mine, theirs in zip(ours, right, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("equation", "first", "second"), CASES)
def test_gradcheck(equation: str, first: tuple, second: tuple, device: torch.device) -> None:
    """First and second derivatives agree with finite differences."""
    a, b = (operand.requires_grad_() for operand in operands(first, second, device))
    assert torch.autograd.gradcheck(lambda x, y: einsum2(equation, x, y), (a, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x, y: einsum2(equation, x, y), (a, b))


def test_traced_and_compiled(device: torch.device) -> None:
    """It traces with make_fx and compiles without a graph break."""
    a, b = operands((4, 5), (5, 2), device)

    def fn(a: Tensor, b: Tensor) -> Tensor:
        return vmap(grad(lambda a, b: einsum2("ij,jk->ik", a, b).sin().sum()), (None, 0))(a, torch.stack([b, b]))

    torch.testing.assert_close(make_fx(fn, tracing_mode="fake")(a, b)(a, b), fn(a, b))
    plain = torch.compile(lambda a, b: einsum2("ij,jk->ik", a, b), fullgraph=True, backend="eager")
    torch.testing.assert_close(plain(a, b), a @ b)


def test_unbatched_operand_is_never_copied() -> None:
    """Under vmap(grad) no tensor with both the batch and the unbatched operand's axes arises."""
    batch, sizes = 64, []
    a, b = torch.randn(8, 50, 4), torch.randn(batch, 50)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                sizes.append(out.numel())
            return out

    with Watch():
        vmap(lambda b: einsum2("oik,i->ok", a, b), in_dims=0)(b)
        grad(lambda a: vmap(lambda b: einsum2("oik,i->ok", a, b))(b).square().sum())(a)
    assert max(sizes) < batch * a.numel() / 4


def test_errors() -> None:
    """Bad equations and shapes are refused with what was expected."""
    a, b = torch.ones(2, 3), torch.ones(4, 2)
    for equation in ("ij,jk", "ij->i", "ij,jk,kl->il", "ii,jk->ik", "ij,jk->il", "i1,jk->ik", "ij,jk->ikk"):
        with pytest.raises(ArgumentError) as error:
            einsum2(equation, a, b)
        assert str(error.value) == (
            f"einsum2: expected an equation such as 'ij,jk->ik' with two operands, the result written out and no index "
            f"repeated within a term, got {equation!r}."
        )
    with pytest.raises(ShapeError) as error:
        einsum2("ij,jk->ik", a, b)
    assert str(error.value) == (
        "einsum2: index 'j' of 'ij,jk->ik' has length 3 in the first and 4 in the second operand."
    )
    with pytest.raises(ShapeError) as error:
        einsum2("ij,j->i", a, b)
    assert str(error.value) == "einsum2: the second operand has shape (4, 2), but 'ij,j->i' gives it 1 axes."
