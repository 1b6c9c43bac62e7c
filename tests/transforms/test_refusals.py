"""More of what torch refuses to transform: tensors that are not dense, other devices, rules that do not fit, draws."""

import copy
import linecache
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import purenn as pn
from purenn.errors import (
    ArgumentError,
    BatchingError,
    DeviceError,
    GradientError,
    MutationError,
    PurennError,
    ShapeError,
    TraceError,
    TransformError,
)

# What torch says of these tensors when the first one is made, and of an operation that vmap loops over.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}:UserWarning")
    for text in ("torch.quantize_per", "Sparse CSR", "The PyTorch API of nested", "There is a performance drop")
]
DOUBLE = torch.float64
Function = Callable[..., Any]
ROWS = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(4, 3)


def jit(f: Function) -> Function:
    return pn.jit(f, backend="eager")


def push(f: Function) -> Function:
    return lambda x: pn.jvp(f, (x,), (x,))


def same(f: Function) -> Function:
    return pn.vmap(f, randomness="same")


def each(f: Function) -> Function:
    return pn.vmap(f, randomness="different")


def pushed_vmap(f: Function) -> Function:
    return push(pn.vmap(f))


def looped(f: Function) -> Function:
    return jit(lambda x: pn.scan(lambda c, _: (f(c), None), x, None, 2)[0])


def sparse(x: Tensor) -> Tensor:
    return x.to_sparse().to_dense()


def inner(x: Tensor) -> Tensor:
    return x.to_sparse()


def rows(x: Tensor) -> Tensor:
    return x.diag().to_sparse_csr() @ x


def nested(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor([x, x])


def quantized(x: Tensor) -> Tensor:
    return x * torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def elsewhere(x: Tensor) -> Tensor:
    return x @ torch.ones(3, dtype=DOUBLE, device="meta")


def valueless(x: Tensor) -> Tensor:
    return x.to("meta").sum()


def parts(x: Tensor) -> Tensor:
    x.sin().unbind(0)[0].mul_(2)
    return x.sum()


def out(x: Tensor) -> Tensor:
    return x * torch.rand(3, out=torch.empty(3))


def dropped(x: Tensor) -> Tensor:
    return torch.bernoulli(x.sigmoid())


def filled(x: Tensor) -> Tensor:
    return x * torch.zeros(3).uniform_()


def classes(x: Tensor) -> Tensor:
    return F.one_hot(x.argsort())


def last(x: Tensor) -> Tensor:
    return x.reshape(1, 1, 3, 1).contiguous(memory_format=torch.channels_last)


def channels(x: Tensor) -> Tensor:
    return x.reshape(1, 1, 3, 1).to(memory_format=torch.channels_last)


def compared(x: Tensor) -> Tensor:
    return torch.testing.assert_close(x, x.clone()) or x


def swapped(x: Tensor) -> Tensor:
    return nn.Linear(3, 2).double()(x)


def saved(x: Tensor) -> Tensor:
    return x * len(pickle.dumps(x))


def shallow(x: Tensor) -> Tensor:
    return copy.copy(x)


def _made(**members: Any) -> Function:
    own = {
        "forward": lambda x: x * 2,
        "setup_context": lambda ctx, inputs, output: None,
        "backward": lambda ctx, gradient: gradient * 2,
    }
    members = {**own, **members}
    as_given = {n: staticmethod(m) if callable(m) else m for n, m in members.items() if m is not None}
    return type("Twice", (torch.autograd.Function,), as_given).apply


TWO_RULES = _made(generate_vmap_rule=True, vmap=lambda info, dims, x: (x, dims[0]))
ONE_RESULT = _made(vmap=lambda info, dims, x: x * 2)
NOT_KEPT = _made(
    generate_vmap_rule=True,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    jvp=lambda ctx, t: t * ctx.saved_tensors[0],
)
OTHER_TANGENT = _made(jvp=lambda ctx, t: t.sum())
NO_BACKWARD = _made(backward=None)
OTHER_GRADIENT = _made(backward=lambda ctx, gradient: gradient.new_ones(7))
TWO_GRADIENTS = _made(backward=lambda ctx, gradient: (gradient, gradient))


def two_rules(x: Tensor) -> Tensor:
    return TWO_RULES(x)


def one_result(x: Tensor) -> Tensor:
    return ONE_RESULT(x)


def not_kept(x: Tensor) -> Tensor:
    return NOT_KEPT(x)


def other_tangent(x: Tensor) -> Tensor:
    return OTHER_TANGENT(x)


def no_backward(x: Tensor) -> Tensor:
    return NO_BACKWARD(x).sum()


def other_gradient(x: Tensor) -> Tensor:
    return OTHER_GRADIENT(x).sum()


def two_gradients(x: Tensor) -> Tensor:
    return TWO_GRADIENTS(x).sum()


NOT_DENSE = (
    "{name}: a tensor that is not dense (sparse, nested, quantized) is used where only dense ones can be{at}. Make it "
    "dense before: x.to_dense(), x.dequantize(), or torch.nested.to_padded_tensor(x, 0.0) with a mask."
)
DEVICES = (
    "{name}: tensors of different devices meet, or some of the device meta, which have no values{at}. Put all on one "
    "device: pn.tree.to(p, device=x.device)."
)
DRAWS = (
    "{name}: the function draws from torch's global generator in a way that vmap cannot split among the examples{at}. "
    "Draw from an explicit key: keys = pn.random.split(key, n), then vmap over the keys and use pn.random.normal, "
    "pn.random.bernoulli or a layer's key= option."
)
WITHOUT_VALUES = (
    "{name}: the function copies, pickles or saves a traced tensor (copy.copy, torch.save){at}. While it is traced "
    "there are no values: copy by x.clone(), and save the result."
)
GRADIENTS = (
    "{name}: the backward staticmethod of the torch.autograd.Function Twice does not return a gradient of its shape "
    "for each argument{at}. Return as many as forward has arguments, None for those that have none."
)


@pytest.mark.parametrize(
    ("transform", "name", "fn", "kind", "text"),
    [
        (pn.vmap, "vmap", sparse, TransformError, NOT_DENSE),
        (pn.vmap, "vmap", rows, TransformError, NOT_DENSE),
        (pn.vmap, "vmap", quantized, TransformError, NOT_DENSE),
        (pn.jacrev, "jacrev", nested, TransformError, NOT_DENSE),
        (lambda f: lambda x: looped(f)(x[0]), "scan", inner, TraceError, NOT_DENSE),
        (lambda f: lambda x: pn.vmap(f)(x), "vmap", elsewhere, DeviceError, DEVICES),
        (lambda f: pn.grad(lambda x: f(x[0])), "grad", valueless, DeviceError, DEVICES),
        (
            lambda f: pn.grad(lambda x: f(x[0])),
            "grad",
            parts,
            MutationError,
            "{name}: the function writes in place into a view that autograd cannot follow (of unbind, split or chunk, "
            "or made under torch.no_grad){at}. Make new values and put them together with torch.stack or torch.cat.",
        ),
        (each, "vmap", out, BatchingError, DRAWS),
        (same, "vmap", dropped, BatchingError, DRAWS),
        (each, "vmap", filled, BatchingError, DRAWS),
        (
            pn.vmap,
            "vmap",
            classes,
            BatchingError,
            "{name}: the number of classes of one_hot depends on values{at}. Write one_hot(x, num_classes).",
        ),
        (
            pn.vmap,
            "vmap",
            last,
            BatchingError,
            "{name}: the function asks for a memory format, of which vmap knows the contiguous one only{at}. Leave "
            "memory_format out, and convert outside.",
        ),
        (
            pn.vmap,
            "vmap",
            channels,
            TransformError,
            "{name}: the function asks for a memory format of tensors with 4 axes; under vmap the examples have one"
            "{at}. Leave memory_format out, and convert outside.",
        ),
        (
            pn.vmap,
            "vmap",
            compared,
            BatchingError,
            "{name}: the function asks for the value of a batched tensor (`if`, `while`, bool(), int() or .item()){at}."
            " The value differs from example to example: use torch.where(condition, a, b), or keep the number as a "
            "tensor.",
        ),
        (
            jit,
            "jit",
            compared,
            TraceError,
            "{name}: the function asks for the value of a traced tensor (`if`, `while`, bool(), int(), .item() or "
            ".tolist()){at}. While it is traced there are no values: choose with torch.where(condition, a, b), keep "
            "the number as a tensor, or pass it as a Python number, which is traced for each value anew.",
        ),
        (
            jit,
            "jit",
            swapped,
            TraceError,
            "{name}: the function converts an nn.Module (.to(), .double()) that it traces{at}. Convert it outside, or "
            "make it pure with bridge.from_module.",
        ),
        (jit, "jit", saved, TraceError, WITHOUT_VALUES),
        (jit, "jit", shallow, TraceError, WITHOUT_VALUES),
        (
            pn.vmap,
            "vmap",
            two_rules,
            TransformError,
            "{name}: a torch.autograd.Function has two batching rules, generate_vmap_rule = True and a vmap "
            "staticmethod{at}. Keep one of them.",
        ),
        (
            pn.vmap,
            "vmap",
            one_result,
            BatchingError,
            "{name}: the vmap staticmethod of a torch.autograd.Function returns something else than (output, out_dims)"
            "{at}. Return both, out_dims with an axis, or None, for each output; or set generate_vmap_rule = True.",
        ),
        (
            pushed_vmap,
            "vmap",
            not_kept,
            GradientError,
            "{name}: a torch.autograd.Function has kept nothing for its jvp staticmethod{at}. Call "
            "ctx.save_for_forward in setup_context, with the same tensors as ctx.save_for_backward.",
        ),
        (
            push,
            "jvp",
            other_tangent,
            GradientError,
            "{name}: the jvp staticmethod of a torch.autograd.Function returns no tangent that looks like its output"
            "{at}. Return a tensor of the output's shape and dtype.",
        ),
        (
            pn.grad,
            "grad",
            no_backward,
            GradientError,
            "{name}: a torch.autograd.Function has no derivative in reverse mode{at}. Give it a backward staticmethod, "
            "or write the rule with pn.custom_vjp.",
        ),
        (pn.grad, "grad", other_gradient, GradientError, GRADIENTS),
        (pn.grad, "grad", two_gradients, GradientError, GRADIENTS),
    ],
)
def test_explained(transform: Function, name: str, fn: Function, kind: type[PurennError], text: str) -> None:
    """Each failure has a text of its own, with the user's line if it arises there, and torch's error as its cause."""
    with pytest.raises(kind) as error:
        transform(fn)(ROWS.clone())
    found = str(error.value)
    line = fn.__code__.co_firstlineno + 1
    at = f" at test_refusals.py:{line} (`{linecache.getline(__file__, line).strip()}`)"
    assert found.replace(at, "") == text.format(name=name, at="")
    assert error.value.__cause__ is not None


def _text_of(kind: type[PurennError], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


def test_arguments_that_are_not_dense(device: torch.device) -> None:
    """An argument of vmap is named; the others refuse without torch's internal errors."""
    eye = torch.eye(3, dtype=DOUBLE, device=device)
    jagged = torch.nested.nested_tensor([eye, eye[:1]])
    padded = "Make it dense before: x.to_dense(), x.dequantize(), or torch.nested.to_padded_tensor(x, 0.0) with a mask."
    for leaf, layout in (
        (eye.to_sparse(), "torch.sparse_coo"),
        (eye.to_sparse_csr(), "torch.sparse_csr"),
        (jagged, "nested"),
    ):
        assert _text_of(BatchingError, lambda leaf=leaf: pn.vmap(lambda p: p["a"])({"a": leaf})) == (
            f"vmap: argument 0, 'a' is not dense, but {layout}, and has no axis to batch over. {padded}"
        )
    text = f"a tensor that is not dense (sparse, nested, quantized) is used where only dense ones can be. {padded}"
    for leaf in (eye.to_sparse_csr(), jagged):
        assert _text_of(TransformError, lambda leaf=leaf: jit(lambda x: x * 2)(leaf)) == f"jit: {text}"
        assert _text_of(TransformError, lambda leaf=leaf: pn.jvp(torch.sin, (leaf,), (leaf,))) == f"jvp: {text}"
    assert _text_of(ShapeError, lambda: pn.scan(lambda c, x: (c, x), eye, {"a": jagged})) == (
        "scan: 'a' of xs is nested, its entries differ in shape: pad and mask them."
    )
    # Sparse matrices beside what is differentiated are fine.
    torch.testing.assert_close(pn.grad(lambda x: (eye.to_sparse() @ x).square().sum())(eye), 2 * eye)


def test_inference_tensors(device: torch.device) -> None:
    """Tensors of torch's inference mode cannot be differentiated; the way out is named."""
    with torch.inference_mode():
        made = torch.ones(3, dtype=DOUBLE, device=device)
    text = (
        "grad: a tensor was made under torch.inference_mode, where nothing can be differentiated later. Make it under "
        "torch.no_grad, or pass x.clone()."
    )
    assert _text_of(GradientError, lambda: pn.grad(lambda x: (x * x).sum())(made)) == text
    assert pn.grad(lambda x: (x * x).sum())(made.clone()).tolist() == [2.0, 2.0, 2.0]


def test_tensors_that_have_escaped(device: torch.device) -> None:
    """A batched tensor that a function has put away cannot be used after the vmap."""
    x, left = torch.ones(4, 3, device=device), []
    pn.vmap(lambda row: left.append(row) or row)(x)
    for call, name in (
        (lambda: pn.grad(lambda x: (x * left[0]).sum())(x[0]), "grad"),
        (lambda: pn.jvp(lambda x: x * left[0], (x[0],), (x[0],)), "jvp"),
        (lambda: pn.vmap(torch.sin)(left[0]), "vmap"),
        (lambda: jit(lambda x: x * left[0])(x[0]), "jit"),
    ):
        found = _text_of(TransformError, call)
        assert found.startswith(f"{name}: a tensor is used that an earlier vmap has left behind, in a global variable")
        assert found.endswith(". Return what is to be kept.")


def test_writes_of_torch(device: torch.device) -> None:
    """Where torch's own derivatives overwrite a value, the function is not blamed, and the way out works."""
    x = torch.tensor([1.0, 2.0], dtype=DOUBLE, device=device)
    text = (
        "grad: a value that the gradient needs is overwritten in place, by the function, or by torch's own derivative "
        "in forward mode of a norm, or of abs or sgn of complex numbers. If the function writes nothing in place, take "
        "the derivatives in reverse mode alone (pn.grad, pn.jacrev)."
    )
    norm = lambda x: torch.linalg.vector_norm(torch.complex(x, x**2), 3)  # noqa: E731
    pushed = lambda x: pn.jvp(pn.grad(norm), (x,), (x,))[1].sum()  # noqa: E731
    assert _text_of(MutationError, lambda: pn.grad(pushed)(x)) == text
    by_hand = lambda x: ((x**2 + x**4) ** 1.5).sum() ** (1 / 3)  # noqa: E731
    third = [pn.grad(lambda x, f=f: pn.grad(lambda x: (pn.grad(f)(x) * x).sum())(x).sum())(x) for f in (norm, by_hand)]
    torch.testing.assert_close(*third, rtol=1e-10, atol=1e-12)


def test_no_examples(device: torch.device) -> None:
    """An operation that torch batches by a loop cannot be batched over nothing."""
    empty = torch.zeros(0, 3, device=device)
    assert _text_of(BatchingError, lambda: pn.vmap(lambda x: torch.histc(x))(empty)).startswith(
        "vmap: there are no examples, and torch has no batching rule for an operation of the function, only a loop"
    )


def test_nothing_returned(device: torch.device) -> None:
    """A function without a result has no derivative."""
    x = torch.ones(3, device=device)
    for call, name in (
        (lambda: pn.jvp(lambda x: None, (x,), (x,)), "jvp"),
        (lambda: pn.vjp(lambda x: None, x), "vjp"),
        (lambda: pn.jacrev(lambda x: None)(x), "jacrev"),
        (lambda: pn.jacfwd(lambda x: None)(x), "jacfwd"),
    ):
        assert _text_of(GradientError, call) == (
            f"{name}: the function must return floating-point tensors, got none in None."
        )


def test_what_loops_and_branches_apply(device: torch.device) -> None:
    """Bodies, tests and branches are functions, and options are bools."""
    x: Any = torch.ones(3, device=device)
    text = "{}: a function is transformed, got a Tensor: write f, not f(x)."
    assert _text_of(ArgumentError, lambda: pn.scan(x, x, x)) == text.format("scan")
    assert _text_of(ArgumentError, lambda: pn.while_loop(x, torch.sin, x)) == text.format("while_loop")
    assert _text_of(ArgumentError, lambda: pn.while_loop(bool, x, x)) == text.format("while_loop")
    assert _text_of(ArgumentError, lambda: pn.fori_loop(0, 3, x, x)) == text.format("fori_loop")
    for branches in ((x, torch.sin), (torch.sin, x)):
        assert _text_of(ArgumentError, lambda b=branches: pn.cond(True, *b, x)) == text.format("cond")
    step = lambda c, x: (c, x)  # noqa: E731
    for option in ("reverse", "remat"):
        given: dict[str, Any] = {option: "no"}
        assert _text_of(ArgumentError, lambda g=given: pn.scan(step, x, x, **g)) == (
            f"scan: {option} must be True or False, got 'no'."
        )


def test_empty_carry(device: torch.device) -> None:
    """A loop that hands nothing on ends at once or is endless, compiled as well."""
    x = torch.ones(3, device=device)
    assert jit(lambda x: (x * 2, pn.while_loop(lambda c: False, lambda c: c, ())))(x)[1] == ()
