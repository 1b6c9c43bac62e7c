"""A sample on both sides: `Case` has the module, the container that is converted from it, and the arguments.

The tensors of a call are of three kinds. *Floats* are differentiated. *Others* (whole numbers, targets without a
derivative) are only batched. Masks, offsets and lengths are *fixed*: they belong to the call, as options do.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any, Self

import attrs
import optree
import torch
from _reference import weights_like
from _samples import DOUBLE, Sample, torch_may_warn
from torch import Tensor, nn

import bridge
import purenn as pn


@attrs.frozen(eq=False)
class Case:
    """A sample with its module and the container that is converted from it, in float64.

    Attributes:
        sample: the sample.
        module: the reference; copy it before it runs, since it may write into its buffers.
        p: the container, which shares nothing with the module.
        leaves: all leaves of the arguments.
        spec: the structure of the arguments, a tuple.
        names: their names in the module's ``forward``.
        floats: which leaves are differentiated.
        others: which leaves are batched as well.
        key: random key or None.
    """

    sample: Sample
    module: nn.Module
    p: Any
    leaves: tuple
    spec: Any
    names: tuple[str, ...]
    floats: tuple[int, ...]
    others: tuple[int, ...]
    key: Tensor | None

    @classmethod
    def of(cls, sample: Sample) -> Self:
        """Make the module, the container and the arguments."""
        torch.manual_seed(0)
        with torch_may_warn():
            module = sample.make().to(DOUBLE).train(sample.train)
        _unlike_defaults(module)
        p = pn.tree.map(torch.clone, converted(module, sample))
        bound = inspect.signature(type(module).forward).bind(module, *sample.args, **sample.kwargs)
        names, values = zip(*list(bound.arguments.items())[1:], strict=True)
        paths, leaves, spec = optree.tree_flatten_with_path(values, none_is_leaf=True)
        moving = [
            i
            for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True))
            if isinstance(leaf, Tensor) and not any(word in names[path[0]] for word in ("mask", "offsets", "lengths"))
        ]
        floats = tuple(i for i in moving if leaves[i].requires_grad)
        others = tuple(i for i in moving if not leaves[i].requires_grad)
        detached = tuple(leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        key = None if sample.key is None else pn.random.key(sample.key)
        return cls(sample, module, p, detached, spec, names, floats, others, key)

    @property
    def row(self) -> str:
        """The module's class."""
        return type(self.module).__name__

    @property
    def device(self) -> torch.device:
        """Where the arguments are."""
        return next(leaf.device for leaf in self.leaves if isinstance(leaf, Tensor))

    # The arguments.

    def inputs(self, number: int = 0) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Floats and others of example `number`: the same values, elsewhere."""
        return tuple(tuple(self._rolled(self.leaves[i], number) for i in kind) for kind in (self.floats, self.others))

    def _rolled(self, value: Tensor, number: int) -> Tensor:
        if number == 0:
            return value
        return value.roll(number) if self.sample.axis is None else value.roll(number, self.sample.axis)

    def model(self, number: int) -> Any:
        """The container with other values, within the same bounds."""
        if number == 0:
            return self.p
        generator = torch.Generator().manual_seed(number)

        def other(leaf: Tensor) -> Tensor:
            share = torch.rand(leaf.shape, generator=generator, dtype=DOUBLE).to(leaf)
            return leaf * (1 - 0.3 * share) if leaf.is_floating_point() else leaf

        return pn.tree.map(other, self.p)

    def moved(self, target: torch.device | torch.dtype | str) -> Self:
        """The case with container and arguments on another device or in another dtype.

        The module comes along to another device, but for "meta", where only its shape would be.
        """
        leaves = tuple(self._moved(leaf, target) for leaf in self.leaves)
        key = self.key if self.key is None or isinstance(target, torch.dtype) else self.key.to(target)
        lengths = None if self.sample.lengths is None else self._moved(self.sample.lengths, target)
        sample = attrs.evolve(self.sample, lengths=lengths)
        p = pn.tree.to(self.p, target)
        module = copy.deepcopy(self.module).to(target) if isinstance(target, torch.device) else self.module
        return attrs.evolve(self, sample=sample, module=module, p=p, leaves=leaves, key=key)

    def _moved(self, leaf: Any, target: Any) -> Any:
        if not isinstance(leaf, Tensor) or (isinstance(target, torch.dtype) and not leaf.is_floating_point()):
            return leaf
        return leaf.to(target)

    def _call(self, floats: Sequence[Tensor], others: Sequence[Tensor]) -> dict[str, Any]:
        leaves = list(self.leaves)
        for i, value in zip((*self.floats, *self.others), (*floats, *others), strict=True):
            leaves[i] = self.sample.before(value) if self.sample.before is not None and i in self.floats else value
        return dict(zip(self.names, optree.tree_unflatten(self.spec, leaves), strict=True))

    # Our side.

    def arguments(
        self, floats: Sequence[Tensor], others: Sequence[Tensor], *, as_module: bool = False
    ) -> tuple[tuple, dict]:
        """The arguments of our function, after the container.

        Args:
            floats: the differentiated tensors.
            others: the other tensors that are batched.
            as_module: whether a bridged module takes them, for which `train` is a mode and no option.
        """
        given = self._call(floats, others)
        parameters = list(inspect.signature(type(self.p).__call__).parameters.values())[1:]
        by_position = len(given) if any(p.kind is p.VAR_POSITIONAL for p in parameters) else 0
        by_position = by_position or sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
        takes = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        options = dict(list(given.items())[by_position:])
        if "train" in takes and not as_module:
            options["train"] = self.sample.train
        if self.key is not None:
            options["key"] = self.key
        if self.sample.lengths is not None:
            options["lengths"] = self.sample.lengths
        return tuple(given.values())[:by_position], options

    def apply(self, p: Any, floats: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Any, Any]:
        """Output and new container of our function."""
        args, options = self.arguments(floats, others)
        out = p(*args, **options)
        return out if pn.is_stateful(p) else (out, p)

    def values(self, p: Any, floats: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """All tensors of the output, and the new buffers of a stateful layer."""
        y, new = self.apply(p, floats, others)
        return (*tensors(y), *(pn.tree.leaves(new) if pn.is_stateful(p) else ()))

    def outputs(self, p: Any, floats: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The floating tensors of the output."""
        return floating(self.apply(p, floats, others)[0])

    def loss(self, p: Any, floats: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """One number of the output, which is curved and treats no element like another."""
        return total(self.outputs(p, floats, others))

    @property
    def argnums(self) -> tuple[int, ...]:
        """Which of the arguments ``(p, floats, others)`` have something to differentiate."""
        has_trained = bool(pn.tree.leaves(pn.tree.partition(self.p)[0]))
        return (*((0,) if has_trained else ()), *((1,) if self.floats else ()))

    # torch's side.

    def reference(self, module: nn.Module, floats: Sequence[Tensor], others: Sequence[Tensor]) -> Any:
        """What the module returns, or the formula in its place. The module's buffers may change."""
        args, kwargs = self.arguments_of_module(floats, others)
        with torch_may_warn():
            if self.sample.expected is None:
                return module(*args, **kwargs)
            return self.sample.expected(self, module, *args, **kwargs)

    def differentiable(
        self, module: nn.Module, floats: Sequence[Tensor], others: Sequence[Tensor], *, twice: bool
    ) -> Any:
        """The same values, with right derivatives."""
        y = self.reference(module, floats, others)
        formula = self.sample.differentiable or (self.sample.differentiable_twice if twice else None)
        if formula is None:
            return y
        args, kwargs = self.arguments_of_module(floats, others)
        found = formula(module, *args, **kwargs)
        torch.testing.assert_close(found, y, rtol=1e-9, atol=1e-9)
        return found

    def arguments_of_module(self, floats: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[tuple, dict]:
        """The arguments of torch's module."""
        call = self._call(floats, others)
        names, given = list(call), len(self.sample.args)
        return tuple(call[name] for name in names[:given]), {name: call[name] for name in names[given:]}

    def fresh_module(self) -> nn.Module:
        """A copy of the module."""
        return copy.deepcopy(self.module)


def converted(module: nn.Module, sample: Sample) -> Any:
    """The native container of a module."""
    if isinstance(module, nn.SyncBatchNorm):
        # Without a process group it is a batch norm, for any number of dimensions.
        plain = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[sample.args[0].dim()]
        like = plain(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        like.to(DOUBLE).load_state_dict(module.state_dict())
        module = like
    p = bridge.convert(module)
    assert type(p).__module__.startswith("purenn."), f"no native container for {type(module).__name__}"
    return p


def _unlike_defaults(module: nn.Module) -> None:
    # Zeros and ones, with which norms and biases start, would hide what is done with them.
    generator = torch.Generator().manual_seed(0)
    named = [*module.named_parameters(), *((n, b) for n, b in module.named_buffers() if "running" in n)]
    with torch.no_grad():
        for _, value in named:
            value.add_(0.1 * torch.rand(value.shape, generator=generator, dtype=DOUBLE))


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a result."""
    return [leaf for leaf in optree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def floating(tree: Any) -> tuple[Tensor, ...]:
    """The tensors of a result that have a derivative."""
    return tuple(y for y in tensors(tree) if y.is_floating_point())


def total(outputs: Sequence[Tensor]) -> Tensor:
    """A curved, weighted sum, in which no derivative vanishes by accident."""
    return sum(((torch.sin(y) * weights_like(y)).sum() for y in outputs), torch.zeros((), dtype=DOUBLE))
