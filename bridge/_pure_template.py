"""A module without its tensors, and the copies of it that calls run on.

A call takes a copy that no other call uses, puts tensors into it, and afterwards gives it back as it was. So calls in
several threads and within each other do not meet, and no exception leaves anything behind.
"""

import functools
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import attrs
import optree
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bridge._pure_attributes import OWN, Attributes
from bridge._pure_copies import copied
from bridge._pure_derivatives import FORWARDS
from bridge._pure_likeness import CARRIED, Likeness, class_of
from bridge._pure_writers import Written, written_by
from purenn.errors import BridgeError


@attrs.define(eq=False)
class Place:
    """What is known about one module of a template.

    Attributes:
        index: its number among the template's different modules.
        path: its name in the template.
        parameters: names of its own parameters.
        buffers: names of its own buffers.
        children: its submodules by name.
        written: which of its own tensors its code may write into.
        stateful: whether it, or a module below it, may write into something.
        trains: its mode in a call with ``train=True``; without it every module is in evaluation mode.
        signature: equal for places of modules that are alike.
    """

    index: int
    path: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    children: dict[str, "Place"]
    written: Written
    stateful: bool
    trains: bool
    signature: tuple

    def named(self, path: str) -> "Place":
        """The place of a submodule, by its dotted name from here."""
        place = self
        for name in path.split(".") if path else ():
            place = place.children[name]
        return place


class Template:
    """A module without its tensors, from which copies to run are made.

    Args:
        module: the module.
        stateful: True if every buffer may be written into, False if what is written is to be dropped, None if that is
            to be found out.
    """

    def __init__(self, module: nn.Module, stateful: bool | None) -> None:
        self.module = module
        self.stateful = stateful
        self._free: deque[Copy] = deque()
        modules = list(module.modules())
        numbers = {id(child): number for number, child in enumerate(modules)}
        trains = {id(child): child.training for child in module.train().modules()}
        module.eval()
        self.place = self._place(module, "", _Facts(numbers, trains))

    def _place(self, module: nn.Module, path: str, facts: "_Facts") -> Place:
        if id(module) in facts.places:
            return facts.places[id(module)]
        children = {
            name: self._place(child, f"{path}.{name}" if path else name, facts)
            for name, child in module._modules.items()
            if child is not None
        }
        parameters, buffers = tuple(module._parameters), tuple(module._buffers)
        written = written_by(module) if self.stateful is None else Written(frozenset(buffers))
        # If it is said that a module writes, then that may be into parameters as well.
        said = bool(self.stateful and (parameters or buffers))
        writes = said or bool(written.always or written.in_training) or any(c.stateful for c in children.values())
        below = tuple((name, child.signature) for name, child in children.items())
        facts.places[id(module)] = place = Place(
            index=facts.numbers[id(module)],
            path=path,
            parameters=parameters,
            buffers=buffers,
            children=children,
            written=written,
            stateful=writes and self.stateful is not False,
            trains=facts.trains[id(module)],
            signature=(class_of(module), parameters, buffers, facts.likeness.settings(module), below),
        )
        return place

    def take(self) -> "Copy":
        """A copy that is nobody else's until it is given back."""
        try:
            return self._free.pop()
        except IndexError:
            made = copied(self.module, {id(t): t for t in _tensors_of(self.module)})
            return Copy(made, Attributes.of(self.module.modules()).seen)

    def give_back(self, used: "Copy") -> None:
        """Let others take a copy, which is again as it was made."""
        self._free.append(used)

    def __deepcopy__(self, memo: dict) -> "Template":
        return self

    def __reduce__(self) -> tuple:
        return Template, (self.module, self.stateful)


@attrs.define(eq=False)
class _Facts:
    numbers: dict[int, int]
    trains: dict[int, bool]
    likeness: Likeness = attrs.Factory(Likeness)
    places: dict[int, Place] = attrs.Factory(dict)


class Copy:
    """A module to put tensors into.

    Args:
        module: the module.
        outside: ids of objects in its attributes that other copies hold as well.
    """

    def __init__(self, module: nn.Module, outside: set[int]) -> None:
        self.modules = list(module.modules())
        self.attributes = Attributes.of(self.modules, outside)
        self._empty = [module.__dict__ for module in self.modules]
        self._hooks = [value for own in self._empty for name, value in own.items() if name in HOOKS]
        self._kept_hooks = {id(hooks): dict(hooks) for hooks in self._hooks if hooks}
        self._registered = RemovableHandle.next_id

    def mount(self, place: Place, parameters: dict[str, Any], buffers: dict[str, Any], train: bool) -> None:
        """Put tensors into one module, until `clear`."""
        own = dict(self._empty[place.index])
        own["_parameters"], own["_buffers"], own["_modules"] = parameters, buffers, dict(own["_modules"])
        own["training"] = train and place.trains
        forward = FORWARDS.get(type(self.modules[place.index]))
        if forward is not None and "forward" not in own:
            own["forward"] = functools.partial(forward, self.modules[place.index])
        if "_flat_weights_names" in own:
            weights = [parameters.get(name) for name in own["_flat_weights_names"]]
            own["_flat_weights"] = weights
            own["_flat_weight_refs"] = [None if weight is None else weakref.ref(weight) for weight in weights]
        object.__setattr__(self.modules[place.index], "__dict__", own)

    def held(self, place: Place) -> Iterator[tuple[str, Tensor]]:
        """What stands for a module's own parameters and buffers in attributes that hold these as well, by name."""
        empty = self._empty[place.index]
        for name, tensor in (*empty["_parameters"].items(), *empty["_buffers"].items()):
            if id(tensor) in self.attributes.tensors:
                yield name, tensor

    def clear(self) -> None:
        """Take everything out that calls have put in."""
        for module, empty in zip(self.modules, self._empty, strict=True):
            object.__setattr__(module, "__dict__", empty)
        self.attributes.put_back()
        if RemovableHandle.next_id != self._registered:
            self._forget_hooks()

    def _forget_hooks(self) -> None:
        # Somebody has registered some since the last call, and these modules may have done so.
        for hooks in self._hooks:
            kept = self._kept_hooks.get(id(hooks), {})
            if list(hooks) != list(kept):
                hooks.clear()
                hooks.update(kept)
        self._registered = RemovableHandle.next_id


HOOKS = frozenset(name for name in OWN if "_hooks" in name)


def stripped(module: nn.Module, caller: str) -> nn.Module:
    """A copy of a module, in evaluation mode, whose parameters and buffers have no data.

    Args:
        module: the module.
        caller: the function to name in errors.

    Raises:
        BridgeError: the module cannot be copied.
    """
    # A copy that never allocates: the copier finds every tensor already "copied", to the meta device.
    memo: dict[int, Any] = {id(tensor): _without_data(tensor) for tensor in _tensors_of(module)}
    for child in module.modules():
        kept: Any = {name: value for name, value in child.__dict__.items() if name not in OWN}
        for value in optree.tree_leaves(kept, none_is_leaf=True, namespace=""):
            if isinstance(value, Tensor):
                # A result that the module keeps, of which torch makes no deep copies.
                memo.setdefault(id(value), value.detach().clone())
    try:
        made = copied(module, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise BridgeError(
            f"{caller}: the module ({type(module).__name__}) cannot be copied, because something in it cannot: {error}."
            f" Keep that out of the module's attributes, or give its class a __deepcopy__."
        ) from error
    for child in made.modules():
        if isinstance(child.__dict__.get("apply_inside"), functools.partial):
            for name in CARRIED:
                child.__dict__.pop(name)
    return made.eval()


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _without_data(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
