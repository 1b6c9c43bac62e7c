"""Promises about where a layer runs: compiled, in half precision, on other devices, from a file, as a module."""

import inspect
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _cases import Case, floating, tensors, total
from _derivatives import same
from _samples import torch_may_warn
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.layers import init_like

# Of bfloat16, which has 8 bits: relative to the largest value, or twice what torch's own module is wrong by.
HALF_TOLERANCE = 0.05


def jit(case: Case) -> None:
    """`pn.jit` of value and gradient gives what it gives without."""
    both = pn.value_and_grad(case.loss, case.argnums)
    same(pn.jit(both, backend="eager")(case.p, *case.inputs()), both(case.p, *case.inputs()))


def compile(case: Case) -> None:
    """`torch.compile` takes the call as one graph."""
    torch.compiler.reset()
    args, options = case.arguments(*case.inputs())
    compiled = torch.compile(_applied, fullgraph=True, backend="eager")
    same(compiled(case.p, args, options), case.p(*args, **options))


def _applied(p: Any, args: tuple, options: dict[str, Any]) -> Any:
    return p(*args, **options)


class _Applied(nn.Module):
    def forward(self, p: Any, args: tuple, options: dict[str, Any]) -> Any:
        return p(*args, **options)


def export(case: Case) -> None:
    """`torch.export` takes the container as an argument, and the program gives the same."""
    torch.compiler.reset()
    args, options = case.arguments(*case.inputs())
    program = torch.export.export(_Applied(), (case.p, args, options))
    same(program.module()(case.p, args, options), case.p(*args, **options))


def bfloat16(case: Case) -> None:
    """In bfloat16 results stay bfloat16, and wrong by 5% of the largest value at most, or twice what torch's are."""
    half = case.moved(torch.bfloat16)
    exact = half.moved(torch.float64)
    found = floating(half.values(half.p, *half.inputs()))
    expected = floating(exact.values(exact.p, *exact.inputs()))
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.dtype == torch.bfloat16, one.dtype
        if not other.numel():
            continue
        wrong, largest = _distance(one, other), other.abs().nan_to_num(posinf=0).max()
        if wrong > HALF_TOLERANCE * (1 + largest):
            theirs = tensors(half.reference(half.fresh_module().bfloat16(), *half.inputs()))
            limit = 2 * _distance(theirs[i], other) if i < len(theirs) else 0.0
            assert wrong <= limit, f"wrong by {wrong}, of {largest}"


def _distance(one: Tensor, other: Tensor) -> float:
    finite = other.isfinite()
    assert torch.equal(one.isfinite(), finite), "other elements are finite"
    return (one.double() - other)[finite].abs().max().item() if finite.any() else 0.0


def meta(case: Case) -> None:
    """On the meta device shapes and dtypes are the same, of gradients too; `init` gives the leaves' shapes."""
    there = case.moved("meta")
    found, expected = there.values(there.p, *there.inputs()), case.values(case.p, *case.inputs())
    assert all(y.is_meta for y in found), "a result is not on the meta device"
    _check_shapes(found, expected)
    if case.argnums:
        _check_shapes(*(tensors(pn.grad(one.loss, one.argnums)(one.p, *one.inputs())) for one in (there, case)))
    made = _init_on_meta(case)
    if made is not None:
        assert all(leaf.is_meta for leaf in pn.tree.leaves(made)), "init allocates"
        found, expected = ({n: v.shape for n, v in pn.tree.named_leaves(p)} for p in (made, case.p))
        assert found == expected, f"{found}, expected {expected}"


def _check_shapes(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    ours, theirs = ([(y.shape, y.dtype) for y in values] for values in (found, expected))
    assert ours == theirs, f"{ours}, expected {theirs}"


def _init_on_meta(case: Case) -> Any:
    """By `init`, or by `init_like` for lazy classes, with the constructor's arguments; None if those are not plain."""
    constructor, cls = case.sample.constructor, type(case.p)
    if constructor is None or not constructor.is_plain or not hasattr(cls, "init"):
        return None
    args, options = constructor.by_name()
    # How torch's linear cross entropy computes, not what.
    options = {name: value for name, value in options.items() if name != "options"} | {"device": "meta"}
    options = {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in options.items()}
    key = pn.random.key(0)
    if constructor.is_lazy:
        return init_like(key, cls, *(x.to("meta") for x in case.inputs()[0]), **options)
    keys = (key,) if "key" in inspect.signature(cls.init).parameters else ()
    return cls.init(*keys, *args, **options)


def save_load(case: Case) -> None:
    """What is saved and loaded again is the same tree, bit for bit, and of use."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.safetensors"
        pn.save(path, case.p)
        loaded = pn.load(path, like=pn.tree.map(torch.zeros_like, case.p))
    assert (found := pn.tree.equal(loaded, case.p)), found
    same(case.values(loaded, *case.inputs()), case.values(case.p, *case.inputs()))


def to_module(case: Case) -> None:
    """As a module it gives the same with the module's state-dict keys, calls hooks where torch does, and comes back."""
    carried = bridge.to_module(case.p, copy=True)
    assert list(carried.state_dict()) == [name for name, _ in pn.tree.named_leaves(case.p)]
    carried.train(case.sample.train or case.key is not None)
    module = case.fresh_module().train(carried.training)
    floats, others = case.inputs()
    floats = tuple(x.clone().requires_grad_() for x in floats)
    args, options = case.arguments(floats, others, as_module=True)
    ours = _hooks_of(carried, lambda: carried(*args, **options))
    theirs = _hooks_of(module, lambda: case.reference(module, floats, others))
    same(ours.output, case.apply(case.p, *case.inputs())[0])
    # Some modules of torch's are no layers of ours: they only hold others, or are defaults.
    layers = {name for name, part in carried.named_modules() if isinstance(part, bridge.Module)}
    silent = (theirs.forward & layers - ours.forward, theirs.backward & layers - ours.backward)
    assert not any(silent), f"no forward hooks in {silent[0]}, no backward hooks in {silent[1]}"
    carried.load_state_dict(dict(pn.tree.named_leaves(case.p)))
    assert (found := pn.tree.equal(bridge.from_module(carried), case.p)), found


class _Hooks(NamedTuple):
    """What a module returned, and the names of the modules in it whose hooks were called."""

    output: Any
    forward: set[str]
    backward: set[str]


def _hooks_of(module: nn.Module, call: Callable[[], Any]) -> _Hooks:
    forward: set[str] = set()
    backward: set[str] = set()
    for name, part in module.named_modules():
        part.register_forward_hook(lambda *_, name=name: forward.add(name))
        part.register_full_backward_hook(lambda *_, name=name: backward.add(name))
    with torch_may_warn():
        output = call()
        value = total(floating(output))
        if value.requires_grad:
            value.backward()
    return _Hooks(output, forward, backward)


def on_device(case: Case) -> None:
    """On the device under test values and gradients are those of the CPU, and stay there."""
    device, there = case.device, case.moved(torch.device("cpu"))
    for one in (found := case.values(case.p, *case.inputs())):
        assert one.device.type == device.type, one.device
    same([y.cpu() for y in found], there.values(there.p, *there.inputs()))
    both = [pn.grad(one.loss, one.argnums)(one.p, *one.inputs()) for one in (case, there)]
    same([g.cpu() for g in tensors(both[0])], both[1])
