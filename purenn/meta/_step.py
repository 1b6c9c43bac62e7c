"""One step of an inner loop."""

from collections.abc import Callable
from typing import Any

import attrs
from torch import Tensor

from purenn.optim import GradientTransformation
from purenn.transforms import value_and_grad
from purenn.transforms._lean import alone, outermost
from purenn.transforms._leaves import detached, split_aux, take_apart
from purenn.transforms._nested import can_nest, nested_value_and_grad
from purenn.tree import combine, partition

Carry = tuple[Any, Any]


@attrs.frozen(eq=False)
class Step:
    """A gradient and a step of an optimiser.

    Attributes:
        loss: ``loss(params, *args, **kwargs)``.
        optimizer: the optimiser.
        stateful: whether the loss returns new parameters too, for their buffers.
        whole: made of `loss`, its value and gradient where nothing special can be done.
    """

    loss: Callable[..., Any]
    optimizer: GradientTransformation
    stateful: bool
    whole: Callable[..., Any]

    @classmethod
    def of(cls, loss: Callable[..., Any], optimizer: GradientTransformation, stateful: bool) -> "Step":
        """The step of a loss and an optimiser."""
        return cls(loss, optimizer, stateful, value_and_grad(loss, has_aux=stateful))

    def differentiable(self, carry: Carry, rest: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Carry, Tensor]:
        """The new carry, and the loss before the step."""
        params, state = carry
        value, new, grads = self._gradient(params, rest, args, kwargs)
        return self.optimizer.step(params if new is None else new, grads, state), value

    def constant(self, carry: Carry, rest: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Carry, Tensor]:
        """The same with a gradient that counts as a constant."""
        params, state = carry
        with alone():
            value, new, grads = detached(self._gradient(detached(params), detached(rest), args, kwargs))
        if new is not None:
            params = combine(partition(params, kind="parameter")[0], partition(new, kind="buffer")[0])
        return self.optimizer.step(params, grads, state), value

    def loss_with(self, rest: Any) -> Callable[..., Any]:
        """The loss as a function of the parameters that are adapted, if some are not."""
        return (
            self.loss if rest is None else lambda part, *args, **kwargs: self.loss(combine(part, rest), *args, **kwargs)
        )

    def _gradient(self, params: Any, rest: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Any, Any]:
        loss = self.loss_with(rest)
        whole = self.whole if rest is None else value_and_grad(loss, has_aux=self.stateful)
        if can_nest() and not outermost():
            # What `value_and_grad` would do as well, but for looking at everything that it is given.
            argument = take_apart(params)

            def of(values: list[Tensor]) -> Any:
                return loss(argument.rebuilt(values), *args, **kwargs)

            value, new, gradients = nested_value_and_grad("inner_loop", of, argument.values, self.stateful)
            return value, new, argument.derivative(gradients)
        found, grads = whole(params, *args, **kwargs)
        value, new = split_aux("inner_loop", found, self.stateful)
        return value, new, grads
