"""Every operation of torch, called as torch's own tests do: transformed it is what a loop gives, or refused."""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import pytest
import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

import purenn as pn
from purenn.errors import PurennError

EXAMPLES, SAMPLES, NUMBERS = 3, 2, 500
D = torch.float64
# What torch's own derivatives cannot be compared with.
REASONS = {
    "native_group_norm": "its plain derivative leaves out the means and deviations that it returns",
    "as_strided_partial_views": "it reads what lies beside its argument in memory, which a copy does not have",
    "nn_functional_linear_cross_entropy_chunked": "it has a first derivative only, and none that is taken under vmap",
    "linalg_eig": "its derivative is that of functions of which this loss is none",
    **dict.fromkeys(("__rpow__", "special_entr"), "it is not finite for the numbers of its samples"),
    **dict.fromkeys(("sparse_sampled_addmm", "to_sparse"), "sparse"),
    **dict.fromkeys(("bfloat16", "half", "chalf", "float", "cfloat"), "what is added is rounded before or after"),
}
# Operations that some transformation refuses by an error of ours, and why.
REFUSED = {
    **dict.fromkeys(
        ("normal", "normal_number_mean", "bernoulli", "nn_functional_rrelu", "svd_lowrank", "pca_lowrank"), "draws"
    ),
    **dict.fromkeys(("nn_functional_fractional_max_pool2d", "nn_functional_fractional_max_pool3d"), "draws"),
    "nn_functional_multi_head_attention_forward": "draws",
    **dict.fromkeys(("as_strided_scatter", "column_stack", "narrow", "tensor_split"), "torch has no batching rule"),
    **dict.fromkeys(("_batch_norm_with_update", "nn_functional_instance_norm"), "writes running statistics"),
    "nn_functional_batch_norm": "has no gradient for each example",
    "nn_functional_group_norm": "torch's batching rule takes no examples that share memory",
    "nn_functional_linear_cross_entropy_chunked_none": "an autograd.Function without setup_context",
    "sparse_mm_reduce": "sparse",
    **dict.fromkeys(
        ("nn_functional_gaussian_nll_loss", "index_reduce_prod", "scatter_reduce_prod"), "looks at its values"
    ),
}
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
    REFUSED["unbind_copy"] = "torch has no batching rule"
    REASONS |= dict.fromkeys(
        ("nn_functional_grid_sample", "grid_sampler_3d"), "torch 2.11 has no derivative under vmap"
    )
OPERATIONS = {op.formatted_name: op for op in op_db if op.supports_autograd and D in op.dtypes}


class Call(NamedTuple):
    """A call of an operation, with a parameter among its arguments.

    Attributes:
        operation: the operation.
        args: its arguments.
        kwargs: those by name.
        place: where the parameter is.
        others: where other tensors are that differ from example to example.
    """

    operation: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    place: int
    others: list[int]

    def loss(self, w: Tensor, scale: Tensor, *others: Tensor) -> Tensor:
        """A number of all results."""
        args = list(self.args)
        for place, value in zip((self.place, *self.others), (w, *others), strict=True):
            args[place] = value
        results = optree.tree_leaves(self.operation(*args, **self.kwargs))
        total = scale * 0
        for y in results:
            if isinstance(y, Tensor) and (y.is_floating_point() or y.is_complex()):
                y = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
                total = total + (y * (y + 1).detach().cos() * scale).sum()
        return total

    def data(self) -> list[Tensor]:
        """What differs from example to example."""
        numbers = [1 + 0.01 * n for n in range(EXAMPLES)]
        scale = torch.linspace(0.5, 1.5, EXAMPLES, dtype=D, device=self.args[self.place].device)
        return [scale, *[torch.stack([self.args[place] * n for n in numbers]) for place in self.others]]


def calls(name: str, device: torch.device) -> list[Call]:
    """Calls of an operation with few numbers, or the one with the fewest, one for each of their tensors."""
    operation = OPERATIONS[name]
    torch.manual_seed(0)
    made: list[tuple[int, list[Call]]] = []
    for sample in operation.sample_inputs(str(device), D, requires_grad=False):
        several = isinstance(sample.input, list | tuple)
        args = list(sample.input) if several else [sample.input, *sample.args]
        floats = [n for n, x in enumerate(args) if _is_dense(x)]

        def called(*values: Any, _rest: tuple = sample.args, _several: bool = several, **kwargs: Any) -> Any:
            return operation.op(list(values), *_rest, **kwargs) if _several else operation.op(*values, **kwargs)

        own = [Call(called, args, sample.kwargs, n, [m for m in floats if m != n]) for n in floats]
        made += [(sum(args[n].numel() for n in floats), own)] if own else []
    few = [own for size, own in made if size <= NUMBERS][:SAMPLES]
    fewest = sorted(made, key=lambda pair: pair[0])[:1]
    return list(itertools.chain.from_iterable(few or [own for _, own in fewest]))


def _is_dense(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout is torch.strided and x.dtype is D and x.numel() > 0


def looped(call: Call, w: Tensor, data: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Values and gradients of all examples by plain autograd; None if it has none."""
    values, gradients = [], []
    try:
        for n in range(EXAMPLES):
            leaf = w.detach().requires_grad_()
            value = call.loss(leaf, *[x[n] for x in data])
            (gradient,) = torch.autograd.grad(value, [leaf], allow_unused=True, materialize_grads=True)
            values.append(value.detach())
            gradients.append(gradient.to_dense())
    except RuntimeError:
        return None
    found = torch.stack(values), torch.stack(gradients)
    return found if all(x.isfinite().all() for x in found) else None


def batched(call: Call, w: Tensor, data: list[Tensor]) -> Tensor:
    return pn.vmap(call.loss, (None, *[0] * len(data)))(w, *data)


def gradients_inside(call: Call, w: Tensor, data: list[Tensor]) -> Tensor:
    return pn.vmap(pn.grad(call.loss), (None, *[0] * len(data)))(w, *data)


def gradient_outside(call: Call, w: Tensor, data: list[Tensor]) -> Tensor:
    return pn.grad(lambda w: batched(call, w, data).sum())(w)


def gradients_of_models(call: Call, w: Tensor, data: list[Tensor]) -> Tensor:
    stacked = w.expand(EXAMPLES, *w.shape).clone()
    return pn.grad(lambda w: pn.vmap(call.loss)(w, *data).sum())(stacked)


def recorded(call: Call, w: Tensor, data: list[Tensor]) -> Tensor:
    return pn.per_sample.grads(call.loss)(w, tuple(data))


def recorded_norms(call: Call, w: Tensor, data: list[Tensor]) -> Tensor:
    return pn.per_sample.norms(call.loss, budget=0)(w, tuple(data))


def meta_gradient(call: Call, w: Tensor, data: list[Tensor], *, how: Any, rate: float) -> Tensor:
    return pn.meta.grad(pn.meta.maml(call.loss, pn.optim.sgd(rate), 1), how)(w, tuple(data), tuple(data))


def check(call: Call, *, refused: bool) -> bool:
    """Check all ways, of which some may be refused by an error of ours; False if there is no loop's gradient."""
    w, data = call.args[call.place], call.data()
    expected = looped(call, w, data)
    if expected is None:
        return False
    values, gradients = expected
    ways: dict[str, tuple[Callable[..., Tensor], Tensor, float]] = {
        "vmap": (batched, values, 1e-9),
        "vmap(grad)": (gradients_inside, gradients, 1e-9),
        "grad(vmap)": (gradient_outside, gradients.sum(0), 1e-9),
        "grad(vmap) of models": (gradients_of_models, gradients, 1e-9),
        "per_sample": (recorded, gradients, 1e-9),
        "norms": (recorded_norms, gradients.reshape(EXAMPLES, -1).norm(dim=1), 1e-9),
    }
    by = functools.partial(meta_gradient, rate=0.05 / (1 + float(gradients.abs().max())))
    try:
        one_by_one = by(call, w, data, how="loop")
    except (PurennError, RuntimeError, TypeError):  # there is no second derivative
        one_by_one = torch.tensor(math.nan)
    if one_by_one.isfinite().all():
        for how in ("sum", "vmap"):
            ways[f"meta.grad by {how}"] = functools.partial(by, how=how), one_by_one, 1e-7
    for name, (way, wanted, tolerance) in ways.items():
        with contextlib.suppress(PurennError) if refused else contextlib.nullcontext():
            found = way(call, w, data).to_dense()
            size = max(float(wanted.abs().max()), 1.0)
            text = f"{name}, argument {call.place}: "
            torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * size, msg=text.__add__)
    return True


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.filterwarnings("ignore")  # torch's about its operations
def test_as_a_loop(name: str, device: torch.device) -> None:
    """Values, gradients inside and outside of vmap, recorded ones, and derivatives of a step of stacked tasks."""
    if name in REASONS:
        pytest.skip(REASONS[name])
    compared = [check(call, refused=name in REFUSED) for call in calls(name, device)]
    assert any(compared)
