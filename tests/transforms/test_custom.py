"""`custom_vjp` and `custom_jvp`: rules of one's own under every transformation, without a batching rule."""

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import GradientError

DOUBLE = torch.float64


@pn.custom_vjp
def relu(x: Tensor) -> Tensor:
    """The tutorials' ReLU with a derivative written by hand: 0 at 0."""
    return x.clamp(min=0)


relu.defvjp(lambda x: (x.clamp(min=0), x), lambda x, gradient: (torch.where(x > 0, gradient, 0),))


@pn.custom_vjp
def cubes(p: dict, factor: float) -> dict:
    """Trees in, trees out, a residual that is computed and one that is no tensor."""
    return {"y": (p["a"] ** 3).sum() * p["b"] * factor}


def cubes_forward(p: dict, factor: float) -> tuple:
    total = (p["a"] ** 3).sum()
    return {"y": total * p["b"] * factor}, (p["a"] ** 2, p["b"], total, factor, "word")


def cubes_backward(residuals: tuple, gradient: dict) -> tuple:
    squares, b, total, factor, word = residuals
    assert word == "word"
    g = gradient["y"] * factor
    return {"a": 3 * squares * b * g, "b": total * g}, None


cubes.defvjp(cubes_forward, cubes_backward)


@pn.custom_jvp
def softplus(x: Tensor, y: Tensor) -> Tensor:
    return torch.log1p(x.exp()) * y


softplus.defjvp(
    lambda primals, tangents: (
        softplus(*primals),
        tangents[0] * primals[0].sigmoid() * primals[1] + torch.log1p(primals[0].exp()) * tangents[1],
    )
)


def arguments(device: torch.device) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(4, generator=generator, dtype=DOUBLE).to(device),
        "b": torch.tensor(2.0, dtype=DOUBLE, device=device),
    }


def test_relu_of_the_tutorials(device: torch.device) -> None:
    """It works under grad, vmap, vmap(grad), jit and compile; the derivative at 0 is 0."""
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=DOUBLE, device=device)
    expected = torch.tensor([0.0, 0.0, 1.0], dtype=DOUBLE, device=device)
    assert torch.equal(relu(x), x.relu())
    assert torch.equal(pn.grad(lambda x: relu(x).sum())(x), expected)
    assert torch.equal(pn.vmap(pn.grad(relu))(x), expected)
    assert torch.equal(pn.grad(lambda x: pn.vmap(relu)(x).sum())(x), expected)
    assert torch.equal(pn.jit(pn.vmap(pn.grad(relu)), backend="aot_eager")(x), expected)
    leaf = x.clone().requires_grad_()
    relu(leaf).sum().backward()
    assert torch.equal(leaf.grad, expected)
    assert torch.equal(pn.grad(lambda x: pn.grad(lambda x: (relu(x) ** 2).sum())(x).sum())(x), 2 * expected)


def test_reverse_rule_under_all_transformations(device: torch.device) -> None:
    """With trees and computed residuals, first and second derivatives, batched or not, are right."""
    p = arguments(device)
    both = pn.tree.stack([p, pn.tree.map(lambda leaf: 2 * leaf, p)])

    def results(f: object) -> list:
        g = lambda p: f(p, 1.5)["y"]  # noqa: E731
        return [
            pn.grad(g)(p),
            pn.vmap(pn.grad(g))(both),
            pn.grad(lambda p: sum(leaf.square().sum() for leaf in pn.tree.leaves(pn.grad(g)(p))))(p),
            pn.jacrev(pn.grad(g))(p),
            pn.grad(lambda p: pn.vmap(g)(p).sum())(both),
            pn.vmap(pn.jacrev(pn.grad(g)))(both),
            pn.jit(pn.grad(g), backend="aot_eager")(p),
        ]

    plain = cubes.__wrapped__
    for mine, right in zip(results(cubes), results(plain), strict=True):
        assert pn.tree.allclose(mine, right, rtol=0, atol=1e-10)


def test_the_rule_is_used(device: torch.device) -> None:
    """A rule that differs from the true derivative wins, and None and holes are zeros."""
    straight = pn.custom_vjp(torch.round)
    straight.defvjp(lambda x: (x.round(), None), lambda _, g: (g,))
    x = torch.randn(5, device=device)
    assert torch.equal(pn.grad(lambda x: straight(x).sum())(x), torch.ones_like(x))
    cut = pn.custom_vjp(lambda p: p["a"].sum() + p["b"])
    cut.defvjp(lambda p: (p["a"].sum() + p["b"], None), lambda _, g: ({"a": pn.tree.HOLE, "b": 3 * g},))
    p = arguments(device)
    grads = pn.grad(cut)(p)
    assert torch.equal(grads["a"], torch.zeros_like(p["a"]))
    assert grads["b"] == 3
    none = pn.custom_vjp(lambda a, b: a * b)
    none.defvjp(lambda a, b: (a * b, None), lambda _, g: (None, g))
    assert torch.equal(pn.grad(lambda x: none(x, x).sum())(x), torch.ones_like(x))


def test_forward_rule_under_all_transformations(device: torch.device) -> None:
    """Forward mode, reverse mode, their batched forms and second derivatives are right."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(6, generator=generator, dtype=DOUBLE).to(device) for _ in range(2))

    def results(f: object) -> list:
        total = lambda x, y: f(x, y).sum()  # noqa: E731
        return [
            pn.jvp(f, (x, y), (y, x))[1],
            pn.jacfwd(f)(x, y),
            pn.vmap(lambda x, y: pn.jvp(f, (x, y), (y, x))[1])(x, y),
            pn.grad(total, (0, 1))(x, y),
            pn.vmap(pn.grad(f, (0, 1)))(x, y),
            pn.hessian(total)(x, y),
            pn.jacrev(pn.grad(total))(x, y),
        ]

    for mine, right in zip(results(softplus), results(softplus.__wrapped__), strict=True):
        assert pn.tree.allclose(mine, right, rtol=0, atol=1e-10)
    assert pn.grad(softplus)(torch.tensor(800.0, device=device), torch.tensor(1.0, device=device)) == 1


def text_of(call: object) -> str:
    with pytest.raises(GradientError) as error:
        call()
    return str(error.value)


def test_errors(device: torch.device) -> None:
    """A missing rule and a rule that returns what does not fit are named."""
    x = torch.ones(3, device=device)

    def double(x: Tensor) -> Tensor:
        return 2 * x

    def with_rule(forward: object, backward: object) -> object:
        f = pn.custom_vjp(double)
        f.defvjp(forward, backward)
        return lambda: pn.grad(lambda x: f(x).sum())(x)

    assert text_of(lambda: pn.custom_vjp(double)(x)) == (
        "custom_vjp: 'double' has no rule: call double.defvjp(forward, backward) first."
    )
    assert text_of(lambda: pn.custom_jvp(double)(x)) == (
        "custom_jvp: 'double' has no rule: call double.defjvp(rule) first."
    )
    assert text_of(lambda: relu(x=x)) == (
        "custom_vjp: 'relu' was called with keyword arguments (x), for which the rule has no place: pass them by "
        "position."
    )
    assert text_of(with_rule(lambda x: 2 * x, lambda r, g: (2 * g,))) == (
        "custom_vjp: the forward rule of 'double' must return (output, residuals), got a Tensor."
    )
    assert text_of(with_rule(lambda x: (3, None), lambda r, g: (2 * g,))) == (
        "custom_vjp: 'double' must return tensors, got 3."
    )
    assert text_of(with_rule(lambda x: (2 * x, None), lambda r, g: 2 * g)) == (
        "custom_vjp: the backward rule of 'double' must return a tuple with a gradient (or None) for each of the 1 "
        "arguments, got a Tensor."
    )
    assert text_of(with_rule(lambda x: (2 * x, None), lambda r, g: (2 * g, None))) == (
        "custom_vjp: the backward rule of 'double' must return a tuple with a gradient (or None) for each of the 1 "
        "arguments, got 2 of them."
    )
    assert text_of(with_rule(lambda x: (2 * x, None), lambda r, g: (g.sum(),))) == (
        "custom_vjp: the backward rule of 'double' must return for argument 0 a gradient that looks like it, f32[3], "
        "got f32[]."
    )
    wrong = pn.custom_jvp(double)
    wrong.defjvp(lambda primals, tangents: tangents[0])
    assert text_of(lambda: pn.jvp(wrong, (x,), (x,))) == (
        "custom_jvp: the rule of 'double' must return (output, output tangent), got a Tensor."
    )
    wrong.defjvp(lambda primals, tangents: (2 * primals[0], (tangents[0], tangents[0])))
    assert text_of(lambda: pn.jvp(wrong, (x,), (x,))) == (
        "custom_jvp: the tangent that the rule of 'double' returns must look like the output."
    )


def test_forward_over_forward(device: torch.device) -> None:
    """Forward mode within forward mode sees the rule twice, batched or not."""
    cube = pn.custom_jvp(lambda x: x**3)
    cube.defjvp(lambda primals, tangents: (primals[0] ** 3, 3 * primals[0] ** 2 * tangents[0]))
    x = torch.tensor([1.0, 2.0, -3.0], dtype=DOUBLE, device=device)
    one = torch.ones_like(x)
    first = lambda x: pn.jvp(cube, (x,), (torch.ones_like(x),))[1]  # noqa: E731
    assert torch.equal(pn.jvp(first, (x,), (one,))[1], 6 * x)
    assert torch.allclose(pn.jacfwd(pn.jacfwd(cube))(x).sum((1, 2)), 6 * x)
    assert torch.allclose(pn.vmap(pn.jacfwd(pn.jacfwd(cube)))(x), 6 * x)
    assert torch.equal(pn.grad(lambda x: first(x).sum())(x), 6 * x)


@pytest.mark.filterwarnings("ignore:Error detected in GeneratedBackwardFor_purenn:UserWarning")
def test_graphs_do_not_lose_a_rule(device: torch.device) -> None:
    """Where a compiled graph would be differentiated without the rule there is an error, and no other number."""
    clipped = pn.custom_vjp(lambda x: x.clone())
    clipped.defvjp(lambda x: (x.clone(), None), lambda _, gradient: (gradient.clamp(-1, 1),))
    f = lambda x: 5 * clipped(x)  # noqa: E731
    loop = lambda x: pn.scan(lambda c, _: (2 * clipped(c), None), x, None, length=3)[0]  # noqa: E731
    x = torch.tensor(2.0, device=device)
    jitted = pn.jit(f, backend="aot_eager")
    assert jitted(x) == 10
    assert pn.jit(pn.grad(f), backend="aot_eager")(x) == 1
    outside = (
        "custom_vjp '<lambda>': a compiled function that uses this one is differentiated from outside, but the rule is "
        "not in the compiled graph: compile the gradient instead, pn.jit(pn.grad(f))."
    )
    assert text_of(lambda: pn.grad(jitted)(x)) == outside
    assert text_of(lambda: jitted(x.clone().requires_grad_()).backward()) == outside
    assert pn.grad(loop)(x) == 1
    assert pn.jit(loop, backend="aot_eager")(x) == 16
    assert text_of(lambda: pn.jit(pn.grad(loop), backend="aot_eager")(x)) == (
        "scan: the body uses custom_vjp '<lambda>', which has a derivative rule of its own, and a compiled loop's "
        "gradient is that of the traced body, which knows no rules. Write the loop in Python, or do not compile it."
    )


@pytest.mark.filterwarnings("ignore:.*setup_context.*")
def test_torch_compile(device: torch.device) -> None:
    """torch.compile knows the rules of reverse mode from outside; where it would lose one there is an error."""
    product = pn.custom_vjp(lambda a, b: a * b)
    product.defvjp(lambda a, b: (a * b, (a, b)), lambda kept, g: (kept[1] * g, 3 * kept[0] * g))
    a, b = torch.tensor([1.0, 2.0], device=device), torch.tensor([3.0, 4.0], device=device)

    def compiled(fn: object) -> object:
        torch.compiler.reset()
        return torch.compile(fn, fullgraph=True, backend="aot_eager")

    for f in (product, softplus):
        torch.testing.assert_close(compiled(f)(a, b), f(a, b))
    leaves = [a.clone().requires_grad_(), b.clone().requires_grad_()]
    gradients = torch.autograd.grad(compiled(lambda a, b: product(a, b).sum())(*leaves), leaves)
    assert [x.tolist() for x in gradients] == [[3, 4], [3, 6]]
    for f, kind, name in ((product, "custom_vjp", "<lambda>"), (softplus, "custom_jvp", "softplus")):
        total = lambda a, b, f=f: f(a, b).sum()  # noqa: E731
        for fn, given in ((pn.grad(total), (a, b)), (pn.vmap(f), (a, b)), (total, leaves)):
            if fn is total and f is product:
                continue
            with pytest.raises(torch._dynamo.exc.Unsupported) as error:
                compiled(fn)(*given)
            assert (
                f"{kind}: within torch.compile a transformation would differentiate the computation of '{name}' "
                f"instead of using its rule. Compile with pn.jit, which knows the rule."
            ) in str(error.value)
        # With graph breaks the function runs in eager, where the rule is known.
        torch.compiler.reset()
        broken = torch.compile(pn.grad(total), backend="aot_eager")
        torch.testing.assert_close(broken(a, b), pn.grad(total)(a, b))
