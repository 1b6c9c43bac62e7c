"""Loops over leading axes: the same numbers in eager, under jit and written out, and one trace of the body."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, MutationError, ShapeError, StructureError, TraceError, TransformError
from purenn.layers import (
    BatchNorm1d,
    Dropout,
    GroupNorm,
    InstanceNorm1d,
    LayerNorm,
    Linear,
    RMSNorm,
    Sequential,
    Tanh,
)

DOUBLE = torch.float64


def _body(carry: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    new = torch.tanh(carry["h"] * 0.5 + x)
    return {"h": new, "n": carry["n"] + 1}, new.square()


def _start(device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    carry = {"h": torch.zeros(3, dtype=DOUBLE, device=device), "n": torch.tensor(0, device=device)}
    return carry, torch.linspace(-1, 1, 12, dtype=DOUBLE, device=device).reshape(4, 3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", [None, "eager", "inductor"])
def test_is_the_loop(device: torch.device, backend: str | None, reverse: bool) -> None:
    """Carry, counter and stacked results are those of the loop that the docstring shows."""
    carry, xs = _start(device)

    def run(carry: dict[str, Tensor], xs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return pn.scan(_body, carry, xs, reverse=reverse)

    last, ys = run(carry, xs) if backend is None else pn.jit(run, backend=backend)(carry, xs)
    rows = []
    for x in reversed(xs) if reverse else xs:
        carry, y = _body(carry, x)
        rows.append(y)
    torch.testing.assert_close(ys, torch.stack(rows[::-1] if reverse else rows), rtol=0, atol=1e-14)
    torch.testing.assert_close(last, carry, rtol=0, atol=1e-14)
    assert last["n"].dtype == torch.int64


@pytest.mark.parametrize("jitted", [False, True])
def test_without_steps(device: torch.device, jitted: bool) -> None:
    """No step leaves the carry and gives empty results of the right kind, as a copy of the carry under jit."""
    carry, xs = _start(device)

    def run(carry: dict[str, Tensor], xs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return pn.scan(_body, carry, xs)

    last, ys = (pn.jit(run, backend="eager") if jitted else run)(carry, xs[:0])
    assert ys.shape == (0, 3)
    assert ys.dtype == DOUBLE
    torch.testing.assert_close(last, carry, rtol=0, atol=0)


def test_length_without_xs(device: torch.device) -> None:
    """The number of steps alone makes a loop, and results may be None or hold what is no tensor."""
    one = torch.ones((), device=device)
    assert pn.scan(lambda c, _: (c * 2, None), one, length=5) == (torch.tensor(32.0, device=device), None)
    last, ys = pn.scan(lambda c, x: (c + x["a"] * x["b"], {"c": c, "name": "s"}), one, {"a": torch.arange(3.0), "b": 2})
    assert last == 7
    assert ys["name"] == "s"


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (lambda x, n: {"abc"[n]: x}, "have the structure of that of its first step; they differ at the top: the "
         "children ['a'] against ['b']"),
        (lambda x, n: (x, n), "look like that of its first step, but '1' is 0 there and 1 here"),
        (lambda x, n: x[n:], "look like that of its first step, but the tree itself is f64[3] there and f64[2] here"),
        (lambda x, n: x if n == 0 else x.float(), "look like that of its first step, but the tree itself is f64[3] "
         "there and f32[3] here"),
    ],
)  # fmt: skip
def test_results_of_the_steps_are_alike(
    entry: Callable[[Tensor, int], object], text: str, device: torch.device
) -> None:
    """What one step collects in another form than the first, by Python's own state, is refused and not mixed."""
    numbers = itertools.count()
    with pytest.raises(StructureError) as error:
        pn.scan(lambda c, x: (c, entry(x, next(numbers))), *_start(device))
    assert str(error.value) == f"scan: what the body collects must {text}."


def test_every_carry_is_alike(device: torch.device) -> None:
    """A carry that changes its form after the first step, by Python's own state, is refused."""
    sizes = iter([3, 3, 2, 1])
    with pytest.raises(StructureError) as error:
        pn.scan(lambda c, x: (c[: next(sizes)], None), torch.ones(3, device=device), length=4)
    assert str(error.value) == (
        "scan: the carry that the body returns must look like the one that it gets, but the tree itself is f32[3] "
        "there and f32[1] here."
    )


def test_derivatives_reach_what_the_body_closes_over(device: torch.device) -> None:
    """What the body refers to, also by defaults, has first and second derivatives and is batched, eager and jitted."""
    model = Linear.init(pn.random.key(0), 3, 3, dtype=DOUBLE, device=device)
    _, xs = _start(device)

    def loss(model: Linear, xs: Tensor) -> Tensor:
        shared = model.weight.sum()

        def helper(h: Tensor, shift: Tensor = shared.sin(), *, scale: Tensor = shared.cos()) -> Tensor:  # noqa: B008
            return model(h) * scale + shift * shared

        last, ys = pn.scan(lambda h, x: (torch.tanh(helper(h) + x), h.sum()), xs[0], xs)
        return last.square().sum() + ys.sum()

    def by_hand(model: Linear, xs: Tensor) -> Tensor:
        h, total = xs[0], torch.zeros((), dtype=DOUBLE, device=device)
        for x in xs:
            total = total + h.sum()
            shared = model.weight.sum()
            h = torch.tanh(model(h) * shared.cos() + shared.sin() * shared + x)
        return h.square().sum() + total

    def twice(f: Callable[..., Tensor]) -> Callable[..., Any]:
        return lambda m, xs: pn.grad(lambda m: pn.grad(f)(m, xs).weight.square().sum())(m)

    for transformed, data in (
        (pn.grad, xs),
        (lambda f: pn.vmap(pn.grad(f), in_dims=(None, 0)), torch.stack([xs, xs * 0.5])),
        (twice, xs),
    ):
        expected = transformed(by_hand)(model, data)
        for found in (transformed(loss)(model, data), pn.jit(transformed(loss), backend="eager")(model, data)):
            assert pn.tree.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_plain_autograd_through_a_jitted_loop(device: torch.device) -> None:
    """Outside of everything, `backward` through the compiled function gives the eager gradients."""
    _, xs = _start(device)
    weight = torch.full((3,), 0.7, dtype=DOUBLE, device=device, requires_grad=True)

    def run(weight: Tensor, xs: Tensor) -> Tensor:
        return pn.scan(lambda h, x: (torch.tanh(h * weight + x), None), xs[0], xs)[0].sum()

    (expected,) = torch.autograd.grad(run(weight, xs), weight)
    for backend in ("aot_eager", "inductor"):
        (found,) = torch.autograd.grad(pn.jit(run, backend=backend)(weight, xs), weight)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_stateful_bodies_return_their_buffers(device: torch.device) -> None:
    """The new buffers of each step's layer come back stacked, in eager and under jit."""
    keys = pn.random.split(pn.random.key(0, device), 4)
    layers = pn.ensemble(lambda key: Sequential.of(Linear.init(key, 3, 3), BatchNorm1d.init(3, device=device), Tanh()))(
        keys
    )
    x = pn.random.normal(pn.random.key(1, device), (8, 3))

    def run(layers: Sequential, x: Tensor) -> tuple[Tensor, Sequential]:
        def body(x: Tensor, layer: Sequential) -> tuple[Tensor, Sequential]:
            y, new = layer(x, train=True)
            return y, pn.tree.partition(new, kind="buffer")[0]

        return pn.scan(body, x, layers)

    y, buffers = run(layers, x)
    expected = []
    for layer in pn.tree.unstack(layers):
        x_next, new = layer(x if not expected else x_next, train=True)
        expected.append(pn.tree.partition(new, kind="buffer")[0])
    assert pn.tree.allclose((y, buffers), (x_next, pn.tree.stack(expected)), atol=1e-6)
    assert pn.tree.allclose(pn.jit(run, backend="aot_eager")(layers, x), (y, buffers), atol=1e-6)


def test_batched_gradients_of_stateful_carries(device: torch.device) -> None:
    """A layer with buffers in the carry has a compiled gradient for each example, as in eager."""
    norm = pn.tree.to(BatchNorm1d.init(3, device=device), DOUBLE)
    xs = torch.linspace(-1, 1, 24, dtype=DOUBLE, device=device).reshape(2, 4, 3).sin()

    def loss(norm: BatchNorm1d, x: Tensor) -> Tensor:
        def body(state: tuple[BatchNorm1d, Tensor], _: None) -> tuple[tuple[BatchNorm1d, Tensor], None]:
            y, new = state[0](state[1], train=True)
            return (new, y.tanh()), None

        (new, y), _ = pn.scan(body, (norm, x), None, length=2)
        return y.pow(3).sum() + new.running_mean.square().sum()

    many = pn.vmap(pn.grad(loss, (0, 1)), in_dims=(None, 0))
    found, expected = pn.jit(many, backend="eager")(norm, xs), many(norm, xs)
    assert pn.tree.allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", [BatchNorm1d, GroupNorm, InstanceNorm1d, LayerNorm, RMSNorm])
def test_higher_derivatives_of_norms(norm: type, device: torch.device) -> None:
    """Compiled second and third derivatives of a loop with a norm in its body are those of eager."""
    layer: Any = norm.init(*((2, 4) if norm is GroupNorm else (4,)), dtype=DOUBLE, device=device)
    x = torch.linspace(-1, 1, 16, dtype=DOUBLE, device=device).sin()
    x = x.reshape(1, 4, 4) if norm is InstanceNorm1d else x.reshape(4, 4)
    weight = torch.tensor([0.3, 0.8, 1.2, 0.7], dtype=DOUBLE, device=device)

    def loss(weight: Tensor) -> Tensor:
        def body(h: Tensor, _: None) -> tuple[Tensor, None]:
            y = layer(h * weight, train=True)[0] if pn.tree.is_stateful(layer) else layer(h * weight)
            return y.tanh(), None

        return pn.scan(body, x, None, length=2)[0].pow(3).sum()

    def second(weight: Tensor) -> Tensor:
        return pn.grad(lambda w: pn.grad(loss)(w).sin().sum())(weight)

    third = pn.grad(lambda w: second(w).sin().sum())
    for fn in (second, third, pn.hessian(loss), pn.jacrev(pn.jacrev(loss))):
        torch.testing.assert_close(pn.jit(fn, backend="eager")(weight), fn(weight), rtol=1e-9, atol=1e-11)


def test_keys(device: torch.device) -> None:
    """Draws inside are those of the keys, under jit and with rematerialisation as well."""
    keys = pn.random.split(pn.random.key(3, device), 5)
    x = torch.ones(64, device=device)

    def run(x: Tensor, remat: bool) -> Tensor:
        return pn.scan(lambda h, key: (Dropout(0.5)(h, key=key) + 0.1, None), x, keys, remat=remat)[0]

    expected = x
    for key in keys:
        expected = Dropout(0.5)(expected, key=key) + 0.1
    for remat in (False, True):
        assert torch.equal(run(x, remat), expected)
        assert torch.equal(pn.jit(lambda x, r=remat: run(x, r), backend="eager")(x), expected)
        gradient = pn.grad(lambda x, r=remat: run(x, r).sum())(x)
        assert torch.equal(gradient, pn.grad(lambda x: run(x, False).sum())(x))


def test_one_trace_of_the_body(device: torch.device) -> None:
    """Under jit the body runs as often for 32 steps as for 4, and the graph is as long."""
    counts, lengths = [], []
    for steps in (4, 32):
        calls = 0

        def body(h: Tensor, w: Tensor) -> tuple[Tensor, None]:
            nonlocal calls
            calls += 1
            return torch.tanh(h * w), None

        def loss(ws: Tensor, body=body) -> Tensor:
            return pn.scan(body, torch.ones(2, device=device), ws)[0].sum()

        lowered = pn.jit(pn.grad(loss), backend="eager").lower(torch.ones(steps, 2, device=device))
        counts.append(calls)
        lengths.append(len(lowered.graph.graph.nodes))
        assert str(lowered).count("class ") == 3  # the whole, the step, the step back
    assert counts[0] == counts[1] <= 2
    assert lengths[0] == lengths[1]


@pytest.mark.slow
def test_compile_time_does_not_grow(device: torch.device) -> None:
    """Compiling a gradient through 64 layers takes not much longer than through 4."""
    seconds = []
    for steps in (2, 4, 64):  # the first one starts the compiler

        def loss(ws: Tensor, scale: float = float(steps)) -> Tensor:
            return pn.scan(lambda h, w: (torch.tanh(h @ w) * scale, None), torch.ones(2, 8, device=device), ws)[0].sum()

        before = time.perf_counter()
        pn.jit(pn.grad(loss))(torch.full((steps, 8, 8), 0.1, device=device))
        seconds.append(time.perf_counter() - before)
    assert seconds[2] < 3 * seconds[1]


@pytest.mark.parametrize("transform", [pn.hessian, pn.jacfwd, lambda f: pn.jacfwd(pn.jacfwd(f))])
def test_forward_mode_of_transposed_carries_under_jit(device: torch.device, transform: Any) -> None:
    """Tangents that lie in memory as their primals do are batched with them."""
    w = torch.linspace(-1, 1, 4, dtype=DOUBLE, device=device).reshape(2, 2)

    def run(w: Tensor) -> Tensor:
        return pn.scan(lambda carry, _: ((carry.t() * w).sin(), None), w, length=3)[0].sum()

    torch.testing.assert_close(pn.jit(transform(run), backend="eager")(w), transform(run)(w))


def test_unrolled(device: torch.device) -> None:
    """With unroll the graph has every step."""
    _, xs = _start(device)
    run = pn.jit(lambda xs: pn.scan(lambda h, x: (h.sin() + x, None), xs[0], xs, unroll=True)[0], backend="eager")
    assert str(run.lower(xs)).count("aten.sin") == 4


@pytest.mark.parametrize(
    ("unroll", "reverse", "remat"), [(2, False, False), (3, True, False), (3, False, True), (9, True, False)]
)
def test_groups_of_steps(device: torch.device, unroll: int, reverse: bool, remat: bool) -> None:
    """However many steps are written out to one, values and batched gradients to second order stay the same."""
    weights = torch.linspace(1, 2, 12, dtype=DOUBLE, device=device).reshape(4, 3)

    def loss(h: Tensor, xs: Tensor) -> Tensor:
        def body(carry: Any, row: Any) -> Any:
            h = torch.tanh(carry["h"] * row["scale"] + row["x"])
            return {"h": h, "n": carry["n"] + 1}, (h.square(), carry["n"], "constant")

        carry = {"h": h, "n": torch.tensor(0, device=device)}
        options = {"reverse": reverse, "remat": remat, "unroll": unroll}
        last, (ys, numbers, name) = pn.scan(body, carry, {"x": xs, "scale": 0.5}, **options)
        assert name == "constant"
        return last["h"].sum() + (ys * weights * numbers[:, None]).sum()

    def both(h: Tensor, xs: Tensor) -> Any:
        return pn.vmap(pn.value_and_grad(loss, (0, 1)), (0, None))(h, xs), pn.hessian(loss)(h[0], xs)

    h = torch.linspace(-1, 1, 6, dtype=DOUBLE, device=device).reshape(2, 3)
    xs = torch.linspace(-1, 1, 12, dtype=DOUBLE, device=device).reshape(4, 3)
    torch.testing.assert_close(pn.jit(both, backend="eager")(h, xs), both(h, xs), rtol=0, atol=1e-12)


def test_groups_are_written_out(device: torch.device) -> None:
    """The program of a group has as many steps as asked for, and those that remain are in the graph itself."""
    xs = torch.ones(7, 3, device=device)
    run = pn.jit(lambda xs: pn.scan(lambda h, x: (h.sin() + x, h), xs[0], xs, unroll=3), backend="eager")
    lowered = run.lower(xs)
    assert [str(graph.code).count("aten.sin") for graph in (lowered.graph, *lowered.programs.values())] == [1, 3]


def test_memory_under_the_lean_gradient(device: torch.device) -> None:
    """remat keeps the carries only: the graph of a loop over deep steps holds few tensors."""
    held: list[int] = []

    def deep(h: Tensor, w: Tensor) -> tuple[Tensor, None]:
        for _ in range(10):
            h = torch.tanh(h * w)
        return h, None

    for remat in (False, True):
        saved = 0

        def count(x: Tensor) -> Tensor:
            nonlocal saved
            saved += x.numel()
            return x

        ws = torch.ones(4, 50, device=device, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            pn.scan(deep, torch.ones(50, device=device), ws, remat=remat)
        held.append(saved)
    assert held[1] < 0.3 * held[0]


def test_errors(device: torch.device) -> None:
    """Wrong use says what was wrong, where, and what to do."""
    x = torch.ones(3, 2, device=device)

    def fails(kind: type[Exception], text: str, *args: object, **options: object) -> None:
        with pytest.raises(kind) as error:
            pn.scan(*args, **options)  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert str(error.value) == text

    fails(
        StructureError,
        "scan: the carry must be a tree of tensors, but 'n' is 0: what changes from step to step cannot be a part of "
        "the structure. Use torch.tensor(0).",
        lambda c, x: (c, None),
        {"n": 0},
        x,
    )
    fails(
        ShapeError,
        "scan: 'b' of xs is f32[] and has no leading axis to loop over.",
        lambda c, x: (c, None),
        x[0],
        {"a": x, "b": x.sum()},
    )
    fails(
        ShapeError,
        "scan: the numbers of steps differ: 'a' of xs is f32[3,2] but 'b' of xs is f32[2].",
        lambda c, x: (c, None),
        x[0],
        {"a": x, "b": x[0]},
    )
    fails(
        ShapeError,
        "scan: the numbers of steps differ: length=4 but the tree itself of xs is f32[3,2].",
        lambda c, x: (c, None),
        x[0],
        x,
        4,
    )
    fails(
        ArgumentError,
        "scan: nothing says how many steps there are: give xs with tensors, or length.",
        lambda c, x: (c, None),
        x[0],
    )
    fails(ArgumentError, "scan: length must be at least 0, got -1.", lambda c, x: (c, None), x[0], length=-1)
    fails(ArgumentError, "scan: length must be an int, got 2.5.", lambda c, x: (c, None), x[0], length=2.5)
    text = "scan: unroll must be True, False or a number of steps of at least 1, got {}."
    fails(ArgumentError, text.format("0"), lambda c, x: (c, None), x[0], x, unroll=0)
    fails(ArgumentError, text.format("1.5"), lambda c, x: (c, None), x[0], x, unroll=1.5)
    fails(
        TransformError,
        "scan: the body must return a pair (carry, y), got a Tensor. Return (carry, None) if there is nothing to "
        "collect.",
        lambda c, x: c + x,
        x[0],
        x,
    )
    fails(
        StructureError,
        "scan: the carry that the body returns must look like the one that it gets, but 'h' is f32[2] there and f64[2] "
        "here.",
        lambda c, x: ({"h": (c["h"] + x).double()}, None),
        {"h": x[0]},
        x,
    )
    fails(
        StructureError,
        "scan: the carry that the body returns must have the structure of the one that it gets; they differ at the "
        "top: a dict against a tuple.",
        lambda c, x: ((c["h"],), None),
        {"h": x[0]},
        x,
    )


def test_errors_under_jit(device: torch.device) -> None:
    """What a traced body must not do is said as by jit."""
    x = torch.ones(3, 2, device=device)

    def branching(c: Tensor, row: Tensor) -> tuple[Tensor, None]:
        return (c if row.sum() > 0 else -c), None

    with pytest.raises(TraceError, match=r"^scan: the function asks for the value of a traced tensor .*test_scan\.py:"):
        pn.jit(lambda x: pn.scan(branching, x[0], x)[0], backend="eager")(x)

    def writing(c: Tensor, row: Tensor) -> tuple[Tensor, None]:
        row.add_(1)
        return c + row, None

    with pytest.raises(MutationError, match=r"^scan: the function writes in place into its argument 1 "):
        pn.jit(lambda x: pn.scan(writing, x[0], x)[0], backend="eager")(x)


_GLOBAL: list[Tensor] = []


def _uses_a_global(c: Tensor, row: Tensor) -> tuple[Tensor, None]:
    return c + row * _GLOBAL[0], None


def test_a_batched_global_is_refused_under_jit(device: torch.device) -> None:
    """A tensor of a transformation around the loop that cannot be found is an error, not a wrong answer."""
    x = torch.ones(3, 2, device=device)

    def one(scale: Tensor) -> Tensor:
        _GLOBAL[:] = [scale]
        return pn.scan(_uses_a_global, x[0], x)[0]

    with pytest.raises(TraceError) as error:
        pn.jit(pn.vmap(one), backend="eager")(torch.ones(4, device=device))
    assert str(error.value) == (
        "scan: the body reaches a tensor of a transformation around it through a global variable or an object's "
        f"attribute, where it cannot be found at test_scan.py:{_uses_a_global.__code__.co_firstlineno + 1} "
        "(`return c + row * _GLOBAL[0], None`). Pass it as a part of the carry, or refer to it by a local variable "
        "of the surrounding function."
    )


def test_remat_under_jit(device: torch.device) -> None:
    """With remat the compiled loop keeps its carries for the gradient, without it intermediate values as well."""

    def kept(remat: bool) -> int:
        def loss(ws: Tensor) -> Tensor:
            body = lambda h, w: ((h * w).sin().exp(), None)  # noqa: E731
            return pn.scan(body, torch.ones(2, device=device), ws, remat=remat)[0].sum()

        graph = pn.jit(pn.grad(loss), backend="eager").lower(torch.ones(4, 2, device=device)).graph
        first = next(node for node in graph.graph.nodes if "purenn.scan" in str(node.target))
        return len(first.meta["val"])

    assert kept(remat=True) == 2  # the last carry, and the carry before each step
    assert kept(remat=False) == 4  # and the product, and its exponential's argument or value


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_stacks_of_the_carry_under_jit(device: torch.device, backend: str, length: int, reverse: bool) -> None:
    """A body may collect its carry, twice and beside others; no result shares storage with another or an argument."""
    xs = torch.linspace(0.5, 2, 3 * length, dtype=DOUBLE, device=device).reshape(length, 3)
    carry = torch.ones(3, dtype=DOUBLE, device=device), torch.tensor(3, device=device)

    def run(carry: Any, xs: Tensor) -> Any:
        def body(carry: Any, x: Tensor) -> Any:
            return (carry[0] * x, carry[1] + 1), (carry, x, carry[0], carry[1] * x)

        return pn.scan(body, carry, xs, reverse=reverse)

    found = pn.jit(run, backend=backend)(carry, xs)
    torch.testing.assert_close(found, run(carry, xs), rtol=0, atol=1e-14)
    everything = [*pn.tree.leaves(found), *carry, xs]
    assert len({tensor.untyped_storage().data_ptr() for tensor in everything}) == len(everything)


def test_what_is_not_used_is_not_computed_under_jit(device: torch.device) -> None:
    """Results and parts of the carry that nothing comes from are left out of compiled steps, in loops of loops too."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    def body(carry: tuple[Tensor, Tensor, Tensor, Tensor], x: Tensor) -> Any:
        a, b, c, _ = carry
        inner, (_, kept) = pn.scan(lambda s, _: (s * x.exp(), (s.tan(), s.neg())), a, length=2)
        return (a + b + kept[1], b * x, c.sin() + a, inner), x.cos()

    def run(xs: Tensor) -> Tensor:
        return pn.scan(body, (xs[0], xs[1], xs[2], xs[3]), xs)[0][0]

    xs = torch.linspace(-1, 1, 12, dtype=DOUBLE, device=device).reshape(4, 3)
    torch.testing.assert_close(pn.jit(run, backend=backend)(xs), run(xs), rtol=0, atol=1e-14)
    used = {getattr(node.target, "__name__", "").split(".")[0] for graph in graphs for node in graph.graph.nodes}
    assert {"add", "mul", "exp", "neg"} <= used
    assert not {"sin", "cos", "tan"} & used


def test_gradients_keep_what_they_use(device: torch.device) -> None:
    """A compiled loop that is differentiated for many examples stacks what the gradient needs, and no carry beside."""
    stacked: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        for node in graph.graph.find_nodes(op="call_function", target=torch.ops.purenn.scan.default):
            stacked.append(len(node.meta["val"]) - len(node.args[0]))
        return graph

    def loss(h: Tensor, w: Tensor, xs: Tensor) -> Tensor:
        (h, _), _ = pn.scan(lambda c, x: ((torch.tanh(c[0] * w + x), c[1] + c[0]), None), (h, h), xs)
        return h.sum()

    gradients = pn.vmap(pn.grad(loss), (0, None, None))
    h = torch.linspace(-1, 1, 6, dtype=DOUBLE, device=device).reshape(2, 3)
    w = torch.tensor(0.7, dtype=DOUBLE, device=device)
    xs = torch.linspace(-2, 1, 12, dtype=DOUBLE, device=device).reshape(4, 3)
    torch.testing.assert_close(pn.jit(gradients, backend=backend)(h, w, xs), gradients(h, w, xs), rtol=0, atol=1e-14)
    assert stacked == [1, 0]


@pytest.mark.parametrize("where", ["closed over", "carried", "detached parameters"])
def test_running_statistics_of_torch(device: torch.device, where: str) -> None:
    """A body may normalise by torch's function with given statistics, for which torch has no derivative."""
    p = {"weight": torch.linspace(0.5, 2, 4, dtype=DOUBLE, device=device)}
    statistics = p["weight"].flip(0), p["weight"].square()
    xs = torch.linspace(-2, 1, 24, dtype=DOUBLE, device=device).reshape(3, 2, 4)

    def loss(p: dict, xs: Tensor) -> Tensor:
        def body(carry: Any, x: Tensor) -> Any:
            total, mean, var = carry
            if where == "closed over":
                mean, var = statistics
            elif where == "detached parameters":
                mean, var = p["weight"].detach(), p["weight"].detach() + 1
            y = torch.nn.functional.batch_norm(x, running_mean=mean, running_var=var, weight=p["weight"])
            return (total + y.square().sum(), *carry[1:]), None

        return pn.scan(body, (xs.new_zeros(()), *statistics), xs)[0][0]

    found = pn.jit(pn.grad(loss), backend="aot_eager")(p, xs)
    torch.testing.assert_close(found, pn.grad(loss)(p, xs), rtol=1e-12, atol=0)


def test_in_inference_mode(device: torch.device) -> None:
    """A compiled loop runs where autograd is switched off altogether."""
    carry, xs = _start(device)
    run = pn.jit(lambda carry, xs: pn.scan(_body, carry, xs))
    expected = run(carry, xs)
    with torch.inference_mode():
        torch.testing.assert_close(run(carry, xs), expected, rtol=0, atol=0)
