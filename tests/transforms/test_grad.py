"""`pn.grad` and `pn.value_and_grad`: what is differentiated, and the lean form's four traps."""

import functools
import threading

import pytest
import torch
from _transform_models import DOUBLE, Affine, Net, affine, by_hand, inputs, loss, make, net
from torch import Tensor

import purenn as pn
from purenn.tree import HOLE


def test_gradient_equals_plain_autograd(device: torch.device) -> None:
    """The gradient has the model's structure and autograd's numbers."""
    p, x = make(device), inputs(device)
    grads = pn.grad(loss)(p, x)
    assert isinstance(grads, Net)
    expected = by_hand(p, x)
    assert {path for path, _ in pn.tree.named_leaves(grads)} == set(expected) == {"first.weight", "second.weight"}
    for path, leaf in pn.tree.named_leaves(grads):
        torch.testing.assert_close(leaf, expected[path], rtol=0, atol=1e-12)


def test_buffers_integers_frozen_and_absent_leaves_are_left_alone(device: torch.device) -> None:
    """Whatever is not trained is a hole in the gradient, and static fields are kept."""
    grads = pn.grad(loss)(make(device), inputs(device))
    assert grads.first.bias is grads.first.count is grads.first.scale is HOLE
    assert grads.second.bias is None
    assert grads.first.power == 2


def test_update_by_map_keeps_what_has_no_gradient(device: torch.device) -> None:
    """An SGD step is one map; leaves without gradient are the same objects afterwards."""
    p = make(device)
    new = pn.tree.map(lambda w, g: w - 0.1 * g, p, pn.grad(loss)(p, inputs(device)))
    assert new.first.count is p.first.count
    assert new.first.bias is p.first.bias
    assert not torch.equal(new.first.weight, p.first.weight)


def test_unused_parameters_get_zeros(device: torch.device) -> None:
    """A parameter that the value does not depend on has gradient zero, as a function without any has."""
    p = make(device)
    assert torch.equal(pn.grad(lambda p: p.first.weight.sum())(p).second.weight, torch.zeros_like(p.second.weight))
    constant = pn.grad(lambda p: torch.ones((), dtype=DOUBLE, device=device))(p)
    assert torch.equal(constant.first.weight, torch.zeros_like(p.first.weight))


class _Named(torch.Tensor):
    """A tensor class whose operations go through its own `__torch_function__`."""


def test_subclasses_of_tensor_keep_their_class(device: torch.device) -> None:
    """The gradient with respect to a tensor of a class of its own is of that class, with the same numbers."""
    w = torch.arange(3.0, dtype=DOUBLE, device=device)
    gradient = pn.grad(lambda w: w.square().sum())(w.as_subclass(_Named))
    assert isinstance(gradient, _Named)
    assert torch.equal(gradient.as_subclass(Tensor), 2 * w)


def test_value_and_grad_and_auxiliary_output(device: torch.device) -> None:
    """The value comes first; auxiliary output is any tree and has no graph."""
    p, x = make(device), inputs(device)

    def fn(p: Net, x: Tensor) -> tuple[Tensor, dict]:
        y = net(p, x)
        return y.square().sum(), {"y": y, "model": p, "word": "text", "none": None}

    (value, aux), grads = pn.value_and_grad(fn, has_aux=True)(p, x)
    torch.testing.assert_close(value, loss(p, x))
    assert not value.requires_grad
    assert not aux["y"].requires_grad
    assert aux["word"] == "text"
    assert aux["none"] is None
    assert pn.tree.equal(aux["model"], p)
    only, again = pn.grad(fn, has_aux=True)(p, x)
    assert pn.tree.equal(only, grads)
    assert torch.equal(again["y"], aux["y"])
    plain, _ = pn.value_and_grad(loss)(p, x)
    assert torch.equal(plain, value)


def test_argnums(device: torch.device) -> None:
    """Any positional argument can be differentiated, or several; keywords are passed on."""
    p, x = make(device), inputs(device)

    def fn(p: Net, x: Tensor, *, factor: float) -> Tensor:
        return factor * loss(p, x)

    dx = pn.grad(fn, 1)(p, x, factor=2.0)
    torch.testing.assert_close(dx, torch.func.grad(lambda x: 2 * loss(p, x))(x))
    dp, again = pn.grad(fn, (0, -1))(p, x, factor=2.0)
    assert torch.equal(again, dx)
    assert pn.tree.equal(dp, pn.grad(fn)(p, x, factor=2.0))


def test_arguments_are_not_touched(device: torch.device) -> None:
    """Neither values nor requires_grad nor .grad of the arguments change."""
    p, x = make(device), inputs(device)
    before = pn.tree.map(torch.clone, p)
    pn.grad(loss)(p, x)
    assert pn.tree.equal(p, before)
    assert all(not leaf.requires_grad and leaf.grad is None for leaf in pn.tree.leaves(p))


def test_tied_leaf_gathers_both_gradients(device: torch.device) -> None:
    """A tied leaf has one gradient: the sum over its places."""
    a, b = make(device).second.weight, inputs(device)
    square = Affine(a[:, :2].contiguous())
    two = Net(square, Affine(square.weight.clone()))
    x = b[:, :2]
    apart = pn.grad(loss)(two, x)
    once = pn.grad(loss)(pn.tree.tie(two, {"second.weight": "first.weight"}), x)
    torch.testing.assert_close(once.first.weight, apart.first.weight + apart.second.weight, rtol=0, atol=1e-12)


# The lean form: four situations in which plain autograd on detached leaves would be wrong.


def test_inside_another_gradient(device: torch.device) -> None:
    """A gradient within a gradient has right second derivatives."""
    p, x = make(device), inputs(device)
    outer = pn.grad(lambda p: sum(leaf.square().sum() for leaf in pn.tree.leaves(pn.grad(loss)(p, x))))(p)
    trained, rest = pn.tree.partition(p)
    leaves = [leaf.clone().requires_grad_() for leaf in pn.tree.leaves(trained)]
    values = iter(leaves)
    whole = pn.tree.combine(pn.tree.map(lambda _: next(values), trained), rest)
    inner = torch.autograd.grad(loss(whole, x), leaves, create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in inner), leaves)
    for ours, right in zip(pn.tree.leaves(outer), expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=0, atol=1e-10)


def test_inside_functorch_levels(device: torch.device) -> None:
    """Within raw vmap, jvp and grad of torch.func the gradient is differentiated and batched rightly."""
    p, x = make(device), inputs(device)
    batched = torch.func.vmap(pn.grad(loss), (None, 0))(p, x)
    looped = pn.tree.stack([pn.grad(loss)(p, row) for row in x])
    assert pn.tree.allclose(batched, looped, rtol=0, atol=1e-12)
    w = p.second.weight

    def inner(w: Tensor) -> Tensor:
        return pn.grad(loss)(pn.replace(p, second=Affine(w)), x).second.weight.sum()

    raw = torch.func.grad(lambda w: torch.func.grad(lambda w: loss(pn.replace(p, second=Affine(w)), x))(w).sum())(w)
    torch.testing.assert_close(torch.func.grad(inner)(w), raw, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.func.jvp(inner, (w,), (w,))[1], (raw * w).sum(), rtol=0, atol=1e-10)


def test_arguments_that_require_grad_keep_their_graph(device: torch.device) -> None:
    """If an argument requires grad, plain autograd can differentiate the gradient."""
    p, x = make(device), inputs(device)
    w = p.second.weight.clone().requires_grad_()
    grads = pn.grad(loss)(pn.replace(p, second=Affine(w)), x)
    assert grads.first.weight.requires_grad
    (second,) = torch.autograd.grad(grads.first.weight.sum(), w)
    expected = torch.func.grad(lambda w: pn.grad(loss)(pn.replace(p, second=Affine(w)), x).first.weight.sum())(
        w.detach()
    )
    torch.testing.assert_close(second, expected, rtol=0, atol=1e-10)
    x = x.requires_grad_()
    assert pn.grad(loss)(p, x).first.weight.requires_grad
    with torch.no_grad():
        assert not pn.grad(loss)(p, x).first.weight.requires_grad


def test_closed_over_tensors_that_require_grad_keep_their_graph(device: torch.device) -> None:
    """A graph that comes in through a closure is not cut off, neither in the gradient nor in value and auxiliary."""
    p, x = make(device), inputs(device)
    w = torch.ones(2, dtype=DOUBLE, device=device, requires_grad=True)
    derived = (w * 2).sum()

    def fn(p: Net) -> tuple[Tensor, Tensor]:
        return (net(p, x) * w).sum() * derived, w.sum()

    (value, aux), grads = pn.value_and_grad(fn, has_aux=True)(p)
    assert value.requires_grad
    assert aux.requires_grad
    (second,) = torch.autograd.grad(grads.first.weight.sum(), w)
    expected = torch.func.grad(
        lambda w: pn.grad(lambda p: (net(p, x) * w).sum() * (w * 2).sum())(p).first.weight.sum()
    )(w.detach())
    torch.testing.assert_close(second, expected, rtol=0, atol=1e-10)


def test_a_closure_that_changes_is_searched_again(device: torch.device) -> None:
    """What a function closes over may begin to require grad after the first call."""
    p, x = make(device), inputs(device)
    w = torch.ones(2, dtype=DOUBLE, device=device)
    gradient = pn.grad(lambda p: (net(p, x) * w).sum())
    assert not gradient(p).first.weight.requires_grad
    w.requires_grad_()
    assert gradient(p).first.weight.requires_grad
    w = w.detach()
    assert not gradient(p).first.weight.requires_grad


def test_a_search_is_no_second_use_of_a_key(device: torch.device) -> None:
    """A function that is run again because of what it closes over may draw under the reuse guard."""
    p, x = make(device), inputs(device)
    w = torch.ones(2, dtype=DOUBLE, device=device, requires_grad=True)
    key = pn.random.key(0, device)

    def fn(p: Net) -> Tensor:
        return (net(p, x) * w * pn.random.uniform(key, (2,), dtype=DOUBLE)).sum()

    gradient = pn.grad(fn)
    with pn.random.strict():
        assert gradient(p).first.weight.requires_grad
    with pn.random.strict():
        gradient(p)
        with pytest.raises(pn.errors.KeyReuseError):
            gradient(p)


def test_what_is_reached_through_functions_modules_and_trees_is_searched_again(device: torch.device) -> None:
    """A change is seen through helper functions, partials, modules, trees, and objects of unknown classes."""
    p, x = make(device), inputs(device)

    def check(change: object, fn: object) -> None:
        gradient = pn.grad(fn)
        assert not gradient(p).first.weight.requires_grad
        assert not gradient(p).first.weight.requires_grad
        change()
        assert gradient(p).first.weight.requires_grad

    def tensor() -> Tensor:
        return torch.ones(2, dtype=DOUBLE, device=device)

    a, b, c, d = tensor(), tensor(), tensor(), tensor()
    inner = lambda p: (net(p, x) * a).sum()  # noqa: E731
    check(a.requires_grad_, lambda p: inner(p))
    check(b.requires_grad_, functools.partial(lambda w, p: (net(p, x) * w).sum(), b))
    model = {"w": (c,)}
    check(c.requires_grad_, lambda p: (net(p, x) * model["w"][0]).sum())
    module = torch.nn.Linear(2, 2, dtype=DOUBLE, device=device).requires_grad_(False)
    check(lambda: module.requires_grad_(True), lambda p: module(net(p, x)).sum())
    hidden = Holder(d)
    check(d.requires_grad_, lambda p: hidden(p, x))
    wrapped = pn.grad(lambda q, p: (net(p, x) * a * q).sum())
    a.requires_grad_(False)
    check(a.requires_grad_, lambda p: wrapped(tensor(), p).sum())
    rate, scale = tensor().sum(), tensor()
    adapt = pn.meta.inner_loop(lambda p: net(p, x).square().sum(), pn.optim.sgd(rate), 1)
    check(rate.requires_grad_, lambda p: adapt(p)[1].sum() + net(adapt(p)[0], x).sum())
    adapt = pn.meta.inner_loop(lambda p: net(p, x).square().sum(), pn.optim.sgd(0.1), 1)
    pn.grad(lambda p: net(adapt(p)[0], x).sum())(p)
    adapted = functools.wraps(adapt)(lambda p: (net(adapt(p)[0], x) * scale).sum())
    check(scale.requires_grad_, adapted)


class Holder:
    """A callable that keeps a tensor where no closure shows it."""

    def __init__(self, w: Tensor) -> None:
        self.w = w

    def __call__(self, p: Net, x: Tensor) -> Tensor:
        return (net(p, x) * self.w).sum()


def test_callable_objects_are_searched_every_time(device: torch.device) -> None:
    """For a callable whose captures cannot be seen the graph is searched at every call."""
    p, x = make(device), inputs(device)
    holder = Holder(torch.ones(2, dtype=DOUBLE, device=device))
    gradient = pn.grad(holder)
    assert not gradient(p, x).first.weight.requires_grad
    holder.w = holder.w.clone().requires_grad_()
    assert gradient(p, x).first.weight.requires_grad


def test_marker_is_per_thread_and_survives_errors(device: torch.device) -> None:
    """A failed gradient leaves no trace, and other threads are not affected by a running one."""
    p, x = make(device), inputs(device)
    with pytest.raises(ZeroDivisionError):
        pn.grad(lambda p: 1 / 0)(p)
    from purenn.transforms._lean import outermost

    assert outermost()
    seen = []

    def fn(p: Net) -> Tensor:
        thread = threading.Thread(target=lambda: seen.append(outermost()))
        thread.start()
        thread.join()
        seen.append(outermost())
        return loss(p, x)

    pn.grad(fn)(p)
    assert seen == [True, False]


def test_raw_torch_func_takes_containers(device: torch.device) -> None:
    """`torch.func.grad` itself takes and returns a container, within its own limits: float leaves only."""
    p = Affine(make(device).second.weight)
    raw = torch.func.grad(lambda p: affine(p, torch.ones(4, dtype=DOUBLE, device=device)).sum())(p)
    assert isinstance(raw, Affine)
    assert raw.bias is None
    assert torch.equal(raw.weight, torch.ones_like(p.weight))


# Errors.


def test_error_nothing_to_differentiate(device: torch.device) -> None:
    """Without a trainable float leaf the error says why each leaf is none."""
    p = pn.tree.freeze(make(device))
    with pytest.raises(pn.errors.GradientError) as error:
        pn.grad(loss)(p, inputs(device))
    assert str(error.value) == (
        "grad: there is nothing to differentiate: argument 0, 'first.weight', is frozen; argument 0, 'first.bias', is "
        "frozen; argument 0, 'first.count', is a buffer; argument 0, 'first.scale', is a buffer; argument 0, "
        "'second.weight', is frozen. Differentiated are floating-point parameters that are not frozen; choose another "
        "argument with argnums, cast with pn.tree.to(p, torch.float32), or pn.tree.unfreeze(p)."
    )
    with pytest.raises(pn.errors.GradientError) as error:
        pn.value_and_grad(lambda n, k: n)(torch.tensor(3, device=device), 1)
    assert str(error.value) == (
        "value_and_grad: there is nothing to differentiate: argument 0 is i64[], which has no derivative. "
        "Differentiated "
        "are floating-point parameters that are not frozen; choose another argument with argnums, cast with "
        "pn.tree.to(p, torch.float32), or pn.tree.unfreeze(p)."
    )


def test_error_output_is_no_scalar(device: torch.device) -> None:
    """The value must be a real scalar; the error says what came and what to do."""
    p, x = make(device), inputs(device)
    cases = {
        "grad: the function must return a scalar tensor, got f64[5,2]. Reduce it with .mean() or .sum(), or use "
        "pn.jacrev "
        "for the derivatives of every element.": lambda p: net(p, x),
        "grad: the function must return a scalar tensor, got a tuple. Return it together with "
        "has_aux=True.": lambda p: (loss(p, x), 1),
        "grad: the function must return a scalar tensor, got a float.": lambda p: 1.0,
        "grad: the function must return a real floating-point scalar, got c128[]. Take its .real or .abs() "
        "first.": lambda p: loss(p, x) * 1j,
        "grad: the function must return a real floating-point scalar, got i64[].": lambda p: loss(p, x).long(),
    }
    for text, fn in cases.items():
        with pytest.raises(pn.errors.GradientError) as error:
            pn.grad(fn)(p)
        assert str(error.value) == text
    with pytest.raises(pn.errors.GradientError) as error:
        pn.grad(lambda p: loss(p, x), has_aux=True)(p)
    assert str(error.value) == (
        "grad: with has_aux=True the function must return a pair (value, auxiliary), got a Tensor."
    )


def test_error_argnums(device: torch.device) -> None:
    """`argnums` must name existing arguments, each once."""
    with pytest.raises(pn.errors.ArgumentError) as error:
        pn.grad(loss, 2)(make(device), inputs(device))
    assert str(error.value) == ("grad: argnums names the positional argument 2, but the function was called with 2.")
    with pytest.raises(pn.errors.ArgumentError) as error:
        pn.grad(loss, (0, -2))(make(device), inputs(device))
    assert str(error.value) == "grad: argnums must name each argument once, got (0, -2)."


@pytest.mark.parametrize("outer", ["outermost", "vmap"])
def test_error_in_place_write_into_a_parameter(device: torch.device, outer: str) -> None:
    """An in-place write into a differentiated leaf is refused, with the line, and nothing is changed."""
    p = Affine(make(device).second.weight)
    before = p.weight.clone()

    def fn(p: Affine) -> Tensor:
        return p.weight.mul_(2).sum()

    gradient = pn.grad(fn) if outer == "outermost" else pn.vmap(pn.grad(fn))
    with pytest.raises(pn.errors.MutationError) as error:
        gradient(p if outer == "outermost" else pn.tree.stack([p, p]))
    line = fn.__code__.co_firstlineno + 1
    assert str(error.value) == (
        f"grad: the function writes in place into a parameter that is being differentiated at test_grad.py:{line} "
        f"(`return p.weight.mul_(2).sum()`). Arguments are never changed: write `w = w + d` instead of `w.add_(d)` or "
        f"`w += d`."
    )
    assert isinstance(error.value.__cause__, RuntimeError)
    assert torch.equal(p.weight, before)


def test_error_in_place_write_into_a_buffer(device: torch.device) -> None:
    """A write into a leaf that is not differentiated is found as well."""
    p = make(device)
    with pytest.raises(pn.errors.MutationError) as error:
        pn.grad(lambda p: loss(p, inputs(device)) + p.first.count.add_(1))(p)
    assert str(error.value) == (
        "grad: the function has written in place into its argument 0, 'first.count'. Arguments are never changed: "
        "return the new value instead, as pn.replace(p, running_mean=new)."
    )


def test_error_overwritten_value(device: torch.device) -> None:
    """Overwriting in place what the gradient needs is explained."""

    def fn(w: Tensor) -> Tensor:
        y = w.exp()
        y.mul_(2)
        return y.sum()

    with pytest.raises(pn.errors.MutationError) as error:
        pn.grad(fn)(torch.ones(3, device=device))
    assert str(error.value) == (
        "grad: the function overwrites in place a value that the gradient needs. Write `y = f(x)` into a new name "
        "instead of changing x in place."
    )
