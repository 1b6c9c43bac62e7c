"""The short forms: a function of parameters and a batch for each of the questions that are asked most."""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

from jaxtyping import Float
from torch import Tensor

from purenn.transforms.per_sample._record import Mode, Record
from purenn.transforms.per_sample._recording import record

P = TypeVar("P")
Loss = Callable[..., Tensor]


def grads(f: Loss, **options: Any) -> Callable[[P, Any], P]:
    """The gradient of every example: ``grads(f)(p, batch)`` has the examples as leading axis of every leaf.

    Args:
        f: the loss of one example, ``f(p, *example)``.
        **options: those of `record`.

    Returns:
        A function of the parameters and the batch.

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda p, x: (p["w"] * x).sum()
        >>> pn.per_sample.grads(loss)({"w": torch.ones(2)}, (torch.tensor([[1.0, 2.0], [3.0, 4.0]]),))
        {'w': tensor([[1., 2.],
                [3., 4.]])}
    """

    @functools.wraps(f)
    def gradients(p: P, batch: Any) -> P:
        return record(f, p, batch, **options).grads()

    return gradients


def norms(f: Loss, **options: Any) -> Callable[[Any, Any], Float[Tensor, " examples"]]:
    """The norm of every example's gradient: ``norms(f)(p, batch)``.

    Args:
        f: the loss of one example, ``f(p, *example)``.
        **options: those of `record`.

    Returns:
        A function of the parameters and the batch.

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda p, x: (p["w"] * x).sum()
        >>> pn.per_sample.norms(loss)({"w": torch.ones(2)}, (torch.tensor([[3.0, 4.0], [0.0, 1.0]]),))
        tensor([5., 1.])
    """

    @functools.wraps(f)
    def lengths(p: Any, batch: Any) -> Tensor:
        return record(f, p, batch, **options).norms()

    return lengths


@overload
def clipped_grad(
    f: Loss, max_norm: float, *, mode: Mode = "flat", with_record: Literal[False] = False, **options: Any
) -> Callable[[P, Any], P]: ...
@overload
def clipped_grad(
    f: Loss, max_norm: float, *, mode: Mode = "flat", with_record: Literal[True], **options: Any
) -> Callable[[P, Any], tuple[P, Record[P]]]: ...
def clipped_grad(
    f: Loss, max_norm: float, *, mode: Mode = "flat", with_record: bool = False, **options: Any
) -> Callable[[Any, Any], Any]:
    """The sum of the gradients of all examples, each clipped: ``clipped_grad(f, max_norm)(p, batch)``.

    Args:
        f: the loss of one example, ``f(p, *example)``.
        max_norm: the largest norm that an example's gradient may have.
        mode: how it is clipped: see `Record.clipped_sum`.
        with_record: whether to return the pair ``(gradient, record)``, for losses and norms.
        **options: those of `record`.

    Returns:
        A function of the parameters and the batch.

    Example:
        >>> import torch, purenn as pn
        >>> loss = lambda p, x: (p["w"] * x).sum()
        >>> pn.per_sample.clipped_grad(loss, 1.0)({"w": torch.ones(2)}, (torch.tensor([[3.0, 4.0], [0.0, 0.5]]),))
        {'w': tensor([0.6000, 1.3000])}
    """

    @functools.wraps(f)
    def gradient(p: Any, batch: Any) -> Any:
        recorded = record(f, p, batch, **options)
        if not with_record:
            recorded.release()
        clipped = recorded.clipped_sum(max_norm, mode=mode)
        return (clipped, recorded) if with_record else clipped

    return gradient
