"""Every class of torch.nn as an opaque container, and what is promised about it.

Samples and promises are those of tests/conformance; here the container runs the module's own code.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import _promises_of_functions as functions
import _promises_of_torch as of_torch
import attrs
from _cases import Case
from _rows import samples, spread
from _samples import Sample, torch_may_warn
from torch import Tensor

import bridge
import purenn as pn

#: Samples of which torch's own module makes NaN, or that it does not take.
_NOT_FOR_TORCH = {"fully_masked", "mask_b_t_s"}


@attrs.frozen(eq=False)
class OpaqueCase(Case):
    """A sample with its module and the opaque container of that."""

    @classmethod
    def of(cls, sample: Sample) -> Self:
        """Make the module, the container and the arguments."""
        native = Case.of(sample)
        p = pn.tree.map(lambda leaf: leaf.clone(), bridge.from_module(native.module))
        fields = {field.name: getattr(native, field.name) for field in attrs.fields(Case)}
        return cls(**{**fields, "p": p})

    def apply(self, p: Any, floats: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Any, Any]:
        """Output and new container."""
        new = p

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal new
            with torch_may_warn():
                y = p(*args, train=self.sample.train, **kwargs)
            if pn.is_stateful(p):
                y, new = y
            return y

        args, kwargs = self.arguments_of_module(floats, others)
        if self.sample.lengths is None:
            return call(*args, **kwargs), new
        return self.sample.expected(self, call, *args, **kwargs), new


COLUMNS: dict[str, Callable[[Any], None]] = {
    "forward": of_torch.forward,
    "purity": functions.purity,
    "gradients": of_torch.gradients,
    "vmap(grad)": functions.vmap_of_grad,
    "vmap over models": functions.vmap_models,
    "second order": of_torch.second_order,
}


@functools.cache
def opaque_samples(row: str, count: int) -> tuple[Sample, ...]:
    """At most `count` samples of a class that torch's own module can run, spread evenly over all."""
    usable = [
        sample
        for sample in samples(row)
        if sample.raises is None and sample.key is None and sample.name not in _NOT_FOR_TORCH
    ]
    return tuple(spread(usable, count))


#: What does not hold, and why: class, column and sample -> the reason in torch.
EXCEPTIONS: dict[tuple[str, str, str], str] = {
    ("Embedding", "second order", "empty_batch"): "torch's second derivative, to which ours is compared, fails for no "
    "indices at all",
}
