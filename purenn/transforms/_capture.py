"""Intermediate values by path: reading them, differentiating with respect to them, replacing them.

Layers are watched while the function runs, so this works under vmap, gradients and jit, where a module's hooks do not.
They nest: the outer one sees what the inner one has made of an output.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optree
from torch import Tensor
from torch._C._functorch import maybe_current_level

from purenn.errors import ArgumentError, SelectionError, StructureError, TransformError
from purenn.transforms._lean import lean_depth
from purenn.tree._applies import binding_of
from purenn.tree._checks import a_or_an
from purenn.tree._select import Selection, chosen
from purenn.tree._walk import Entries, join, node_at, quoted, short
from purenn.tree._watch import unwatched, watched, watching

Select = str | Sequence[str] | Callable[[Selection], Selection]


def capture(fn: Callable[..., Any], select: Select, *, argnum: int = 0) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """The outputs of some layers beside a function's own result.

    Args:
        fn: a function of a model and other arguments.
        select: which layers: path patterns as in `Selection.paths`, or a function ``lambda s: s.instances(Linear)``.
        argnum: the positional argument that is the model. Default: 0.

    Returns:
        A function of the same arguments that returns ``(result, outputs)``. ``outputs`` maps the path of each layer
        that was applied to a copy of its output (without the state of a stateful layer), in the order of the calls; the
        second call of a layer is under ``path:1``, the third under ``path:2``.

    Raises:
        SelectionError: when called: nothing is selected, or something that is no layer.
        TransformError: when called: a layer is applied inside a transformation that `fn` itself makes.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear, ReLU, Sequential, sequential
        >>> p = Sequential.of(Linear.init(pn.random.key(0), 3, 2), ReLU())
        >>> y, outputs = pn.capture(sequential, "layers.*")(p, torch.ones(3))
        >>> list(outputs), torch.equal(outputs["layers.1"], y)
        (['layers.0', 'layers.1'], True)
    """

    @functools.wraps(fn)
    def captured(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        outputs: dict[str, Any] = {}

        def keep(key: str, path: str, output: Any) -> Any:
            # A copy, so that a later write in place does not reach it.
            outputs[key] = _copied(output)
            return output

        result = _watch("capture", fn, select, argnum, keep, args, kwargs)
        return result, outputs

    return captured


def perturb(fn: Callable[..., Any], select: Select, *, argnum: int = 0) -> Callable[..., Any]:
    """A function in which something can be added to the outputs of some layers, to differentiate with respect to them.

    Args:
        fn: a function of a model and other arguments.
        select: which layers, as in `capture`.
        argnum: the positional argument that is the model. Default: 0.

    Returns:
        A function of ``(perturbations, *args)``. ``perturbations`` maps keys as those of `capture` to what is added;
        outputs without one stay as they are. Its gradient at zero is the gradient with respect to the outputs.

    Raises:
        SelectionError: when called: as `capture`, or a perturbation is for a layer that was not applied.
        StructureError: when called: a perturbation does not look like the output.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear, Tanh, Sequential, sequential
        >>> p, x = Sequential.of(Linear.init(pn.random.key(0), 3, 2), Tanh()), torch.zeros(3)
        >>> _, outputs = pn.capture(sequential, "layers.0")(p, x)
        >>> zeros = pn.tree.map(torch.zeros_like, outputs)
        >>> gradients = pn.grad(lambda d: pn.perturb(sequential, "layers.0")(d, p, x).sum())(zeros)
        >>> torch.allclose(gradients["layers.0"], 1 - outputs["layers.0"].tanh() ** 2)
        True
    """

    @functools.wraps(fn)
    def perturbed(perturbations: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        used: set[str] = set()

        def add(key: str, path: str, output: Any) -> Any:
            if key not in perturbations:
                return output
            used.add(key)
            _require_alike("perturb", key, output, perturbations[key])
            return optree.tree_map(lambda value, delta: value + delta, output, perturbations[key])

        result = _watch("perturb", fn, select, argnum, add, args, kwargs)
        _require_used("perturb", set(perturbations) - used)
        return result

    return perturbed


def intervene(fn: Callable[..., Any], replacements: Mapping[str, Any], *, argnum: int = 0) -> Callable[..., Any]:
    """A function in which the outputs of some layers are replaced (activation patching).

    Args:
        fn: a function of a model and other arguments.
        replacements: path of a layer -> the output to use instead, or a function of the output that makes it. A path
            stands for every call of the layer; ``path:1`` stands for its second call alone, as in `capture`.
        argnum: the positional argument that is the model. Default: 0.

    Returns:
        A function of the same arguments.

    Raises:
        SelectionError: when called: a path is no layer, or its layer was not applied.
        StructureError: when called: a replacement does not look like the output.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear, ReLU, Sequential, sequential
        >>> p = Sequential.of(Linear.init(pn.random.key(0), 3, 2), ReLU())
        >>> pn.intervene(sequential, {"layers.0": torch.tensor([1.0, -1.0])})(p, torch.ones(3))
        tensor([1., 0.])
    """
    if not isinstance(replacements, Mapping):
        raise ArgumentError(
            f"intervene: replacements must be a dict from paths to what is put there, got {a_or_an(replacements)}."
        )
    paths = list(dict.fromkeys(key.partition(":")[0] for key in replacements))

    @functools.wraps(fn)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        used: set[str] = set()

        def put(key: str, path: str, output: Any) -> Any:
            found = key if key in replacements else path
            if found not in replacements:
                return output
            used.add(found)
            new = replacements[found]
            new = new(output) if callable(new) and not isinstance(new, Tensor) else new
            _require_alike("intervene", key, output, new)
            # A copy, so that a later write in place does not reach what was given.
            return _copied(new)

        result = _watch("intervene", fn, paths, argnum, put, args, kwargs)
        _require_used("intervene", set(replacements) - used)
        return result

    return replaced


def _watch(
    name: str,
    fn: Callable[..., Any],
    select: Select,
    argnum: int,
    visit: Callable[[str, str, Any], Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    if not isinstance(argnum, int) or not -len(args) <= argnum < len(args):
        raise ArgumentError(
            f"{name}: argnum must be the number of the positional argument that is the model, got {argnum!r} for a "
            f"call with {len(args)}."
        )
    model = args[argnum]
    places = set(chosen(name, model, select).entries)
    for place in places:
        _require_layer(name, model, place)
    counts: dict[str, int] = {}
    levels = _levels()

    def watcher(path: str, output: Any) -> Any:
        if _levels() != levels:
            raise TransformError(
                f"{name}: {quoted(path)} is applied inside a transformation (vmap, a gradient ...) that the function "
                f"itself makes, so its output cannot leave it. Put {name} inside: pn.vmap(pn.{name}(f, ...))."
            )
        count = counts[path] = counts.get(path, -1) + 1
        return visit(path if not count else f"{path}:{count}", path, output)

    given = list(args)
    given[argnum] = watched(model, places)
    with watching(watcher):
        result = fn(*given, **kwargs)
    return unwatched(result)


def _copied(output: Any) -> Any:
    return optree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, output)


def _levels() -> tuple[int, int]:
    level = maybe_current_level()
    return -1 if level is None else level, lean_depth()


def _require_layer(name: str, model: Any, place: Entries) -> None:
    node = node_at(model, place)
    if binding_of(node) is None:
        what = short(node) if isinstance(node, Tensor) else f"a {type(node).__name__}"
        raise SelectionError(
            f"{name}: {quoted(join(place))} is {what}, no layer with a function, so it has no output. Select layers, "
            f"for example with lambda s: s.instances(Linear)."
        )


def _require_alike(name: str, key: str, output: Any, other: Any) -> None:
    places, spec = optree.tree_flatten(output)
    given, found = optree.tree_flatten(other)
    if spec != found or any(_shape(a) != _shape(b) for a, b in zip(places, given, strict=True)):
        raise StructureError(
            f"{name}: what is given for '{key}' must look like the layer's output, {short(output)}, got {short(other)}."
        )


def _shape(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else None


def _require_used(name: str, unused: set[str]) -> None:
    if unused:
        raise SelectionError(
            f"{name}: {', '.join(repr(key) for key in sorted(unused))} was not reached: no selected layer of that "
            f"path was applied (that often)."
        )
