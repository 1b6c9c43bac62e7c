"""`pn.jit` where compiled code would silently do something else: memory, modes, threads, signs and hidden tensors."""

import threading
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from _transform_models import DOUBLE, inputs
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, TraceError

INDUCTOR = pytest.param("inductor", marks=pytest.mark.slow)


def text_of(call: Callable[[], object], kind: type[Exception]) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


# ------------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_conjugates_and_negatives(device: torch.device, backend: str) -> None:
    """Arguments, and tensors closed over, that torch keeps as the conjugate or the negative of their memory."""
    z = torch.complex(inputs(device)[0], inputs(device)[1])
    plain, negative = z.imag.clone(), z.conj().imag
    assert negative.is_neg()
    doubled = pn.jit(lambda x: x * 2, backend=backend)
    for x in (plain, negative, plain, negative.clone()):
        torch.testing.assert_close(doubled(x), x * 2)
    torch.testing.assert_close(pn.jit(lambda x: x * negative, backend=backend)(plain), plain * negative)
    if backend != "inductor":  # which has no code for complex numbers, and warns
        torch.testing.assert_close(pn.jit(lambda z: z.real * z.imag, backend=backend)(z.conj()), -z.real * z.imag)


def test_zeros_with_signs_and_nan(device: torch.device) -> None:
    """0.0 and -0.0 are different numbers to compile in, and nan is the same number again."""
    scaled = pn.jit(lambda x, n: x * n, backend="eager")
    x = torch.ones(1, device=device)
    assert [(1 / scaled(x, n)).item() for n in (0.0, -0.0, 0.0)] == [float("inf"), -float("inf"), float("inf")]
    assert scaled.cache_info() == (1, 2, 2)
    assert all(scaled(x, float("nan")).isnan().item() for _ in range(3))
    assert scaled.cache_info() == (3, 3, 3)


def test_one_tensor_twice_after_two_tensors(device: torch.device) -> None:
    """A graph for two tensors is not used for one in both places."""
    x = inputs(device)
    both = pn.jit(lambda a, b: a * b, backend="eager")
    for a, b in ((x, x + 1), (x, x), (x + 1, x), (x[0], x[0])):
        assert torch.equal(both(a, b), a * b)
    assert both.cache_info() == (1, 3, 3)


def test_error_sparse(device: torch.device) -> None:
    """Inductor takes no sparse tensor."""
    assert text_of(lambda: pn.jit(lambda x: x.to_dense() * 2)(inputs(device).to_sparse()), ArgumentError) == (
        "jit: inductor compiles functions of dense tensors, and one that is used here is sparse: pass x.to_dense(), or "
        "use backend='aot_eager'."
    )


# ------------------------------------------------------------------------------------------------------------ donation


def test_donated_memory_is_no_other_inputs(device: torch.device) -> None:
    """A donated argument that shares memory with another input is refused in every call, before it is written to."""
    w = torch.arange(3.0, device=device)
    step = pn.jit(lambda a, b: (a + 1, b.flip(0), w * 2), donate_argnums=0, backend="aot_eager")
    x = torch.arange(8.0, device=device)
    step(x[:3].clone(), x[4:7])
    step(x[:3], x[4:7])
    assert torch.equal(x[:4], torch.tensor([1.0, 2, 3, 3], device=device))
    before = x.clone()
    shared = "jit: argument 0 is donated but shares memory with {}: donate x.clone()."
    for a, b in ((x[:3], x[2:5]), (x[2:5], x[:3]), (x[:3], x[:3].view(3))):
        assert text_of(lambda a=a, b=b: step(a, b), ArgumentError) == shared.format("argument 1")
    assert text_of(lambda: step(w, x[:3]), ArgumentError) == shared.format("a tensor that it closes over")
    assert torch.equal(x, before)
    assert torch.equal(w, torch.arange(3.0, device=device))


def test_error_what_cannot_be_donated(device: torch.device) -> None:
    """Tensors that cannot be written to outside of the function."""
    with torch.inference_mode():
        made = torch.ones(3, device=device)
    conjugate = torch.ones(3, dtype=torch.complex64, device=device).conj()
    step = pn.jit(lambda a: a + 1, donate_argnums=0, backend="aot_eager")
    for x, why in (
        (made, "was made in inference mode, where alone it can be written to: donate x.clone()."),
        (made.clone()[:1].expand(3), "several of its elements are one place in memory: donate x.contiguous()."),
        (
            conjugate,
            "is the conjugate or the negative of what its memory holds: donate x.resolve_conj().resolve_neg().",
        ),
    ):
        assert text_of(lambda x=x: step(x), ArgumentError) == f"jit: argument 0 is donated but {why}"


# --------------------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("backend", ["eager", "aot_eager", INDUCTOR])
def test_failing_factorisations(device: torch.device, backend: str) -> None:
    """What torch says of a singular matrix is raised by compiled code too."""
    jitted = pn.jit(lambda x: torch.linalg.cholesky(x) * 2, backend=backend)
    text = text_of(lambda: jitted(torch.zeros(2, 2, device=device)), RuntimeError)
    assert text.startswith("linalg.cholesky: The factorization could not be completed")


def test_default_device(device: torch.device) -> None:
    """A graph that was made with one default device is not used with another."""
    made = pn.jit(lambda x: torch.ones(2) * x.shape[0], backend="eager")
    x = inputs(device)
    with device:
        assert made(x).device.type == device.type
    with torch.device("meta"):
        assert made(x).device.type == "meta"
    with device:
        assert made(x).device.type == device.type
    assert made.cache_info() == (1, 2, 2)


def test_deterministic_algorithms(device: torch.device) -> None:
    """A graph that was made without them is not used with them."""
    f = pn.jit(torch.sin, backend="eager")
    x = inputs(device)
    f(x)
    torch.use_deterministic_algorithms(True)
    try:
        f(x)
    finally:
        torch.use_deterministic_algorithms(False)
    f(x)
    assert f.cache_info() == (1, 2, 2)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13), reason="there torch.func.grad gives zeros itself"
)
def test_gradients_in_inference_mode(device: torch.device) -> None:
    """They are what they are outside, compiled or not, and a graph from there is not used elsewhere."""
    x = inputs(device)
    f = lambda x: x.sin().square().sum()  # noqa: E731
    second = lambda x: pn.grad(lambda x: pn.grad(f)(x).sum())(x)  # noqa: E731
    for fn in (pn.grad(f), second, pn.vmap(pn.grad(f)), lambda x: pn.vjp(f, x)[1](torch.ones_like(x[0, 0]))[0]):
        expected = fn(x)
        jitted = pn.jit(fn, backend="eager")
        with torch.inference_mode():
            torch.testing.assert_close(fn(x), expected)
            torch.testing.assert_close(jitted(x), expected)
        torch.testing.assert_close(jitted(x), expected)
        assert jitted.cache_info() == (0, 2, 2)


def without(fn: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return fn()


def switching(a: Tensor, w: Tensor) -> Tensor:
    with torch.no_grad():
        c = a * w
        with torch.enable_grad():
            d = a * 2
        e = d * a
    return c + d + e + a


def looped(a: Tensor, w: Tensor) -> Tensor:
    return pn.scan(lambda c, v: (c * v, None), a.sum(), w)[0]


UNTRACKED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "switched off and on": switching,
    "several results": lambda a, w: without(lambda: torch.stack(a.sort().values.unbind())) * a * w,
    "a gradient": lambda a, w: without(lambda: torch.func.grad(lambda q: (q * q * w).sum())(a)) * a * w,
    "a batch of gradients": lambda a, w: without(lambda: pn.vmap(pn.grad(lambda q, w: q * q * w))(a, w)) * a * w,
    "a loop": lambda a, w: without(lambda: pn.scan(lambda c, v: (c * v, c), a.sum(), w)[1]) * a * w,
    "a gradient of a loop": lambda a, w: without(lambda: pn.grad(looped)(a, w)) * a * w,
    "a batch": lambda a, w: pn.vmap(lambda a, w: without(lambda: a * w) + a)(a, w),
    "a tangent": lambda a, w: pn.jvp(lambda a, w: without(lambda: a * w) + a, (a, w), (w, a))[1] * a,
}


@pytest.mark.parametrize("what", UNTRACKED)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_what_no_grad_computes_has_no_gradient(device: torch.device, what: str, backend: str) -> None:
    """A jitted function that is differentiated from outside has the gradients of the function itself."""
    f = UNTRACKED[what]
    a = torch.linspace(0.1, 1, 3, dtype=DOUBLE, device=device).requires_grad_()
    w = (a.detach() + 1).requires_grad_()
    expected = torch.autograd.grad(f(a, w).sum(), (a, w), materialize_grads=True)
    found = torch.autograd.grad(pn.jit(f, backend=backend)(a, w).sum(), (a, w), materialize_grads=True)
    torch.testing.assert_close(found, expected)


class Fenced(torch.autograd.Function):
    """Switches gradients itself, where autograd has switched them off without a word."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x * 2
        with torch.no_grad():
            return y * 1

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return 2 * grad_outputs[0]


def test_switches_within_a_rule(device: torch.device) -> None:
    """What an autograd.Function switches for itself says nothing of what comes after it."""
    x = torch.linspace(0.1, 1, 3, dtype=DOUBLE, device=device).requires_grad_()
    jitted = pn.jit(lambda x: (Fenced.apply(x.detach()) * x.sin()).sum(), backend="eager")
    torch.testing.assert_close(torch.autograd.grad(jitted(x), x)[0], (2 * x * x.cos()).detach())


# ------------------------------------------------------------------------------------------------------------- threads


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """The results of calls that begin at the same time, each in a thread of its own."""
    results: list[Any] = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = calls[number]()
        except Exception as error:  # shown by the comparison of the results
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_first_calls_in_threads(device: torch.device) -> None:
    """Threads that call one function for the first time trace it once; several functions do not disturb each other."""
    x = inputs(device)
    total: Callable[[Any], Tensor] = lambda x: x.sin().sum()  # noqa: E731
    f: Any = pn.jit(pn.assert_max_traces(1)(pn.grad(total)), backend="aot_eager")
    results = together([lambda n=n: f(x * n) for n in range(6)])
    torch.testing.assert_close(results, [(x * n).cos() for n in range(6)])
    assert f.cache_info() == (5, 1, 1)
    others = [pn.jit(lambda x, n=n: x.sin() * n, backend="aot_eager") for n in range(4)]
    torch.testing.assert_close(together([lambda g=g: g(x) for g in others]), [x.sin() * n for n in range(4)])


# ------------------------------------------------------------------------------------------------------------- results


@attrs.frozen
class Holder:
    """No node of a tree."""

    item: Any


RESULTS: dict[str, Callable[[Tensor], object]] = {
    "a Holder": Holder,
    "a function": lambda x: lambda: x,
    "a set": lambda x: {x},
    "a generator": lambda x: (x for _ in range(2)),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_error_hidden_tensors(device: torch.device, kind: str) -> None:
    """A result that holds traced tensors where nobody finds them is refused; other objects come back as they are."""
    x = torch.ones(2, dtype=DOUBLE, device=device)
    assert text_of(lambda: pn.jit(lambda x: (x, RESULTS[kind](x * 2)), backend="eager")(x), TraceError) == (
        f"jit: the function returns {kind} that holds a traced tensor, which has no value. Return tensors in tuples, "
        f"lists, dicts and containers (`@pn.container` makes a class one), and build the rest from them outside."
    )
    kept = Holder(x)
    assert pn.jit(lambda x: (x * 2, kept, "text"), backend="eager")(x)[1:] == (kept, "text")
