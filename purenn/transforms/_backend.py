"""Compilers of traced graphs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._functorch import config as functorch_config
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from purenn.errors import ArgumentError
from purenn.random._philox import draws_in
from purenn.transforms._by_operation import by_operation
from purenn.transforms._one_source import has_many_loops
from purenn.transforms._products import options_for_products
from purenn.transforms._program import called_by

# Every operation rounds by itself and quotients are right to the last bit, as in eager: on GPUs, a compiler that fuses
# products with sums and takes quotients from approximate reciprocals would change the last bits of draws.
_EXACT = {"emulate_precision_casts": True, "eager_numerics.division_rounding": True}


def compiler_of(backend: str | Callable[..., Any], mode: str | None) -> Callable[..., Any]:
    """What makes a function of tensors from a graph and examples of its arguments, for a backend of torch.compile."""
    if callable(backend):
        return backend
    if backend == "eager":
        return by_operation
    if backend != "inductor":
        import torch._dynamo as dynamo

        if backend not in dynamo.list_backends(exclude_tags=()):
            raise ArgumentError(
                f"jit: backend must be 'inductor', 'aot_eager', 'eager' or another of torch.compile's, got {backend!r}."
            )
        return dynamo.lookup_backend(backend)
    import torch._inductor as inductor

    known = inductor.list_mode_options()
    if mode is not None and mode not in known:
        raise ArgumentError(f"jit: mode must be None or one of {', '.join(map(repr, known))}, got {mode!r}.")
    # The cache's guards have checked sizes and strides before: a second time costs a third of a call of many leaves.
    options = {"size_asserts": False, **({} if mode is None else inductor.list_mode_options(mode))}

    def compiler(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        if any(tensor.layout != torch.strided for tensor in inputs):
            raise ArgumentError(
                "jit: inductor compiles functions of dense tensors, and one that is used here is sparse: pass "
                "x.to_dense(), or use backend='aot_eager'."
            )
        # On the CPU inductor would give convolutions a layout of their own, and everything between them slow loops.
        cpu = all(tensor.device.type == "cpu" for tensor in inputs)
        plain = cpu and mode is None and not any(tensor.requires_grad for tensor in inputs)
        own = {
            "layout_optimization": not cpu,
            "cpp_wrapper": plain and has_many_loops(graph),
            **(options_for_products() if cpu and mode is None else {}),
            **(_EXACT if draws_in(graph) else {}),
        }
        with _cached(inputs) as examples, _backward_is_traced(graph, inputs):
            compiled: Any = inductor.compile(graph, examples, options={**own, **options})
        return compiled

    return compiler


@contextlib.contextmanager
def _backward_is_traced(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Iterator[None]:
    # A backward graph that is found on disk names programs that only its trace writes.
    if called_by(graph) and any(tensor.requires_grad for tensor in inputs):
        with functorch_config.patch(enable_autograd_cache=False):
            yield
    else:
        yield


@contextlib.contextmanager
def _cached(inputs: Sequence[Tensor]) -> Iterator[list[Any]]:
    # Inductor looks a graph up in its cache on disk only where there are symbols for unknown sizes, if unused ones.
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
    with mode:
        # Sizes of real tensors would become symbols, and every call would say so of each of its results.
        examples: list[Any] = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
            if isinstance(x, FakeTensor)
            else mode.from_tensor(x, static_shapes=True)
            for x in inputs
        ]
    with tracing(TracingContext(mode)):
        yield examples
