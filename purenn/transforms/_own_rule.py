"""What functions with derivative rules of their own do where they are traced."""

from collections.abc import Sequence

import torch
from torch import Tensor

from purenn._modes import is_traced
from purenn.transforms._lean import is_graph_differentiated
from purenn.transforms._operation import differentiable, requires_grad
from purenn.transforms._program import TRANSFORMABLE, writes_programs
from purenn.transforms._recorded import constant
from purenn.transforms._rule_op import applied, marked


def belongs_to_graph(tensors: Sequence[Tensor]) -> bool:
    """Whether the rule of a function of some tensors has to be a part of the graph that is traced.

    It is where the graph is differentiated later: that of a loop's body, or of a jitted function that is differentiated
    from outside.
    """
    if not writes_programs() or not differentiable(tensors):
        return False
    return is_graph_differentiated() or any(map(requires_grad, tensors))


def ruled(name: str, results: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Results of a function with a derivative rule that cannot be a part of a graph, on the way into one.

    Args:
        name: the function, for the error.
        results: what it returned.
        given: the tensors that it depends on.

    Returns:
        The results. If a graph is traced that somebody may differentiate, its derivative is a `GradientError`.
    """
    if not is_traced() or not (is_graph_differentiated() or any(tensor.requires_grad for tensor in given)):
        return list(results)
    return marked(name, results, given)


TRANSFORMABLE[torch.ops.purenn.constant.default] = constant
TRANSFORMABLE[torch.ops.purenn.ruled.default] = applied
