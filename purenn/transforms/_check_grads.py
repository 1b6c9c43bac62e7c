"""Checking the derivatives of a function of models against finite differences."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck, gradgradcheck

from purenn.errors import ArgumentError, GradientError
from purenn.transforms._leaves import Problem, problem, tensors_in
from purenn.transforms._operation import differentiable
from purenn.transforms._translate import translated
from purenn.tree._checks import a_or_an
from purenn.tree._walk import short


def check_grads(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    order: int = 2,
    modes: str | tuple[str, ...] = ("reverse", "forward"),
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> None:
    """Compare the derivatives of a function, with respect to all its arguments, with finite differences.

    Args:
        fn: a pure function that returns a tree of floating-point tensors.
        args: a tuple of its arguments, in float64. Leaves that are not differentiated (see `pn.grad`) are constants.
        order: 1 for first derivatives, 2 for second ones as well. Default: 2.
        modes: "reverse", "forward" or both, for the first derivatives. Default: both.
        eps: the step of the differences. Default: 1e-6.
        atol: absolute tolerance. Default: 1e-5.
        rtol: relative tolerance. Default: 1e-3.

    Raises:
        GradientError: a derivative is wrong; the error names the path of the leaf, and the numbers. Or there is no
            floating-point result.
        ArgumentError: `args` is no tuple, an argument is not in float64, or an unknown order or mode.

    Example:
        >>> import torch, purenn as pn
        >>> from purenn.layers import Linear, linear
        >>> p = Linear.init(pn.random.key(0), 3, 2, dtype=torch.float64)
        >>> pn.check_grads(linear, (p, torch.ones(4, 3, dtype=torch.float64)))
    """
    if type(args) is not tuple:
        raise ArgumentError(
            f"check_grads: args must be the tuple of the function's arguments, got {a_or_an(args)}: write "
            f"pn.check_grads(fn, (p, x))."
        )
    if order not in (1, 2):
        raise ArgumentError(f"check_grads: order must be 1 or 2, got {order!r}.")
    chosen = {modes} if isinstance(modes, str) else set(modes)
    if not chosen or not chosen <= {"reverse", "forward"}:
        raise ArgumentError(f"check_grads: modes must be 'reverse', 'forward' or both, got {modes!r}.")
    call = problem("check_grads", fn, args, {}, tuple(range(len(args))))
    paths = _paths(call)
    for path, value in zip(paths, call.values, strict=True):
        if value.dtype not in (torch.float64, torch.complex128):
            raise ArgumentError(
                f"check_grads: {path} is {short(value)}; finite differences need float64: use pn.tree.to(p, "
                f"torch.float64)."
            )

    def flat(*values: Tensor) -> tuple[Tensor, ...]:
        leaves = tensors_in(call.call(values))
        found = tuple([leaves[place] for place in differentiable(leaves)])
        if not found:
            raise GradientError(
                "check_grads: the function returns no floating-point tensor, so nothing can be checked."
            )
        return found

    leaves = [value.detach().clone().requires_grad_() for value in call.values]
    options: dict[str, Any] = {"eps": eps, "atol": atol, "rtol": rtol}
    _run(
        "first",
        paths,
        lambda: gradcheck(
            flat, leaves, check_backward_ad="reverse" in chosen, check_forward_ad="forward" in chosen, **options
        ),
    )
    if order == 2:
        _run("second", paths, lambda: gradgradcheck(flat, leaves, **options))


def _paths(call: Problem) -> list[str]:
    found = []
    for position, argument in zip(call.positions, call.arguments, strict=True):
        for number in argument.chosen:
            path = argument.structure.leaves[number].path
            found.append(f"argument {position}, {path!r}" if path else f"argument {position}")
    return found


def _run(which: str, paths: list[str], check: Callable[[], bool]) -> None:
    try:
        with translated("check_grads"):
            check()
    except GradcheckError as error:
        text = str(error)
        number = re.search(r"with respect to input (\d+)", text)
        where = paths[int(number[1])] if number is not None and int(number[1]) < len(paths) else "an argument"
        mode = "in forward mode" if "forward mode" in text.lower() else "in reverse mode"
        raise GradientError(
            f"check_grads: the {which} derivative with respect to {where}, {mode}, differs from finite "
            f"differences:\n{text}"
        ) from error
