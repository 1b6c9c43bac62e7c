"""Functions of whole batches as functions of one example, and whether they can be seen as such."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import optree
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


class Whole(NamedTuple):
    """A function of a batch with its arguments.

    Attributes:
        fn: returns one loss for each example.
        name: of the transformation, for errors.
        p: its parameters.
        batch: its other arguments.
        in_dims: 0 where they have the examples as leading axis, None where they are the same for all.
        key: for its random draws; None if it makes none.
    """

    fn: Callable[..., Tensor]
    name: str
    p: Any
    batch: tuple
    in_dims: Any
    key: Tensor | None

    def require_independent(self, losses: Tensor) -> None:
        """Compare the losses of the first examples alone with those of the batch, once for each kind of arguments.

        Raises:
            BatchingError: they differ, because the function mixes examples.
        """
        if not is_plain(losses, *tensors_in((self.p, self.batch))) or not len(losses):
            return
        shapes = tuple([(x.shape, x.dtype) for x in tensors_in((self.p, self.batch))])
        kind = getattr(self.fn, "__code__", self.fn), flatten(self.p)[1].spec, shapes
        if kind in _CHECKED:
            return
        with torch.no_grad():
            together = self._run(self.fn, self.batch)[: len(losses)]
            if self.key is not None:
                # What is drawn is another for an example alone; it is the same in a batch of such examples.
                together, losses = together[:1], self._run(self.fn, self._alike(0))[:1]
            if not _are_close(together, losses):
                number = int((together - losses).abs().argmax()) if together.shape == losses.shape else 0
                raise BatchingError(self._mixing(number, "the loss is another than within the batch"))
        if len(_CHECKED) >= _MOST_CHECKED:
            _CHECKED.clear()
        _CHECKED[kind] = None

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Within this context, the failure of batches of one example is told from that of the whole batch.

        Raises:
            BatchingError: a batch of one fails and the whole batch does not.
        """
        try:
            yield
        except ValueError as error:
            if not is_plain(*tensors_in((self.p, self.batch))) or not self._succeeds():
                raise
            raise BatchingError(self._mixing(0, "it fails")) from error

    def _run(self, fn: Callable[..., Any], batch: tuple) -> Any:
        return fn(self.p, *batch) if self.key is None else fn(self.p, *batch, key=self.key)

    def _alike(self, number: int) -> tuple:
        # A batch of one example many times: what takes statistics would fail with one.
        def repeated(dim: int | None, value: Any) -> Any:
            return tree_map(lambda x: x[[number] * len(x)] if dim == 0 and isinstance(x, Tensor) else x, value)

        dims = self.in_dims if isinstance(self.in_dims, (tuple, list)) else (self.in_dims,) * len(self.batch)
        return tuple(
            repeated(dim, value)
            if dim is None or isinstance(dim, int)
            else optree.tree_map(repeated, dim, value, none_is_leaf=True)
            for dim, value in zip(dims, self.batch, strict=True)
        )

    def _succeeds(self) -> bool:
        try:
            with torch.no_grad():
                self._run(self.fn, self.batch)
        except ValueError:
            return False
        return True

    def _mixing(self, number: int, what: str) -> str:
        layer = self._first_mixing_layer(number)
        where = "outside of its layers or within an opaque module" if layer is None else f"in the layer {layer!r}"
        return (
            f"{self.name}: the function mixes the examples of a batch, {where}: with example {number} alone {what}, so "
            f"the example has no gradient of its own. Leave out what is computed over the batch (statistics of a batch "
            f"norm, a mean, a comparison of examples), or make the whole group of examples one example."
        )

    def _first_mixing_layer(self, number: int) -> str | None:
        places = _layers(self.p, ())
        if not places:
            return None
        captured = capture(self.fn, [join(place) for place in places])
        _, outputs = self._run(captured, self.batch)
        _, alike = self._run(captured, self._alike(number))
        for path, output in outputs.items():
            for whole, own in zip(tensors_in(output), tensors_in(alike.get(path)), strict=False):
                if whole.dim() and own.shape == whole.shape and not _are_close(whole[number], own[number]):
                    return path
        return None


def _are_close(one: Tensor, other: Tensor) -> bool:
    # Far more than rounding, far less than what an example learns from another.
    tolerance = 1e-3 if one.dtype != torch.float64 else 1e-7
    scale = float(other.abs().max()) if other.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale)


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
