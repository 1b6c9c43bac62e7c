"""Results whose derivative is a rule of their own, in a graph that knows nothing of rules.

A traced graph holds what a function has computed, so a gradient of the graph would be that of the computation, whatever
rule there was. There the results go through an operation that says so instead of giving another derivative.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, library

from purenn._modes import is_traced
from purenn.errors import GradientError
from purenn.transforms._operation import LIBRARY
from purenn.transforms._program import writes_programs


def ruled(name: str, results: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Results of a function with a derivative rule, on the way into a graph.

    Args:
        name: the function, for the error.
        results: what it returned.
        given: the tensors that it depends on.

    Returns:
        The results. If a graph is traced that somebody may differentiate, its derivative is a `GradientError`.
    """
    if not is_traced() or not (writes_programs() or any(tensor.requires_grad for tensor in given)):
        return list(results)
    inputs = [tensor for tensor in given if tensor.is_floating_point() or tensor.is_complex()]
    return [torch.ops.purenn.ruled(x, inputs, name) if x.is_floating_point() or x.is_complex() else x for x in results]


def _copied(x: Tensor, given: list[Tensor], name: str) -> Tensor:
    return x.clone()


def _batched(info: Any, in_dims: tuple, x: Tensor, given: list[Tensor], name: str) -> tuple[Tensor, int | None]:
    return torch.ops.purenn.ruled(x, given, name), in_dims[0]


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.name = inputs[2]


def _refuse(ctx: Any, gradient: Tensor) -> NoReturn:
    raise GradientError(
        f"{ctx.name}: a compiled function that uses this one is differentiated from outside, but the rule is not in "
        f"the compiled graph: compile the gradient instead, pn.jit(pn.grad(f))."
    )


LIBRARY.define("ruled(Tensor x, Tensor[] given, str name) -> Tensor")
LIBRARY.impl("ruled", _copied, "CompositeExplicitAutograd")
library.register_fake("purenn::ruled", lambda x, given, name: torch.empty_like(x), lib=LIBRARY)
library.register_vmap("purenn::ruled", _batched, lib=LIBRARY)
library.register_autograd("purenn::ruled", _refuse, setup_context=_remember, lib=LIBRARY)
