"""`bridge.export`: programs of torch.export, saved and loaded, for any batch."""

import io
from typing import Any

import pytest
import torch
from _exported import CASES, Case
from torch import Tensor, nn
from torch.export import Dim

import bridge
import purenn as pn
from purenn.errors import ArgumentError, StructureError
from purenn.layers import BatchNorm1d, Lambda, Linear, Sequential

# Of torch 2.11, when it loads a program.
pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")


def saved_and_loaded(program: Any) -> Any:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Every model of the table."""
    return CASES[request.param]


def test_programs_equal_the_function(case: Case, device: torch.device) -> None:
    """A program that was saved and loaded gives the container's outputs, for other batches than that of the example."""
    p = pn.tree.to(case.make(), device)
    program = bridge.export(p, *[x.to(device) for x in case.inputs(4)], dynamic_shapes=case.dynamic)
    loaded = saved_and_loaded(program)
    for rows in (4, 7):
        inputs = [x.to(device) for x in case.inputs(rows)]
        y = p(*inputs)
        expected = y[0] if pn.is_stateful(p) else y
        found = loaded.module()(*inputs)
        for one, other in zip(pn.tree.leaves(found), pn.tree.leaves(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert set(loaded.state_dict) == set(bridge.state_dict(p))


def test_containers_as_inputs(device: torch.device) -> None:
    """A pure function's program takes and returns containers, frozen and with absent children, after loading too."""
    k = pn.random.split(pn.random.key(0, device), 2)
    p = Sequential.of(Linear.init(k[0], 3, 4, bias=False), BatchNorm1d.init(4), Linear.init(k[1], 4, 2))
    p, x = pn.tree.freeze(p, "layers.2.bias"), torch.randn(5, 3, device=device)

    def train(p: Any, batch: dict[str, Tensor]) -> Any:
        return p(batch["x"], train=True)

    program = bridge.export(train, p, {"x": x}, dynamic_shapes=(None, {"x": {0: "batch"}}))
    loaded = saved_and_loaded(program).module()
    x = torch.randn(9, 3, device=device)
    (y, new), (expected, expected_new) = loaded(p, {"x": x}), p(x, train=True)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    assert pn.tree.allclose(new, expected_new, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="input tree spec"):
        loaded(pn.tree.unfreeze(p), {"x": x})


TRANSFORMED = {
    "training step": lambda p, x: pn.tree.map(lambda w, g: w - 0.1 * g, p, pn.grad(lambda p: p(x).square().mean())(p)),
    "per-sample gradients": lambda p, x: torch.func.vmap(torch.func.grad(lambda p, x: p(x).square().mean()), (None, 0))(
        p, x
    ),
    "vmap": lambda p, x: pn.vmap(lambda x: p(x).sin())(x),
    "hessian": lambda p, x: pn.hessian(lambda x: p(x).square().sum())(x[0]),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformed_functions(name: str, device: torch.device) -> None:
    """Gradients and vmap within a function become plain operations, right for other parameters and batches."""
    function = TRANSFORMED[name]
    p, x = Linear.init(pn.random.key(0, device), 3, 2), torch.randn(5, 3, device=device)
    loaded = saved_and_loaded(bridge.export(function, p, x, dynamic_shapes=(None, {0: "batch"}))).module()
    p, x = Linear.init(pn.random.key(1, device), 3, 2), torch.randn(7, 3, device=device)
    assert pn.tree.allclose(loaded(p, x), function(p, x), rtol=0, atol=1e-6)


def test_what_may_vary_is_checked_in_transformed_functions(device: torch.device) -> None:
    """A loop over the batch is torch's error there too, and no program for one batch."""

    def unrolled(x: Tensor) -> Tensor:
        y = torch.func.vmap(torch.sin)(x)
        return sum((y[n] for n in range(len(x))), torch.zeros(()))

    with pytest.raises(Exception, match="specialized it to be a constant"):
        bridge.export(unrolled, torch.randn(5, 3, device=device), dynamic_shapes=({0: "batch"},))


def test_modules(device: torch.device) -> None:
    """Any module is exported in the mode that it is in, and is not touched."""
    m = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).to(device).eval()
    program = bridge.export(m, torch.randn(4, 3, device=device), dynamic_shapes=({0: Dim.DYNAMIC},))
    x = torch.randn(7, 3, device=device)
    torch.testing.assert_close(program.module()(x), m(x), rtol=0, atol=1e-6)
    mine = bridge.to_module(Linear.init(pn.random.key(0, device), 3, 2))
    torch.testing.assert_close(bridge.export(mine, x).module()(x), mine(x), rtol=0, atol=1e-6)
    assert mine.training


def test_names_are_one_length(device: torch.device) -> None:
    """Axes of one name have one length; what the program needs fixed is torch's error."""
    x = torch.randn(4, 3, device=device)
    program = bridge.export(lambda x, y: [x + y[0]], x, (x,), dynamic_shapes=({0: "batch"}, ({0: "batch"},)))
    assert program.module()(torch.ones(6, 3), (torch.ones(6, 3),))[0].shape == (6, 3)
    with pytest.raises(AssertionError):
        program.module()(torch.ones(6, 3), (torch.ones(7, 3),))
    with pytest.raises(Exception, match="batch"):
        bridge.export(lambda x: x.view(4, 3), x, dynamic_shapes=({0: "batch"},))


def test_errors() -> None:
    """What cannot be called, and shapes for another number of inputs, are refused."""
    with pytest.raises(ArgumentError) as kind:
        bridge.export(3, torch.ones(2))
    assert str(kind.value) == "export takes a container, a module or a function, got an int."
    with pytest.raises(ArgumentError) as number:
        bridge.export(torch.sin, torch.ones(2), dynamic_shapes=(None, None))
    assert str(number.value) == "export: dynamic_shapes must have an item for each input, got 2 for 1."


# ---------------------------------------------------------------------------------------------------- structures


@pn.container
class Settings:
    """A container with every kind of setting that can be written down."""

    value: Tensor
    other: Tensor | None = None
    options: Any = pn.static(default=None)


OPTIONS: list[Any] = [
    (1, -2.5, "text", None, True),
    (float("inf"), (1, ("a",))),
    torch.bfloat16,
    torch.device("cpu", 0),
    frozenset({"a", "b"}),
    2 + 3j,
    torch.tanh,
    torch.nn.functional.gelu,
    Settings,
]


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_structures_are_written_down(options: Any) -> None:
    """Static fields of all plain kinds, functions of modules, holes, ties and marks come back equal."""
    import torch.utils._pytree as torch_pytree

    x = torch.ones(2)
    p = pn.tree.freeze(pn.tree.tie(Settings(x, x.clone(), options), {"other": "value"}))
    for tree in (p, pn.tree.partition(p)[0], (Settings(x, None, options), [p])):
        spec = torch_pytree.tree_structure(tree)
        assert torch_pytree.treespec_loads(torch_pytree.treespec_dumps(spec)) == spec


def test_structures_that_cannot_be_written_down() -> None:
    """An object without a name is an error, when the program is saved; so is one that is gone when it is loaded."""
    import torch.utils._pytree as torch_pytree

    spec = torch_pytree.tree_structure(Settings(torch.ones(2), None, (lambda x: x,)))
    with pytest.raises(StructureError) as error:
        torch_pytree.treespec_dumps(spec)
    function = error.value.args[0].split("(")[1].split(")")[0]
    assert str(error.value) == (
        f"a container with a function in its structure ({function}) cannot be an input or output of a program that is "
        f"saved: use numbers, text, tuples, dtypes and functions of modules in static fields, or export a function "
        f"that has the container in it instead of taking it."
    )
    text = torch_pytree.treespec_dumps(torch_pytree.tree_structure(Settings(torch.ones(2), None, torch.tanh)))
    with pytest.raises(StructureError) as gone:
        torch_pytree.treespec_loads(text.replace("torch:tanh", "nowhere:tanh"))
    assert str(gone.value) == "the program needs nowhere:tanh: import its module before the program is loaded."


def test_containers_can_be_loaded_as_weights_only(device: torch.device) -> None:
    """torch.load makes containers, gradients and ties with weights_only=True, since they are data alone."""
    k = pn.random.key(0, device)
    p = pn.tree.freeze(Sequential.of(Linear.init(k, 3, 3), Linear.init(k, 3, 3)), "layers.0.bias")
    p = pn.tree.tie(p, {"layers.1.weight": "layers.0.weight"})
    for tree in (p, pn.tree.partition(p)[0]):
        file = io.BytesIO()
        torch.save(tree, file)
        file.seek(0)
        assert pn.tree.equal(torch.load(file, weights_only=True), tree)
    assert isinstance(p, Sequential)
    assert Lambda(torch.tanh)(torch.zeros(1)) == 0
