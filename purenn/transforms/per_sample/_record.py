"""The record of a batch: its losses, and everything that is asked of its per-example gradients."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, NamedTuple, TypeVar, overload

import torch
from jaxtyping import Float
from torch import Tensor

from purenn._dtypes import in_dtype
from purenn._modes import without_autocast
from purenn.errors import ArgumentError
from purenn.transforms.per_sample._engine import NAME, Recorded
from purenn.transforms.per_sample._explain import Explanation, explained
from purenn.transforms.per_sample._kronecker import KroneckerFactors, factors_of
from purenn.transforms.per_sample._part import Budget, Products, squares, together
from purenn.tree._walk import short

P = TypeVar("P")
Mode = Literal["flat", "per_layer", "automatic"]
Norms = Float[Tensor, " examples"]
#: The summand of the norm in automatic clipping.
STABILITY = 0.01


class NoiseScale(NamedTuple):
    """How noisy the gradients of single examples are: see `Record.noise_scale`.

    Attributes:
        scale: the batch size at which noise and signal are equal, ``trace / squared_norm``.
        squared_norm: of the true gradient, estimated without bias; it may come out negative.
        trace: of the covariance of the gradients of single examples.
    """

    scale: Float[Tensor, ""]
    squared_norm: Float[Tensor, ""]
    trace: Float[Tensor, ""]


class Record(Generic[P]):
    """What is known of the gradients of a batch, example by example: made by `record`.

    Gradients have the structure of the parameters, with `pn.tree.HOLE` for what is not differentiated. Results have no
    graph, unless a transformation or a graph outside asks for one.
    """

    def __init__(self, slices: Callable[[], Iterable[Recorded]], budget: int) -> None:
        self._slices, self._budget = slices, Budget(budget)
        self._losses: Tensor | None = None

    @property
    def losses(self) -> Norms:
        """The loss of each example."""
        if self._losses is None:
            self._losses = torch.cat([recorded.losses for recorded in self._slices()])
        return self._losses

    @overload
    def norms(self) -> Norms: ...
    @overload
    def norms(self, per: Literal["leaf", "layer"]) -> dict[str, Norms]: ...
    def norms(self, per: Literal["leaf", "layer"] | None = None) -> Norms | dict[str, Norms]:
        """The norm of each example's gradient.

        Args:
            per: None for the norm over all leaves; "leaf" for one of each leaf, by path; "layer" for one of each group
                of leaves with the same parent, by the parent's path.

        Raises:
            ArgumentError: `per` is something else.
        """
        if per not in (None, "leaf", "layer"):
            raise ArgumentError(f"{NAME}: norms(per) must be None, 'leaf' or 'layer', got {per!r}.")
        found: dict[str, list[Tensor]] = {}
        for recorded in self._slices():
            for name, own in self._grouped(recorded, per).items():
                found.setdefault(name, []).append(own)
        norms = {name: torch.cat(parts) for name, parts in found.items()}
        return norms[""] if per is None else norms

    def grads(self) -> P:
        """The gradient of each example, with the examples as leading axis of every leaf."""
        return self._assembled(lambda recorded: self._dense(recorded), torch.cat)

    def weighted_sum(self, weights: Norms) -> P:
        """The sum of the gradients, each times its weight.

        Args:
            weights: ``[examples]``.

        Raises:
            ArgumentError: there is not one weight for each example.
        """
        if not isinstance(weights, Tensor) or weights.dim() != 1:
            raise self._other_weights(weights)
        start = 0

        def of_slice(recorded: Recorded) -> list[Tensor]:
            nonlocal start
            own = weights[start : start + len(recorded.losses)]
            start += len(recorded.losses)
            if len(own) != len(recorded.losses):
                raise self._other_weights(weights)
            return recorded.leaves(lambda _, part: part.weighted_sum(own))

        total = self._assembled(of_slice, _added)
        if start != len(weights):
            raise self._other_weights(weights)
        return total

    def _other_weights(self, weights: Any) -> ArgumentError:
        got = short(weights) if isinstance(weights, Tensor) else f"a {type(weights).__name__}"
        return ArgumentError(
            f"{NAME}: weighted_sum takes a tensor with one weight for each of {len(self.losses)} examples, got {got}."
        )

    def clipped_sum(self, max_norm: float, *, mode: Mode = "flat") -> P:
        """The sum of the gradients, none of which counts for more than `max_norm`.

        Args:
            max_norm: the largest norm that a gradient may have, in terms of all leaves together; infinite for a sum
                of gradients as they are.
            mode: "flat" scales a gradient that is longer down to `max_norm`; "per_layer" does so for each group of
                leaves with the same parent, each group down to ``max_norm / sqrt(number of groups)``; "automatic"
                scales every gradient, the short ones too, by ``max_norm / (norm + 0.01)``.

        Raises:
            ArgumentError: `mode` is something else, or `max_norm` is not positive, or infinite in automatic clipping.

        Source:
            Abadi et al.: Deep Learning with Differential Privacy, 2016. Per layer: McMahan et al.: Learning
            Differentially Private Recurrent Language Models, 2018. Automatic: Bu, Wang, Zha, Karypis: Automatic
            Clipping: Differentially Private Deep Learning Made Easier and Stronger, 2023.
        """
        if mode not in ("flat", "per_layer", "automatic"):
            raise ArgumentError(f"{NAME}: mode must be 'flat', 'per_layer' or 'automatic', got {mode!r}.")
        if not max_norm > 0:
            raise ArgumentError(f"{NAME}: max_norm must be positive, got {max_norm}.")
        if mode == "automatic" and not max_norm < math.inf:
            raise ArgumentError(f"{NAME}: automatic clipping needs a finite max_norm, got {max_norm}.")

        def of_slice(recorded: Recorded) -> list[Tensor]:
            by_layer = mode == "per_layer"
            groups = self._grouped(recorded, "layer" if by_layer else None)
            bound = max_norm / len(groups) ** 0.5
            factors = {name: _factor(norms, bound, mode) for name, norms in groups.items()}
            return recorded.leaves(lambda path, part: part.weighted_sum(factors[_parent(path) if by_layer else ""]))

        return self._assembled(of_slice, _added)

    def gram(self, other: "Record[P] | None" = None) -> Float[Tensor, "examples others"]:
        """The inner products of the gradients: with each other, or with those of another record.

        A complex number counts as its two real ones.

        Args:
            other: a record of the same parameters, with other examples or another loss.

        Raises:
            ArgumentError: `other` is something else.
        """
        if other is not None and not isinstance(other, Record):
            raise ArgumentError(f"{NAME}: gram takes another record, got a {type(other).__name__}.")
        theirs = self if other is None else other
        return torch.cat(
            [torch.cat([_products(mine, their) for their in theirs._slices()], 1) for mine in self._slices()]
        )

    def second_moment(self) -> P:
        """The mean over the examples of the squares of all elements: the diagonal of the empirical Fisher matrix.

        The square of a complex element is that of its size.
        """
        sums = self._assembled(lambda recorded: recorded.leaves(lambda _, part: part.second_moment()), _added, raw=True)
        return self._argument.derivative([total / len(self.losses) for total in sums])

    def kfac(self) -> dict[str, KroneckerFactors]:
        """The Kronecker factors of the empirical Fisher matrix of every weight of a linear layer or a convolution.

        Returns:
            By the leaf's path. Leaves that are used otherwise, or in several ways, are left out: see `explain`.

        Raises:
            ArgumentError: inputs and output gradients have been released, or are not recorded.
        """
        if self._budget.releases:
            raise ArgumentError(
                f"{NAME}: kfac is made of inputs and output gradients, which release() has given up: ask for it before."
            )
        return factors_of(self._slices())

    def noise_scale(self) -> NoiseScale:
        """The simple gradient noise scale: how large a batch must be for its mean gradient to be half signal.

        Raises:
            ArgumentError: there are fewer than two examples.

        Source:
            McCandlish, Kaplan, Amodei: An Empirical Model of Large-Batch Training, 2018, appendix A.
        """
        n = len(self.losses)
        if n < 2:
            raise ArgumentError(f"{NAME}: noise_scale compares examples and needs at least two, got {n}.")
        total = self._assembled(
            lambda r: r.leaves(lambda _, part: part.weighted_sum(torch.ones_like(r.losses))), _added, raw=True
        )
        of_mean = sum(squares(leaf).sum() for leaf in total) / n**2
        of_each = self.norms().square().mean()
        trace = (of_each - of_mean) * n / (n - 1)
        squared_norm = of_mean - trace / n
        return NoiseScale(trace / squared_norm, torch.as_tensor(squared_norm), torch.as_tensor(trace))

    def release(self) -> None:
        """Forget inputs and output gradients wherever gradients are kept: less memory, but no `kfac` any more."""
        self._budget.releases = True

    def explain(self) -> Explanation:
        """How the norms of every leaf are found, and what its per-example gradients take. Printable."""
        return explained(next(iter(self._slices())), Budget(self._budget.left))

    def _grouped(self, recorded: Recorded, per: str | None) -> dict[str, Tensor]:
        by_leaf = recorded.norms(self._budget)
        if per is None:
            return {"": together(list(by_leaf.values()))}
        groups: dict[str, list[Tensor]] = {}
        for path, norms in by_leaf.items():
            groups.setdefault(path if per == "leaf" else _parent(path), []).append(norms)
        return {name: together(norms) for name, norms in groups.items()}

    def _dense(self, recorded: Recorded) -> list[Tensor]:
        return recorded.leaves(lambda _, part: part.dense(), len(recorded.losses))

    def _assembled(
        self, of_slice: Callable[[Recorded], list[Tensor]], join: Callable[..., Tensor], *, raw: bool = False
    ) -> Any:
        columns = []
        for recorded in self._slices():
            self._argument = recorded.argument
            columns.append(of_slice(recorded))
        leaves = [column[0] if len(column) == 1 else join(column) for column in zip(*columns, strict=True)]
        return leaves if raw else self._argument.derivative(leaves)


def _added(leaves: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(leaves)).sum(0)


def _factor(norms: Tensor, bound: float, mode: str) -> Tensor:
    if mode == "automatic":
        return bound / (norms + STABILITY)
    if bound == math.inf:
        return torch.ones_like(norms)
    return norms.clamp_min(bound).reciprocal() * bound


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _products(mine: Recorded, theirs: Recorded) -> Tensor:
    one, other = ({path: short(value) for path, value, _ in each.named} for each in (mine, theirs))
    if one != other:
        path = next(path for path in {**one, **other} if one.get(path) != other.get(path))
        raise ArgumentError(
            f"{NAME}: gram takes records of the same parameters, but {path!r} is {one.get(path, 'absent')} in one and "
            f"{other.get(path, 'absent')} in the other."
        )
    products, total = Products(), None
    with without_autocast():
        for (_, _, one), (_, _, other) in zip(mine.named, theirs.named, strict=True):
            if one is not None and other is not None:
                found = one.gram(other, products)
                found = in_dtype(torch.promote_types(found.dtype, mine.losses.dtype), found)
                total = found if total is None else total + found
    return mine.losses.new_zeros(len(mine.losses), len(theirs.losses)) if total is None else total
