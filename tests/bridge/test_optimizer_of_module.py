"""`bridge.Optimizer`: optimisers of pn.optim for the parameters of modules."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

import bridge
import purenn as pn
from purenn.errors import ArgumentError, BridgeError, CheckpointError

CASES: list[tuple[Any, dict[str, Any], type[optim.Optimizer], dict[str, Any]]] = [
    (pn.optim.sgd, {"momentum": 0.9, "weight_decay": 0.1}, optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (pn.optim.adamw, {"betas": (0.8, 0.99)}, optim.AdamW, {"betas": (0.8, 0.99)}),
    (pn.optim.rmsprop, {"decay": 0.9, "eps": 1e-3}, optim.RMSprop, {"alpha": 0.9, "eps": 1e-3}),
    (pn.optim.adafactor, {}, optim.Adafactor, {}),
]


def make(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(device, torch.float64)


def data(device: torch.device) -> Tensor:
    return torch.linspace(-1, 1, 15, dtype=torch.float64, device=device).view(5, 3)


def train(m: nn.Module, optimizer: Any, steps: int, scheduler: Any = None) -> list[float]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = m(data(next(m.parameters()).device)).sin().square().mean()
        loss.backward()
        return loss

    losses = []
    for _ in range(steps):
        losses.append(optimizer.step(closure).item())
        if scheduler is not None:
            scheduler.step()
    return losses


def assert_same(a: nn.Module, b: nn.Module, atol: float = 1e-12) -> None:
    for one, other in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize(("pure", "options", "cls", "torch_options"), CASES)
def test_trains_a_module_as_torch_s(
    pure: Any, options: dict[str, Any], cls: Any, torch_options: dict[str, Any], device: torch.device
) -> None:
    """Thirty steps with a closure and a scheduler give the parameters and losses of torch's optimiser."""
    m = make(device)
    other = copy.deepcopy(m)
    mine, reference = (
        bridge.Optimizer(m.parameters(), pure, lr=0.05, **options),
        cls(other.parameters(), lr=0.05, **torch_options),
    )
    parameters = list(m.parameters())
    losses = train(m, mine, 30, lr_scheduler.StepLR(mine, 4, 0.8))
    assert losses == pytest.approx(train(other, reference, 30, lr_scheduler.StepLR(reference, 4, 0.8)), abs=1e-12)
    assert_same(m, other, 1e-10)
    assert [id(p) for p in parameters] == [id(p) for p in m.parameters()]
    assert mine.param_groups[0]["lr"] == reference.param_groups[0]["lr"]


def test_parameters_are_updated_in_place(device: torch.device) -> None:
    """A step writes into the parameters' storage and raises their version, as autograd's checks need it."""
    m = make(device)
    optimizer = bridge.Optimizer(m.parameters(), pn.optim.adam, lr=0.1)
    before = [(p.data_ptr(), p._version) for p in m.parameters()]
    train(m, optimizer, 1)
    after = [(p.data_ptr(), p._version) for p in m.parameters()]
    assert [storage for storage, _ in before] == [storage for storage, _ in after]
    assert all(new > old for (_, new), (_, old) in zip(after, before, strict=True))


def test_parameter_groups(device: torch.device) -> None:
    """Groups have options of their own, and can be added later; the others are the defaults."""
    m = make(device)
    other = copy.deepcopy(m)
    groups = lambda m: [{"params": m[0].parameters(), "lr": 0.2, "weight_decay": 0.1}]  # noqa: E731
    mine = bridge.Optimizer(groups(m), pn.optim.adamw, learning_rate=0.1, weight_decay=0.0)
    reference = optim.AdamW(groups(other), lr=0.1, weight_decay=0.0)
    train(m, mine, 3), train(other, reference, 3)
    mine.add_param_group({"params": m[2].parameters()})
    reference.add_param_group({"params": other[2].parameters()})
    train(m, mine, 3), train(other, reference, 3)
    assert_same(m, other)
    assert [group["lr"] for group in mine.param_groups] == [0.2, 0.1]


def test_schedulers_that_change_momentum(device: torch.device) -> None:
    """OneCycleLR cycles betas as well as the learning rate."""
    m = make(device)
    other = copy.deepcopy(m)
    mine, reference = bridge.Optimizer(m.parameters(), pn.optim.adam, lr=0.1), optim.Adam(other.parameters(), lr=0.1)
    train(m, mine, 9, lr_scheduler.OneCycleLR(mine, 0.1, total_steps=10))
    train(other, reference, 9, lr_scheduler.OneCycleLR(reference, 0.1, total_steps=10))
    assert_same(m, other)
    assert mine.param_groups[0]["betas"] != (0.9, 0.999)


def test_parameters_without_gradient(device: torch.device) -> None:
    """What has no gradient, or does not require one, stays as it is; without any gradient nothing happens."""
    m = make(device)
    m[0].requires_grad_(False)
    optimizer = bridge.Optimizer(m.parameters(), pn.optim.adamw, lr=0.1)
    optimizer.step()
    before = copy.deepcopy(m)
    train(m, optimizer, 2)
    assert_same(m[0], before[0])
    assert not torch.equal(m[2].weight, before[2].weight)


def test_names_reach_the_selections(device: torch.device) -> None:
    """With named parameters, path patterns of the optimiser refer to the names."""
    m = make(device)
    optimizer = bridge.Optimizer(
        m.named_parameters(), pn.optim.adamw, lr=0.1, weight_decay=0.5, decayed=["0.weight", "2.weight"]
    )
    for p in m.parameters():
        p.grad = torch.zeros_like(p)
    before = copy.deepcopy(m)
    optimizer.step()
    torch.testing.assert_close(m[0].weight, 0.95 * before[0].weight, rtol=0, atol=1e-12)
    assert torch.equal(m[0].bias, before[0].bias)


def test_any_function_and_any_transformation(device: torch.device) -> None:
    """A function of one's own has its numbers in the groups; a finished transformation works without."""
    m = make(device)
    other = copy.deepcopy(m)

    def clipped(learning_rate: float, *, max_norm: float = 0.1) -> pn.optim.GradientTransformation:
        return pn.optim.chain(pn.optim.clip_by_global_norm(max_norm), pn.optim.lion(learning_rate))

    mine = bridge.Optimizer(m.parameters(), clipped, lr=0.01)
    ready = bridge.Optimizer(other.parameters(), clipped(0.01))
    train(m, mine, 5), train(other, ready, 5)
    assert_same(m, other)
    assert mine.param_groups[0]["max_norm"] == 0.1
    assert set(ready.param_groups[0]) == {"params"}
    options = bridge.Optimizer(m.parameters(), lambda **options: pn.optim.adam(**options), learning_rate=0.1, eps=0.5)
    assert options.param_groups[0]["eps"] == 0.5


def test_pure_schedules(device: torch.device) -> None:
    """A schedule of pn.optim in the place of the learning rate counts the steps."""
    m = make(device)
    other = copy.deepcopy(m)
    mine = bridge.Optimizer(m.parameters(), pn.optim.sgd, lr=pn.optim.linear_schedule(0.1, 0.0, 4))
    reference = optim.SGD(other.parameters(), lr=0.1)
    train(m, mine, 4)
    train(other, reference, 4, lr_scheduler.LinearLR(reference, 1.0, 0.0, 4))
    assert_same(m, other)


@pytest.mark.parametrize("pure", [pn.optim.adamw, pn.optim.nadam, lambda learning_rate: pn.optim.muon(learning_rate)])
def test_saved_and_loaded(pure: Any, device: torch.device) -> None:
    """A state that went through torch.save and weights_only loading goes on bit for bit, groups included."""
    m = make(device)
    optimizer = bridge.Optimizer(m.named_parameters(), pure, lr=0.05)
    train(m, optimizer, 3)
    optimizer.param_groups[0]["lr"] = 0.02
    file = io.BytesIO()
    torch.save({"model": m.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    train(m, optimizer, 3)
    other = make(device)
    again = bridge.Optimizer(other.named_parameters(), pure, lr=0.05)
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert again.param_groups[0]["lr"] == 0.02
    train(other, again, 3)
    assert_same(m, other, 0.0)


def test_copies_and_pickles(device: torch.device) -> None:
    """A deep copy of module and optimiser trains on by itself."""
    m = make(device)
    optimizer = bridge.Optimizer(m.parameters(), pn.optim.adam, lr=0.1)
    train(m, optimizer, 2)
    other, again = copy.deepcopy((m, optimizer))
    train(m, optimizer, 2)
    train(other, again, 2)
    assert_same(m, other, 0.0)
    assert "Optimizer" in repr(again)


def test_gradient_scaler(device: torch.device) -> None:
    """A GradScaler unscales the gradients and skips steps with infinite ones."""
    m = make(device).float()
    other = copy.deepcopy(m)
    mine, reference = bridge.Optimizer(m.parameters(), pn.optim.adam, lr=0.1), optim.Adam(other.parameters(), lr=0.1)
    for model, optimizer in ((m, mine), (other, reference)):
        scaler = torch.amp.GradScaler(device.type, init_scale=8.0)
        for step in range(4):
            optimizer.zero_grad()
            scale = torch.inf if step == 1 else 1.0
            scaler.scale(model(data(device).float()).sum() * scale).backward()
            scaler.step(optimizer)
            scaler.update()
    assert_same(m, other, 1e-6)


def test_hooks(device: torch.device) -> None:
    """Hooks before and after the step run."""
    m = make(device)
    optimizer = bridge.Optimizer(m.parameters(), pn.optim.adam, lr=0.1)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(m, optimizer, 1)
    assert seen == ["before", "after"]


def test_wrong_makers(device: torch.device) -> None:
    """What makes no transformation, and options that it does not take, are refused."""
    m = make(device)
    wrong: Any = 3
    cases: list[Any] = [
        (
            lambda: bridge.Optimizer(m.parameters(), wrong),
            "Optimizer takes a function that makes an optimiser, such as pn.optim.adamw, got an int.",
        ),
        (
            lambda: bridge.Optimizer(m.parameters(), pn.optim.sgd, lr=0.1, betas=(0.9, 0.99)),
            "Optimizer: sgd does not take these options: got an unexpected keyword argument 'betas'. It takes: "
            "learning_rate, momentum, dampening, weight_decay, nesterov, maximize.",
        ),
        (
            lambda: bridge.Optimizer(m.parameters(), pn.optim.adam(0.1), lr=0.1),
            "Optimizer: the transformation does not take these options: got an unexpected keyword argument 'lr'. It "
            "takes: none.",
        ),
        (
            lambda: bridge.Optimizer(m.parameters(), pn.optim.sam, optimizer=pn.optim.sgd(0.1)),
            "Optimizer: sam made a SharpnessAware, expected a transformation with init and update, as pn.optim.adamw "
            "makes it.",
        ),
    ]
    for act, message in cases:
        with pytest.raises(BridgeError) as error:
            act()
        assert str(error.value) == message


def test_sparse_gradients(device: torch.device) -> None:
    """A sparse gradient is an error with the name of the parameter."""
    m = nn.Embedding(4, 3, sparse=True, device=device)
    optimizer = bridge.Optimizer(m.named_parameters(), pn.optim.adam, lr=0.1)
    m(torch.tensor([1], device=device)).sum().backward()
    with pytest.raises(ArgumentError) as error:
        optimizer.step()
    assert str(error.value) == (
        "Optimizer: the gradient of 'weight' is sparse, which no optimiser of pn.optim takes: leave sparse=True out."
    )


def test_a_state_that_does_not_fit(device: torch.device) -> None:
    """The state of another optimiser is refused, with all that differs."""
    m = make(device)
    mine, other = (bridge.Optimizer(m[2].parameters(), pure, lr=0.1) for pure in (pn.optim.adam, pn.optim.lion))
    for optimizer in (mine, other):
        for p in m.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    state = other.state_dict()
    state["state"]["group 0"]["mean.1"] = torch.ones(3)
    with pytest.raises(CheckpointError) as error:
        mine.load_state_dict({**state, "param_groups": mine.state_dict()["param_groups"]})
    assert str(error.value) == (
        "Optimizer.load_state_dict: the state does not fit:\n"
        "  missing: square.0\n"
        "  missing: square.1\n"
        "  different: mean.1 is f32[3] in the state dict, f64[2] in the optimiser\n"
        "Load it into the optimiser that it came from, with the same parameters and options."
    )
