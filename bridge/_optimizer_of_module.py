"""Optimisers of pn.optim for modules: a `torch.optim.Optimizer` like any other."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from purenn.errors import ArgumentError, BridgeError, CheckpointError
from purenn.optim import GradientTransformation
from purenn.tree import HOLE, named_leaves
from purenn.tree._checks import a_or_an
from purenn.tree._misfits import alike, misfits
from purenn.tree._walk import flatten

Make = Callable[..., GradientTransformation]


class Optimizer(torch.optim.Optimizer):
    """A pure optimiser for the parameters of modules, which it updates in place, as those of `torch.optim` do.

    Parameter groups, learning rate schedulers, closures, hooks, GradScaler and ``state_dict`` work as they do there:
    the numbers that the optimiser is made with are in ``param_groups`` and are read from there at every step.

    Args:
        params: parameters, named parameters (path patterns then refer to their names), or dicts of them with options of
            their own, as for `torch.optim`. Each group is a tree of its own: what looks at all leaves, such as
            `pn.optim.clip_by_global_norm`, sees those of one group.
        make: `pn.optim.adamw`, or any other function that makes a transformation from options; or the transformation
            itself, which then has no options in ``param_groups``.
        **options: what `make` is called with; ``lr`` is its ``learning_rate``. Numbers can be changed later in
            ``param_groups``; schedules, selections and other objects are fixed.

    Raises:
        BridgeError: `make` does not give a transformation with ``init`` and ``update``, or does not take the options.
        ArgumentError: in `step`: a gradient is sparse.
        CheckpointError: in `load_state_dict`: the state is that of something else.

    Example:
        >>> import torch, bridge, purenn as pn
        >>> m = torch.nn.Linear(3, 2)
        >>> optimizer = bridge.Optimizer(m.parameters(), pn.optim.lion, lr=1e-3, weight_decay=0.1)
        >>> m(torch.ones(3)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.param_groups[0]["lr"]
        0.001
    """

    def __init__(self, params: Iterable[Any], make: Make | GradientTransformation, **options: Any) -> None:
        if isinstance(make, GradientTransformation):
            self._make: Make = _Ready(make)
        elif callable(make):
            self._make = make
        else:
            raise BridgeError(
                f"Optimizer takes a function that makes an optimiser, such as pn.optim.adamw, got {a_or_an(make)}."
            )
        given = _arguments(self._make, options)
        self._fixed = {name: value for name, value in given.items() if not _is_number(value)}
        numbers = {name: value for name, value in given.items() if _is_number(value)}
        self._names = tuple(numbers)
        super().__init__(params, numbers)
        for group in self.param_groups:
            self._transformation(group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_make": self._make, "_fixed": self._fixed, "_names": self._names}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group.

        Args:
            closure: computes the loss, and its gradients. Default: None.

        Returns:
            What the closure returns, None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            params, grads = _trees(group)
            if all(gradient is HOLE for gradient in grads.values()):
                continue
            transformation = self._transformation(group)
            key = _key(number)
            state = self._own[key] if key in self._own else transformation.init(params)
            new, self._own[key] = transformation.step(params, grads, state, donate=True)
            for parameter, name in zip(group["params"], params, strict=True):
                if new[name] is not params[name]:
                    parameter.copy_(new[name])
                elif grads[name] is not HOLE:
                    # Kernels do not always tell autograd, whose graphs may still need the old value.
                    torch.autograd.graph.increment_version(parameter)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state in plain dicts of tensors and numbers, which `torch.load` reads with ``weights_only=True``."""
        found = super().state_dict()
        return {**found, "state": {key: dict(named_leaves(tree)) for key, tree in found["state"].items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` has given.

        Raises:
            CheckpointError: it does not fit the parameters or the optimiser.
        """
        super().load_state_dict({**state_dict, "state": {}})
        for number, group in enumerate(self.param_groups):
            saved = state_dict["state"].get(_key(number))
            if saved is not None:
                self._own[_key(number)] = _restored(self._transformation(group).init(_trees(group)[0]), saved)

    @property
    def _own(self) -> Any:
        # The state of each group. For torch's types there is state of parameters only.
        return self.state

    def _transformation(self, group: dict[str, Any]) -> GradientTransformation:
        # Made anew for every step, since the numbers may have been changed.
        numbers = {name: group[name] for name in self._names}
        if "lr" in numbers:
            numbers["learning_rate"] = numbers.pop("lr")
        made = self._make(**numbers, **self._fixed)
        if not isinstance(made, GradientTransformation):
            raise BridgeError(
                f"Optimizer: {_name(self._make)} made {a_or_an(made)}, expected a transformation with init and update, "
                f"as pn.optim.adamw makes it."
            )
        return made


class _Ready:
    """A function of no options that makes what it was given."""

    def __init__(self, made: GradientTransformation) -> None:
        self.made = made

    def __call__(self) -> GradientTransformation:
        return self.made


def _arguments(make: Make, options: dict[str, Any]) -> dict[str, Any]:
    """All that `make` takes, with its defaults; the learning rate under torch's name if it is a number."""
    parameters = inspect.signature(make).parameters
    if "lr" in options and "learning_rate" in parameters:
        options = {**options, "learning_rate": options["lr"]}
        del options["lr"]
    try:
        bound = inspect.signature(make).bind(**options)
    except TypeError as error:
        raise BridgeError(
            f"Optimizer: {_name(make)} does not take these options: {error}. It takes: "
            f"{', '.join(parameters) or 'none'}."
        ) from error
    bound.apply_defaults()
    given = dict(bound.arguments)
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name)
    if _is_number(given.get("learning_rate")):
        given = {"lr": given.pop("learning_rate"), **given}
    return given


def _name(make: Make) -> str:
    return "the transformation" if isinstance(make, _Ready) else getattr(make, "__name__", type(make).__name__)


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_number(item) for item in value)
    return isinstance(value, (bool, int, float, Tensor))


def _key(number: int) -> str:
    return f"group {number}"


def _trees(group: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of a group and their gradients by name."""
    names = group.get("param_names") or [str(number) for number in range(len(group["params"]))]
    params: dict[str, Any] = {}
    grads: dict[str, Any] = {}
    for name, parameter in zip(names, group["params"], strict=True):
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise ArgumentError(
                f"Optimizer: the gradient of '{name}' is sparse, which no optimiser of pn.optim takes: leave "
                f"sparse=True out."
            )
        params[name] = parameter.detach()
        grads[name] = HOLE if parameter.grad is None else parameter.grad.detach()
    return params, grads


def _restored(like: Any, saved: Mapping[str, Any]) -> Any:
    """The tree of a saved state; `like` is one of the same structure."""
    values, structure = flatten(like)
    wanted = dict(zip(structure.paths, values, strict=True))
    problems = misfits(wanted, saved, source="state dict", target="optimiser", fits=alike)
    if problems:
        raise CheckpointError(
            "Optimizer.load_state_dict: the state does not fit:\n  " + "\n  ".join(problems) + "\n"
            "Load it into the optimiser that it came from, with the same parameters and options."
        )
    # Copies, since the steps write into them.
    return structure.rebuild([saved[path].to(wanted[path].device, copy=True) for path in structure.paths])
