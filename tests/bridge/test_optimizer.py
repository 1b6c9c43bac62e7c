"""`bridge.optimizer`: classes of torch.optim as pure functions of trees."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, optim

import bridge
import purenn as pn
from purenn.errors import ArgumentError, BridgeError, StructureError, TransformError
from purenn.layers import Linear

CASES: list[tuple[type[optim.Optimizer], dict[str, Any]]] = [
    (optim.SGD, {"lr": 0.05}),
    (optim.SGD, {"lr": 0.02, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (optim.SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True, "foreach": True}),
    (optim.SGD, {"lr": 0.02, "momentum": 0.9, "fused": True}),
    (optim.Adam, {"lr": 0.05}),
    (optim.Adam, {"lr": torch.tensor(0.05), "amsgrad": True, "weight_decay": 0.1, "eps": 1e-3, "maximize": True}),
    (optim.Adam, {"lr": 0.05, "decoupled_weight_decay": True, "fused": True}),
    (optim.AdamW, {"lr": 0.05, "betas": (0.8, 0.99), "amsgrad": True}),
    (optim.AdamW, {"lr": 0.05, "foreach": True}),
    (optim.NAdam, {"lr": 0.05, "momentum_decay": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.1}),
    (optim.RAdam, {"lr": 0.05, "weight_decay": 0.1}),
    (optim.Adamax, {"lr": 0.05, "weight_decay": 0.1, "maximize": True}),
    (optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    (optim.Adadelta, {"lr": 0.5, "rho": 0.8, "weight_decay": 0.1}),
    (optim.RMSprop, {"lr": 0.02, "momentum": 0.5, "centered": True, "eps": 1e-4}),
    (optim.Rprop, {"lr": 0.01, "etas": (0.3, 1.5), "step_sizes": (1e-4, 0.1)}),
    (optim.ASGD, {"lr": 0.05, "t0": 5, "lambd": 0.01, "alpha": 0.6, "weight_decay": 0.1}),
    (optim.Adafactor, {"lr": 0.5, "d": 1.5, "weight_decay": 0.01, "maximize": True}),
    (optim.Muon, {"lr": 0.02}),
]


@pn.container
class Weights:
    """Two matrices and, unless an optimiser takes matrices only, a vector and a scalar; and what is not trained."""

    scalar: Tensor | None
    offset: Tensor = pn.buffer()
    vector: Tensor | None
    first: Tensor
    second: Tensor
    fixed: Tensor


def make(device: torch.device, *, matrices: bool = False) -> Weights:
    keys = pn.random.split(pn.random.key(0, device), 6)
    shapes = [(), (5,), (5,), (5, 3), (2, 5), (2,)]
    leaves = [pn.random.normal(k, s, dtype=torch.float64) for k, s in zip(keys, shapes, strict=True)]
    p = Weights(None if matrices else leaves[0], leaves[1], None if matrices else leaves[2], *leaves[3:])
    return pn.tree.freeze(p, "fixed")


def loss(p: Any) -> Tensor:
    x = torch.linspace(-1, 1, 12, dtype=torch.float64, device=p.first.device).view(4, 3)
    hidden = (x @ p.first.T + p.offset).sin()
    if p.vector is not None:
        hidden = (hidden + p.vector) * p.scalar
    return (hidden @ p.second.T + p.fixed).cos().square().mean() + 0.1 * hidden.square().sum()


@pytest.fixture(autouse=True)
def precise() -> Iterator[None]:
    """Optimisers keep some scalars in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_the_same_numbers_as_torch(cls: type[optim.Optimizer], options: dict[str, Any], device: torch.device) -> None:
    """Fifty steps give torch's parameters bit for bit, donated too; updates added give them to 1e-12."""
    p = make(device, matrices=cls is optim.Muon)
    leaves = [leaf.clone().requires_grad_() for leaf in pn.tree.leaves(pn.tree.partition(p)[0])]
    build: Any = cls
    reference, pure = build(leaves, **options), bridge.optimizer(cls, **options)
    before = pn.tree.map(torch.clone, p)
    stepped = updated = (p, pure.init(p))
    own = pn.tree.map(torch.clone, p)
    donated = (own, pure.init(own))
    for _ in range(50):
        grads = pn.grad(loss)(stepped[0])
        for leaf, gradient in zip(leaves, pn.tree.leaves(grads), strict=True):
            leaf.grad = gradient.clone()
        reference.step()
        stepped = pure.step(stepped[0], grads, stepped[1])
        donated = pure.step(donated[0], grads, donated[1], donate=True)
        updates, state = pure.update(grads, updated[1], updated[0])
        updated = pn.optim.apply_updates(updated[0], updates), state
    right = [leaf.detach() for leaf in leaves]
    for q, _ in (stepped, donated):
        assert pn.tree.equal(pn.tree.leaves(pn.tree.partition(q)[0]), right)
    assert pn.tree.allclose(updated[0], stepped[0], rtol=1e-12, atol=1e-12)
    assert pn.tree.equal(p, before)
    assert pn.tree.equal(stepped[0].fixed, p.fixed)
    assert pn.tree.equal(stepped[0].offset, p.offset)


def test_nothing_is_written_into(device: torch.device) -> None:
    """Parameters, gradients and state are as before a step, and an old state gives the same step again."""
    p = make(device)
    pure = bridge.optimizer(optim.Adam, lr=0.1)
    grads = pn.grad(loss)(p)
    p, state = pure.step(p, grads, pure.init(p))
    kept = pn.tree.map(torch.clone, (p, grads, state))
    first, again = pure.step(p, grads, state), pure.step(p, grads, state)
    assert pn.tree.equal((p, grads, state), kept)
    assert pn.tree.equal(first, again)
    assert not any(leaf.requires_grad for leaf in pn.tree.leaves(first))


def test_donated_storage_is_used_again(device: torch.device) -> None:
    """A donated step writes into the storage that it is given."""
    p = make(device)
    pure = bridge.optimizer(optim.Adam, lr=0.1)
    p, state = pure.step(p, p, pure.init(p))
    q, new = pure.step(p, p, state, donate=True)
    assert q.first.data_ptr() == p.first.data_ptr()
    assert new.slots["exp_avg"].first.data_ptr() == state.slots["exp_avg"].first.data_ptr()


def test_the_state_is_a_tree(device: torch.device, tmp_path: Any) -> None:
    """Slots are trees like the parameters; a saved and loaded state goes on bit for bit."""
    p = make(device)
    pure = bridge.optimizer(optim.RMSprop, lr=0.1, momentum=0.9)
    grads = pn.grad(loss)(p)
    p, state = pure.step(p, grads, pure.init(p))
    assert sorted(state.slots) == ["momentum_buffer", "square_avg", "step"]
    assert state.slots["square_avg"].first.shape == p.first.shape
    assert state.slots["square_avg"].fixed is pn.tree.HOLE
    pn.save(tmp_path / "state", state)
    loaded = pn.load(tmp_path / "state", like=pn.tree.map(torch.zeros_like, state))
    assert pn.tree.equal(pure.step(p, grads, loaded), pure.step(p, grads, state))
    linear = Linear.init(pn.random.key(0, device), 3, 2)
    _, state = pure.step(linear, linear, pure.init(linear))
    assert repr(state.slots["step"]) == "Linear(weight=f64[], bias=f64[])"


def test_leaves_without_gradient_stay(device: torch.device) -> None:
    """Where the gradient is a hole, parameter and state stay as they are, and go on later."""
    p = make(device)
    pure = bridge.optimizer(optim.SGD, lr=0.1, momentum=0.9)
    grads = pn.grad(loss)(p)
    part = pn.tree.partition(grads, paths="first")[0]
    q, state = pure.step(p, part, pure.init(p))
    assert pn.tree.equal(q.second, p.second)
    assert not pn.tree.equal(q.first, p.first)
    assert state.slots["momentum_buffer"].second is pn.tree.HOLE
    q, state = pure.step(q, grads, state)
    assert torch.equal(state.slots["momentum_buffer"].second, grads.second)
    updates, _ = pure.update(part, state, q)
    assert updates.second is pn.tree.HOLE


def test_schedules(device: torch.device) -> None:
    """An option that is a function is called with the number of steps done."""
    p = make(device)
    pure = bridge.optimizer(optim.SGD, lr=pn.optim.linear_schedule(0.1, 0.0, 4))
    grads, state = pn.grad(loss)(p), pure.init(p)
    for n in range(4):
        new, state = pure.step(p, grads, state)
        torch.testing.assert_close(p.first - new.first, (0.1 - 0.025 * n) * grads.first, rtol=0, atol=1e-12)
    assert int(state.count) == 4


def test_parts_and_chains(device: torch.device) -> None:
    """It combines with the transformations of pn.optim: another class for each part, clipping before."""
    p = make(device)
    pure = pn.optim.chain(
        pn.optim.clip_by_global_norm(0.5),
        pn.optim.multi_transform(
            [(["first", "second"], bridge.optimizer(optim.Muon, lr=0.1))], default=bridge.optimizer(optim.Adam, lr=0.1)
        ),
    )
    grads, state = pn.grad(loss)(p), pure.init(p)
    for _ in range(3):
        p, state = pure.step(p, grads, state)
    own = pn.optim.multi_transform([("first", pn.optim.sgd(0.1))], default=bridge.optimizer(optim.SGD, lr=0.1))
    q, _ = own.step(p, grads, own.init(p))
    assert pn.tree.allclose(q, pn.optim.sgd(0.1).step(p, grads, pn.optim.sgd(0.1).init(p))[0], rtol=0, atol=1e-12)


def test_differentiable_steps(device: torch.device) -> None:
    """With differentiable=True the gradient of a loss after three steps is that of pn.optim."""
    p = make(device)

    def adapted(pure: Any) -> Any:
        def f(p: Any) -> Tensor:
            state = pure.init(p)
            for _ in range(3):
                p, state = pure.step(p, pn.grad(loss)(p), state)
            return loss(p)

        return f

    pure = bridge.optimizer(optim.Adam, lr=0.1, differentiable=True)
    expected = pn.grad(adapted(pn.optim.adam(0.1)))(p)
    assert pn.tree.allclose(pn.grad(adapted(pure))(p), expected, rtol=1e-9, atol=1e-9)


def test_other_people_s_optimisers(device: torch.device) -> None:
    """A class that is not torch's works, with numbers in its state; one that hides state is refused."""

    class Counting(optim.Optimizer):
        def __init__(self, params: Any, lr: float, hide: bool = False) -> None:
            super().__init__(params, {"lr": lr, "hide": hide, "seen": 0})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for w in group["params"]:
                    steps = self.state[w].get("steps", 0) + 1
                    self.state[w]["steps"] = steps
                    w -= group["lr"] / steps * w.grad
                if group["hide"]:
                    group["seen"] += 1

    p = make(device)
    pure, grads = bridge.optimizer(Counting, lr=0.1), pn.grad(loss)(p)
    q, state = pure.step(p, grads, pure.init(p))
    r, state = pure.step(q, grads, state)
    torch.testing.assert_close(q.first - r.first, 0.05 * grads.first, rtol=0, atol=1e-12)
    assert state.slots["steps"].first == 2
    with pytest.raises(ArgumentError) as error:
        bridge.optimizer(Counting, lr=0.1, hide=True).step(p, grads, pure.init(p))
    assert str(error.value) == (
        "Counting keeps a part of its state in its parameter group (seen), which a pure function cannot carry on."
    )


def test_refused_classes() -> None:
    """What is no optimiser, or cannot be a pure function, is refused with the reason."""
    wrong: Any = torch.nn.Linear
    cases: list[Any] = [
        (wrong, "optimizer takes a class of optimisers, such as torch.optim.AdamW, got the class Linear."),
        (
            optim.LBFGS,
            "optimizer: LBFGS cannot be a pure function: it computes the loss again within a step: train a module from "
            "bridge.to_module with it.",
        ),
        (
            optim.SparseAdam,
            "optimizer: SparseAdam cannot be a pure function: gradients of trees are dense: use torch.optim.Adam.",
        ),
    ]
    for cls, message in cases:
        with pytest.raises(BridgeError) as error:
            bridge.optimizer(cls)
        assert str(error.value) == message


def test_what_the_class_refuses(device: torch.device) -> None:
    """Options that it does not have, or refuses, and parameters that it cannot train are an error of ours."""
    told = "torch's class refuses the options or the parameters: "
    for cls, options, text in (
        (optim.SGD, {"lr": -1.0}, f"SGD: {told}Invalid learning rate: -1.0."),
        (optim.SGD, {"speed": 1.0}, f"SGD: {told}SGD.__init__() got an unexpected keyword argument 'speed'."),
    ):
        with pytest.raises(ArgumentError) as error:
            bridge.optimizer(cls, **options).init(make(device))
        assert str(error.value) == (
            f"{text} What it cannot train is left to another optimiser by pn.optim.multi_transform."
        )


def test_misuse(device: torch.device) -> None:
    """Wrong states and structures, gradients that would be cut off, and transformations are errors."""
    p = make(device)
    pure = bridge.optimizer(optim.SGD, lr=0.1)
    grads, state = pn.grad(loss)(p), pure.init(p)
    with pytest.raises(ArgumentError) as wrong:
        pure.step(p, grads, pn.optim.sgd(0.1).init(p))
    assert str(wrong.value) == "SGD: the state must be the TorchState that init(params) makes, got a SgdState."
    with pytest.raises(StructureError):
        pure.step(p, {"w": p.first}, state)
    with pytest.raises(ArgumentError) as cut:
        pure.step(pn.replace(p, first=p.first.clone().requires_grad_()), grads, state)
    assert str(cut.value) == (
        "SGD: the parameter 'first' requires grad, which would be cut off: give the optimiser differentiable=True, or "
        "make the step under torch.no_grad()."
    )
    transformed = (
        "SGD: an optimiser of torch.optim works in place and cannot be transformed or compiled: use that of pn.optim, "
        "which has the same numbers, or differentiable=True if it is only to be differentiated."
    )
    for run in (
        lambda: torch.func.grad(lambda p: loss(pure.step(p, grads, state)[0]))(p),
        lambda: pn.vmap(lambda p: pure.step(p, p, state)[0])(pn.tree.stack([p, p])),
        lambda: pn.jit(lambda p: pure.step(p, p, state)[0], backend="eager")(p),
    ):
        with pytest.raises(TransformError) as error:
            run()
        assert str(error.value) == transformed
