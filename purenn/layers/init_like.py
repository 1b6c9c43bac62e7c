"""Layers whose input sizes are read from an example of the input.

`init_like` takes the place of lazy modules, whose parameters are there only after a first call. It reads shapes and
nothing else, and finds those in the middle of a stack on the meta device, where nothing is computed or allocated. So
the parameters are there at once, and the example may be as large as it likes.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch
from torch import Tensor

from purenn import random
from purenn.errors import ArgumentError, ContainerError, ShapeError
from purenn.layers._input_sizes import rule_of
from purenn.layers.sequential import Sequential
from purenn.layers.shape import Lambda
from purenn.tree import is_container, is_stateful, to
from purenn.tree._checks import a_or_an
from purenn.tree._fields import spec_of


def init_like(
    key: Tensor,
    layer: Any,
    *inputs: Tensor,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> Any:
    """Make a layer, or a stack of layers, for inputs like the given ones.

    Args:
        key: random key. A single layer is drawn from it as its `init` does; the members of a stack each have one of
            ``split(key, number of members)``.
        layer: what to make. A class, or its `init`, with the arguments that are not sizes of the input in `options` or
            by `functools.partial`; or, for a `Sequential`, a list (or a dict, to name them) of these, of layers that
            are there already, of plain functions, and of lists again. A class of your own takes part if it states its
            sizes, ``input_sizes: ClassVar = {"in_features": -1}`` (argument of `init` = dimension of the input, or
            (number of the input, dimension)), or has none.
        *inputs: examples of the inputs; only shape, dtype and device are read. A stack has one.
        dtype: of the parameters; that of the first floating input if None, or else torch's default dtype.
        device: of the parameters; that of the first input if None. A meta input makes meta parameters.
        **options: arguments of the layer's `init`. Those that are sizes of the input may be among them.

    Returns:
        The container.

    Raises:
        ArgumentError: an argument is missing or unknown, or there is an input too few or too many.
        ShapeError: an input has too few dimensions to read a size from.
        ContainerError: `layer` is none of these.

    Example:
        >>> import torch, purenn as pn
        >>> from functools import partial
        >>> from purenn.layers import BatchNorm2d, Conv2d, Flatten, Linear, init_like
        >>> init_like(pn.random.key(0), Linear, torch.ones(32, 784), out_features=10)
        Linear(in_features=784, out_features=10, bias=True)
        >>> convolution = partial(Conv2d.init, out_channels=8, kernel_size=5, stride=2)
        >>> classes = partial(Linear.init, out_features=10)
        >>> images = torch.ones(32, 1, 28, 28)
        >>> p = init_like(pn.random.key(0), [convolution, BatchNorm2d, torch.relu, Flatten(), classes], images)
        >>> p[1].num_features, p[4].in_features
        (8, 1152)
    """
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        got = ", ".join(type(x).__name__ for x in inputs) or "none"
        raise ArgumentError(f"init_like: the inputs must be tensors, and at least one, got {got}.")
    if dtype is None:
        dtype = next((x.dtype for x in inputs if x.is_floating_point()), None)
    examples = tuple(
        torch.empty(x.shape, dtype=dtype if x.is_floating_point() else x.dtype, device="meta") for x in inputs
    )
    plan = _Plan(dtype, inputs[0].device if device is None else device)
    return plan.make("", layer, examples, options)(key)


# Makes a layer of a key; of None on the meta device.
_Make = Callable[[Tensor | None], Any]


@attrs.frozen
class _Plan:
    """How to make layers, found from examples on the meta device before anything is drawn.

    `path` is where in the stack a layer stands, for messages.
    """

    dtype: torch.dtype | None
    device: torch.device | str

    def make(self, path: str, layer: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> _Make:
        init = _as_init(layer, options)
        if init is not None:
            return self.make_one(path, init, inputs)
        if options:
            raise ArgumentError(
                f"{_at(path)}the arguments {_quoted(options)} belong to the init of one layer: give them to that, as "
                f"in functools.partial(Linear.init, out_features=10)."
            )
        if isinstance(layer, (list, tuple, dict)):
            return self.make_stack(path, layer, inputs)
        if is_container(layer):
            return lambda key: to(layer, "meta") if key is None else layer
        if callable(layer) and not isinstance(layer, (type, torch.nn.Module)):
            return lambda _: Lambda(layer)
        kind = f"the class {layer.__name__}" if isinstance(layer, type) else a_or_an(layer)
        raise ContainerError(
            f"{_at(path)}expected a container, its class or its init, a plain function, or a list or dict of these, "
            f"got {kind}."
        )

    def make_stack(self, path: str, layers: Any, inputs: tuple[Any, ...]) -> _Make:
        if len(inputs) != 1:
            raise ArgumentError(f"{_at(path)}a stack of layers has one input, got {len(inputs)}.")
        has_names = isinstance(layers, dict)
        named = layers if has_names else {str(number): layer for number, layer in enumerate(layers)}
        makes: list[_Make] = []
        x = inputs[0]
        for name, layer in named.items():
            inner = f"{path}.{name}" if path else name
            makes.append(self.make(inner, layer, (x,), {}))
            if len(makes) < len(named):
                x = _output(inner, makes[-1](None), x)

        def make(key: Tensor | None) -> Sequential:
            keys = [None] * len(makes) if key is None else random.split(key, len(makes))
            made = [make(own) for make, own in zip(makes, keys, strict=True)]
            return Sequential.named(**dict(zip(named, made, strict=True))) if has_names else Sequential.of(*made)

        return make

    def make_one(self, path: str, init: "_Init", inputs: tuple[Any, ...]) -> _Make:
        takes_key = "key" in init.parameters
        if takes_key and init.args:
            raise ArgumentError(f"{_at(path)}give the arguments of {init.name} by name: the first one is the key.")
        given = {**dict(zip(init.parameters, init.args, strict=False)), **init.options}
        given = {**_sizes(path, init, inputs, given), **given}
        for name in {"dtype", "device"} & init.parameters.keys() - given.keys():
            given[name] = getattr(self, name)
        init.require_complete(path, given)

        def make(key: Tensor | None) -> Any:
            arguments = {**given, "key": key} if takes_key else given
            return init.function(**arguments) if key is not None else _on_meta(init, arguments)

        return make


@attrs.frozen
class _Init:
    """A function that makes a container of the class `owner`, with some of its arguments."""

    owner: type
    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.owner.__name__ if self.function is self.owner else f"{self.owner.__name__}.{self.function.__name__}"

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.function).parameters)

    def require_complete(self, path: str, given: dict[str, Any]) -> None:
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.parameters.values())
        named = {
            name: parameter
            for name, parameter in self.parameters.items()
            if name != "key" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        unknown = given.keys() - named.keys()
        if unknown and not takes_any:
            raise ArgumentError(f"{_at(path)}{self.name} has no {_quoted(sorted(unknown))}; it has {_quoted(named)}.")
        missing = [name for name in named if named[name].default is inspect.Parameter.empty and name not in given]
        if missing:
            raise ArgumentError(
                f"{_at(path)}{self.name} also needs {_quoted(missing)}: "
                f"functools.partial({self.name}, {', '.join(f'{name}=...' for name in missing)})."
            )


def _on_meta(init: _Init, arguments: dict[str, Any]) -> Any:
    if "device" in init.parameters:
        arguments = {**arguments, "device": "meta"}
    if "key" in arguments:
        # An init that takes no device follows the key; to the others any key will do, and one on the CPU is faster.
        device = "cpu" if "device" in init.parameters else "meta"
        arguments = {**arguments, "key": torch.zeros(2, dtype=torch.int64, device=device)}
    with random.strict(enabled=False):
        return to(init.function(**arguments), "meta")


def _as_init(layer: Any, options: dict[str, Any]) -> _Init | None:
    function, args = layer, ()
    if isinstance(layer, functools.partial):
        function, args, options = layer.func, layer.args, {**layer.keywords, **options}
    # A container without parameters has no `init`: its constructor takes its options.
    owner = function if isinstance(function, type) else getattr(function, "__self__", None)
    if not isinstance(owner, type) or spec_of(owner) is None:
        return None
    return _Init(owner, getattr(owner, "init", owner) if function is owner else function, args, options)


def _sizes(path: str, init: _Init, inputs: tuple[Any, ...], given: dict[str, Any]) -> dict[str, int]:
    found = {}
    for argument, place in rule_of(init.owner).items():
        number, dim = place if isinstance(place, tuple) else (0, place)
        if argument in given:
            continue
        if number >= len(inputs):
            raise ArgumentError(
                f"{_at(path)}{init.name} reads {argument} from input {number}, counted from 0, but got "
                f"{len(inputs)} inputs. Give that input, or {argument}."
            )
        x = inputs[number]
        if not isinstance(x, Tensor):
            raise ArgumentError(
                f"{_at(path)}{init.name} reads {argument} from a tensor, but its input is {a_or_an(x)}. Put a "
                f"function before it that takes the tensor out."
            )
        if not -x.ndim <= dim < x.ndim:
            raise ShapeError(
                f"{_at(path)}{init.name} reads {argument} from dimension {dim} of its input, got shape "
                f"{list(x.shape)}. Give an input with more dimensions, or {argument}."
            )
        found[argument] = x.shape[dim]
    return found


def _output(path: str, layer: Any, x: Any) -> Any:
    try:
        with torch.no_grad():
            y = layer(x)
    except Exception as error:
        error.add_note(f"{_at(path)}this happened on the meta device, where the shape of its output was to be found.")
        raise
    return y[0] if is_stateful(layer) else y


def _at(path: str) -> str:
    return f"init_like: '{path}': " if path else "init_like: "


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
