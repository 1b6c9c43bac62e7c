"""`bridge.to_module`: the same function, carried by a real nn.Module."""

import copy
import io
import warnings

import pytest
import torch
from _carried import Block, Net, inputs, make, net
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.errors import BridgeError, ContainerError
from purenn.layers import BatchNorm1d, Conv2d, Dropout, Linear, batch_norm, conv2d, linear


def test_same_outputs_and_buffers_as_the_pure_function(device: torch.device) -> None:
    """In training without dropout both carriers give the same outputs and running statistics, step after step."""
    p, x = make(device, rate=0.0), inputs(device)
    module = bridge.to_module(p, copy=True)
    for _ in range(3):
        y, p = net(p, x, train=True)
        assert torch.equal(module(x), y)
    assert pn.tree.equal(bridge.from_module(module), p)
    module.eval()
    assert torch.equal(module(x), net(p, x)[0])


def test_state_dict_keys_are_paths(device: torch.device) -> None:
    """Keys, values and order of the state_dict are those of the named leaves; loading one changes the outputs."""
    p, other, x = make(device), make(device, seed=1), inputs(device)
    module = bridge.to_module(p, copy=True).eval()
    state = module.state_dict()
    assert set(state) == {path for path, _ in pn.tree.named_leaves(p)}
    assert "blocks.0.norm.running_mean" in state
    for path, leaf in pn.tree.named_leaves(p):
        assert torch.equal(state[path], leaf)
    module.load_state_dict(bridge.to_module(other).state_dict())
    assert torch.equal(module(x), net(other, x)[0])


def test_parameters_and_buffers(device: torch.device) -> None:
    """Trainable leaves are parameters, buffers are buffers, frozen leaves do not require grad."""
    p = pn.tree.freeze(make(device), "blocks.0.**")
    module = bridge.to_module(p)
    parameters = dict(module.named_parameters())
    trained = {path for path, _ in pn.tree.named_leaves(pn.tree.partition(p)[0])}
    assert {name for name, parameter in parameters.items() if parameter.requires_grad} == trained
    assert not parameters["blocks.0.fc.weight"].requires_grad
    kinds = {path for path, _ in pn.tree.named_leaves(pn.tree.partition(p, kind="buffer")[0])}
    assert {name for name, _ in module.named_buffers()} == kinds
    assert module.power == 2
    assert module.absent is None
    assert module.blocks[0].width == 4


def test_storage_is_shared_unless_copied(device: torch.device) -> None:
    """By default parameters share storage with the leaves; with copy=True the container is never written to."""
    p = make(device)
    shared, own = bridge.to_module(p), bridge.to_module(p, copy=True)
    assert shared.blocks[0].fc.weight.data_ptr() == p.blocks[0].fc.weight.data_ptr()
    before = pn.tree.map(torch.clone, p)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    own(inputs(device)).sum().backward()
    optimizer.step()
    assert pn.tree.equal(p, before)


def test_gradients_equal_the_pure_ones(device: torch.device) -> None:
    """Backward through the module gives pn.grad's numbers."""
    p, x = make(device), inputs(device)
    module = bridge.to_module(p).eval()
    module(x).sum().backward()
    grads = pn.grad(lambda p: net(p, x)[0].sum())(p)
    for path, gradient in pn.tree.named_leaves(grads):
        mine = module.get_parameter(path).grad
        torch.testing.assert_close(torch.zeros_like(gradient) if mine is None else mine, gradient, rtol=0, atol=1e-11)


def test_hooks_fire_on_every_inner_layer(device: torch.device) -> None:
    """Forward, pre-forward and full backward hooks fire once each on every module, in order, until removed."""
    module, x = bridge.to_module(make(device)), inputs(device).requires_grad_()
    forward, backward, handles = [], [], []
    names = [name for name, child in module.named_modules() if isinstance(child, bridge.Module)]
    for name, child in module.named_modules():
        if name in names:
            handles.append(child.register_forward_pre_hook(lambda m, i, name=name: forward.append(f"to {name}")))
            handles.append(child.register_forward_hook(lambda m, i, o, name=name: forward.append(name)))
            handles.append(child.register_full_backward_hook(lambda m, i, o, name=name: backward.append(name)))
    module(x).sum().backward()
    inner = [f"blocks.{n}{part}" for n in (0, 1) for part in (".fc", ".norm", ".drop", "")]
    assert [name for name in forward if not name.startswith("to ")] == [*inner, "parts.head", ""]
    assert sorted(name[3:] for name in forward if name.startswith("to ")) == sorted(names)
    assert sorted(backward) == sorted(names)
    assert backward.index("parts.head") < backward.index("blocks.1.norm") < backward.index("blocks.0.fc")
    for handle in handles:
        handle.remove()
    module(x)
    assert len(forward) == 2 * len(names)


def test_a_hook_can_change_an_output(device: torch.device) -> None:
    """What a forward hook returns replaces the layer's output, as in torch."""
    module, x = bridge.to_module(make(device)).eval(), inputs(device)
    module.parts["head"].register_forward_hook(lambda m, i, o: torch.zeros_like(o))
    assert torch.equal(module(x), torch.ones(6, 3, dtype=torch.float64, device=device))


def test_randomness_follows_torch(device: torch.device) -> None:
    """manual_seed rules the masks; eval mode has none; an explicit key gives the pure function's numbers."""
    p, x = make(device), inputs(device)
    module = bridge.to_module(p, copy=True)
    torch.manual_seed(0)
    first, second = module(x), module(x)
    torch.manual_seed(0)
    assert torch.equal(bridge.to_module(p, copy=True)(x), first)
    assert not torch.equal(first, second)
    key = pn.random.key(5, device)
    assert torch.equal(bridge.to_module(p, copy=True)(x, key=key), net(p, x, key=key, train=True)[0])


def test_mode_of_a_part_rules(device: torch.device) -> None:
    """A part in eval mode keeps its statistics and drops nothing though the whole is training, as in torch."""
    p, x = make(device), inputs(device)
    module = bridge.to_module(p, copy=True)
    module.blocks[0].eval()
    module(x)
    assert torch.equal(module.blocks[0].norm.running_mean, p.blocks[0].norm.running_mean)
    assert not torch.equal(module.blocks[1].norm.running_mean, p.blocks[1].norm.running_mean)
    module.eval()
    module.blocks[1].drop.train()
    torch.manual_seed(0)
    assert not torch.equal(module(x), module(x))


def test_moves_casts_and_copies(device: torch.device) -> None:
    """.to, .half, .double, deepcopy and a state_dict saved with weights_only=True work as on any module."""
    p, x = make(device), inputs(device)
    module = bridge.to_module(p, copy=True).eval()
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), module(x))
    twin.blocks[0].fc.weight.data.zero_()
    assert not torch.equal(twin(x), module(x))
    assert module.half().blocks[0].fc.weight.dtype == torch.float16
    assert module.float()(x.float()).dtype == torch.float32
    assert module.to(torch.float64).blocks[0].norm.num_batches_tracked.dtype == torch.int64
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    module.load_state_dict(torch.load(file, weights_only=True))
    assert not any(parameter.grad is not None for parameter in module.zero_grad() or module.parameters())


def test_optimiser_trains_it(device: torch.device) -> None:
    """torch.optim.Adam on the module and on bare leaves give the same parameters."""
    p, x = make(device, rate=0.0), inputs(device)
    module = bridge.to_module(p, copy=True)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    start = module(x).square().mean().item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = module(x).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < start


@pytest.mark.parametrize("train", [False, True])
def test_compiles_whole(device: torch.device, train: bool) -> None:
    """torch.compile traces the module without a graph break, buffers included."""
    p, x = make(device, rate=0.0), inputs(device)
    module = bridge.to_module(p, copy=True).train(train)
    compiled = torch.compile(bridge.to_module(p, copy=True).train(train), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-12)
    state = compiled._orig_mod.state_dict()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-12)


def test_ties(device: torch.device) -> None:
    """A tied leaf is one shared parameter with both keys in the state_dict, and comes back as a tie."""
    k = pn.random.split(pn.random.key(0, device), 2)

    p = pn.tree.tie(Pair(Linear.init(k[0], 4, 4), Linear.init(k[1], 4, 4)), {"first.weight": "second.weight"})
    module = bridge.to_module(p)
    assert module.first.weight is module.second.weight
    assert len(list(module.parameters())) == 3
    assert set(module.state_dict()) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    x = torch.randn(2, 4, device=device)
    assert torch.equal(module(x), p(x))
    assert pn.tree.equal(bridge.from_module(module), p)


@pn.container
class Pair(pn.Layer):
    first: Linear
    second: Linear


@pn.applies(Pair)
def pair(p: Pair, x: Tensor) -> Tensor:
    return linear(p.second, linear(p.first, x))


def test_plain_torch_modules_are_parameters_too(device: torch.device) -> None:
    """A torch.nn module is itself a valid first argument of the function of its name."""
    x = torch.randn(2, 3, 5, 5, device=device)
    conv, norm = nn.Conv2d(3, 4, 3, device=device), nn.BatchNorm2d(3, device=device)
    assert torch.equal(conv2d(conv, x), conv(x))
    reference = copy.deepcopy(norm)
    y, _ = batch_norm(norm, x, train=True)
    torch.testing.assert_close(y, reference(x))
    torch.testing.assert_close(norm.running_var, reference.running_var)


def test_repr_names_the_containers(device: torch.device) -> None:
    """A bridged module prints with the containers' class names and options."""
    text = repr(bridge.to_module(make(device)))
    assert text.startswith("Net(\n  (blocks): ModuleList(")
    assert "(fc): Linear(in_features=5, out_features=4, bias=True)" in text
    assert repr(
        bridge.to_module(Pair(Linear.init(pn.random.key(0, device), 2, 3), Linear(torch.ones(1, 3), None)))
    ) == (
        "Pair(\n"
        "  (first): Linear(in_features=2, out_features=3, bias=True)\n"
        "  (second): Linear(in_features=3, out_features=1, bias=False)\n"
        ")"
    )


def test_functional_call_and_torch_utilities(device: torch.device) -> None:
    """torch's own utilities see an ordinary module."""
    p, x = make(device, rate=0.0), inputs(device)
    module = bridge.to_module(p, copy=True).eval()
    state = {name: 2 * value if value.is_floating_point() else value for name, value in module.state_dict().items()}
    doubled = pn.tree.map(lambda leaf: 2 * leaf if leaf.is_floating_point() else leaf, p)
    torch.testing.assert_close(torch.func.functional_call(module, state, (x,)), net(doubled, x)[0])
    module(x).sum().backward()
    assert torch.nn.utils.clip_grad_norm_(module.parameters(), 1e-3) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.nn.utils.parameters_to_vector(module.parameters()).numel() == pn.tree.count(p)


# Errors.


def text_of(call: object, kind: type[Exception] = BridgeError) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


@pn.container
class Named(pn.Layer):
    training: Tensor


@pn.container
class Holding:
    parts: Tensor | dict | object


@pn.container
class Rebuilding(pn.Layer):
    norm: BatchNorm1d


@pn.applies(Rebuilding)
def rebuilding(p: Rebuilding, x: Tensor, *, train: bool = False) -> tuple[Tensor, Rebuilding]:
    y, _ = batch_norm(p.norm, x, train=train)
    return y, Rebuilding(BatchNorm1d.init(3))


def test_errors(device: torch.device) -> None:
    """What cannot be carried is refused with the path, the reason and the fix."""
    p = make(device)
    assert text_of(lambda: bridge.to_module(torch.ones(2))) == "to_module takes a container, got Tensor."
    assert text_of(lambda: bridge.to_module(bridge.to_module(p))) == (
        "to_module takes a container, got Module. It is a module already."
    )
    assert text_of(lambda: bridge.to_module(Named(torch.ones(1)))) == (
        "to_module: 'training' of Named cannot be the name of a module's member: rename it."
    )
    assert text_of(lambda: bridge.to_module(Holding({"keys": Linear(torch.ones(1, 1), None)}))) == (
        "to_module: 'keys' of a dict cannot be the name of a module's member: rename it."
    )
    assert text_of(lambda: bridge.to_module(Holding((pn.tree.HOLE,)))) == (
        "to_module: 'parts.0' is a Hole, which no module can hold: use tensors, containers, and tuples or dicts of "
        "them."
    )
    assert text_of(lambda: bridge.to_module(Holding(torch.ones(1)))(1)) == (
        "Holding has no function to run: bind one with @pn.applies(Holding)."
    )
    assert text_of(lambda: bridge.to_module(p)(inputs(device), train=True)) == (
        "Net: train= is not an option of the module, which follows its own mode: call module.train() or module.eval(). "
        "Within the function of another layer write net(child, x, train=train), which serves containers and modules "
        "alike."
    )
    module = bridge.to_module(Rebuilding(BatchNorm1d.init(3, device=device)))
    assert text_of(lambda: module(torch.ones(2, 3, device=device))) == (
        "the function of Rebuilding returned a new Rebuilding for its state. To run as a module it must return "
        "pn.replace(p, ...) of the object that it was given."
    )


def test_replace_on_a_module(device: torch.device) -> None:
    """Within a function that runs as a module, replace takes the same children and new buffers, nothing else."""
    module = bridge.to_module(make(device), copy=True)
    assert pn.replace(module, blocks=tuple(module.blocks), parts=dict(module.parts.items())) is module
    new = torch.zeros(4, dtype=torch.float64, device=device)
    assert pn.replace(module.blocks[0].norm, running_var=new) is module.blocks[0].norm
    assert torch.equal(module.blocks[0].norm.running_var, new)
    assert text_of(lambda: pn.replace(module.blocks[0].fc, weight=new), ContainerError) == (
        "replace(module, weight=...) can change buffers only while a function runs as a module: 'weight' of Linear "
        "is no buffer, so the new value would be lost."
    )
    assert text_of(lambda: pn.replace(module, wight=new), ContainerError) == ("Module has no field 'wight' to replace.")


def test_options_without_state_are_plain(device: torch.device) -> None:
    """A single layer with options but no state carries over too."""
    conv = Conv2d.init(pn.random.key(0, device), 2, 4, 3, padding=1, stride=2)
    module, x = bridge.to_module(conv), torch.randn(2, 2, 8, 8, device=device)
    assert torch.equal(module(x), conv(x))
    drop = bridge.to_module(Dropout(0.5))
    assert torch.equal(drop.eval()(x), x)
    assert not torch.equal(drop.train()(x), x)


def test_types_of_members(device: torch.device) -> None:
    """Tuples and dicts of containers are ModuleList and ModuleDict; mixed ones are indexed just the same."""
    p = make(device)
    module = bridge.to_module(p)
    assert isinstance(module.blocks, nn.ModuleList)
    assert all(isinstance(child, bridge.Module) and child.container_class is Block for child in module.blocks)
    assert len(module.scales) == 1
    assert torch.equal(module.scales[0], p.scales[0])
    assert "head" in module.parts
    assert list(module.parts) == list(p.parts)
    assert list(module.parts.keys()) == list(p.parts)
    with pytest.raises(KeyError):
        module.parts["tail"]
    assert isinstance(bridge.from_module(module), Net)
