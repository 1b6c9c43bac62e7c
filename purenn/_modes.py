"""How operations run at the moment: at once on their own data, batched, or written down by a tracer."""

import contextlib
import threading
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils._python_dispatch import _get_current_dispatch_mode, _get_current_dispatch_mode_stack


def is_traced() -> bool:
    """Whether a compiler or another dispatch mode, fake tensors for example, sees operations before they run."""
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


def is_without_values() -> bool:
    """Whether operations run on stand-ins: of the modes that `is_traced` knows, some see values."""
    if torch.compiler.is_compiling():
        return True
    return is_traced() and any(isinstance(mode, _OF_TRACERS) for mode in _get_current_dispatch_mode_stack())


_OF_TRACERS = (FakeTensorMode, ProxyTorchDispatchMode)


class _Nested(threading.local):
    depth = 0


_nested = _Nested()


class differentiated_again:  # noqa: N801  # entered so often that what contextlib makes shows
    """Within this context gradients are taken whose derivatives are asked for, of what is computed here."""

    def __enter__(self) -> None:
        _nested.depth += 1

    def __exit__(self, *_: object) -> None:
        _nested.depth -= 1


def is_differentiated_again() -> bool:
    """Whether such a context is around."""
    return _nested.depth > 0


@contextlib.contextmanager
def nothing_differentiated_again() -> Iterator[None]:
    """Within this context what an outer `differentiated_again` says does not count."""
    before, _nested.depth = _nested.depth, 0
    try:
        yield
    finally:
        _nested.depth = before


def runs_at_once(*tensors: Tensor) -> bool:
    """Whether operations run at once on their own data: nothing traces, and no vmap or grad level is around.

    Args:
        *tensors: what is operated on; with a tensor of a subclass one cannot know.
    """
    if is_traced() or peek_interpreter_stack() is not None:
        return False
    return all(type(tensor) is Tensor for tensor in tensors)


def is_reverse_only(*tensors: Tensor) -> bool:
    """Whether operations run at once, as in `runs_at_once`, and without forward derivatives.

    There an autograd.Function serves that has rules neither for those nor for transformations.
    """
    return forward_ad._current_level < 0 and runs_at_once(*tensors)


def norms_go_wrong() -> bool:
    """Whether torch's kernels for norms may give wrong derivatives of what is computed now.

    Wrong are third derivatives, and derivatives of forward ones. It is not seen how often plain autograd
    differentiates, neither whether an outermost gradient does; a compiler sees nothing at all.
    """
    if torch.compiler.is_compiling():
        return False
    kinds = [level.key() for level in get_interpreter_stack() or ()]
    if TransformType.Jvp in kinds:
        return True
    return _nested.depth + sum(kind in (TransformType.Grad, TransformType.Jvp) for kind in kinds) > 1


def is_plain(*tensors: Tensor) -> bool:
    """Whether operations run at once, as in `runs_at_once`, and are differentiated once at most."""
    return not _nested.depth and runs_at_once(*tensors)


def is_autocast(x: Tensor) -> bool:
    """Whether torch converts what its operations get on this tensor's device."""
    # torch raises where it has no autocast, and its own question for that cannot be compiled in 2.11.
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def without_autocast() -> contextlib.AbstractContextManager[None]:
    """Within this context torch computes in the dtypes that its operations get."""
    devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    return _without_autocast(devices) if devices else contextlib.nullcontext()


@contextlib.contextmanager
def _without_autocast(devices: Iterable[str]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
