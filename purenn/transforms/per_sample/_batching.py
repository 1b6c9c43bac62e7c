"""Functions of whole batches as functions of one example, and whether they can be seen as such."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from purenn._modes import is_plain
from purenn.errors import BatchingError, GradientError
from purenn.transforms._capture import capture
from purenn.transforms._leaves import tensors_in
from purenn.tree._applies import binding_of
from purenn.tree._fields import is_container
from purenn.tree._map import map as tree_map
from purenn.tree._walk import Entries, flatten, join, one_level, short

_CHECKED: dict[Any, None] = {}
_MOST_CHECKED = 256


def of_one(fn: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """A function of a batch, applied to batches of one example inside of vmap."""

    def loss(p: Any, *example: Any, **key: Any) -> Tensor:
        alone = tree_map(lambda x: x[None] if isinstance(x, Tensor) and is_batchedtensor(x) else x, example)
        found = fn(p, *alone, **key)
        if not isinstance(found, Tensor) or found.shape != (1,):
            got = short(found) if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise GradientError(
                f"{name}: with batched=True the function must return one loss for each example, so [1] for a batch of "
                f"one, but it returned {got}. Leave the mean or the sum over the batch out (reduction='none'), or "
                f"write the loss of one example and leave out batched=True."
            )
        return found[0]

    return loss


def require_independent(fn: Callable[..., Tensor], name: str, p: Any, batch: tuple, losses: Tensor) -> None:
    """Compare the losses of the examples alone with those of the batch, once for each function and kind of arguments.

    Raises:
        BatchingError: they differ, because the function mixes examples.
    """
    if not is_plain(losses, *tensors_in((p, batch))):
        return
    shapes = tuple([(x.shape, x.dtype) for x in tensors_in((p, batch))])
    key = getattr(fn, "__code__", fn), flatten(p)[1].spec, shapes
    if key in _CHECKED:
        return
    with torch.no_grad():
        together = fn(p, *batch)
        if not _are_close(together, losses):
            number = int((together - losses).abs().argmax()) if together.shape == losses.shape else 0
            raise BatchingError(_mixing(fn, name, p, batch, number, "the loss is another than within the batch"))
    if len(_CHECKED) >= _MOST_CHECKED:
        _CHECKED.clear()
    _CHECKED[key] = None


def _are_close(one: Tensor, other: Tensor) -> bool:
    # Far more than rounding, far less than what an example learns from another.
    tolerance = 1e-3 if one.dtype != torch.float64 else 1e-7
    scale = float(other.abs().max()) if other.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale)


@contextlib.contextmanager
def explained(fn: Callable[..., Tensor], name: str, p: Any, batch: tuple) -> Iterator[None]:
    """Within this context, the failure of batches of one example is told from that of the whole batch.

    Raises:
        BatchingError: a batch of one fails and the whole batch does not.
    """
    try:
        yield
    except ValueError as error:
        if not is_plain(*tensors_in((p, batch))) or not _succeeds(fn, p, batch):
            raise
        raise BatchingError(_mixing(fn, name, p, batch, 0, "it fails")) from error


def _succeeds(fn: Callable[..., Tensor], p: Any, batch: tuple) -> bool:
    try:
        with torch.no_grad():
            fn(p, *batch)
    except ValueError:
        return False
    return True


def _mixing(fn: Callable[..., Tensor], name: str, p: Any, batch: tuple, number: int, what: str) -> str:
    layer = _first_mixing_layer(fn, p, batch, number)
    where = "outside of its layers or within an opaque module" if layer is None else f"in the layer {layer!r}"
    return (
        f"{name}: the function mixes the examples of a batch, {where}: with example {number} alone {what}, so the "
        f"example has no gradient of its own. Leave out what is computed over the batch (statistics of a batch norm, "
        f"a mean, a comparison of examples), or make the whole group of examples one example."
    )


def _first_mixing_layer(fn: Callable[..., Tensor], p: Any, batch: tuple, number: int) -> str | None:
    places = _layers(p, ())
    if not places:
        return None
    captured = capture(fn, [join(place) for place in places])
    # Of two examples, because what takes statistics fails with one.
    pair = tree_map(lambda x: x[[number, number - 1]] if isinstance(x, Tensor) else x, batch)
    _, outputs = captured(p, *batch)
    _, few = captured(p, *pair)
    for path, output in outputs.items():
        for whole, own in zip(tensors_in(output), tensors_in(few.get(path)), strict=False):
            if whole.dim() and own.shape[1:] == whole.shape[1:] and not _are_close(whole[number], own[0]):
                return path
    return None


def _layers(node: Any, here: Entries) -> list[Entries]:
    level = one_level(node)
    if level is None:
        return []
    below = [
        place
        for entry, child in zip(level.entries, level.children, strict=True)
        for place in _layers(child, (*here, entry))
    ]
    own = [here] if here and is_container(node) and binding_of(node) is not None else []
    return below + own
