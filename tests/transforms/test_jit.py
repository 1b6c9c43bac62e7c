"""`pn.jit`: eager numbers from a compiled graph, what the cache is keyed by, and its errors."""

from collections.abc import Callable

import pytest
import torch
from _transform_models import DOUBLE, Affine, Net, inputs, loss, make, net
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, MutationError, TraceError
from purenn.layers import BatchNorm1d, Dropout, Linear, Sequential, Tanh

BACKENDS = ["eager", "aot_eager"]


def plain(fn: object, **options: object) -> object:
    """`jit` without a compiler behind it: traced, looked up and run as a graph."""
    return pn.jit(fn, backend="eager", **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_eager(device: torch.device, backend: str) -> None:
    """Values, gradients, per-sample and second-order gradients are those of the uncompiled function."""
    p, x = make(device), inputs(device)
    functions = {
        "value": lambda p, x: {"y": net(p, x), "word": "text", "p": p},
        "gradient": pn.grad(loss),
        "rows": pn.vmap(pn.grad(loss), (None, 0)),
        "second": pn.grad(lambda p, x: pn.grad(loss)(p, x).second.weight.square().sum()),
        "hessian": pn.hessian(loss),
    }
    for fn in functions.values():
        jitted = pn.jit(fn, backend=backend)
        assert pn.tree.allclose(jitted(p, x), fn(p, x), rtol=0, atol=1e-11)
        assert pn.tree.allclose(jitted(p, 2 * x), fn(p, 2 * x), rtol=0, atol=1e-10)
        assert jitted.cache_info() == (1, 1, 1)


@pytest.mark.slow
def test_training_step_with_inductor(device: torch.device) -> None:
    """A step with batch norm, dropout, a key and Adam, compiled by inductor, gives the eager numbers ten times."""
    k = pn.random.split(pn.random.key(0, device), 3)
    p = Sequential.of(Linear.init(k[0], 3, 8), BatchNorm1d.init(8), Tanh(), Dropout(0.3), Linear.init(k[1], 8, 2))
    p = pn.tree.to(p, DOUBLE, device=device) if device.type != "cpu" else pn.tree.to(p, DOUBLE)
    optimizer = pn.optim.sgd(0.05, momentum=0.9)
    x = inputs(device, 16)

    def loss_of(p: Sequential, x: Tensor, key: Tensor) -> tuple[Tensor, Sequential]:
        y, new = p(x, key=key, train=True)
        return y.square().sum(), new

    def step(p: Sequential, state: object, x: Tensor, key: Tensor) -> tuple:
        (value, p), grads = pn.value_and_grad(loss_of, has_aux=True)(p, x, key)
        updates, state = optimizer.update(grads, state, p)
        return pn.optim.apply_updates(p, updates), state, value

    jitted = pn.jit(step)
    one = two = (p, optimizer.init(p))
    for key in pn.random.split(k[2], 10):
        *one, first = step(*one, x, key)
        *two, second = jitted(*two, x, key)
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
    assert pn.tree.allclose(tuple(one), tuple(two), rtol=0, atol=1e-9)
    assert jitted.cache_info() == (9, 1, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_through_it(device: torch.device, backend: str) -> None:
    """Arguments that require grad, and tensors closed over that do, get their gradients."""
    p, x = make(device), inputs(device).requires_grad_()
    w = torch.ones(2, dtype=DOUBLE, device=device, requires_grad=True)

    def fn(p: Net, x: Tensor) -> Tensor:
        return (net(p, x) * w).square().sum()

    mine = torch.autograd.grad(pn.jit(fn, backend=backend)(p, x), (x, w))
    for ours, right in zip(mine, torch.autograd.grad(fn(p, x), (x, w)), strict=True):
        torch.testing.assert_close(ours, right, rtol=0, atol=1e-11)
    assert pn.tree.allclose(pn.grad(pn.jit(loss, backend=backend))(p, x.detach()), pn.grad(loss)(p, x.detach()))


def test_inlined_inside_transformations_and_traces(device: torch.device) -> None:
    """Within vmap, within grad of grad and within another jit it is the function itself."""
    p, x = make(device), inputs(device)
    jitted = plain(loss)
    batched = pn.vmap(jitted, (None, 0))(p, x)
    torch.testing.assert_close(batched, torch.stack([loss(p, row) for row in x]))
    outer = plain(lambda p, x: jitted(p, x) * 2)
    torch.testing.assert_close(outer(p, x), 2 * loss(p, x))
    second = pn.grad(lambda p: pn.grad(jitted)(p, x).first.weight.sum())(p)
    assert pn.tree.allclose(second, pn.grad(lambda p: pn.grad(loss)(p, x).first.weight.sum())(p), rtol=0, atol=1e-11)
    assert jitted.cache_info() == (0, 0, 0)


@pytest.mark.parametrize("backend", [*BACKENDS, pytest.param("inductor", marks=pytest.mark.slow)])
def test_same_tensor_twice_views_and_strides(device: torch.device, backend: str) -> None:
    """One tensor in two places, views of one storage and transposed arguments give the eager answer."""

    def fn(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return pn.grad(lambda a, b: (a.sin() * b.cos()).sum(), (0, 1))(a, b)

    jitted = pn.jit(fn, backend=backend)
    base = torch.randn(4, 4, dtype=DOUBLE, device=device)
    for a, b in ((base, base), (base, base.clone()), (base, base.T), (base[:2], base[2:]), (base[0], base[0])):
        for ours, right in zip(jitted(a, b), fn(a, b), strict=True):
            assert ours.isfinite().all()
            torch.testing.assert_close(ours, right, rtol=0, atol=1e-12)


def test_ties(device: torch.device) -> None:
    """A tied container gives one gradient, as in eager."""
    weight = make(device).first.weight[:3]
    p = pn.tree.tie(Net(Affine(weight), Affine(weight.clone())), {"second.weight": "first.weight"})
    x = inputs(device)
    assert pn.tree.allclose(plain(pn.grad(loss))(p, x), pn.grad(loss)(p, x), rtol=0, atol=1e-12)


def test_closed_over_tensors_are_references(device: torch.device) -> None:
    """A tensor that the function closes over is read at every call; a write to it by the function is refused."""
    w, x = torch.ones(3, device=device), torch.ones(3, device=device)
    jitted = plain(lambda x: x * w)
    assert torch.equal(jitted(x), x)
    w.mul_(2)
    assert torch.equal(jitted(x), 2 * x)
    assert jitted.cache_info() == (1, 1, 1)
    with pytest.raises(MutationError) as error:
        plain(lambda x: w.add_(x))(x)
    assert str(error.value) == (
        "jit: the function writes in place into a tensor that it closes over (aten.add_.Tensor). Arguments are never "
        "changed: write `w = w + d` instead of `w.add_(d)`, or let the result take the argument's place with "
        "donate_argnums."
    )


def test_writes_to_fresh_tensors_are_fine(device: torch.device) -> None:
    """In-place effects on tensors made by the function work as in eager."""

    def fn(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[0] = x[1]
        return y.add_(x).mul_(2)

    x = inputs(device)
    for backend in BACKENDS:
        assert torch.equal(pn.jit(fn, backend=backend)(x), fn(x))


def test_keys_inside(device: torch.device) -> None:
    """Draws from keys are the eager draws, for every key."""
    fn = lambda key: pn.random.normal(pn.random.split(key)[1], (7,))  # noqa: E731
    jitted = plain(fn)
    for seed in range(3):
        key = pn.random.key(seed, device)
        assert torch.equal(jitted(key), fn(key))
    assert jitted.cache_info() == (2, 1, 1)


def test_no_retrace_for_fresh_instances(device: torch.device) -> None:
    """A hundred new models of the same structure are served by one graph, without a warning."""
    p = Sequential.of(Linear.init(pn.random.key(0, device), 3, 4), Tanh(), Linear.init(pn.random.key(1, device), 4, 2))
    x = torch.ones(5, 3, device=device)
    step = pn.assert_max_traces(1)(
        pn.jit(pn.vmap(pn.grad(lambda p, x: p(x).square().sum()), in_dims=(None, 0)), backend="eager")
    )
    for n in range(100):
        step(pn.tree.map(lambda leaf, n=n: leaf * (1 + n), p), x + n)
    assert step.cache_info() == (99, 1, 1)


def test_static_arguments(device: torch.device) -> None:
    """Static arguments are part of the key, by position or by name, with their defaults."""

    def fn(x: Tensor, how: str = "sum", *, times: int = 1) -> Tensor:
        return getattr(x, how)() * times

    jitted = plain(fn, static_argnames=("how", "times"))
    x = inputs(device)
    assert torch.equal(jitted(x), x.sum())
    assert torch.equal(jitted(x, "mean"), x.mean())
    assert torch.equal(jitted(x, how="mean"), x.mean())
    assert torch.equal(jitted(x, times=3), 3 * x.sum())
    assert jitted.cache_info() == (1, 3, 3)


@pytest.mark.parametrize("static", [(), "n"])
def test_python_numbers_are_part_of_the_key(device: torch.device, static: str | tuple) -> None:
    """A number is compiled in, given as it is or static; 1, 1.0 and True are three different ones."""
    jitted = plain(lambda x, n: x * n, static_argnames=static)
    x = inputs(device)
    for n in (1, 1.0, True, 1):
        assert torch.equal(jitted(x, n), x * n)
    assert jitted.cache_info() == (1, 3, 3)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_donation(device: torch.device, backend: str) -> None:
    """New parameters are written into the old ones' storage, and are right."""
    p = pn.tree.map(torch.clone, make(device))
    x = inputs(device)

    def step(p: Net, x: Tensor) -> tuple[Net, Tensor]:
        value, grads = pn.value_and_grad(loss)(p, x)
        return pn.tree.map(lambda w, g: w - 0.01 * g, p, grads), value

    expected, value = step(p, x)
    pointers = [leaf.data_ptr() for leaf in pn.tree.leaves(p)]
    new, got = pn.jit(step, donate_argnums=0, backend=backend)(p, x)
    assert pn.tree.allclose(new, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(got, value)
    assert [leaf.data_ptr() for leaf in pn.tree.leaves(new)] == pointers


@pytest.mark.parametrize("view", [lambda x: x[1:], lambda x: x.T, lambda x: x.split(1)[0]])
def test_donated_storage_that_is_returned(view: Callable[[Tensor], Tensor], device: torch.device) -> None:
    """Of an argument of which a view is returned nothing is overwritten."""
    x = inputs(device)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, view(x)

    new, part = pn.jit(step, donate_argnums=0, backend="aot_eager")(x.clone())
    assert torch.equal(new, x + 1)
    assert torch.equal(part, view(x))


def test_lower(device: torch.device) -> None:
    """The graph can be read, with shapes, without compiling anything."""
    jitted = plain(lambda x: x.sin() + 1)
    text = str(jitted.lower(inputs(device)))
    assert "torch.ops.aten.sin.default" in text
    assert "f64[5, 3]" in text
    assert jitted.cache_info() == (0, 0, 0)


def test_clear_cache(device: torch.device) -> None:
    """A cleared cache traces again."""
    jitted = plain(torch.sin)
    jitted(inputs(device))
    jitted.clear_cache()
    jitted(inputs(device))
    assert jitted.cache_info() == (0, 2, 1)


def branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def item(x: Tensor) -> Tensor:
    return x * x.sum().item()


def mask(x: Tensor) -> Tensor:
    return x[x > 0]


def numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy())


def address(x: Tensor) -> Tensor:
    return x * (x.data_ptr() % 2)


def filled(x: Tensor) -> Tensor:
    return pn.grad(lambda x: torch.full((2,), x[0, 0]).sum())(x)


def gathered(x: Tensor) -> Tensor:
    return torch.tensor([x[0, 0], x[0, 1]])


def nested(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor([x, x[:1]])


def compiled(x: Tensor) -> Tensor:
    return torch.compile(torch.sin, backend="eager")(x)


def place_in(fn: Callable[[Tensor], Tensor]) -> str:
    """The first line of a function's body, as errors name it."""
    line = fn.__code__.co_firstlineno + 1
    with open(__file__) as source:
        code = source.read().splitlines()[line - 1].strip()
    return f" at test_jit.py:{line} (`{code}`)"


VALUE = (
    "jit: the function asks for the value of a traced tensor (`if`, `while`, bool(), int(), .item() or .tolist()){at}. "
    "While it is traced there are no values: choose with torch.where(condition, a, b), keep the number as a tensor, or "
    "pass it as a Python number, which is traced for each value anew."
)


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (branch, VALUE),
        (item, VALUE),
        (
            mask,
            "jit: the shape of a result depends on values (a boolean mask as an index, nonzero, unique){at}. Use "
            "torch.where(mask, x, 0), or a fixed number of results.",
        ),
        (
            numpy,
            "jit: the function asks for the data of a traced tensor (.numpy() or a pointer){at}. While it is traced "
            "there are no values: compute with torch, or call numpy outside.",
        ),
        (
            address,
            "jit: the function asks for the data of a traced tensor (.numpy() or a pointer){at}. While it is traced "
            "there are no values: compute with torch, or call numpy outside.",
        ),
        (filled, VALUE),
        (
            gathered,
            "jit: the function makes a tensor of the values of traced ones (torch.tensor([a, b])){at}. While it is "
            "traced there are no values: use torch.stack([a, b]).",
        ),
        (
            nested,
            "jit: the function uses an operation that cannot be traced{at}. Call it outside, or write it in other "
            "operations.",
        ),
        (
            compiled,
            "jit: the function calls one that torch.compile has made{at}. Call the function that it was made of: it is "
            "compiled along.",
        ),
    ],
)
def test_error_values_are_not_known(device: torch.device, fn: object, text: str) -> None:
    """What needs values while tracing is explained with the user's line."""
    with pytest.raises(TraceError) as error:
        plain(fn)(inputs(device))
    assert str(error.value) == text.format(at=place_in(fn))
    assert error.value.__cause__ is not None


def text_of(call: object, kind: type[Exception]) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


def test_error_writes(device: torch.device) -> None:
    """A write into an argument, or into a view of one, is refused before anything is changed."""
    p = make(device)
    before = p.first.weight.clone()
    text = (
        "jit: the function writes in place into argument 0, 'first.weight' ({op}). Arguments are never changed: write "
        "`w = w + d` instead of `w.add_(d)`, or let the result take the argument's place with donate_argnums."
    )
    whole = text_of(lambda: plain(lambda p: p.first.weight.add_(1))(p), MutationError)
    assert whole == text.format(op="aten.add_.Tensor")
    part = text_of(lambda: plain(lambda p: p.first.weight[:2].T.mul_(2))(p), MutationError)
    assert part == text.format(op="aten.mul_.Tensor")
    assert torch.equal(p.first.weight, before)


def test_error_too_many_traces(device: torch.device) -> None:
    """The error names the part of the key that has changed."""
    x = inputs(device)

    def message(first: tuple, then: tuple) -> str:
        jitted = pn.assert_max_traces(1)(plain(lambda x, n=1: pn.tree.leaves(x)[0] * n))
        jitted(*first)
        return text_of(lambda: jitted(*then), TraceError)

    head = "jit: <lambda> is traced for the 2nd time, assert_max_traces allows 1. Changed since the last trace: "
    where = f"on {device}"
    assert message((x, 2), (x, 3)) == f"{head}argument 1 from 2 to 3."
    assert message((x,), (x[:2],)) == f"{head}argument 0 from f64[5,3] {where} to f64[2,3] {where}."
    assert message((x,), (x.float(),)) == f"{head}argument 0 from f64[5,3] {where} to f32[5,3] {where}."
    assert message((x[:3],), (x[:3].T,)) == (
        f"{head}argument 0 from f64[3,3] {where} to f64[3,3] {where}, strides (1, 3)."
    )
    assert message((x,), ((x, None),)) == f"{head}the structure of argument 0: a Tensor against a tuple."
    assert message(({"a": x, "b": x},), ({"a": x, "b": x.clone()},)) == (f"{head}which arguments are the same tensor.")
    static = pn.assert_max_traces(1)(plain(lambda x, n, m=None: x * n, static_argnames=("n", "m")))
    static(x, 1)
    assert text_of(lambda: static(x, True), TraceError) == (f"{head}static arguments from n=1 to n=True.")
    assert text_of(lambda: static(x, 1, m="a"), TraceError) == (f"{head}static arguments from n=1 to n=1, m='a'.")
    below = plain(pn.assert_max_traces(1)(lambda x: x * 2))
    below(x)
    assert text_of(lambda: below(x[0]), TraceError).endswith(f"argument 0 from f64[5,3] {where} to f64[3] {where}.")
    assert text_of(lambda: pn.assert_max_traces(0), ArgumentError) == (
        "assert_max_traces: n must be an int of at least 1, got 0."
    )


def test_error_options(device: torch.device) -> None:
    """Options that do not fit the function or each other are refused."""
    x = inputs(device)
    assert text_of(lambda: plain(lambda x: x, static_argnames="n"), ArgumentError) == (
        "jit: static_argnames has 'n', but the function's arguments are x."
    )
    assert text_of(lambda: plain(torch.sin, static_argnames="n"), ArgumentError) == (
        "jit: static_argnames cannot be found in sin, which does not name its arguments: jit a function of yours that "
        "calls it."
    )
    assert text_of(lambda: plain(lambda x, n: x, static_argnames="n", donate_argnums=0), ArgumentError) == (
        "jit: give static_argnames or donate_argnums, not both; bind static values with a lambda."
    )
    assert text_of(lambda: plain(lambda x: x, mode="reduce-overhead"), ArgumentError) == (
        "jit: mode='reduce-overhead' is an option of the backend 'inductor', got backend='eager'."
    )
    assert text_of(lambda: plain(lambda x, n: x, static_argnames="n")(x, [1]), ArgumentError) == (
        "jit: the static argument 'n' must be hashable, got a list: use a tuple instead of a list, and a tuple of "
        "pairs instead of a dict."
    )
    assert text_of(lambda: plain(lambda x: x, donate_argnums="x"), ArgumentError) == (
        "jit: donate_argnums must be numbers of positional arguments, got 'x'; arguments have numbers, not names."
    )
    assert text_of(lambda: pn.jit(torch.sin, backend="none")(x), ArgumentError) == (
        "jit: backend must be 'inductor', 'aot_eager', 'eager' or another of torch.compile's, got 'none'."
    )
    assert text_of(lambda: pn.jit(torch.sin, mode="fast")(x), ArgumentError).endswith(
        "'max-autotune-no-cudagraphs', 'max-autotune', got 'fast'."
    )
    assert text_of(lambda: plain(torch.sin, donate_argnums=1)(x), ArgumentError) == (
        "jit: donate_argnums names the positional argument 1, but the function was called with 1."
    )
    assert text_of(lambda: plain(lambda a, b: a + b, donate_argnums=0)(x, x), ArgumentError) == (
        "jit: the same tensor is passed twice, so its storage cannot be donated."
    )
    assert text_of(lambda: plain(lambda a: a + 1, donate_argnums=0)(x.requires_grad_()), ArgumentError) == (
        "jit: argument 0 is donated but requires grad; its old value is needed for the gradient."
    )


def prints(x: Tensor) -> Tensor:
    print(x)
    return x


def formats(x: Tensor) -> Tensor:
    text = f"{x.sum()}"
    return x * len(text)


def represents(x: Tensor) -> Tensor:
    text = f"{x!r}"
    return x * len(text)


def of_a_batch(x: Tensor) -> Tensor:
    return pn.vmap(lambda y: (str(y), y)[1])(x)


@pytest.mark.parametrize("fn", [prints, formats, represents, of_a_batch])
def test_printing_a_traced_value(device: torch.device, fn: Callable[[Tensor], Tensor]) -> None:
    """A text of a tensor that has no value yet is refused, with the line that made it."""
    assert text_of(lambda: plain(fn)(inputs(device)), TraceError) == (
        f"jit: the function prints a traced tensor, or makes a text of it{place_in(fn)}. While it is traced there are "
        f"no values: return the tensor and print the result, or call the function without jit."
    )
