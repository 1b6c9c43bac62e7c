"""Choices and loops that depend on values, in eager, batched and compiled functions alike."""

from collections.abc import Callable
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor

from purenn._modes import is_without_values
from purenn.errors import ArgumentError, StructureError
from purenn.transforms._branch_op import cond_tensors
from purenn.transforms._carry import require_alike, require_tensors
from purenn.transforms._program import writes_programs
from purenn.transforms._scan import scan
from purenn.transforms._while_op import while_tensors
from purenn.tree._checks import require_function
from purenn.tree._walk import flatten, quoted, short, unflatten

C = TypeVar("C")
R = TypeVar("R")

# The two that must be alike, in the words of an error.
_CARRIES = "the one that it gets", "the carry that the body returns"


def cond(predicate: bool | Tensor, yes: Callable[..., R], no: Callable[..., R], *operands: Any) -> R:
    """Apply one of two functions.

    In eager only the chosen one runs. Under `pn.jit` both are traced, and one runs. Where the predicate differs from
    example to example of a vmap both run and the results are selected; then a gradient is taken through both, so keep
    them finite everywhere (as for `torch.where`).

    Args:
        predicate: a bool, or a tensor with one element.
        yes: the function for True.
        no: the function for False. Both return trees of tensors of the same structure, shapes and dtypes.
        *operands: arguments of both. They may close over tensors as well, which are differentiated as usual.

    Raises:
        ArgumentError: the predicate has several elements, or is neither bool nor tensor.
        StructureError: the results of the functions differ in kind (seen where both are traced or run).

    Example:
        >>> import torch, purenn as pn
        >>> root = lambda x: pn.cond(x > 0, torch.sqrt, torch.zeros_like, x)
        >>> pn.vmap(root)(torch.tensor([4.0, -4.0]))
        tensor([2., 0.])
    """
    require_function("cond", yes)
    require_function("cond", no)
    predicate = _decision("cond", "the predicate", predicate)
    if not isinstance(predicate, Tensor):
        return (yes if predicate else no)(*operands)
    if not writes_programs():
        if not (is_without_values() or _is_batched(predicate)):
            return (yes if predicate else no)(*operands)
        one, other = yes(*operands), no(*operands)
        _require_results(one, other)
        return _where(predicate, one, other)
    given: Any = operands
    leaves, spec = optree.tree_flatten(given)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    results: list[Any] = []

    def flat(branch: Callable[..., R]) -> Callable[..., list[Tensor]]:
        def run(*values: Tensor) -> list[Tensor]:
            rest = iter(values)
            args = unflatten(spec, [next(rest) if isinstance(x, Tensor) else x for x in leaves])
            results.append(branch(*args))
            _require_results(results[0], results[-1])
            return optree.tree_leaves(results[-1])

        return run

    values = cond_tensors(predicate, flat(yes), flat(no), tensors)
    return unflatten(optree.tree_structure(results[0]), values)


def while_loop(test: Callable[[C], bool | Tensor], body: Callable[[C], C], carry: C) -> C:
    """Apply a body while a test holds: ``while test(carry): carry = body(carry)``.

    Under vmap the loop runs until the test fails for the last example; each example keeps the value of its own end.
    In eager it can be differentiated as any Python loop. Under `pn.jit` test and body are compiled once, and there is
    forward mode (`pn.jvp`) only, since the number of steps is not known.

    Args:
        test: of the carry; returns a bool or a tensor with one element.
        body: of the carry; returns one of the same structure, shapes and dtypes.
        carry: the first value, a tree of tensors.

    Raises:
        StructureError: the body's carry is of another kind.
        ArgumentError: the test's tensor has several elements, or it returns neither bool nor tensor.
        GradientError: a reverse-mode gradient under `pn.jit`.

    Example:
        >>> import torch, purenn as pn
        >>> pn.while_loop(lambda x: x < 100, lambda x: x * 2, torch.tensor(3))
        tensor(192)
    """
    require_function("while_loop", test)
    require_function("while_loop", body)
    require_tensors("while_loop", carry)
    if writes_programs() and flatten(carry)[0]:
        return _compiled_while(test, body, carry)
    first = True
    while True:
        going = _decision("while_loop", "what the test returns", test(carry))
        if not _any(going):
            return carry
        new = body(carry)
        if first:
            require_alike("while_loop", carry, new, *_CARRIES)
            first = False
        carry = _where(going, new, carry) if isinstance(going, Tensor) and _is_batched(going) else new


def fori_loop(lower: int | Tensor, upper: int | Tensor, body: Callable[[Tensor, C], C], carry: C) -> C:
    """Apply a body for every number of a range: ``for i in range(lower, upper): carry = body(i, carry)``.

    With Python numbers it is a `scan`, with derivatives of every kind; with tensors a `while_loop`.

    Args:
        lower: the first number.
        upper: the number after the last.
        body: of the number, an int64 tensor with one element, and the carry.
        carry: the first value, a tree of tensors.

    Raises:
        ArgumentError: `lower` or `upper` is no whole number.
        StructureError: the body's carry is of another kind.

    Example:
        >>> import torch, purenn as pn
        >>> pn.fori_loop(1, 5, lambda i, x: x * i, torch.tensor(1))
        tensor(24)
    """
    require_function("fori_loop", body)
    require_tensors("fori_loop", carry)
    for name, bound in (("lower", lower), ("upper", upper)):
        if not (_is_whole(bound) if isinstance(bound, Tensor) else isinstance(bound, int)):
            raise ArgumentError(f"fori_loop: {name} must be a whole number or an integer tensor, got {short(bound)}.")
    leaves, _ = flatten(carry)
    device = leaves[0].device if leaves else None
    if not isinstance(lower, Tensor) and not isinstance(upper, Tensor):
        numbers = torch.arange(lower, max(lower, upper), device=device)

        def step(state: C, i: Tensor) -> tuple[C, None]:
            new = body(i, state)
            require_alike("fori_loop", state, new, *_CARRIES)
            return new, None

        return scan(step, carry, numbers)[0]
    start = lower if isinstance(lower, Tensor) else torch.tensor(lower, device=device)
    start = start.to(torch.int64)
    return while_loop(lambda state: state[0] < upper, lambda state: (state[0] + 1, body(*state)), (start, carry))[1]


def _is_whole(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _compiled_while(test: Callable[[C], bool | Tensor], body: Callable[[C], C], carry: Any) -> C:
    tensors, spec = optree.tree_flatten(carry)

    def tested(*values: Tensor) -> list[Tensor]:
        going = _decision("while_loop", "what the test returns", test(unflatten(spec, values)))
        if isinstance(going, Tensor):
            return [going.to(torch.bool)]
        return [torch.full((), bool(going), device=values[0].device)]

    def stepped(*values: Tensor) -> list[Tensor]:
        before = unflatten(spec, values)
        new: Any = body(before)
        require_alike("while_loop", before, new, *_CARRIES)
        return optree.tree_leaves(new)

    return unflatten(spec, while_tensors(tested, stepped, tensors))


def _where(chosen: Tensor, one: Any, other: Any) -> Any:
    return optree.tree_map(lambda a, b: torch.where(chosen, a, b), one, other)


def _decision(name: str, what: str, value: Any) -> Any:
    # A bool, or a tensor without axes. Numbers, of numpy and of unknown sizes as well, say yes or no too.
    if not isinstance(value, Tensor):
        if value is None or callable(value) or isinstance(value, (str, tuple, list, dict)):
            raise ArgumentError(f"{name}: {what} must be a bool or a tensor with one element, got {short(value)}.")
        return value
    if value.numel() != 1:
        raise ArgumentError(
            f"{name}: {what} must have one element, got {short(value)}. For one decision for each example use pn.vmap, "
            f"for a choice for each element torch.where."
        )
    return value.reshape(())


def _is_batched(value: Tensor) -> bool:
    while is_functorch_wrapped_tensor(value):
        if is_batchedtensor(value):
            return True
        value = get_unwrapped(value)
    return False


def _any(going: bool | Tensor) -> bool:
    # Of a batched value all that are there, whichever transformations batch it.
    while isinstance(going, Tensor) and is_functorch_wrapped_tensor(going):
        going = get_unwrapped(going)
    return bool(going.any()) if isinstance(going, Tensor) else bool(going)


def _require_results(one: Any, other: Any) -> None:
    for result in (one, other):
        leaves, structure = flatten(result)
        for path, leaf in zip(structure.paths, leaves, strict=True):
            if not isinstance(leaf, Tensor):
                raise StructureError(
                    f"cond: the functions must return tensors, but {quoted(path)} is {short(leaf)}: return it as a "
                    f"tensor, or not at all."
                )
    require_alike("cond", one, other, "that of the first", "the result of the second function")
