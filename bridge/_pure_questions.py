"""Questions about the values of tensors: who may ask them where there are no values, and what the answer is.

Under `vmap` a tensor stands for many values, while tracing for none, so code cannot branch on them. Some helpers ask
only to take a short cut. For them there is an answer that is always right, namely that the short cut cannot be taken.
"""

from collections.abc import Callable, Mapping
from sys import _getframe
from types import CodeType, FrameType
from typing import Any

from torch import nn

from bridge._pure_replaced import Replacement, replacing
from bridge._pure_values import common_value
from purenn.errors import ArgumentError, BatchingError, GradientError, PurennError

# What a function is told when it asks for the truth of a tensor without values.
_ANSWERS: dict[CodeType, Any] = {
    nn.modules.transformer._detect_is_causal_mask.__code__: False,
    # Asks for the number of batches, for which the normalisation then uses the tensor itself.
    nn.modules.batchnorm._BatchNorm.forward.__code__: 1.0,
    nn.modules.batchnorm.SyncBatchNorm.forward.__code__: 1.0,
}
# In torch's errors about what depends on values.
_BY_VALUE = ("dynamic shape", "differently shaped", ".item()")
# How far above the question its asker may be.
_FRAMES = 8


def register_helper(path: str, *, traced: Callable[..., Any]) -> None:
    """Say what a library's helper returns while it is applied purely and values of tensors may not be looked at.

    Libraries have functions that look at the values of a tensor, to skip a mask that masks nothing, for example, and
    others that say whether that is possible, because a graph is being traced. While a module that `from_module` has
    made a container of runs in `vmap`, in a gradient or under `pn.jit`, the helper is replaced in the calling thread,
    and only there.

    Args:
        path: module and name of the helper, as ``"package.module.function"``. The module need not be imported yet.
        traced: what to call in its place, with the same arguments.

    Raises:
        ArgumentError: `path` has no dot, or `traced` is no function.

    Example:
        >>> import bridge
        >>> bridge.register_helper("somepackage.masks.is_tracing", traced=lambda *args: True)
    """
    if "." not in path:
        raise ArgumentError(f"register_helper: path must be 'package.module.function', got {path!r}.")
    if not callable(traced):
        raise ArgumentError(f"register_helper: traced must be a function, got {traced!r}.")
    owner, _, name = path.rpartition(".")
    replacing(Replacement(owner, name, lambda original: traced))


def answer(kind: str, tensors: tuple[Any, ...], paths: Mapping[int, str]) -> Any:
    """The answer to ``bool(tensor)``, for a tensor that stands for many values or none.

    It is one that the asking function is content with, or else the value, if that is the same for all examples.

    Args:
        kind: the question, for errors.
        tensors: what is asked about.
        paths: the running modules' names by their ids, for errors.

    Raises:
        BatchingError: the asking function needs to know.
    """
    frame: FrameType | None = _getframe(2)
    for _ in range(_FRAMES):
        if frame is None:
            break
        if frame.f_code in _ANSWERS:
            return _ANSWERS[frame.f_code]
        frame = frame.f_back
    value = common_value(tensors[0]) if len(tensors) == 1 else None
    if value is not None:
        return value
    raise BatchingError(
        f"{running(paths)} looks at the value of a tensor by {kind}(), but under vmap a tensor stands for many values "
        f"and while tracing for none. Compute both cases and choose with torch.where; for a helper of a library that "
        f"only takes a short cut, see bridge.register_helper."
    )


def explained(error: RuntimeError, function: str, paths: Mapping[int, str]) -> PurennError | None:
    """What to raise in the place of an error of torch about values under vmap or gradients within; None for others."""
    text = str(error)
    if text.startswith("You are attempting to call Tensor.requires_grad_()"):
        return GradientError(
            f"{running(paths)} differentiates by requires_grad_ and autograd, which torch's transformations cannot "
            f"see. Within the module, use torch.func.grad or torch.func.vjp."
        )
    if not text.startswith("vmap:") or not any(part in text for part in _BY_VALUE):
        return None
    return BatchingError(
        f"{running(paths)} calls {function}, whose result has a shape that depends on the values of a tensor, or which "
        f"looks at them. Under vmap a tensor stands for many values: compute all cases and choose with torch.where."
    )


def running_module(paths: Mapping[int, str]) -> nn.Module | None:
    """The innermost of some modules whose code is running, None if it is none of them."""
    frame: FrameType | None = _getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and id(module) in paths:
            return module
        frame = frame.f_back
    return None


def running(paths: Mapping[int, str]) -> str:
    """The same as errors name it."""
    module = running_module(paths)
    name = "" if module is None else paths[id(module)]
    return f"'{name}' ({type(module).__name__})" if name else f"the module ({type(module).__name__})"
