"""Hyper-parameters in the state: visible, changeable, and differentiable like everything else in a tree."""

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, get_args

import torch
from torch import Tensor

from purenn.errors import ArgumentError
from purenn.optim._hyperparameters import as_number
from purenn.optim._transformation import GradientTransformation, with_state
from purenn.tree import container

P = ParamSpec("P")


@container
class InjectState:
    """State of an optimiser made by `inject_hyperparams`.

    Attributes:
        count: number of steps done, an int64 scalar.
        hyperparameters: their values by name, float64 scalars; of a schedule the value of the last step.
        inner: the state of the optimiser.
    """

    count: Tensor
    hyperparameters: dict[str, Any]
    inner: Any


def inject_hyperparams(factory: Callable[P, GradientTransformation]) -> Callable[P, GradientTransformation]:
    """An optimiser's function, so changed that the numbers it is given live in the state.

    Floats, floating tensors and schedules that are given (also in tuples, as ``betas``) become scalars in
    ``state.hyperparameters``; everything else, what cannot be a tensor by its annotation, and what is left to its
    default, is as ever. Change them with `pn.replace`, differentiate with respect to them, stack states with different
    ones.

    Args:
        factory: `adam`, for instance.

    Raises:
        ArgumentError: when called: no number is given.

    Example:
        >>> import torch, purenn as pn
        >>> optimizer = pn.optim.inject_hyperparams(pn.optim.adam)(1e-3, betas=(0.9, 0.99))
        >>> optimizer.init({"w": torch.ones(2)}).hyperparameters["learning_rate"]
        tensor(0.0010, dtype=torch.float64)
    """

    def make(*args: P.args, **kwargs: P.kwargs) -> GradientTransformation:
        signature = inspect.signature(factory)
        given = dict(signature.bind(*args, **kwargs).arguments)
        free = {name for name, parameter in signature.parameters.items() if _may_be_tensor(parameter.annotation)}
        numbers = {name: value for name, value in given.items() if name in free and _is_injected(value)}
        rest: dict[str, Any] = {name: value for name, value in given.items() if name not in numbers}
        name = getattr(factory, "__name__", "the optimiser")
        if not numbers:
            raise ArgumentError(f"inject_hyperparams: {name} is given no float, floating tensor or schedule.")

        def built(values: dict[str, Any]) -> GradientTransformation:
            make_inner: Callable[..., GradientTransformation] = factory
            return make_inner(**rest, **values)

        def current(state: InjectState) -> dict[str, Any]:
            done = as_number(state.count)
            return {key: _at(value, state.hyperparameters[key], done) for key, value in numbers.items()}

        def init(params: Any) -> InjectState:
            values = {key: _at(value, None, 0) for key, value in numbers.items()}
            return InjectState(torch.zeros((), dtype=torch.int64), values, built(values).init(params))

        def update(grads: Any, state: InjectState, params: Any) -> tuple[Any, InjectState]:
            values = current(state)
            updates, inner = built(values).update(grads, state.inner, params)
            return updates, InjectState(state.count + 1, values, inner)

        def step(params: Any, grads: Any, state: InjectState, donate: bool) -> tuple[Any, InjectState]:
            values = current(state)
            params, inner = built(values).step(params, grads, state.inner, donate=donate)
            return params, InjectState(state.count + 1, values, inner)

        return with_state(f"inject_hyperparams({name})", InjectState, init, update, step)

    return make


def _may_be_tensor(annotation: Any) -> bool:
    # Whether an argument is annotated with tensors, or with too little to say that it is not.
    vague = (inspect.Parameter.empty, Any, float)
    return annotation in vague or isinstance(annotation, str) or _contains_tensor(annotation)


def _contains_tensor(annotation: Any) -> bool:
    return annotation is Tensor or any(map(_contains_tensor, get_args(annotation)))


def _is_injected(value: Any) -> bool:
    if isinstance(value, GradientTransformation):
        return False
    if isinstance(value, tuple):
        return bool(value) and all(_is_injected(item) for item in value)
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(value, float) or (callable(value) and not isinstance(value, type))


def _at(given: Any, kept: Any, done: Any) -> Any:
    # The value of this step: of a schedule anew, of a number the one in the state.
    if isinstance(given, tuple):
        kept = (None,) * len(given) if kept is None else kept
        return tuple([_at(one, other, done) for one, other in zip(given, kept, strict=True)])
    if callable(given):
        return _scalar(given(done))
    return _scalar(given) if kept is None else kept


def _scalar(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
