"""Functions of tensors as graphs of their own: what loops and branches run under `pn.jit`.

A loop's body is traced once, outside of every transformation around the loop, to a graph of aten operations that
closes over nothing. Derivatives and batched forms of the loop are loops over graphs made from that one, and a compiled
graph of the surrounding function calls the compiled body by its name.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from purenn.transforms._graph import write_results
from purenn.transforms._inline import inlined
from purenn.transforms._like import Like
from purenn.transforms._unused import Shorten, drop_unused, with_results
from purenn.tree._watch import is_watched


@attrs.define(eq=False)
class Program:
    """A closed function of contiguous tensors.

    Attributes:
        graph: takes tensors, returns a list of tensors that share no storage with them.
        name: equal for programs that compute the same.
        results: fake tensors like the results.
        kept: for the step of a loop whose gradient may be asked for: which results are kept for it.
        back: then, unless it is computed from the step itself, the program of the gradient.
        compiler: makes a function of tensors from a graph and examples of its arguments.
    """

    graph: fx.GraphModule
    name: str
    results: list[Tensor]
    kept: tuple[int, ...]
    back: "Program | None"
    compiler: Callable[..., Callable[..., Sequence[Tensor]]]
    _compiled: Callable[..., Sequence[Tensor]] | None = None
    _writing: Callable[[Sequence[Tensor], Sequence[Tensor]], Any] | None = None

    @property
    def like(self) -> list[Like]:
        """What its arguments are like."""
        return [Like.of(node.meta["val"]) for node in self.graph.graph.find_nodes(op="placeholder")]

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Run the graph as a part of another trace, where transformations around see what it does."""
        return _Seen(self.graph).run(*tensors)

    def run(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Run the compiled graph. Most programs are steps on the way to others, so it is compiled when first run."""
        if self._compiled is None:
            self._compiled = self._compile(self._lean())
        return self._compiled(*tensors)

    def run_into(self, places: Sequence[Tensor], *tensors: Tensor) -> None:
        """Run the compiled graph, with the results written into given tensors, none of which it reads."""
        if self._writing is None:
            self._writing = self._compile_writing()
        self._writing(places, tensors)

    def part(self, inputs: Sequence[int], results: Sequence[int]) -> "Program":
        """The program of some of the results, which takes some of the arguments: all that those need, at least."""
        graph = with_results(self.graph, results)
        for n, node in enumerate(graph.graph.find_nodes(op="placeholder")):
            if n not in inputs:
                graph.graph.erase_node(node)
        graph.recompile()
        left = [self.results[n] for n in results]
        return registered(graph, f"a part of {self.name}", left, (), None, self.compiler)

    def _compile_writing(self) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Any]:
        if any(result.device.type != "cpu" for result in self.results):
            # Graphs of CUDA calls, which a mode of the compiler makes, must not write into arguments. And what is kept
            # here must not close over the program: tracing looks into all that a function closes over.
            run = self._compile(self._lean())
            copy: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
            return lambda places, tensors: copy(list(places), list(run(*tensors)))
        graph = self._lean()
        write_results(graph)
        compiled = self._compile(graph)
        return lambda places, tensors: compiled(*tensors, *places)

    def _lean(self) -> fx.GraphModule:
        graph = inlined(self.graph, _inlined_at)
        drop_unused(graph, SHORTENED)
        return graph

    def _compile(self, graph: fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
        return self.compiler(graph, [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")])


# By operation, a function of its arguments that transformations can see through.
TRANSFORMABLE: dict[Any, Callable[..., Any]] = {}


# By operation that only derivatives and batches see, which of its arguments names the program to run for its first one.
INLINED: dict[Any, int] = {}


# By operation, a function that makes a shorter call of it; see `drop_unused`.
SHORTENED: dict[Any, Shorten] = {}


def _inlined_at(node: fx.Node) -> fx.GraphModule | None:
    return program(str(node.args[INLINED[node.target]])).graph if node.target in INLINED else None


class _Seen(fx.Interpreter):
    """Runs a graph. An operation's own derivative is for the autograd of compilers, which torch.func cannot use."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # it would become a part of the text of our errors

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        seen: Any = TRANSFORMABLE.get(target, target)
        return super().call_function(seen, args, kwargs)


def called_by(graph: fx.GraphModule) -> dict[str, fx.GraphModule]:
    """By name, the graphs of the programs that a graph calls, and of those that they call."""
    found: dict[str, fx.GraphModule] = {}
    for node in graph.graph.nodes:
        if getattr(node.target, "namespace", None) == "purenn":
            for made in [program(item) for item in node.args if isinstance(item, str) and item in _PROGRAMS]:
                found |= {made.name: made.graph, **called_by(made.graph)}
    return found


# Programs by name. A compiled graph may outlive the function that it was made for, in a graph of autograd for example,
# so they are kept; equal ones are kept once.
_PROGRAMS: dict[str, Program] = {}


def program(name: str) -> Program:
    """The program of a name."""
    return _PROGRAMS[name]


@attrs.frozen(eq=False)
class Tracing:
    """The trace of a jitted function that is being made.

    Attributes:
        mode: of its fake tensors.
        compiler: see `Program`.
        kind: what stands for the compiler in the programs' names.
    """

    mode: FakeTensorMode
    compiler: Callable[..., Any]
    kind: str


class _Current(threading.local):
    tracing: Tracing | None = None


_current = _Current()


def current_tracing() -> Tracing | None:
    """The trace of a jitted function that is being made, if there is one."""
    return _current.tracing


def writes_programs() -> bool:
    """Whether loops and branches become operations now: under `pn.jit`, but where a layer's outputs are watched."""
    return not torch.compiler.is_compiling() and _current.tracing is not None and not is_watched()


@contextlib.contextmanager
def tracing_for(tracing: Tracing) -> Iterator[Tracing]:
    """Within this context loops and branches are traced to programs of `tracing`."""
    before, _current.tracing = _current.tracing, tracing
    try:
        yield tracing
    finally:
        _current.tracing = before


def registered(
    graph: fx.GraphModule,
    kind: str,
    results: list[Tensor],
    kept: tuple[int, ...],
    back: Program | None,
    compiler: Callable[..., Callable[..., Sequence[Tensor]]],
) -> Program:
    """The program of a graph; see its attributes. `kind` is what makes it another one than that of an equal graph."""
    name = _name(graph, kind)
    return _PROGRAMS.setdefault(name, Program(graph, name, results, kept, back, compiler))


def _name(graph: fx.GraphModule, kind: str) -> str:
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    described = [(list(value.shape), str(value.dtype), str(value.device)) for value in inputs]
    return hashlib.sha256(repr((graph.code, described, kind)).encode()).hexdigest()[:16]
