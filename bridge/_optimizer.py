"""Optimisers of torch.optim as pure functions of trees."""

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from purenn._modes import is_traced
from purenn.errors import ArgumentError, BridgeError, TransformError
from purenn.optim import GradientTransformation
from purenn.optim._aligned import Aligned
from purenn.tree import HOLE, container, named_leaves, partition
from purenn.tree._checks import a_or_an
from purenn.tree._walk import flatten, quoted

_REFUSED = {
    torch.optim.LBFGS: "it computes the loss again within a step: train a module from bridge.to_module with it",
    torch.optim.SparseAdam: "gradients of trees are dense: use torch.optim.Adam",
}


@container
class TorchState:
    """State of an optimiser made by `optimizer`.

    Attributes:
        count: number of steps done, an int64 scalar.
        slots: what the optimiser keeps, by its own names (``exp_avg``, ``momentum_buffer``, ``step``): trees like the
            trained parameters, with holes for those that lack it. Most optimisers have none before the first step.
    """

    count: Tensor
    slots: dict[str, Any]


def optimizer(cls: type[torch.optim.Optimizer], **options: Any) -> GradientTransformation:
    """An optimiser class of torch as pure functions: ``init(params)`` and ``update(grads, state, params)``.

    The class's own code runs on copies of the parameters and of its state, so the numbers are the very same: bit for
    bit those of `step`, and as differences those of `update`. Frozen leaves and buffers stay as they are. Every class
    will do whose state is in its ``state_dict``, torch's and others. Those of torch are in `pn.optim` as well, with the
    same numbers, where they can also be batched and compiled.

    Args:
        cls: the class, `torch.optim.AdamW` for instance.
        **options: what its constructor takes besides the parameters. A function is a schedule: it is called with the
            number of steps done. With ``differentiable=True``, where the class has it, steps can be differentiated.

    Returns:
        The optimiser. For options that differ between leaves use `pn.optim.multi_transform`.

    Raises:
        BridgeError: `cls` is no optimiser class, or one that cannot be a pure function (LBFGS, SparseAdam).
        ArgumentError: when it runs: the class refuses its options or the parameters, the state is that of something
            else, a leaf requires grad but the optimiser is not differentiable, or it keeps state in its parameter
            groups.
        TransformError: when it runs: within a transformation or a compiled function.

    Example:
        >>> import torch, bridge, purenn as pn
        >>> from purenn.layers import Linear
        >>> p = Linear.init(pn.random.key(0), 3, 2)
        >>> adamw = bridge.optimizer(torch.optim.AdamW, lr=1e-3)
        >>> grads = pn.grad(lambda p: p(torch.ones(3)).sum())(p)
        >>> p, state = adamw.step(p, grads, adamw.init(p))
        >>> sorted(state.slots)
        ['exp_avg', 'exp_avg_sq', 'step']
    """
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        got = f"the class {cls.__name__}" if isinstance(cls, type) else a_or_an(cls)
        raise BridgeError(f"optimizer takes a class of optimisers, such as torch.optim.AdamW, got {got}.")
    for refused, reason in _REFUSED.items():
        if issubclass(cls, refused):
            raise BridgeError(f"optimizer: {cls.__name__} cannot be a pure function: {reason}.")
    made = _Pure(cls, options)
    return GradientTransformation(made.init, made.update, made.step)


@attrs.frozen
class _Pure:
    cls: type[torch.optim.Optimizer]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.cls.__name__

    @property
    def differentiable(self) -> bool:
        return bool(self.options.get("differentiable"))

    def init(self, params: Any) -> TorchState:
        leaves = {path: leaf.detach() for path, leaf in named_leaves(partition(params)[0])}
        begun = self.made(list(leaves.values()), 0).state if leaves else {}
        state = {path: begun.get(leaf, {}) for path, leaf in leaves.items()}
        return TorchState(torch.zeros((), dtype=torch.int64), _slots(params, state))

    def update(self, grads: Any, state: TorchState, params: Any) -> tuple[Any, TorchState]:
        found, leaves, state = self.run(params, grads, state, self.copied)
        return found.updates([new - old for new, old in zip(leaves, found.columns[0], strict=True)]), state

    def step(self, params: Any, grads: Any, state: TorchState, donate: bool) -> tuple[Any, TorchState]:
        in_place = donate and not self.differentiable
        found, leaves, state = self.run(params, grads, state, Tensor.detach if in_place else self.copied)
        return found.with_results([leaves]).tree(0), state

    def copied(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if self.differentiable else tensor.detach().clone()

    def run(
        self, params: Any, grads: Any, state: TorchState, copied: Callable[[Tensor], Tensor]
    ) -> tuple[Aligned, list[Tensor], TorchState]:
        """The trained leaves that have gradients, what they become, and the new state."""
        self.require_state(state)
        found = Aligned.of(self.name, params, grads, [])
        found.require_alike(shapes=True)
        self.require_plain(found)
        leaves = [copied(leaf) for leaf in found.columns[0]]
        kept = _by_path(state)
        if leaves:
            own = self.made(leaves, int(state.count))
            for path, leaf, gradient in zip(found.paths(), leaves, found.columns[1], strict=True):
                # A copy: some classes write into the gradients too.
                leaf.grad = self.copied(gradient).to(leaf.dtype)
                if path in kept:
                    own.state[leaf] = {
                        name: copied(value) if isinstance(value, Tensor) else value
                        for name, value in kept[path].items()
                    }
            self.run_once(own)
            kept |= {path: dict(own.state[leaf]) for path, leaf in zip(found.paths(), leaves, strict=True)}
            for leaf in leaves:
                leaf.grad = None
        return found, leaves, TorchState(state.count + 1, _slots(params, kept))

    def made(self, leaves: list[Tensor], done: int) -> torch.optim.Optimizer:
        """The optimiser of some leaves with the options of a step."""
        options: dict[str, Any] = {
            name: value(done) if callable(value) else value for name, value in self.options.items()
        }
        make: Callable[..., torch.optim.Optimizer] = self.cls
        try:
            return make(leaves, **options)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"{self.name}: torch's class refuses the options or the parameters: {error}. What it cannot train is "
                f"left to another optimiser by pn.optim.multi_transform."
            ) from error

    def run_once(self, optimizer: torch.optim.Optimizer) -> None:
        (group,) = optimizer.param_groups
        before = dict(group)
        optimizer.step()
        changed = [name for name, value in group.items() if value is not before.get(name)]
        if changed:
            raise ArgumentError(
                f"{self.name} keeps a part of its state in its parameter group ({', '.join(changed)}), which a pure "
                f"function cannot carry on."
            )

    def require_state(self, state: Any) -> None:
        if type(state) is not TorchState:
            raise ArgumentError(
                f"{self.name}: the state must be the TorchState that init(params) makes, got {a_or_an(state)}."
            )

    def require_plain(self, found: Aligned) -> None:
        """Require that nothing would be cut off or be written into unseen."""
        if is_traced() or (peek_interpreter_stack() is not None and not self.differentiable):
            raise TransformError(
                f"{self.name}: an optimiser of torch.optim works in place and cannot be transformed or compiled: use "
                f"that of pn.optim, which has the same numbers, or differentiable=True if it is only to be "
                f"differentiated."
            )
        if self.differentiable or not torch.is_grad_enabled():
            return
        for path, leaf, gradient in zip(found.paths(), *found.columns, strict=True):
            if leaf.requires_grad or gradient.requires_grad:
                what = "the parameter" if leaf.requires_grad else "the gradient of"
                raise ArgumentError(
                    f"{self.name}: {what} {quoted(path)} requires grad, which would be cut off: give the optimiser "
                    f"differentiable=True, or make the step under torch.no_grad()."
                )


def _by_path(state: TorchState) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, tree in state.slots.items():
        for path, value in named_leaves(tree):
            found.setdefault(path, {})[name] = value
    return found


def _slots(params: Any, state: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is kept for each leaf, as a tree for each name."""
    _, structure = flatten(params)
    names = {name: None for kept in state.values() for name, value in kept.items() if value is not None}
    return {
        name: structure.rebuild([state.get(path, {}).get(name, HOLE) for path in structure.paths]) for name in names
    }
