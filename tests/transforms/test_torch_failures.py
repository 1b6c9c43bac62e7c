"""What torch refuses to transform arrives as an error of ours: what was wrong, where, and what to write instead."""

import copy
import linecache
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from _transform_models import DOUBLE, inputs
from torch import Tensor

import purenn as pn
from purenn.errors import ArgumentError, BatchingError, GradientError, MutationError, PurennError, TransformError


class Old(torch.autograd.Function):
    """As they were written before torch.func."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class New(torch.autograd.Function):
    """With setup_context, but without rules for vmap and forward mode."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


ONE = torch.ones(1, dtype=DOUBLE)


def grouped(x: Tensor) -> Tensor:
    return torch.nn.functional.group_norm(x[None], 1)


def strided(x: Tensor) -> Tensor:
    return x.as_strided_scatter(x[:1], (1,), (1,))


def data(x: Tensor) -> Any:
    return x.numpy()


def masked(x: Tensor) -> Tensor:
    return x[x > 0]


def selected(x: Tensor) -> Tensor:
    return x.masked_select(x > 0)


def places(x: Tensor) -> Tensor:
    return x.nonzero()


def normalised(x: Tensor) -> Tensor:
    return torch.nn.functional.batch_norm(x[:, None], ONE, ONE, training=True)


def old(x: Tensor) -> Tensor:
    return Old.apply(x)


def new(x: Tensor) -> Tensor:
    return New.apply(x)


def given_out(x: Tensor) -> Tensor:
    return torch.add(x, 1, out=torch.zeros_like(x)).sum()


def leaf(x: Tensor) -> Tensor:
    return x.requires_grad_().sum()


OUTER = torch.zeros(3, dtype=DOUBLE)


def kept(x: Tensor) -> Tensor:
    return OUTER.add_(x).sum()


def branch(x: Tensor) -> Tensor:
    return x.sum() if x.sum() > 0 else -x.sum()


def noisy(x: Tensor) -> Tensor:
    return torch.nn.functional.rrelu(x, training=True)


def compared(x: Tensor) -> Tensor:
    return x * torch.allclose(x, x)


def distances(x: Tensor) -> Tensor:
    return torch.cdist(x, x)


def added_out(x: Tensor) -> Tensor:
    return torch.add(x, 1, out=torch.zeros_like(x))


def copied(x: Tensor) -> Tensor:
    return copy.deepcopy(x).sum()


def backward(x: Tensor) -> None:
    x.sum().backward()


def differentiated(x: Tensor) -> Tensor:
    return torch.autograd.grad(x.sum(), x)[0]


def retained(x: Tensor) -> None:
    x.sin().retain_grad()


def assigned(x: Tensor) -> None:
    x.data = x * 2


def read(x: Tensor) -> Tensor:
    return x.data * 2


def converted(x: Tensor) -> Tensor:
    return torch.as_tensor(x.sum()).detach_()


def resized(x: Tensor) -> Tensor:
    return x.clone().resize_(2).sum()


def checkpointed(x: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False).sum()


def _push(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], object]:
    return lambda x: pn.jvp(f, (x,), (x,))


VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
SHAPES = (
    "{name}: the shape of a result depends on values (a boolean mask as an index, nonzero, unique){at}. It would "
    "differ from example to example: use torch.where(mask, x, 0), or a fixed number of results."
)
NO_RULE = (
    "{{name}}: torch has no batching rule for {}{{at}}. Use the layer of purenn.layers or the loss of purenn.losses "
    "for this operation, or write it in operations that have one."
)
PLAIN = (
    "{name}: the function calls backward() or torch.autograd.grad, which see no tensor here that requires a "
    "gradient{at}. Take derivatives within it with pn.grad or pn.vjp; they nest."
)
DATA = (
    "{name}: the function uses x.data, or detaches in place (x.detach_(), torch.tensor(x)){at}. Give the new value a "
    "name of its own: y = x + d, or y = x.detach()."
)
NO_CONTEXT = (
    "{name}: a torch.autograd.Function without setup_context cannot be transformed{at}. Give it one and "
    "generate_vmap_rule = True, or write the rule with pn.custom_vjp."
)


@pytest.mark.parametrize(
    ("transform", "name", "fn", "kind", "text"),
    [
        (
            pn.vmap,
            "vmap",
            data,
            BatchingError,
            "{name}: the function asks for the data of a batched tensor (.numpy(), .tolist() or a pointer){at}. "
            "Compute with torch, and call numpy outside.",
        ),
        (pn.vmap, "vmap", masked, BatchingError, SHAPES),
        (pn.vmap, "vmap", selected, BatchingError, SHAPES),
        (pn.vmap, "vmap", places, BatchingError, SHAPES),
        (
            pn.vmap,
            "vmap",
            normalised,
            MutationError,
            "{name}: a batch normalisation writes its running statistics in place, which are the same for all "
            "examples{at}. Use purenn.layers.batch_norm, which returns new ones, or make the module pure with "
            "bridge.from_module.",
        ),
        (pn.vmap, "vmap", old, TransformError, NO_CONTEXT),
        (_push, "jvp", old, TransformError, NO_CONTEXT),
        (
            pn.vmap,
            "vmap",
            new,
            BatchingError,
            "{name}: the torch.autograd.Function New has no batching rule{at}. Set its generate_vmap_rule = True, or "
            "write the rule with pn.custom_vjp.",
        ),
        (
            _push,
            "jvp",
            new,
            GradientError,
            "{name}: a torch.autograd.Function has no derivative in forward mode{at}. Give it a jvp staticmethod, "
            "write the rule with pn.custom_jvp, or use reverse mode (pn.vjp, pn.jacrev).",
        ),
        (
            pn.grad,
            "grad",
            given_out,
            MutationError,
            "{name}: the function writes into a tensor by out=, which has no derivative{at}. Use the result of the "
            "call instead.",
        ),
        (
            lambda f: pn.vmap(pn.grad(f)),
            "grad",
            leaf,
            TransformError,
            "{name}: the function calls requires_grad_() on a tensor that is being transformed{at}. Take derivatives "
            "within it with pn.grad or pn.vjp; they nest.",
        ),
        (
            pn.grad,
            "grad",
            data,
            GradientError,
            "{name}: the function asks for the data (.numpy()) of a tensor that is being differentiated{at}. Compute "
            "with torch; if there shall be no derivative, write x.detach().numpy().",
        ),
        (
            lambda f: pn.vmap(pn.grad(f)),
            "grad",
            kept,
            MutationError,
            "{name}: the function writes in place into a tensor from outside of it{at}. Write `y = x + d` instead of "
            "`x.add_(d)`, and return what is to be kept.",
        ),
        (
            lambda f: pn.vmap(pn.grad(f)),
            "grad",
            branch,
            BatchingError,
            "{name}: the function asks for the value of a batched tensor (`if`, `while`, bool(), int() or .item()){at}."
            " The value differs from example to example: use torch.where(condition, a, b), or keep the number as a "
            "tensor.",
        ),
        (pn.vmap, "vmap", noisy, BatchingError, NO_RULE.format("aten::rrelu")),
        (pn.vmap, "vmap", compared, BatchingError, NO_RULE.format("torch.allclose")),
        (pn.vmap, "vmap", strided, BatchingError, NO_RULE.format("aten::as_strided_scatter")),
        pytest.param(
            lambda f: lambda x: pn.vmap(f)(x[:1].expand(2, 3)),
            "vmap",
            grouped,
            BatchingError,
            "{name}: torch's group normalisation takes no examples that share their memory, as those of x.expand do"
            "{at}. Use purenn.ops.group_norm or the layer GroupNorm, or pass x.contiguous().",
            marks=pytest.mark.skipif(VERSION >= (2, 15), reason="there it takes them"),
        ),
        (
            _push,
            "jvp",
            distances,
            GradientError,
            "{name}: torch has no derivative in forward mode for _cdist_forward{at}. Use reverse mode (pn.vjp, "
            "pn.jacrev; pn.jacrev(pn.grad(f)) is a Hessian), or write it in operations that have one.",
        ),
        (
            _push,
            "jvp",
            added_out,
            MutationError,
            "{name}: the function writes into a tensor by out=, which has no derivative{at}. Use the result of the "
            "call instead.",
        ),
        (
            lambda f: pn.vmap(pn.grad(f)),
            "grad",
            copied,
            TransformError,
            "{name}: the function asks for the storage of a tensor that is being transformed (copy.deepcopy, pickle, "
            "torch.save){at}. Copy by x.clone(); tensors are never changed here, so a copy is seldom needed.",
        ),
        (pn.jacrev, "jacrev", backward, TransformError, PLAIN),
        (_push, "jvp", differentiated, TransformError, PLAIN),
        (
            pn.jacrev,
            "jacrev",
            retained,
            TransformError,
            "{name}: the function calls retain_grad() on a tensor that is being transformed{at}. Gradients of "
            "intermediate values come from pn.perturb.",
        ),
        (pn.jacrev, "jacrev", assigned, TransformError, DATA),
        (pn.vmap, "vmap", read, TransformError, DATA),
        (pn.vmap, "vmap", converted, TransformError, DATA),
        (
            pn.grad,
            "grad",
            resized,
            MutationError,
            "{name}: the function resizes a tensor in place that is being differentiated{at}. Make a new one: x[:n], "
            "x.reshape(shape) or torch.cat.",
        ),
        (
            pn.jacrev,
            "jacrev",
            checkpointed,
            TransformError,
            "{name}: the function uses torch.utils.checkpoint, or other hooks of saved tensors, which torch.func does "
            "not know{at}. Recompute with pn.remat.",
        ),
    ],
)
def test_explained(
    transform: Callable[..., Any], name: str, fn: Callable[..., Any], kind: type[PurennError], text: str
) -> None:
    """Each failure has a text of its own, with the user's line, and torch's error as its cause."""
    with pytest.raises(kind) as error:
        transform(fn)(inputs(torch.device("cpu")))
    line = fn.__code__.co_firstlineno + 1
    at = f" at test_torch_failures.py:{line} (`{linecache.getline(__file__, line).strip()}`)"
    assert str(error.value) == text.format(name=name, at=at)
    assert error.value.__cause__ is not None


def test_missing_derivative(device: torch.device) -> None:
    """An operation that lacks the derivative with respect to one of its arguments is named with the argument."""
    with pytest.raises(GradientError) as error:
        pn.grad(lambda x: torch.igamma(x, x).sum())(inputs(device).abs())
    assert str(error.value) == (
        "grad: torch has no derivative for igamma: input. Use the layer of purenn.layers or the loss of purenn.losses "
        "for this operation, or write it in operations that have one."
    )


def test_options_of_vmap(device: torch.device) -> None:
    """A chunk of no examples, and an axis that a result has no place for, are refused."""
    with pytest.raises(ArgumentError) as error:
        pn.vmap(torch.sin, chunk_size=0)
    assert str(error.value) == "vmap: chunk_size must be an int of at least 1, got 0."
    with pytest.raises(ArgumentError) as error:
        pn.vmap(lambda x: {"a": x}, out_dims=2)(inputs(device))
    assert str(error.value) == "vmap: the result f64[3] at 'a' has no place for a new axis 2 in out_dims."


def test_what_is_transformed_is_a_function(device: torch.device) -> None:
    """The value of a function in its place is refused, and named."""
    x = inputs(device)[0]
    value: Any = x.sum()
    calls = {
        "vmap": lambda: pn.vmap(value),
        "jit": lambda: pn.jit(value),
        "remat": lambda: pn.remat(value),
        "grad": lambda: pn.grad(value)(x),
        "jvp": lambda: pn.jvp(value, (x,), (x,)),
        "jacrev": lambda: pn.jacrev(value)(x),
    }
    for name, call in calls.items():
        with pytest.raises(ArgumentError) as error:
            call()
        assert str(error.value) == f"{name}: a function is transformed, got a Tensor: write f, not f(x)."


def test_argnums_are_numbers(device: torch.device) -> None:
    """A name is no argument number."""
    for argnums in ("x", None, 1.0, ["x"]):
        with pytest.raises(ArgumentError) as error:
            pn.grad(torch.sum, argnums)(inputs(device))  # pyright: ignore[reportArgumentType]
        assert str(error.value) == (
            f"grad: argnums must be the number of a positional argument, or several, got {argnums!r}."
        )


def test_tensors_from_outside_are_not_written_to(device: torch.device) -> None:
    """At the outermost level as well, where plain autograd would leave its graph in them."""
    total = torch.zeros(3, dtype=DOUBLE, device=device)
    with pytest.raises(MutationError) as error:
        pn.grad(lambda x: total.add_(x).sum())(inputs(device)[0])
    assert str(error.value) == (
        "grad: the function writes in place into a tensor from outside of it. Write `y = x + d` instead of "
        "`x.add_(d)`, and return what is to be kept."
    )


def test_other_arguments_are_not_written_to(device: torch.device) -> None:
    """A write into an argument that is not differentiated is found, at the outermost level as well, and named."""
    w = torch.ones(3, dtype=DOUBLE, device=device)
    text = (
        "grad: the function has written in place into its argument {place}. Arguments are never changed: return the "
        "new value instead, as pn.replace(p, running_mean=new)."
    )
    for call, place in (
        (lambda: pn.grad(lambda w, x: (x.mul_(3) * w).sum())(w, inputs(device)), "1"),
        (lambda: pn.grad(lambda x, w: (x.mul_(3) * w).sum(), 1)(inputs(device), w), "0"),
        (lambda: pn.grad(lambda w, x: (x["a"][0].mul_(3) * w).sum())(w, x={"a": [inputs(device)]}), "'x', 'a.0'"),
        (
            lambda: pn.grad(lambda w: pn.grad(lambda w, x: (x.mul_(3) * w).sum())(w, inputs(device)).sum())(w),
            "1",
        ),
    ):
        with pytest.raises(MutationError) as error:
            call()
        assert str(error.value) == text.format(place=place)
