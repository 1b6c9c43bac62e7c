"""Functions of tensors as graphs of their own: what loops and branches run under `pn.jit`.

A loop's body is traced once, outside of every transformation around the loop, to a graph of aten operations that
closes over nothing. Derivatives and batched forms of the loop are loops over graphs made from that one, and a compiled
graph of the surrounding function calls the compiled body by its name.
"""

import contextlib
import hashlib
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, fx
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

from purenn.errors import GradientError, TraceError
from purenn.transforms._captured import rebuilt
from purenn.transforms._graph import fake_mode, graph_of, lift_constants, refuse_mutations, write_results
from purenn.transforms._inline import inlined
from purenn.transforms._lean import graph_is_differentiated
from purenn.transforms._like import Like
from purenn.transforms._recorded import EscapedError, Recorded
from purenn.transforms._rule_op import LostRuleError, marked_if_foreign
from purenn.transforms._translate import place
from purenn.transforms._untraceable import explained
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
        name = _name(graph, f"a part of {self.name}")
        return _once(Program(graph, name, [self.results[n] for n in results], (), None, self.compiler))

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


def _tracing() -> Tracing:
    # Without a trace an operation itself is differentiated, in a graph that no compiler has changed.
    return _current.tracing or Tracing(fake_mode(), lambda graph, _: graph, "as it is")


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


def close(
    name: str,
    fn: Callable[..., Sequence[Tensor]],
    like: Sequence[Like],
    *,
    kept: tuple[int, ...] = (),
    back: Program | None = None,
    is_body: bool = False,
) -> tuple[Program, list[Tensor]]:
    """Trace a function of tensors to a program.

    Args:
        name: of the transformation, for errors.
        fn: the function; it may close over tensors at any level of transformation.
        like: what its arguments are like.
        kept: see `Program`.
        back: see `Program`.
        is_body: whether it is the user's, and may have derivative rules that a graph would lose.

    Returns:
        The program, which takes the arguments and then what the function closes over; and the latter.
    """
    tracing = _tracing()
    outer: list[Tensor] = []
    places: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        # Only tensors of transformations around: others are found in the graph, as constants.
        if is_functorch_wrapped_tensor(tensor) and id(tensor) not in places:
            places[id(tensor)] = len(outer)
            outer.append(tensor)
        return tensor

    rebuilt(fn, note, {})
    closed = fn
    given_like = [*like, *map(Like.of, outer)]

    def flat(*tensors: Tensor) -> list[Tensor]:
        own, given = tensors[: len(like)], tensors[len(like) :]
        inner = rebuilt(closed, lambda t: given[places[id(t)]] if id(t) in places else t, {}) if outer else closed
        results = marked_if_foreign(list(inner(*own)), tensors)
        # A result that is an argument, or a view of one, would share storage with it from step to step.
        inputs = {StorageWeakRef(tensor.untyped_storage()) for tensor in tensors}
        seen: set[StorageWeakRef] = set()
        for number, result in enumerate(results):
            storage = StorageWeakRef(result.untyped_storage())
            if storage in inputs or storage in seen:
                results[number] = result.clone(memory_format=torch.contiguous_format)
            else:
                results[number] = result.contiguous()
                seen.add(storage)
        return results

    with _found(name), explained(name), graph_is_differentiated(), _outside(tracing):
        examples = [tensor.example(differentiated=is_body) for tensor in given_like]
        with Recorded():
            graph = graph_of(flat, examples, torch.ops.purenn.constant.default)
    constants = lift_constants(graph)
    labels = [f"its argument {number}" for number in range(len(like))]
    refuse_mutations(name, graph, [*labels, *["a tensor that it closes over"] * (len(outer) + len(constants))])
    returned: Any = graph.graph.output_node().args[0]
    results = [node.meta["val"] for node in returned]
    kind = f"{tracing.kind} {kept} {back.name if back else None}"
    made = Program(graph, _name(graph, kind), results, kept, back, tracing.compiler)
    return _once(made), [*outer, *constants]


def _once(made: Program) -> Program:
    return _PROGRAMS.setdefault(made.name, made)


def has_no_gradient(node: fx.Node) -> bool:
    """Whether a value in a graph is one of an operation's results that never has a gradient: a norm's statistics."""
    if node.target is not operator.getitem:
        return False
    whole: Any = node.args[0]

    def example(given: fx.Node) -> Any:
        value = given.meta["val"]
        return Like.of(value).example(differentiated=True) if isinstance(value, Tensor) else value

    with _outside(_tracing()), torch.enable_grad():
        results = whole.target(*fx.map_arg(whole.args, example), **fx.map_arg(whole.kwargs, example))
    part = results[node.args[1]]
    return Like.of(part).is_differentiable and not part.requires_grad


@contextlib.contextmanager
def _outside(tracing: Tracing) -> Iterator[None]:
    with temporarily_clear_interpreter_stack(), _disable_current_modes(), tracing.mode:
        yield


@contextlib.contextmanager
def _found(name: str) -> Iterator[None]:
    try:
        yield
    except LostRuleError as error:
        raise GradientError(
            f"{name}: the body uses {error}, which has a derivative rule of its own, and a compiled loop's gradient is "
            f"that of the traced body, which does not know it. Write the rule with pn.custom_vjp or pn.custom_jvp, "
            f"which graphs know, write the loop in Python, or do not compile it."
        ) from None
    except (RuntimeError, EscapedError) as error:
        if not isinstance(error, EscapedError) and "escaped from inside a function being vmapped" not in str(error):
            raise
        raise TraceError(
            f"{name}: the body reaches a tensor of a transformation around it through a global variable or an object's "
            f"attribute, where it cannot be found{place(error)}. Pass it as a part of the carry, or refer to it by a "
            f"local variable of the surrounding function."
        ) from error


def _name(graph: fx.GraphModule, kind: str) -> str:
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    described = [(list(value.shape), str(value.dtype), str(value.device)) for value in inputs]
    return hashlib.sha256(repr((graph.code, described, kind)).encode()).hexdigest()[:16]
