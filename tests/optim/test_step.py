"""The fast step: the numbers of the plain one, on fresh, donated and contiguous storage."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import purenn as pn
from purenn import optim
from purenn.errors import ArgumentError, ShapeError


@pn.container
class Pair:
    """Two parameters."""

    one: Tensor
    other: Tensor


@pn.container
class Riap:
    """Two more."""

    one: Tensor
    other: Tensor


@pn.container
class Named:
    """Parameters by name."""

    leaves: dict[str, Tensor]


def plain(optimizer: optim.GradientTransformation, p: Any, grads: Any, state: Any) -> Any:
    """A step by `update`."""
    updates, state = optimizer.update(grads, state, p)
    return optim.apply_updates(p, updates), state


def many(optimizer: optim.GradientTransformation, p: Any, gradients: list[Any], **options: Any) -> Any:
    """Parameters and state after a step for each gradient."""
    state = optimizer.init(p)
    for grads in gradients:
        p, state = optimizer.step(p, grads, state, **options)
    return p, state


def reference(optimizer: optim.GradientTransformation, p: Any, gradients: list[Any]) -> Any:
    """The same by `update`."""
    state = optimizer.init(p)
    for grads in gradients:
        p, state = plain(optimizer, p, grads, state)
    return p, state


def gradients(p: Any, count: int = 4) -> list[Any]:
    """Some gradients: what is trained, changed."""
    part = pn.tree.partition(p)[0]
    return [pn.tree.map(lambda w, n=n: (w * (n + 1)).sin() + 0.1 * n, part) for n in range(count)]


def is_joined(tree: Any) -> bool:
    """Whether all trained leaves of a tree lie in one storage."""
    leaves = pn.tree.leaves(pn.tree.partition(tree)[0])
    return len({leaf.untyped_storage().data_ptr() for leaf in leaves}) == 1


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("joined_gradients", [False, True])
def test_contiguous_equals_plain(joined: bool, joined_gradients: bool, case: Any, problem: Any) -> None:
    """On contiguous storage, donated or not, with gradients that are or are not, the numbers are those of `update`."""
    optimizer, p = case.make(), problem.params
    steps = gradients(p)
    right = reference(optimizer, p, steps)
    start = pn.tree.contiguous(p) if joined else p
    given = [pn.tree.contiguous(grads) for grads in steps] if joined_gradients else steps
    ours = many(optimizer, start, given)
    assert pn.tree.allclose(ours, right, rtol=1e-12, atol=1e-12)
    assert pn.tree.equal(start, p)
    start = pn.tree.contiguous(p) if joined else pn.tree.map(torch.clone, p)
    donated = many(optimizer, start, given, donate=True)
    assert pn.tree.allclose(donated, right, rtol=1e-12, atol=1e-12)
    assert is_joined(donated[0]) == joined


def test_contiguous_stays_so(problem: Any) -> None:
    """The state and the new parameters of contiguous parameters are contiguous."""
    p, optimizer = pn.tree.contiguous(problem.params), optim.adam(0.1)
    state = optimizer.init(p)
    assert is_joined(state.mean)
    grads = pn.tree.contiguous(gradients(p, 1)[0])
    new, after = optimizer.step(p, grads, state)
    assert is_joined(new)
    assert is_joined(after.square)
    assert optimizer.step(new, grads, after, donate=True)[0] is new


@pytest.mark.parametrize("strided", [False, True])
def test_large_leaves(strided: bool, device: torch.device) -> None:
    """Leaves of some MiB, which are placed with care, give the numbers of `update`, and stay apart from each other."""
    optimizer, key = optim.adam(0.1), pn.random.key(0, device)
    p = {"large": pn.random.normal(key, (700, 1000)), "small": pn.random.normal(key, (7,))}
    if strided:
        p["strided"] = p["large"].t()
    elif device.type == "cpu":
        moments = pn.tree.leaves(optimizer.init(p).mean)
        assert len({leaf.untyped_storage().data_ptr() for leaf in moments}) == 1
    steps = gradients(p, 2)
    right = reference(optimizer, p, steps)
    for start in (p, pn.tree.contiguous(p)):
        ours = many(optimizer, start, steps)
        assert pn.tree.allclose(ours, right, rtol=1e-5, atol=1e-6)
        assert pn.tree.equal(start, p)
    for start in (pn.tree.map(torch.clone, p), pn.tree.contiguous(p)):
        assert pn.tree.allclose(many(optimizer, start, steps, donate=True), right, rtol=1e-5, atol=1e-6)


def test_donation_writes_into_the_old_storage(problem: Any) -> None:
    """Donated trees hold the result, and come back themselves."""
    p, optimizer = pn.tree.map(torch.clone, problem.params), optim.adam(0.1)
    state, weight = optimizer.init(p), p.matrix
    right = plain(optimizer, problem.params, gradients(p, 1)[0], optimizer.init(p))
    new, after = optimizer.step(p, gradients(p, 1)[0], state, donate=True)
    assert new is p
    assert after is state
    assert int(state.count) == 1
    torch.testing.assert_close(weight, right[0].matrix, rtol=0, atol=1e-12)


def test_memory_layouts(case: Any, device: torch.device) -> None:
    """Parameters and gradients that are not in row-major order, for which torch's fused kernels are wrong."""
    optimizer = case.make()
    w = pn.random.normal(pn.random.key(0), (4, 3), dtype=torch.float64).to(device)
    image = pn.random.normal(pn.random.key(1), (2, 3, 4, 4), dtype=torch.float64).to(device)
    ordinary = {"w": w, "image": image}
    strided = {"w": w.t().contiguous().t(), "image": image.to(memory_format=torch.channels_last)}
    steps, strided_steps = gradients(ordinary), gradients(strided)
    right = reference(optimizer, ordinary, steps)
    for p, given in ((ordinary, strided_steps), (strided, steps), (strided, strided_steps)):
        own = pn.tree.map(torch.clone, p)
        for ours in (many(optimizer, p, given), many(optimizer, own, given, donate=True)):
            assert pn.tree.allclose(ours, right, rtol=1e-10, atol=1e-12)


COMPLEX = {
    "sgd": (lambda: optim.sgd(0.1, momentum=0.9), lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9)),
    "asgd": (lambda: optim.asgd(0.1), lambda ps: torch.optim.ASGD(ps, 0.1)),
    "adam": (lambda: optim.adam(0.1, amsgrad=True), lambda ps: torch.optim.Adam(ps, 0.1, amsgrad=True)),
    "nadam": (lambda: optim.nadam(0.1), lambda ps: torch.optim.NAdam(ps, 0.1)),
    "radam": (lambda: optim.radam(0.1), lambda ps: torch.optim.RAdam(ps, 0.1)),
    "adamax": (lambda: optim.adamax(0.1), lambda ps: torch.optim.Adamax(ps, 0.1)),
    "adagrad": (lambda: optim.adagrad(0.1), lambda ps: torch.optim.Adagrad(ps, 0.1)),
    "rmsprop": (lambda: optim.rmsprop(0.1, centered=True), lambda ps: torch.optim.RMSprop(ps, 0.1, centered=True)),
    "adadelta": (lambda: optim.adadelta(), lambda ps: torch.optim.Adadelta(ps)),
    "rprop": (lambda: optim.rprop(0.1), lambda ps: torch.optim.Rprop(ps, 0.1)),
}


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize("name", COMPLEX)
def test_complex_equals_torch(name: str, device: torch.device) -> None:
    """Complex parameters move as by torch.optim: real and imaginary part on their own."""
    make, theirs = COMPLEX[name]
    optimizer = make()
    p = {"w": torch.linspace(-1, 1, 4, device=device) + 1j * torch.linspace(2, 1, 4, device=device)}
    leaf = p["w"].clone().requires_grad_()
    other = theirs([leaf])
    steps = gradients(p)
    for grads in steps:
        leaf.grad = grads["w"]
        other.step()
    right = {"w": leaf.detach()}
    assert pn.tree.allclose(reference(optimizer, p, steps)[0], right, rtol=0, atol=1e-12)
    assert pn.tree.allclose(many(optimizer, p, steps)[0], right, rtol=0, atol=1e-12)
    assert pn.tree.allclose(many(optimizer, {"w": p["w"].clone()}, steps, donate=True)[0], right, rtol=0, atol=1e-12)
    assert pn.tree.allclose(many(optimizer, pn.tree.contiguous(p), steps)[0], right, rtol=0, atol=1e-12)


def test_mixed_dtypes(case: Any, problem: Any) -> None:
    """Leaves of several dtypes keep theirs, and move nearly as in float64, by `update` as by `step`."""
    optimizer, p = case.make(), problem.params
    mixed = pn.tree.select(p).paths("matrix").apply(lambda w: w.to(torch.float32))
    mixed = pn.tree.select(mixed).paths("scalar").apply(lambda w: w.to(torch.float32))
    right = reference(optimizer, p, gradients(p))
    for start in (mixed, pn.tree.contiguous(mixed)):
        steps = gradients(start)
        own = pn.tree.contiguous(mixed) if start is not mixed else pn.tree.map(torch.clone, mixed)
        joined = [pn.tree.contiguous(grads) for grads in steps] if start is not mixed else steps
        for ours in (
            reference(optimizer, start, steps),
            many(optimizer, start, steps),
            many(optimizer, own, joined, donate=True),
        ):
            for one, other in zip(pn.tree.leaves(ours), pn.tree.leaves(right), strict=True):
                torch.testing.assert_close(one, other.to(one.dtype), rtol=1e-3, atol=1e-4)
            assert [leaf.dtype for leaf in pn.tree.leaves(ours[0])] == [leaf.dtype for leaf in pn.tree.leaves(mixed)]


def test_half_precision(case: Any, problem: Any) -> None:
    """In bfloat16 a step by kernels is that of plain operations up to its precision, and both are finite."""
    optimizer, p = case.make(), pn.tree.to(problem.params, torch.bfloat16)
    steps = gradients(p, 2)
    one, other = reference(optimizer, p, steps), many(optimizer, p, steps)
    for mine, right in zip(pn.tree.leaves(one), pn.tree.leaves(other), strict=True):
        assert mine.dtype == right.dtype
        torch.testing.assert_close(mine, right, rtol=0.05, atol=0.05)


def test_autograd_is_not_cut_off(problem: Any) -> None:
    """Where a leaf requires grad the step is recorded, contiguous or not."""
    optimizer = optim.adam(0.1)
    for p in (problem.params, pn.tree.contiguous(problem.params)):
        own = pn.tree.map(lambda w: w.clone().requires_grad_(), p)
        for start in (own, pn.tree.contiguous(own)):
            grads = gradients(start, 1)[0]
            new, _ = optimizer.step(start, grads, optimizer.init(start))
            (got,) = torch.autograd.grad(new.vector.sum(), own.vector)
            right = pn.grad(lambda p: plain(optimizer, p, gradients(p, 1)[0], optimizer.init(p))[0].vector.sum())(p)
            torch.testing.assert_close(got, right.vector, rtol=0, atol=1e-12)
    leaf = pn.tree.contiguous(problem.params)
    state = optimizer.init(leaf)
    leaf, state = optimizer.step(leaf, gradients(leaf, 1)[0], state)
    leaf.matrix.requires_grad_()
    new, _ = optimizer.step(leaf, gradients(leaf, 1)[0], state)
    assert new.matrix.requires_grad


def test_forward_mode_is_not_cut_off(problem: Any) -> None:
    """The tangents of gradients in torch's own forward mode reach the new parameters, as by `update`."""
    p, optimizer = problem.params, optim.adam(0.1)
    grads, state = gradients(p, 1)[0], optimizer.init(p)
    with forward_ad.dual_level():
        moving = pn.tree.map(lambda g: forward_ad.make_dual(g, torch.ones_like(g)), grads)
        steps = optimizer.step(p, moving, state)[0], plain(optimizer, p, moving, state)[0]
        got, right = [forward_ad.unpack_dual(new.vector).tangent for new in steps]
    assert right is not None
    assert right.abs().min() > 0
    torch.testing.assert_close(got, right, rtol=0, atol=1e-12)


def test_partial_gradients(problem: Any) -> None:
    """Leaves without a gradient stay as they are, with their state; frozen ones stay even if there is a gradient."""
    optimizer, p = optim.adamw(0.1), pn.tree.freeze(problem.params, "vector")
    grads = pn.tree.map(torch.ones_like, p)
    part = pn.tree.partition(grads, paths="matrix")[0]
    for move in (optimizer.step, lambda p, grads, state: plain(optimizer, p, grads, state)):
        state = optimizer.init(p)
        new, after = move(p, part, state)
        assert new.scalar is p.scalar
        assert after.mean.scalar is state.mean.scalar
        assert not torch.equal(new.matrix, p.matrix)
        new, after = move(p, grads, state)
        assert new.vector is p.vector
        assert new.offset is p.offset
        assert not torch.equal(new.scalar, p.scalar)


def test_no_leaves(case: Any) -> None:
    """A model without anything to train is left as it is."""
    optimizer, p = case.make(), {"steps": torch.arange(3)}
    grads = pn.tree.partition(p)[0]
    new, state = optimizer.step(p, grads, optimizer.init(p))
    assert new["steps"] is p["steps"]
    assert plain(optimizer, p, grads, state)[0]["steps"] is p["steps"]


def test_empty_leaves(case: Any, device: torch.device) -> None:
    """Leaves without elements pass."""
    p = {
        "a": torch.zeros(0, 3, device=device),
        "b": torch.ones(3, device=device),
        "c": torch.zeros(3, 0, device=device),
    }
    optimizer = case.make()
    for start in (p, pn.tree.contiguous(p)):
        ours, _ = many(optimizer, start, gradients(start))
        assert pn.tree.allclose(ours, reference(optimizer, start, gradients(start))[0], rtol=1e-5, atol=1e-6)


def test_what_is_remembered_does_not_outlive_a_change(problem: Any) -> None:
    """Other parameters with the same state, or another optimiser with it, are looked at anew."""
    optimizer, p = optim.adam(0.1), problem.params
    grads = gradients(p, 1)[0]
    first, state = optimizer.step(p, grads, optimizer.init(p))
    other = pn.tree.map(lambda w: w + 1, first)
    right = plain(optimizer, other, grads, state)
    assert pn.tree.allclose(optimizer.step(other, grads, state), right, rtol=0, atol=1e-12)
    part = pn.tree.partition(grads, paths="vector")[0]
    assert optimizer.step(first, part, state)[0].matrix is first.matrix
    slower = optim.lamb(0.1)
    right = plain(slower, first, grads, state)
    assert pn.tree.allclose(slower.step(first, grads, state), right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("donate", [False, True])
def test_errors(donate: bool, problem: Any) -> None:
    """What does not fit together is refused before anything is written."""
    optimizer, p = optim.adam(0.1), pn.tree.map(torch.clone, problem.params)
    before, grads, state = pn.tree.map(torch.clone, p), gradients(p, 1)[0], optimizer.init(p)
    flipped = pn.replace(grads, matrix=grads.matrix.T)
    with pytest.raises(ShapeError) as error:
        optimizer.step(p, flipped, state, donate=donate)
    assert str(error.value) == (
        "adam: the gradient of 'matrix' is f64[3,5], but the parameter is f64[5,3]; both must have the same shape."
    )
    with pytest.raises(ShapeError):
        optimizer.update(flipped, state, p)
    wrong = pn.replace(state, mean=pn.replace(state.mean, vector=torch.zeros(4, dtype=torch.float64)))
    with pytest.raises(ShapeError) as error:
        optimizer.step(p, grads, wrong, donate=donate)
    assert str(error.value) == (
        "adam: the state of 'vector' is f64[4], but the parameter is f64[5]; both must have the same shape."
    )
    with pytest.raises(pn.errors.StructureError) as error:
        optimizer.step(p, {"matrix": grads.matrix}, state, donate=donate)
    assert str(error.value) == (
        "adam, parameters and gradients: the trees differ at the top: a Weights against a dict. Both must have the "
        "same classes, absent children and static fields."
    )
    with pytest.raises(ArgumentError) as error:
        optimizer.step(p, grads, optim.sgd(0.1).init(p), donate=donate)
    assert str(error.value) == "adam: the state must be the AdamState that init(params) makes, got a SgdState."
    with pytest.raises(ArgumentError) as error:
        optimizer.step(pn.tree.stack([p, p]), pn.tree.stack([grads, grads]), pn.tree.stack([state, state]))
    assert str(error.value) == (
        "adam: the state is that of 2 models (its count has the shape [2]): make the step under pn.vmap."
    )
    assert pn.tree.equal(p, before)
    assert int(state.count) == 0


def test_donation_errors(problem: Any) -> None:
    """Storage that is needed, or that two leaves share, cannot be donated."""
    optimizer, p = optim.adam(0.1), problem.params
    own = pn.replace(p, matrix=p.matrix.clone().requires_grad_())
    with pytest.raises(ArgumentError) as error:
        optimizer.step(own, gradients(p, 1)[0], optimizer.init(p), donate=True)
    assert str(error.value) == (
        "adam: the parameter 'matrix' is donated but requires grad; its old value is needed for the gradient. Leave "
        "donate=True out, or step under torch.no_grad()."
    )
    with torch.no_grad():
        assert optimizer.step(own, gradients(p, 1)[0], optimizer.init(p), donate=True)[0].matrix is own.matrix
    shared: dict[str, Tensor] = {"a": p.vector, "b": p.vector}
    with pytest.raises(ArgumentError) as error:
        optimizer.step(shared, gradients(shared, 1)[0], optimizer.init(shared), donate=True)
    assert str(error.value) == (
        "adam: 'a' and 'b' share their storage, so it cannot be donated: tie them with pn.tree.tie, or leave "
        "donate=True out."
    )


def test_donation_of_overlapping_memory(device: torch.device) -> None:
    """What lies on itself or on another leaf cannot be donated, and nothing is written before that is known."""
    buffer = torch.ones(6, device=device)
    optimizer = optim.sgd(0.1)
    for p, expected in (
        (
            {"a": buffer[:4], "b": buffer[2:]},
            "sgd: 'a' and 'b' share their storage, so it cannot be donated: tie them with pn.tree.tie, or leave "
            "donate=True out.",
        ),
        (
            {"a": buffer[:1], "b": buffer[:1].expand(4)},
            "sgd: 'a' and 'b' share their storage, so it cannot be donated: tie them with pn.tree.tie, or leave "
            "donate=True out.",
        ),
        (
            {"a": buffer, "b": torch.ones(1, device=device).expand(4)},
            "sgd: elements of 'b' share their place in memory (expand), so it cannot be donated: clone it, or leave "
            "donate=True out.",
        ),
    ):
        with pytest.raises(ArgumentError) as error:
            optimizer.step(p, pn.tree.map(torch.ones_like, p), optimizer.init(p), donate=True)
        assert str(error.value) == expected
        assert torch.equal(buffer, torch.ones_like(buffer))
    for p in ({"a": buffer[::2], "b": buffer[1::2]}, {"a": buffer.view(2, 3)[:, :1], "b": buffer.view(2, 3)[:, 1:]}):
        optimizer.step(p, pn.tree.map(torch.ones_like, p), optimizer.init(p), donate=True)
    torch.testing.assert_close(buffer, torch.full_like(buffer, 0.8))


@pytest.mark.parametrize("joined", [False, True])
def test_gradients_that_are_parameters(joined: bool, case: Any, device: torch.device) -> None:
    """Gradients that lie where a donated step writes, here each parameter the other's, are read as they were."""
    optimizer, key = case.make(), pn.random.key(3, device)
    start = Pair(*pn.random.normal(key, (2, 4, 3), dtype=torch.float64).unbind(0))
    right = start, optimizer.init(start)
    own = pn.tree.contiguous(start) if joined else pn.tree.map(torch.clone, start)
    ours = own, optimizer.init(own)
    for _ in range(3):
        right = plain(optimizer, right[0], Pair(right[0].other, right[0].one), right[1])
        ours = optimizer.step(ours[0], Pair(ours[0].other, ours[0].one), ours[1], donate=True)
        assert pn.tree.allclose(ours, right, rtol=1e-10, atol=1e-12)
    if joined:
        right = plain(optimizer, right[0], right[0], right[1])
        ours = optimizer.step(ours[0], ours[0], ours[1], donate=True)
        assert pn.tree.allclose(ours, right, rtol=1e-10, atol=1e-12)


def test_graph_of_contiguous_gradients(device: torch.device) -> None:
    """A gradient with a graph is not cut off, whatever is remembered of the steps before."""
    optimizer, x = optim.adam(0.1), torch.ones(3, device=device, requires_grad=True)
    for donate in (False, True):
        p = pn.tree.contiguous(Pair(torch.ones(3, device=device), torch.ones(3, device=device)))
        state = optimizer.init(p)
        for _ in range(2):
            p, state = optimizer.step(p, pn.tree.contiguous(pn.tree.map(torch.ones_like, p)), state, donate=donate)
        grads = pn.tree.contiguous(Pair(x.square(), torch.ones(3, device=device)))
        new, _ = optimizer.step(p, grads, state, donate=donate)
        (got,) = torch.autograd.grad(new.one.sum(), x)
        assert got.abs().min() > 0


def test_contiguous_gradients_of_another_class(device: torch.device) -> None:
    """Gradients that look alike but are another container are refused, whatever is remembered."""
    optimizer = optim.adam(0.1)
    p = pn.tree.contiguous(Pair(torch.ones(3, device=device), torch.ones(3, device=device)))
    p, state = optimizer.step(p, pn.tree.contiguous(pn.tree.map(torch.ones_like, p)), optimizer.init(p))
    with pytest.raises(pn.errors.StructureError):
        optimizer.step(p, pn.tree.contiguous(Riap(p.one, p.other)), state, donate=True)


@pytest.mark.parametrize("donate", [False, True])
def test_leaves_put_into_a_dict_are_seen(donate: bool, device: torch.device) -> None:
    """A dict within a container can be given another leaf; the next step starts from that."""
    optimizer = optim.sgd(0.1, momentum=0.9)
    p, grads = (Named({"w": torch.full((2,), value, device=device)}) for value in (1.0, 0.0))
    p, state = optimizer.step(p, grads, optimizer.init(p), donate=donate)
    p.leaves["w"] = torch.full((2,), 5.0, device=device)
    new, _ = optimizer.step(p, grads, state, donate=donate)
    assert torch.equal(new.leaves["w"], torch.full((2,), 5.0, device=device))


def test_tied_leaves(case: Any, problem: Any) -> None:
    """Tied leaves are one parameter, that moves by the sum of its gradients, donated and contiguous as well."""
    optimizer, weight = case.make(), problem.params.matrix

    def loss(p: Any) -> Tensor:
        p = pn.tree.untie(p)
        return (p.one.sin() * p.other.cos()).sum()

    def moved(p: Any, loss: Any, donate: bool = False) -> Any:
        state = optimizer.init(p)
        for _ in range(3):
            p, state = optimizer.step(p, pn.grad(loss)(p), state, donate=donate)
        return p

    right = moved({"w": weight}, lambda p: (p["w"].sin() * p["w"].cos()).sum())["w"]
    tied = pn.tree.tie(Pair(weight, weight))
    for p, donate in ((tied, False), (pn.tree.map(torch.clone, tied), True), (pn.tree.contiguous(tied), True)):
        torch.testing.assert_close(moved(p, loss, donate).one, right, rtol=1e-10, atol=1e-12)


def test_many_steps_done(case: Any, problem: Any) -> None:
    """After more steps than float32 can count the ways to step still agree."""
    optimizer, p = case.make(), {"w": problem.params.matrix}
    state = pn.tree.map(lambda leaf: leaf + 2**24 + 1 if leaf.dtype is torch.int64 else leaf, optimizer.init(p))
    grads = pn.tree.map(torch.sin, p)
    right = plain(optimizer, p, grads, state)
    assert pn.tree.allclose(optimizer.step(p, grads, state), right, rtol=1e-12, atol=1e-12)
    compiled = pn.jit(lambda *args: optimizer.step(*args), backend="eager")
    assert pn.tree.allclose(compiled(p, grads, state), right, rtol=1e-12, atol=1e-12)
    assert all(leaf.isfinite().all() for leaf in pn.tree.leaves(right))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        lambda t: optim.adam(t(0.1), betas=(t(0.9), t(0.999)), eps=t(1e-8), weight_decay=t(0.01)),
        lambda t: optim.adamw(t(0.1), betas=(t(0.9), t(0.999)), weight_decay=t(0.01)),
        lambda t: optim.sgd(t(0.1), momentum=t(0.9), dampening=t(0.1)),
        lambda t: optim.adagrad(t(0.1), learning_rate_decay=t(0.01)),
        lambda t: optim.nadam(t(0.1), betas=(t(0.9), t(0.999))),
    ],
)
def test_hyperparameters_as_tensors(make: Any, dtype: torch.dtype, problem: Any) -> None:
    """Numbers given as tensors, of less precision than the parameters as well, are the same numbers for all ways."""
    p, optimizer = problem.params, make(lambda value: torch.tensor(value, dtype=dtype))
    steps = gradients(p)
    assert pn.tree.allclose(many(optimizer, p, steps), reference(optimizer, p, steps), rtol=1e-12, atol=1e-12)


def test_donation_within_transformations(problem: Any) -> None:
    """Within `vmap` and `jit` donation is left out."""
    optimizer, p = optim.adam(0.1), problem.params
    grads, state = gradients(p, 1)[0], optimizer.init(p)
    right = optimizer.step(p, grads, state)
    before = pn.tree.map(torch.clone, (p, state))

    def step(p: Any, grads: Any, state: Any) -> Any:
        return optimizer.step(p, grads, state, donate=True)

    assert pn.tree.allclose(pn.jit(step, backend="eager")(p, grads, state), right, rtol=0, atol=1e-12)
    batched = pn.vmap(step)(*[pn.tree.stack([tree, tree]) for tree in (p, grads, state)])
    assert pn.tree.allclose(pn.tree.unstack(batched)[0], right, rtol=0, atol=1e-12)
    assert pn.tree.equal((p, state), before)
