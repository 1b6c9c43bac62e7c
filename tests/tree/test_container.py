"""Defining, building, changing, copying and printing containers."""

import copy
import functools
import inspect
import pickle
from collections import OrderedDict, namedtuple
from typing import Any, Generic, TypeVar

import attrs
import pytest
import torch
from _models import Affine, Box, Chain, Count, Scale, make_affine, make_chain, make_tied
from torch import Tensor, nn

import purenn as pn
from purenn.errors import ContainerError, ImmutableError, PlaceholderError, PurennError

Pair = namedtuple("Pair", "left right")


@pn.container
class Child(Affine):
    """An affine layer with one more tensor and one more option."""

    extra: Tensor | None = None
    rate: float = pn.static(default=0.5)


@pn.container
class Written(pn.Layer):
    """A layer that writes its options itself."""

    weight: Tensor
    inner: Any = None
    active: bool = pn.static(default=True)

    def extra_repr(self) -> str:
        return f"features={self.weight.shape[0]}, active={self.active}"


def text(error: pytest.ExceptionInfo) -> str:
    return str(error.value)


# ---------------------------------------------------------------------------------------------------- definition


def test_fields_by_position_and_by_name(device: torch.device) -> None:
    """The constructor takes the fields in their order or by name and stores the very objects."""
    weight, bias = torch.ones(2, 3, device=device), torch.ones(2, device=device)
    for p in (Affine(weight, bias), Affine(bias=bias, weight=weight), Affine(weight, bias=bias)):
        assert p.weight is weight
        assert p.bias is bias


def test_defaults(device: torch.device) -> None:
    """Fields that are not given have their defaults, absent children among them."""
    p = Box()
    assert (p.content, p.state, p.size, p.mode) == (None, None, 3, "plain")
    assert pn.tree.leaves(p) == []
    assert Affine(torch.ones(1, device=device)).bias is None


def test_factories(device: torch.device) -> None:
    """A factory makes a new default for every container, and may read the fields before it."""

    @pn.container
    class Made:
        weight: Tensor
        bias: Tensor = attrs.field(factory=lambda: torch.ones(1, device=device))
        total: Tensor = pn.buffer(factory=lambda: torch.zeros(1, device=device))
        tag: tuple = pn.static(factory=tuple)
        double: Tensor = attrs.field(default=attrs.Factory(lambda self: 2 * self.weight, takes_self=True))
        triple: Tensor = attrs.field()

        @triple.default
        def _(self) -> Tensor:
            return 3 * self.weight

    one, two = Made(torch.ones(1, device=device)), Made(torch.ones(1, device=device))
    assert one.bias is not two.bias
    assert one.total is not two.total
    assert (one.double.item(), one.triple.item(), one.tag) == (2.0, 3.0, ())


def test_keyword_only_fields() -> None:
    """A keyword-only field may precede others in the class and is refused by position."""

    @pn.container
    class Keyed:
        size: int = pn.static(default=1, kw_only=True)
        weight: Tensor
        state: Any = pn.buffer(default=None, kw_only=True)

    p = Keyed(torch.ones(2), size=5)
    assert (p.size, p.state) == (5, None)
    with pytest.raises(ContainerError) as error:
        Keyed(torch.ones(2), 5)
    assert text(error) == "Keyed takes at most 1 positional arguments (weight), got 2."


def test_converters_and_validators_run_at_construction_only(device: torch.device) -> None:
    """Converters and validators run in the constructor and in evolve; rebuilding and replace run none."""
    seen: list[str] = []

    def positive(p: Any, field: Any, value: float) -> None:
        seen.append(field.name)
        if value <= 0:
            raise ValueError(f"{field.name} must be positive")

    @pn.container
    class Checked:
        weight: Tensor = attrs.field(converter=torch.as_tensor)
        rate: float = pn.static(default=1, converter=float, validator=positive)
        state: Tensor = pn.buffer(default=0, converter=torch.as_tensor)

    p = Checked([1.0, 2.0], 3)
    assert isinstance(p.weight, Tensor)
    assert isinstance(p.state, Tensor)
    assert type(p.rate) is float
    assert seen == ["rate"]
    with pytest.raises(ValueError, match="rate must be positive"):
        Checked(torch.ones(1), -1.0)
    del seen[:]
    assert pn.tree.map(lambda _: None, p).weight is None
    assert pn.replace(p, rate=-1.0).rate == -1.0
    assert seen == []
    attrs.evolve(p, rate=2)
    assert seen == ["rate"]


def test_chains_of_converters() -> None:
    """Converters in a list run one after the other, as in attrs."""

    @pn.container
    class Converted:
        size: int = attrs.field(converter=[int, abs])

    assert Converted("-3").size == 3


@pytest.mark.skipif(not hasattr(attrs, "Converter"), reason="attrs has them since version 24")
def test_converters_of_all_attrs_forms() -> None:
    """Converters that take the container or the field work as in attrs, after chains of others."""

    @pn.container
    class Converted:
        size: int = attrs.field(converter=[int, abs], kw_only=False)
        twice: int = attrs.field(
            converter=attrs.Converter(
                lambda value, self, field: (value, self.size, len(field.name)), takes_self=True, takes_field=True
            )
        )

    p = Converted("-3", 1)
    assert p.size == 3
    assert p.twice == (1, 3, 5)


def test_signature() -> None:
    """A container's signature shows its fields, keyword-only ones last, and no private ones."""
    assert [str(v).split(":")[0] for v in inspect.signature(Child).parameters.values()] == [
        "weight",
        "bias",
        "extra",
        "rate",
    ]


def test_private_names_lose_their_underscore_in_the_constructor() -> None:
    """A field with a leading underscore is given without it, as in attrs, and changed by its own name."""

    @pn.container
    class Private:
        _hidden: Tensor

    p = Private(hidden=torch.ones(1))
    q = pn.replace(p, _hidden=torch.zeros(1))
    assert (p._hidden.item(), q._hidden.item()) == (1.0, 0.0)
    assert attrs.evolve(p, hidden=torch.zeros(1))._hidden.item() == 0.0
    assert [path for path, _ in pn.tree.named_leaves(p)] == ["_hidden"]


def test_field_names_do_not_collide_with_arguments() -> None:
    """Fields may be called as the arguments of the constructor and of replace."""
    cls: Any = pn.container(type("Odd", (), {"__annotations__": {"kwargs": Tensor, "args": Tensor, "p": Tensor}}))
    p = cls(kwargs=torch.ones(1), args=torch.ones(2), p=torch.ones(3))
    assert pn.replace(p, p=torch.ones(4)).p.shape == (4,)


def test_class_variables_methods_and_properties_stay() -> None:
    """Class variables are no fields; methods with super() and properties work in the slotted class."""
    from typing import ClassVar

    @pn.container
    class Full(Affine):
        kind: ClassVar[str] = "full"

        @property
        def size(self) -> int:
            return self.weight.shape[0]

        def describe(self) -> str:
            return super().__repr__() + self.kind

    p = Full(torch.ones(2, 2))
    assert (p.size, p.describe()) == (2, "Full(weight=f32[2,2], bias=None)full")
    assert not hasattr(p, "__dict__")


def test_generic_containers() -> None:
    """A container may be generic."""
    T = TypeVar("T")

    @pn.container
    class Holder(Generic[T]):
        item: T

    assert Holder[Tensor](torch.ones(1)).item.shape == (1,)


DEFINITIONS = [
    (
        lambda: pn.container(3),
        "@pn.container takes a class, got int 3.",
    ),
    (
        lambda: pn.container(type("Taken", (), {"__annotations__": {"_marks": Tensor}})),
        "Taken: the field name '_marks' is reserved, choose another one.",
    ),
    (
        lambda: pn.container(Affine),
        "Affine is a container already: put @pn.container above it once.",
    ),
    (
        lambda: pn.container(type("Own", (), {"__init__": lambda self: None})),
        "Own defines __init__, but a container's constructor takes its plain fields, so that any tree can be rebuilt "
        "from parts. Write a classmethod `init(cls, key, ...)` that draws the parameters instead.",
    ),
    (
        lambda: pn.container(type("Bare", (), {"__annotations__": {"weight": Tensor}, "size": pn.static(default=1)})),
        "Bare: 'size' has no annotation: write `name: type = pn.static()`, and so for every field.",
    ),
    (
        lambda: pn.container(type("Order", (), {"__annotations__": {"a": Tensor, "b": Tensor}, "a": None})),
        "Order: the field 'b' has no default, but follows one that has: give it a default, or move it before the "
        "others.",
    ),
    (
        lambda: pn.container(type("Late", (Affine,), {"__annotations__": {"scale": Tensor}})),
        "Late: the field 'scale' has no default, but follows one that has: give it a default, or move it before the "
        "others.",
    ),
    (
        lambda: pn.container(
            type("Derived", (), {"__annotations__": {"a": Tensor}, "a": attrs.field(init=False, default=None)})
        ),
        "Derived: the field 'a' has init=False, but a container must be buildable from its fields: make it a property, "
        "or compute it in a classmethod `init(cls, ...)`.",
    ),
    (
        lambda: pn.container(type("Setter", (), {"__setattr__": lambda self, name, value: None})),
        "Setter cannot be a container: Can't freeze a class with a custom __setattr__.",
    ),
]


@pytest.mark.parametrize(("define", "message"), DEFINITIONS)
def test_definition_errors(define: Any, message: str) -> None:
    """A class that cannot be a container is refused when it is defined."""
    with pytest.raises(ContainerError) as error:
        define()
    assert text(error) == message


def test_redefinition() -> None:
    """A class may be defined again under the same name, as notebooks do; both classes work."""

    def define() -> type:
        return pn.container(type("Again", (), {"__annotations__": {"weight": Tensor}}))

    one, two = define(), define()
    for cls in (one, two):
        assert type(pn.tree.map(torch.zeros_like, cls(torch.ones(1)))) is cls


# ---------------------------------------------------------------------------------------------------- construction


CONSTRUCTIONS = [
    (
        lambda: Affine(),
        "Affine needs a value for the field 'weight'.",
    ),
    (
        lambda: Affine(torch.ones(1), None, 3),
        "Affine takes at most 2 positional arguments (weight, bias), got 3.",
    ),
    (
        lambda: Affine(torch.ones(1), wieght=3),
        "Affine has no field 'wieght'; its fields are: weight, bias.",
    ),
    (
        lambda: Affine(torch.ones(1), weight=torch.ones(1)),
        "Affine: the field 'weight' is given twice.",
    ),
    (
        lambda: Box(size=torch.ones(2)),
        "Box.size is a static field and cannot hold a tensor (got a Tensor): it would be a part of the structure, "
        "invisible to grad, save and to(device). Declare it as a parameter (plain annotation) or as pn.buffer().",
    ),
    (
        lambda: Box(mode=[1, 2]),
        "Box.mode is a static field and must be hashable, got a list: use a tuple instead of a list, and a tuple of "
        "pairs instead of a dict.",
    ),
    (
        lambda: Box(mode={"a": 1}),
        "Box.mode is a static field and must be hashable, got a dict: use a tuple instead of a list, and a tuple of "
        "pairs instead of a dict.",
    ),
    (
        lambda: Box(nn.Linear(2, 2)),
        "Box.content cannot hold the module Linear, which is no pytree: turn it into a container with "
        "bridge.from_module(module).",
    ),
    (
        lambda: Box(state=nn.ReLU()),
        "Box.state cannot hold the module ReLU, which is no pytree: turn it into a container with "
        "bridge.from_module(module).",
    ),
    (
        lambda: Box(torch.relu),
        "Box.content holds parameters or children and cannot hold the function relu: declare the field as pn.static(), "
        "or wrap a function with purenn.layers.Lambda(function).",
    ),
    (
        lambda: Box(functools.partial(torch.relu)),
        "Box.content holds parameters or children and cannot hold a partial: declare the field as pn.static(), or wrap "
        "a function with purenn.layers.Lambda(function).",
    ),
    (
        lambda: Box(Affine),
        "Box.content holds parameters or children and cannot hold the class Affine: declare the field as pn.static(), "
        "or wrap a function with purenn.layers.Lambda(function).",
    ),
    (
        lambda: Box("relu"),
        "Box.content holds parameters or children and cannot hold the string 'relu': declare the field as pn.static(), "
        "or wrap a function with purenn.layers.Lambda(function).",
    ),
    (
        lambda: Box({"first": [torch.ones(1), "relu"]}),
        "Box.content.first.1 holds parameters or children and cannot hold the string 'relu': declare the field as "
        "pn.static(), or wrap a function with purenn.layers.Lambda(function).",
    ),
    (
        lambda: Box((1, {torch.ones(1)})),
        "Box.content.1 cannot hold a set, whose items have no order: use a tuple.",
    ),
    (
        lambda: Chain((make_affine(), nn.Linear(2, 2))),
        "Chain.layers.1 cannot hold the module Linear, which is no pytree: turn it into a container with "
        "bridge.from_module(module).",
    ),
    (
        lambda: Box(OrderedDict(a=torch.relu)),
        "Box.content.a holds parameters or children and cannot hold the function relu: declare the field as "
        "pn.static(), or wrap a function with purenn.layers.Lambda(function).",
    ),
]


@pytest.mark.parametrize(("build", "message"), CONSTRUCTIONS)
def test_construction_errors(build: Any, message: str) -> None:
    """Wrong arguments are refused at once, with the field's name."""
    with pytest.raises(ContainerError) as error:
        build()
    assert text(error) == message
    assert isinstance(error.value, (PurennError, TypeError))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (nn.Linear(2, 2), "a Linear"),
        (nn.BatchNorm1d(2, affine=False), "a BatchNorm1d"),
        (make_affine(), "an Affine"),
        ((1, (torch.ones(1),)), "a tuple"),
        ({"a": torch.ones(1)}, "a dict"),
        (frozenset([torch.ones(1)]), "a frozenset"),
        (functools.partial(torch.add, torch.ones(1)), "a partial"),
        (functools.partial(max, 0, key=functools.partial(torch.add, torch.ones(1))), "a partial"),
    ],
)
def test_tensors_hidden_in_static_fields(value: Any, what: str) -> None:
    """A tensor is refused in a static field however deep it hides."""
    with pytest.raises(ContainerError) as error:
        Box(mode=value)
    assert text(error) == (
        f"Box.mode is a static field and cannot hold a tensor (got {what}): it would be a part of the structure, "
        f"invisible to grad, save and to(device). Declare it as a parameter (plain annotation) or as pn.buffer()."
    )


@pytest.mark.parametrize("value", [torch.relu, nn.ReLU(), (1, (2, "x")), torch.float64, int, None, 0.5, frozenset([1])])
def test_static_fields_hold_hashable_configuration(value: Any) -> None:
    """Functions, modules without tensors, dtypes, classes and tuples may be static."""
    assert Box(mode=value).mode is value


def test_defaults_are_checked_too() -> None:
    """A default that the field cannot hold is refused when it is used."""

    @pn.container
    class Wrong:
        mode: Any = pn.static(factory=list)

    with pytest.raises(ContainerError) as error:
        Wrong()
    assert text(error) == (
        "Wrong.mode is a static field and must be hashable, got a list: use a tuple instead of a list, and a tuple of "
        "pairs instead of a dict."
    )


def test_lists_become_tuples(device: torch.device) -> None:
    """A list of children is stored as a tuple, at any depth; other collections keep their class."""
    x = torch.ones(1, device=device)
    p = Box([x, [x], {"a": [x]}, Pair(x, None), OrderedDict(a=x)])
    assert p.content[:3] == (x, (x,), {"a": (x,)})
    assert type(p.content[3]) is Pair
    assert type(p.content[4]) is OrderedDict
    assert type(pn.replace(p, content=[x]).content) is tuple


def test_the_container_does_not_follow_its_arguments(device: torch.device) -> None:
    """Changing the list or dict from which a container was made does not change the container."""
    x = torch.ones(1, device=device)
    items, names = [x], {"a": x}
    p, q = Box(items), Box(names)
    items.append(x)
    names["b"] = x
    assert (len(p.content), len(q.content)) == (1, 1)


def test_immutable(device: torch.device) -> None:
    """Fields can be neither set nor deleted, nor new attributes made; the error says what to do instead."""
    made: Any = make_affine(device=device)
    for p in (made, pn.tree.map(torch.clone, made)):
        for name in ("weight", "other"):
            with pytest.raises(ImmutableError) as error:
                setattr(p, name, None)
            assert text(error) == (
                f"Affine is immutable, so '{name}' cannot be set: make a changed copy with pn.replace(p, {name}=...)."
            )
        with pytest.raises(ImmutableError) as error:
            del p.weight
        assert text(error) == "Affine is immutable, so 'weight' cannot be deleted."
        assert isinstance(error.value, AttributeError)
    with pytest.raises(ImmutableError):
        Child(torch.ones(1)).rate = 3


def test_identity_equality() -> None:
    """Two containers are equal if they are the same object; containers are hashable."""
    p = make_affine()
    assert p == p
    assert p != make_affine()
    assert len({p, p, make_affine()}) == 2


# ---------------------------------------------------------------------------------------------------- inheritance


def test_a_decorated_subclass_inherits_fields_and_function(device: torch.device) -> None:
    """A subclass has its parent's fields first, then its own, and applies its parent's function."""
    p = Child(torch.ones(2, 3, device=device), None, torch.ones(1, device=device), 0.1)
    assert [path for path, _ in pn.tree.named_leaves(p)] == ["weight", "extra"]
    assert torch.equal(p(torch.ones(3, device=device)), 3 * torch.ones(2, device=device))
    q = pn.tree.map(lambda x: x + 1, p)
    assert type(q) is Child
    assert q.rate == 0.1
    assert isinstance(p, Affine)


def test_a_subclass_may_change_a_field(device: torch.device) -> None:
    """A redefined field has the kind and default of the subclass."""

    @pn.container
    class Fixed(Affine):
        weight: Tensor
        bias: Any = pn.static(default=7)

    p = Fixed(torch.ones(1, device=device))
    assert pn.tree.map(torch.zeros_like, p).bias == 7
    assert len(pn.tree.leaves(p)) == 1


def test_an_undecorated_subclass_is_refused() -> None:
    """A subclass that is no container itself cannot be built, since no registry knows it."""

    class Plain(Affine):
        pass

    with pytest.raises(ContainerError) as error:
        Plain(torch.ones(1))
    assert text(error) == (
        "Plain is a subclass of the container Affine but no container itself: add @pn.container above it."
    )


def test_a_container_may_inherit_from_a_plain_class() -> None:
    """Methods come from plain base classes as usual."""

    class Mixin:
        def total(self) -> int:
            return pn.tree.count(self)

    @pn.container
    class Mixed(Mixin):
        weight: Tensor

    assert Mixed(torch.ones(4)).total() == 4


def test_a_class_hears_of_no_subclass_that_nobody_wrote() -> None:
    """``__init_subclass__`` is not called for a container itself, however its nodes are rebuilt."""
    heard = []

    @pn.container
    class Base:
        weight: Tensor
        bias: Tensor

        def __init_subclass__(cls) -> None:
            heard.append(cls.__name__)

    p = pn.tree.map(lambda x: x + 1, Base(torch.ones(1), torch.zeros(1)))
    assert (type(p), p.weight.item(), p.bias.item(), heard) == (Base, 2, 1, [])


# ---------------------------------------------------------------------------------------------------- replace


def test_replace_shares_everything_else(device: torch.device) -> None:
    """A changed copy shares all other fields; the original stays."""
    p = make_chain(device=device)
    q = pn.replace(p, name="other")
    assert (p.name, q.name) == ("chain", "other")
    assert q.layers is p.layers
    assert pn.replace(p) is not p


def test_evolve_equals_replace(device: torch.device) -> None:
    """`attrs.evolve` works as replace does, and keeps the marks of frozen leaves."""
    p = pn.tree.freeze(make_affine(device=device), "bias")
    for q in (attrs.evolve(p, weight=p.weight + 1), pn.replace(p, weight=p.weight + 1)):
        assert q.bias is p.bias
        assert pn.tree.count(q, trainable=True) == 6


def test_replace_errors() -> None:
    """Replace refuses unknown fields, values that the field cannot hold, and what is no container."""
    p = make_affine()
    cases: list[tuple[Any, dict, str]] = [
        (p, {"wieght": 1}, "Affine has no field 'wieght'; its fields are: weight, bias."),
        (
            p,
            {"weight": "x"},
            "Affine.weight holds parameters or children and cannot hold the string 'x': declare the field as "
            "pn.static(), or wrap a function with purenn.layers.Lambda(function).",
        ),
        (3, {}, "replace takes a container, got int."),
        (Affine, {"weight": p.weight}, "replace takes a container, got the class Affine."),
    ]
    for value, changes, message in cases:
        with pytest.raises(ContainerError) as error:
            pn.replace(value, **changes)
        assert text(error) == message


def test_replace_in_a_module(device: torch.device) -> None:
    """Where a module takes the container's place, replace writes buffers into it and nothing else."""
    module = nn.BatchNorm1d(2, device=device)
    before = module.running_mean
    new = torch.full((2,), 3.0, device=device)
    assert pn.replace(module, running_mean=new, weight=module.weight) is module
    assert module.running_mean is before
    assert torch.equal(module.running_mean, new)
    with pytest.raises(ContainerError) as error:
        pn.replace(module, weight=torch.zeros(2, device=device))
    assert text(error) == (
        "replace(module, weight=...) can change buffers only while a function runs as a module: 'weight' of "
        "BatchNorm1d is no buffer, so the new value would be lost."
    )
    with pytest.raises(ContainerError) as error:
        pn.replace(module, wieght=None)
    assert text(error) == "BatchNorm1d has no field 'wieght' to replace."


def test_replace_in_a_module_accepts_the_same_children() -> None:
    """Tuples and dicts of the module's own children are no change."""
    module = nn.Module()
    module.layers = nn.ModuleList([nn.ReLU(), nn.ModuleDict({"a": nn.Tanh()})])
    one, two = module.layers
    assert pn.replace(module, layers=(one, {"a": two["a"]})) is module
    for wrong in ((one,), (one, nn.Tanh()), (one, {"b": two["a"]})):
        with pytest.raises(ContainerError):
            pn.replace(module, layers=wrong)


# ---------------------------------------------------------------------------------------------------- copies


def round_trip(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [round_trip, copy.deepcopy])
def test_deep_copies(copied: Any, device: torch.device) -> None:
    """Pickling and deep copies keep structure, options, marks, holes and aliases, and copy the tensors."""
    trees = [
        make_affine(device=device),
        make_tied(device=device),
        pn.tree.freeze(make_chain(device=device), "layers.0"),
        pn.tree.partition(Count(torch.ones(1, device=device), torch.zeros(1, device=device)))[0],
        Child(torch.ones(1, device=device), rate=3.0),
        Box({"a": (torch.ones(1, device=device), None)}, mode=torch.float64),
    ]
    for tree in trees:
        new = copied(tree)
        assert pn.tree.equal(new, tree)
        assert repr(new) == repr(tree)
        for a, b in zip(pn.tree.leaves(new), pn.tree.leaves(tree), strict=True):
            assert a is not b


def test_shallow_copy(device: torch.device) -> None:
    """A shallow copy is another container with the same tensors."""
    p = pn.tree.freeze(make_affine(device=device), "bias")
    q = copy.copy(p)
    assert q is not p
    assert q.weight is p.weight
    assert pn.tree.equal(p, q)


@pytest.mark.parametrize("copied", [round_trip, copy.copy, copy.deepcopy])
def test_there_is_one_hole(copied: Any) -> None:
    """The hole stays the same object whatever copies it; an alias stays equal."""
    assert copied(pn.tree.HOLE) is pn.tree.HOLE
    assert type(pn.tree.HOLE)() is pn.tree.HOLE
    assert copied(pn.tree.Alias("a.b")) == pn.tree.Alias("a.b")


def test_a_hole_is_no_tensor(device: torch.device) -> None:
    """Using a hole as a tensor is an error that says how it came there."""
    p, _ = pn.tree.partition(make_affine(device=device), paths="bias")
    x = torch.ones(3, device=device)
    message = (
        "there is a HOLE here instead of a tensor: pn.tree.partition, or a gradient, has left this leaf out. Put the "
        "parts together with pn.tree.combine first."
    )
    uses: list[Any] = [
        lambda: p(x),
        lambda: p.weight @ x,
        lambda: x @ p.weight,
        lambda: p.weight + 1,
        lambda: x * p.weight,
        lambda: p.weight.shape,
        lambda: torch.stack([x, p.weight]),
    ]
    for use in uses:
        with pytest.raises(PlaceholderError) as error:
            use()
        assert text(error) == message
    with pytest.raises(AttributeError, match="_private"):
        _ = pn.tree.HOLE._private


# ---------------------------------------------------------------------------------------------------- text


REPRS = [
    (lambda: make_affine(), "Affine(weight=f32[2,3], bias=f32[2])"),
    (lambda: make_affine(bias=False, dtype=torch.float64), "Affine(weight=f64[2,3], bias=None)"),
    (lambda: Scale(torch.tensor(1, dtype=torch.int16), 2), "Scale(factor=i16[], power=2)"),
    (lambda: Affine(torch.ones(1, device="meta", dtype=torch.bfloat16)), "Affine(weight=bf16[1], bias=None)"),
    (lambda: Affine(torch.ones(1).to(torch.float8_e5m2)), "Affine(weight=float8_e5m2[1], bias=None)"),
    (lambda: Affine(0, None), "Affine(weight=0, bias=None)"),
    (lambda: pn.tree.freeze(make_affine()), "Affine(weight=f32[2,3], bias=f32[2], frozen={bias, weight})"),
    (lambda: pn.tree.partition(make_affine(), paths="bias")[0], "Affine(weight=HOLE, bias=f32[2])"),
    (
        lambda: Box(
            (torch.ones(1), [torch.ones(2)], {"a": torch.ones(3), 0: None}, Pair(torch.ones(4), 1)),
            OrderedDict(b=torch.ones(5)),
            mode=(torch.relu, int),
        ),
        "Box(content=(f32[1], (f32[2],), {'a': f32[3], 0: None}, Pair(left=f32[4], right=1)), "
        # Python 3.12 writes it in another way than 3.11.
        f"state={repr(OrderedDict(b=5)).replace('5', 'f32[5]')}, size=3, mode=(relu, int))",
    ),
    (
        lambda: Box({"a": make_affine(), "b": ()}, mode=torch.relu),
        "Box(state=None, size=3, mode=relu\n"
        "  (content): dict(\n"
        "    (a): Affine(weight=f32[2,3], bias=f32[2])\n"
        "    (b): ()\n"
        "  )\n"
        ")",
    ),
    (
        make_tied,
        "Chain(name='chain'\n"
        "  (layers): tuple(\n"
        "    (0): Affine(weight=f32[3,3], bias=f32[3])\n"
        "    (1): Affine(weight=Alias(layers.0.weight), bias=f32[3])\n"
        "  )\n"
        ")",
    ),
    (
        lambda: Box(Box(Box())),
        "Box(state=None, size=3, mode='plain'\n"
        "  (content): Box(state=None, size=3, mode='plain'\n"
        "    (content): Box(content=None, state=None, size=3, mode='plain')\n"
        "  )\n"
        ")",
    ),
    (lambda: Written(torch.ones(2)), "Written(features=2, active=True)"),
    (
        lambda: pn.tree.freeze(Written(torch.ones(2), make_affine(), False), "weight"),
        "Written(features=2, active=False, frozen={weight}\n  (inner): Affine(weight=f32[2,3], bias=f32[2])\n)",
    ),
    (lambda: pn.tree.map(lambda _: 0, Written(torch.ones(2))), "Written(weight=0, inner=None, active=True)"),
    (
        lambda: pn.tree.partition(Written(torch.ones(2), make_affine()), paths="inner")[0],
        "Written(weight=HOLE, active=True\n  (inner): Affine(weight=f32[2,3], bias=f32[2])\n)",
    ),
    (
        lambda: Written(torch.ones(2), ((1, 2),)),
        "Written(weight=f32[2], inner=((1, 2),), active=True)",
    ),
]


@pytest.mark.parametrize(("make", "expected"), REPRS)
def test_repr(make: Any, expected: str) -> None:
    """Containers print shapes and dtypes instead of numbers, children indented, marks and placeholders by name."""
    assert repr(make()) == expected


def test_a_class_may_write_its_own_repr() -> None:
    """A `__repr__` in the class is kept."""

    @pn.container
    class Quiet:
        weight: Tensor

        def __repr__(self) -> str:
            return "quiet"

    assert repr(Quiet(torch.ones(1))) == "quiet"


def test_repr_inside_transformations(device: torch.device) -> None:
    """A container can be printed while it is traced: the shapes are those that the function sees."""
    seen: list[str] = []

    def f(p: Affine) -> Tensor:
        seen.append(repr(p))
        return p.weight.sum()

    torch.func.grad(f)(make_affine(device=device))
    torch.func.vmap(f)(make_affine(device=device))
    assert seen == ["Affine(weight=f32[2,3], bias=f32[2])", "Affine(weight=f32[3], bias=f32[])"]
