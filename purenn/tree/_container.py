"""Containers: frozen attrs classes whose tensor fields are a model's parameters.

`container` turns an annotated class into an immutable pytree node, known to optree (global namespace) and to
torch's own pytree, so ``optree.tree_map``, ``torch.func.grad`` and ``torch.export`` all take and return it.
Fields are of three kinds: plain ones hold parameters or children, `buffer` ones hold tensors that are saved and moved
but not trained, `static` ones hold hashable configuration that belongs to the structure of the tree.
"""

import inspect
from typing import Any, NoReturn, TypeVar, dataclass_transform

import attrs

from purenn.errors import ContainerError, ImmutableError
from purenn.tree._checks import checked
from purenn.tree._fields import KIND, PARAMETER, STATIC, Marks, Spec, buffer, static
from purenn.tree._register import register

C = TypeVar("C")


class Layer:
    """Optional base class of containers to which a function is bound by `applies`.

    It adds nothing at run time but a clear error; type checkers learn from it that ``p(x)`` may be called.
    """

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the function that `applies` has bound to this class."""
        raise ContainerError(
            f"{type(self).__name__} has no function: write one as `def f(p, x)` and bind it with "
            f"`@pn.applies({type(self).__name__})`."
        )

    def __bool__(self) -> bool:
        """A layer is true, one that counts its members and has none as well."""
        # Not only good manners: torch 2.11's dynamo asks before the fields are there.
        return True


@dataclass_transform(frozen_default=True, field_specifiers=(buffer, static, attrs.field))
def container(cls: type[C]) -> type[C]:
    """Make an annotated class a container: a frozen, slotted attrs class that is a pytree node.

    Annotated names are the fields, in the order of the constructor's arguments. A plain field is a parameter tensor, a
    child container, a tuple or dict of them, or None for "absent"; a list is stored as a tuple. See `buffer` and
    `static` for the other kinds. Converters and validators of `attrs.field` run in the constructor, never when a
    transformation rebuilds the tree. A subclass of a container inherits its fields and its function, and must be
    decorated itself.

    Raises:
        ContainerError: the class has an ``__init__``, or a field without annotation, with a reserved name, with
            ``init=False``, or without a default after one that has one.

    Example:
        >>> import torch, purenn as pn
        >>> @pn.container
        ... class Scale:
        ...     factor: torch.Tensor
        ...     power: int = pn.static(default=1)
        >>> Scale(torch.ones(3))
        Scale(factor=f32[3], power=1)
    """
    if not isinstance(cls, type):
        raise ContainerError(f"@pn.container takes a class, got {type(cls).__name__} {cls!r}.")
    if "__container_spec__" in cls.__dict__:
        raise ContainerError(f"{cls.__name__} is a container already: put @pn.container above it once.")
    annotations = inspect.get_annotations(cls)
    if "_marks" in annotations:
        raise ContainerError(f"{cls.__name__}: the field name '_marks' is reserved, choose another one.")
    if not any("_marks" in base.__dict__ for base in cls.__mro__):
        cls.__annotations__ = {**annotations, "_marks": Marks | None}
        marks = attrs.field(default=None, alias="marks_", kw_only=True, repr=False, metadata={KIND: STATIC})
        cls._marks = marks  # pyright: ignore[reportAttributeAccessIssue]
    own_init = cls.__dict__.get("__init__")
    if own_init is not None:
        raise ContainerError(
            f"{cls.__name__} defines __init__, but a container's constructor takes its plain fields, so that any tree "
            f"can be rebuilt from parts. Write a classmethod `init(cls, key, ...)` that draws the parameters instead."
        )
    cls.__init__ = _construct
    if "__repr__" not in cls.__dict__:
        cls.__repr__ = _repr
    if "__treescope_repr__" not in cls.__dict__:
        cls.__treescope_repr__ = _treescope_repr  # pyright: ignore[reportAttributeAccessIssue]
    made: Any = _define(cls)
    spec = made.__container_spec__ = _read_spec(made)
    made.__signature__ = _signature(spec)
    made.__setattr__, made.__delattr__ = _refuse_set, _refuse_delete
    register(made, spec.dynamic, spec.static)
    return made


def _define(cls: type[C]) -> type[C]:
    try:
        return attrs.define(frozen=True, init=False, eq=False, slots=True, repr=False, auto_attribs=True)(cls)
    except attrs.exceptions.UnannotatedAttributeError as error:
        fields = [name for name, value in cls.__dict__.items() if type(value).__name__ == "_CountingAttr"]
        missing = ", ".join(f"'{name}'" for name in fields if name not in inspect.get_annotations(cls))
        raise ContainerError(
            f"{cls.__name__}: {missing} has no annotation: write `name: type = pn.static()`, and so for every field."
        ) from error
    except ValueError as error:
        # The one ordering error of attrs, which prints the whole field.
        name = str(error).partition("name='")[2].partition("'")[0]
        raise ContainerError(
            f"{cls.__name__}: the field '{name}' has no default, but follows one that has: give it a default, or move "
            f"it before the others."
            if name
            else f"{cls.__name__} cannot be a container: {error}"
        ) from error


def _repr(self: Any) -> str:
    from purenn.tree._repr import describe

    return describe(self)


def _treescope_repr(self: Any, path: str | None, render_child: Any) -> Any:
    from purenn.tree._treescope import render

    return render(self, path, render_child)


def _refuse_set(self: Any, name: str, value: Any) -> NoReturn:
    raise ImmutableError(
        f"{type(self).__name__} is immutable, so '{name}' cannot be set: make a changed copy with "
        f"pn.replace(p, {name}=...)."
    )


def _refuse_delete(self: Any, name: str) -> NoReturn:
    raise ImmutableError(f"{type(self).__name__} is immutable, so '{name}' cannot be deleted.")


def _read_spec(cls: type) -> Spec:
    fields = attrs.fields(cls)
    kinds = {a.name: a.metadata.get(KIND, PARAMETER) for a in fields}
    for a in fields:
        if not a.init:
            raise ContainerError(
                f"{cls.__name__}: the field '{a.name}' has init=False, but a container must be buildable from its "
                f"fields: make it a property, or compute it in a classmethod `init(cls, ...)`."
            )
    return Spec(
        owner=cls,
        fields=tuple(a for a in fields if a.name != "_marks"),
        kinds=kinds,
        dynamic=tuple(name for name, kind in kinds.items() if kind != STATIC),
        static=tuple(name for name, kind in kinds.items() if kind == STATIC and name != "_marks"),
        by_alias={a.alias: a.name for a in fields},
        getters={
            name: value.fget
            for base in reversed(cls.__mro__)
            for name, value in vars(base).items()
            if isinstance(value, property) and value.fget is not None
        },
    )


def _signature(spec: Spec) -> inspect.Signature:
    return inspect.Signature(
        [
            inspect.Parameter(
                a.alias or a.name,
                inspect.Parameter.KEYWORD_ONLY if a.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=inspect.Parameter.empty if a.default is attrs.NOTHING else a.default,
                annotation=a.type,
            )
            for a in sorted(spec.fields, key=lambda a: a.kw_only)
        ]
    )


def _construct(self: Any, *args: Any, **kwargs: Any) -> None:
    # One constructor for all containers, of literal `object.__setattr__` calls: the form that dynamo traces.
    cls = type(self)
    spec = cls.__container_spec__
    if spec.owner is not cls:
        raise ContainerError(
            f"{cls.__name__} is a subclass of the container {spec.owner.__name__} but no container itself: "
            f"add @pn.container above it."
        )
    positional = [a for a in spec.fields if not a.kw_only]
    if len(args) > len(positional):
        raise ContainerError(
            f"{cls.__name__} takes at most {len(positional)} positional arguments "
            f"({', '.join(a.alias for a in positional)}), got {len(args)}."
        )
    given = {a.name: value for a, value in zip(positional, args, strict=False)}
    marks = kwargs.pop("marks_", None)
    names = spec.by_alias
    for alias, value in kwargs.items():
        name = names.get(alias)
        if name is None:
            raise ContainerError(
                f"{cls.__name__} has no field '{alias}'; its fields are: {', '.join(a.alias for a in spec.fields)}."
            )
        if name in given:
            raise ContainerError(f"{cls.__name__}: the field '{alias}' is given twice.")
        given[name] = value
    for a in spec.fields:
        if a.name in given:
            value = given[a.name]
        elif a.default is attrs.NOTHING:
            raise ContainerError(f"{cls.__name__} needs a value for the field '{a.alias}'.")
        else:
            value = _default(self, a)
        if a.converter is not None:
            value = _converted(self, a, value)
        object.__setattr__(self, a.name, checked(cls, a.name, spec.kinds[a.name], value))
    object.__setattr__(self, "_marks", marks)
    for a in spec.fields:
        if a.validator is not None:
            a.validator(self, a, getattr(self, a.name))


def _default(node: Any, a: attrs.Attribute) -> Any:
    made: Any = a.default
    if not isinstance(made, attrs.Factory):  # pyright: ignore[reportArgumentType]
        return made
    return made.factory(node) if made.takes_self else made.factory()


def _converted(node: Any, a: attrs.Attribute, value: Any) -> Any:
    # attrs wraps converters that take the instance or the field, and lists of converters, into objects.
    convert: Any = a.converter
    return convert.__call__(value, node, a) if hasattr(convert, "takes_self") else convert(value)
