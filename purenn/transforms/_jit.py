"""Compiling a pure function: traced once by running it, compiled as one flat graph, looked up afterwards."""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from torch import Tensor
from torch._C import _autograd as autograd

from purenn._modes import is_plain, without_autocast
from purenn.errors import ArgumentError, TraceError
from purenn.transforms._backend import compiler_of
from purenn.transforms._graph import fake_mode
from purenn.transforms._jit_entry import TENSOR, Entry, resolved
from purenn.transforms._jit_key import Call, Key, described_leaves, guards_for, key_of, ordinal, what_changed
from purenn.transforms._jit_trace import Lowered, traced
from purenn.transforms._program import SHORTENED, Tracing, called_by, tracing_for
from purenn.transforms._translate import translated
from purenn.transforms._unused import drop_unused
from purenn.tree._checks import require_function
from purenn.tree._watch import is_watched

P = ParamSpec("P")
R = TypeVar("R")


class CacheInfo(NamedTuple):
    """What a jitted function has done so far.

    Attributes:
        hits: calls that found a compiled graph.
        misses: calls that had to trace and compile.
        size: compiled graphs that are kept.
    """

    hits: int
    misses: int
    size: int


# Of all jitted functions: torch traces one function at a time.
_TRACING = threading.RLock()
# The attribute by which `assert_max_traces` tells a jitted function its limit; functools.wraps copies it.
_LIMIT = "__max_traces__"


class Jitted(Generic[P, R]):
    """A function made by `jit`."""

    def __init__(
        self,
        fn: Callable[P, R],
        static_argnames: tuple[str, ...],
        donate_argnums: tuple[int, ...],
        backend: str | Callable[..., Any],
        mode: str | None,
    ) -> None:
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._static_argnames = static_argnames
        self._donate_argnums = donate_argnums
        self._backend = backend
        self._mode = mode
        self._signature = _signature_of(fn) if static_argnames else None
        self._entries: list[Entry] = []
        self._hits = self._misses = 0

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if not is_plain() or is_watched():
            return self._fn(*args, **kwargs)
        call = self._split(args, kwargs)
        found = self._found(call)
        if found is None:
            with _TRACING, _without_hooks(), translated("jit"):
                # Another thread may have made the graph in the meantime.
                found = self._found(call) or self._compile(call, *key_of(call))
        entry, tensors = found
        return entry.call(tensors)

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> Lowered:
        """The traced graph for some arguments, readable by ``str``. Nothing is compiled."""
        call = self._split(args, kwargs)
        with _TRACING, _without_hooks(), tracing_for(self._tracing()) as tracing:
            graph = traced(self._run, call, *key_of(call), self._donate_argnums, tracing).graph
        return Lowered(graph, called_by(graph))

    def cache_info(self) -> CacheInfo:
        """How often a compiled graph was found, how often one had to be made, how many are kept."""
        return CacheInfo(self._hits, self._misses, len(self._entries))

    def clear_cache(self) -> None:
        """Forget all compiled graphs."""
        with _TRACING:
            self._entries = []

    def _found(self, call: Call) -> tuple[Entry, list[Tensor]] | None:
        for entry in self._entries:
            tensors = entry.inputs(call)
            if tensors is not None:
                self._hits += 1
                return entry, tensors
        return None

    def _split(self, args: tuple, kwargs: dict[str, Any]) -> Call:
        # With a static argument taken out positions shift, so then everything is passed by name.
        if self._signature is None:
            return Call(args, kwargs, {})
        given = dict(self._signature.bind(*args, **kwargs).arguments)
        statics = {name: given.pop(name) for name in self._static_argnames if name in given}
        for name, value in statics.items():
            try:
                hash(value)
            except TypeError as error:
                raise ArgumentError(
                    f"jit: the static argument '{name}' must be hashable, got a {type(value).__name__}: use a tuple "
                    f"instead of a list, and a tuple of pairs instead of a dict."
                ) from error
        return Call((), given, statics)

    def _tracing(self) -> Tracing:
        backend = self._backend if isinstance(self._backend, str) else f"{self._backend!r}"
        return Tracing(fake_mode(), compiler_of(self._backend, self._mode), f"{backend} {self._mode}")

    def _run(self, args: tuple, kwargs: dict[str, Any], statics: dict[str, Any]) -> Any:
        fn: Callable[..., Any] = self._fn
        if self._signature is None:
            return fn(*args, **kwargs)
        given = {**kwargs, **statics}
        bound = self._signature.bind_partial()
        bound.arguments = {name: given[name] for name in self._signature.parameters if name in given}
        return fn(*bound.args, **bound.kwargs)

    def _compile(self, call: Call, key: Key, tensors: list[Tensor]) -> tuple[Entry, list[Tensor]]:
        described = described_leaves(call)
        limit = getattr(self, _LIMIT, None)
        if limit is not None and self._misses >= limit:
            last = self._entries[0] if self._entries else None
            change = (
                "the cache was cleared"
                if last is None
                else what_changed(last.key, last.described, key, described, call)
            )
            raise TraceError(
                f"jit: {getattr(self._fn, '__name__', 'the function')} is traced for the {ordinal(self._misses + 1)} "
                f"time, assert_max_traces allows {limit}. Changed since the last trace: {change}."
            )
        self._misses += 1
        with tracing_for(self._tracing()) as tracing:
            found = traced(self._run, call, key, tensors, self._donate_argnums, tracing)
            given = [*tensors, *found.constants]
            if not any(tensor.requires_grad for tensor in given):
                drop_unused(found.graph, SHORTENED)
            # Its conversions are in the graph: compiled or run under autocast, that would convert once more.
            with without_autocast():
                run = tracing.compiler(found.graph, list(map(resolved, given)))
        entry = Entry(
            key,
            guards_for(tensors),
            described,
            run,
            found.constants,
            guards_for(found.constants),
            any(tensor.is_conj() or tensor.is_neg() for tensor in given),
            found.apart,
            found.out_spec,
            None if all(leaf is TENSOR for leaf in found.out_leaves) else found.out_leaves,
        )
        self._entries = [entry, *self._entries]
        return entry, tensors


@contextlib.contextmanager
def _without_hooks() -> Iterator[None]:
    # What a trace keeps for its gradients is nobody else's: a recomputation around (`remat`) counts what is kept.
    hooks = []
    while (top := autograd._top_saved_tensors_default_hooks(True)) is not None:
        hooks.append(top)
        autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            autograd._push_saved_tensors_default_hooks(pack, unpack)


def jit(
    fn: Callable[P, R],
    *,
    static_argnames: str | Sequence[str] = (),
    donate_argnums: int | Sequence[int] = (),
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
) -> Jitted[P, R]:
    """Compile a pure function. It is traced by running it once for every kind of arguments.

    A compiled graph is valid for one structure of the arguments (with all static fields and Python numbers in it), for
    the shapes, dtypes, devices, strides and requires_grad of their tensors, and for which of them are the same tensor;
    other arguments are traced anew. Python code runs while tracing only. Tensors that the function closes over are
    passed by reference: new values are seen. Inside another trace or transformation the function is inlined.

    Args:
        fn: the function.
        static_argnames: names of arguments that are part of the key instead of being traced; they must be hashable.
        donate_argnums: positional arguments whose storage may be reused for results of the same shape and dtype. After
            the call their tensors hold those results.
        backend: "inductor" compiles; "eager" runs the traced operations by torch's own kernels, without the Python
            around them and without repeated views, and with results where operands were that nobody needs any more:
            nothing is compiled. Or another backend of torch.compile, such as "aot_eager", or a function of a graph and
            inputs.
        mode: of inductor: "reduce-overhead" (CUDA graphs), "max-autotune"; None for its default.

    Returns:
        The compiled function, with ``lower``, ``cache_info`` and ``clear_cache``.

    Raises:
        ArgumentError: options that do not fit the function; an unknown backend or mode, when called.
        TraceError: when called: the function depends on values while it is traced.
        MutationError: when called: the function writes into an argument.

    Example:
        >>> import torch, purenn as pn
        >>> f = pn.jit(lambda p, x: {"y": p["w"] * x}, backend="eager")
        >>> f({"w": torch.tensor(2.0)}, torch.tensor(3.0))
        {'y': tensor(6.)}
        >>> f.cache_info()
        CacheInfo(hits=0, misses=1, size=1)
    """
    require_function("jit", fn)
    names = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)
    numbers = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    if not all(isinstance(number, int) for number in numbers):
        raise ArgumentError(
            f"jit: donate_argnums must be numbers of positional arguments, got {donate_argnums!r}; arguments have "
            f"numbers, not names."
        )
    if names:
        known = _signature_of(fn).parameters
        for name in names:
            if name not in known:
                raise ArgumentError(
                    f"jit: static_argnames has '{name}', but the function's arguments are {', '.join(known) or 'none'}."
                )
        if numbers:
            raise ArgumentError(
                "jit: give static_argnames or donate_argnums, not both; bind static values with a lambda."
            )
    if mode is not None and backend != "inductor":
        raise ArgumentError(f"jit: mode={mode!r} is an option of the backend 'inductor', got backend={backend!r}.")
    return Jitted(fn, names, numbers, backend, mode)


def _signature_of(fn: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(fn)
    except ValueError as error:
        name = getattr(fn, "__name__", fn)
        raise ArgumentError(
            f"jit: static_argnames cannot be found in {name}, which does not name its arguments: jit a function of "
            f"yours that calls it."
        ) from error


def assert_max_traces(n: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that makes a jitted function fail when it is traced more than `n` times, saying what has changed.

    It goes above or below `jit`.
    """
    if not isinstance(n, int) or n < 1:
        raise ArgumentError(f"assert_max_traces: n must be an int of at least 1, got {n!r}.")

    def limit(fn: Callable[P, R]) -> Callable[P, R]:
        setattr(fn, _LIMIT, n)
        return fn

    return limit
