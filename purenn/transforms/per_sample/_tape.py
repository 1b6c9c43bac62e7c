"""The recording of one forward pass: which operation has used which parameter, with which input.

The loss of a single example runs under vmap, for the forward pass alone. A rule looks below vmap, at the tensors of all
examples at once, computes the operation in the ordinary way, and keeps the input and the place of the output in the
graph. One backward pass then yields the gradients at all these places; no gradient of a parameter is computed in it.
"""

import functools
import inspect
import math
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch._functorch.vmap import lazy_load_decompositions  # pyright: ignore[reportPrivateImportUsage]
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode

from purenn.errors import MutationError
from purenn.transforms._batch import Batch
from purenn.transforms._lean import pulled_back, reaches_others
from purenn.transforms.per_sample._handle import EscapedError, Handle, Node, handles_in, operands, replaced
from purenn.transforms.per_sample._part import Copies, Part

Rule = Callable[..., Any]
#: What a use contributes, once the gradient of the operation's output is known.
Pull = Callable[[Tensor], list[tuple[Node, Part]]]

# Once they are loaded they stay.
_load_decompositions = functools.cache(lazy_load_decompositions)
RULES: dict[Any, Rule] = {}
#: Rules for operations that need not have a parameter among their arguments.
PHYSICAL_RULES: dict[Any, Rule] = {}


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Register a rule ``rule(tape, *args, **kwargs)`` for some functions; it may return `NotImplemented`."""

    def register(own: Rule) -> Rule:
        RULES.update(dict.fromkeys(functions, own))
        return own

    return register


class Tape:
    """What one forward pass has recorded.

    Attributes:
        paths: of all parameters, for errors.
        nodes: of the parameters, in the order of `paths`.
        leaves: where graphs end that have been recorded.
        examples: how many there are; known once the forward pass runs.
        level: of the vmap that the loss runs in.
    """

    def __init__(self, paths: list[str], values: list[Tensor]) -> None:
        self.paths = paths
        self.leaves: list[Tensor] = []
        self.nodes = [Node(self, value, n) for n, value in enumerate(values)]
        self.computed: list[Node] = []
        self.examples, self.level = 0, 0
        self._edges: list[GradientEdge] = []
        self._pulls: list[Pull] = []
        self._inputs: list[tuple[Tensor, int, Node]] = []
        self._computed_versions: list[tuple[Tensor, int]] = []

    def losses(self, fn: Callable[..., Tensor], batch: Batch) -> Tensor:
        """The loss of every example, recorded: what `pn.vmap` does, for a single number.

        Args:
            fn: the loss of one example.
            batch: its arguments.
        """
        _load_decompositions()
        self.examples, self.level = batch.size, functorch._vmap_increment_nesting(batch.size, "error")
        try:
            pairs = zip(batch.leaves, batch.dims, strict=True)
            leaves = [x if dim is None else functorch._add_batch_dim(x, dim, self.level) for x, dim in pairs]
            losses = functorch._remove_batch_dim(batch.call(fn, leaves), self.level, batch.size, 0)
            # One that does not depend on the example comes as one number seen many times: make it many.
            return losses.contiguous()
        finally:
            functorch._vmap_decrement_nesting()

    def physical(self, x: Any) -> Tensor | None:
        """The tensor of all examples, ``[examples, *shape]``; None if it is the same for all, or no such tensor."""
        if not isinstance(x, Tensor) or functorch.maybe_get_level(x) != self.level:
            return None
        axis, whole = functorch.maybe_get_bdim(x), functorch.get_unwrapped(x)
        return whole if axis == 0 else whole.movedim(axis, 0)

    def batched(self, x: Tensor) -> Tensor:
        """The inverse of `physical`."""
        return functorch._add_batch_dim(x, 0, self.level)

    def differs(self, x: Any) -> bool:
        """Whether a tensor may differ from example to example."""
        return functorch.is_functorch_wrapped_tensor(x)

    def use(self, out: Tensor, used: Tensor, node: Node, pull: Pull, seen: Tensor | None = None) -> Tensor:
        """Record that an operation has used a parameter.

        Args:
            out: the physical output.
            used: the physical input that `pull` needs.
            node: what was used.
            pull: called with the gradient of `out`.
            seen: a view of `out` in the shape in which the loss sees it; `out` itself by default.

        Returns:
            The output as the loss sees it.
        """
        if out._is_view():
            # A write in place into a view would lead the graph around the place that is noted.
            out = torch.ops.aten._unsafe_view(out, out.shape)
        if out.requires_grad:
            self._note(out, pull, node)
            self._inputs.append((used, used._version, node))
        return self.batched(out if seen is None else seen)

    def watch_copies(self, node: Node, copies: Tensor) -> None:
        """Record that the copies of a parameter, one for each example, are used."""
        self._note(copies, lambda gradient: [(node, Copies(gradient))], node)

    def _note(self, out: Tensor, pull: Pull, node: Node) -> None:
        assert out.grad_fn is not None
        self._edges.append(GradientEdge(out.grad_fn, out.output_nr))
        self._pulls.append(pull)
        if node.leaf is None:
            self._computed_versions.append((node.value, node.value._version))

    def operation(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The result of an operation that has handles among its arguments."""
        if functorch.maybe_current_level() != self.level and self._is_differentiated():
            raise EscapedError(f"per_sample.record: {func} uses a parameter inside of a derivative.")
        if not _are_complex(args, kwargs):  # gradients of complex numbers have conjugates, which no rule knows
            out = _by_rule(RULES, self, func, args, kwargs)
            if out is not NotImplemented:
                return out
        if any(self.differs(x) for x in operands((args, kwargs))):
            opened = _opened(func)
            if opened is not None:
                return opened(*args, **kwargs)
            args, kwargs = replaced((args, kwargs), lambda x: x.node.copies() if isinstance(x, Handle) else x)
            out = _by_rule(PHYSICAL_RULES, self, func, args, kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        return self._computed(func, args, kwargs)

    def _is_differentiated(self) -> bool:
        within = [level for level in functorch.get_interpreter_stack() or () if level.level() > self.level]
        return any(level.key() != functorch.TransformType.Vmap for level in within)

    def _computed(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        # An operation on parameters and constants: once, not once for every example.
        handles = list(handles_in((args, kwargs)))
        live = replaced((args, kwargs), lambda x: x.node.source if isinstance(x, Handle) else x)
        results = func(*live[0], **live[1])
        several = isinstance(results, (tuple, list))
        made = [
            self._as_handle(out, n, func, handles, args, kwargs)
            for n, out in enumerate(results if several else (results,))
        ]
        if not several:
            return made[0]
        return type(results)(made) if type(results) in (tuple, list) else type(results)(*[made])

    def _as_handle(self, out: Any, position: int, func: Any, handles: list[Handle], args: tuple, kwargs: dict) -> Any:
        if not isinstance(out, Tensor) or not out.requires_grad:
            return out
        same = next((handle for handle in handles if handle.node.source is out), None)
        if same is not None:
            return same
        if out.grad_fn is None and out._is_view():
            return out.detach()  # made where no gradients are recorded
        base = replay = None
        if len(handles) == 1 and _is_part(out, handles[0].node.source):
            (handle,) = handles
            base = handle.node if handle.node.leaf is not None else handle.node.base
            replay = self._replay(position, func, handle, args, kwargs) if base is not None else None
        node = Node(self, out, None, base, replay)
        self.computed.append(node)
        return Handle(node)

    def _replay(
        self, position: int, func: Any, handle: Handle, args: tuple, kwargs: dict
    ) -> Callable[[Tensor], Tensor]:
        before = handle.node.replay

        def replay(whole: Tensor) -> Tensor:
            start = whole if before is None else before(whole)
            own, named = replaced((args, kwargs), lambda x: start if isinstance(x, Handle) else x)
            result = func(*own, **named)
            return result[position] if isinstance(result, (tuple, list)) else result

        return replay

    def is_left_by(self, losses: Tensor) -> bool:
        """Whether a graph holds another tensor, whose graph somebody wants, or a parameter in a way not recorded."""
        ours = [node.source for node in self.nodes] if self.computed else []
        return reaches_others([losses], self.leaves) or reaches_others([node.source for node in self.computed], ours)

    def backward(self, losses: Tensor) -> None:
        """Give every node the parts of its per-example gradient.

        Args:
            losses: of all examples.

        Raises:
            MutationError: the loss has changed the input of an operation afterwards.
            EscapedError: it has changed what is computed from parameters, between two uses.
        """
        if any(value._version != version for value, version in self._computed_versions):
            raise EscapedError("per_sample.record: what is computed from parameters is written to after its use.")
        for used, version, node in self._inputs:
            if used._version != version:
                raise MutationError(
                    f"per_sample.record: the function writes in place into the input of an operation with "
                    f"{self.name(node)}, which the gradient needs. Write `y = f(x)` into a new name instead of "
                    f"changing x in place."
                )
        if not losses.requires_grad or not self._edges:
            return
        gradients = pulled_back([losses], [torch.ones_like(losses)], self._edges, recorded=False)
        pulls = self._pulls
        self._edges, self._pulls, self._inputs = [], [], []
        for gradient, pull in zip(gradients, pulls, strict=True):
            if gradient is not None:
                for node, part in pull(gradient):
                    node.parts.append(part)

    def close(self) -> None:
        """Let go of all nodes, which know their tape: a cycle would keep the tensors until the next collection."""
        for node in (*self.nodes, *self.computed):
            node.forget()
        self.nodes, self.computed, self.leaves, self._edges, self._pulls, self._inputs = [], [], [], [], [], []
        self._computed_versions = []

    def name(self, node: Node) -> str:
        """The path of a node's parameter, for errors."""
        while node.base is not None:
            node = node.base
        return "a parameter" if node.leaf is None else f"'{self.paths[node.leaf]}'"


class Watching(TorchFunctionMode):
    """Shows a tape the operations on parameters, and those that matter without one."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """The result by the rule, if there is one."""
        kwargs = kwargs or {}
        if Handle in types:
            return self._tape.operation(func, args, kwargs)
        out = _by_rule(PHYSICAL_RULES, self._tape, func, args, kwargs)
        return func(*args, **kwargs) if out is NotImplemented else out


def _are_complex(args: tuple, kwargs: dict[str, Any]) -> bool:
    values = (x.node.value if isinstance(x, Handle) else x for x in operands((args, kwargs)))
    return any(value.is_complex() for value in values)


def _by_rule(rules: dict[Any, Rule], tape: Tape, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    own = rules.get(func)
    if own is None:
        return NotImplemented
    fewest, most, names = _arguments_of(own)
    # Functions that share a rule name their arguments in several ways, and errors are for torch to tell.
    if not fewest <= len(args) + len(kwargs) or len(args) > most or (names is not None and not kwargs.keys() <= names):
        return NotImplemented
    return own(tape, *args, **kwargs)


@functools.cache
def _arguments_of(own: Rule) -> tuple[int, float, set[str] | None]:
    # How many a rule must have besides the tape, how many it takes by position, and the names it knows; None for any.
    given = list(inspect.signature(own).parameters.values())[1:]
    kinds = [x.kind for x in given]
    ordinary = [x for x in given if x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)]
    fewest = sum(x.default is x.empty for x in ordinary)
    most = math.inf if inspect.Parameter.VAR_POSITIONAL in kinds else sum(x.kind != x.KEYWORD_ONLY for x in ordinary)
    return fewest, most, None if inspect.Parameter.VAR_KEYWORD in kinds else {x.name for x in ordinary}


def _is_part(view: Tensor, whole: Tensor) -> bool:
    # Whether it is a view that has no element of the other twice: then both have the same norms of gradients. A view of
    # an intermediate result, as some functions return one, is none; nor is one by addresses, which differ in copies.
    if view.grad_fn is not None and view.grad_fn.name() == "AsStridedBackward0":
        return False
    if not view._is_view() or view._base is not (whole if whole._base is None else whole._base):
        return False
    reach = 0
    for step, size in sorted(zip(view.stride(), view.shape, strict=True)):
        if size > 1 and step <= reach:
            return False
        reach += step * (size - 1)
    return True


_QUESTIONS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


@functools.lru_cache(maxsize=256)
def _opened(func: Any) -> Callable[..., Any] | None:
    """A function of torch that is written in Python, without its first question whether a subclass wants to take over.

    So its own operations are recorded, each by its rule. None for all other functions.
    """
    if not isinstance(func, types.FunctionType) or func.__module__ not in ("torch.nn.functional", "torch.functional"):
        return None
    if func.__closure__ or not set(func.__code__.co_names) & set(_QUESTIONS):
        return None
    space = {**func.__globals__, **dict.fromkeys(_QUESTIONS, lambda *_: False)}
    opened = types.FunctionType(func.__code__, space, func.__name__, func.__defaults__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened
