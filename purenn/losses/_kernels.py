"""When torch's fused kernels of losses may serve."""

from torch import Tensor

from purenn._kernels import may_use_kernels


def may_fuse(prediction: Tensor, target: Tensor, *weights: Tensor | None) -> bool:
    """Whether nothing transforms or traces, there are values, and no weight, which has no derivative, requires one."""
    for weight in weights:
        if weight is not None and weight.requires_grad:
            return False
    return may_use_kernels(prediction, target) and not prediction.is_meta
