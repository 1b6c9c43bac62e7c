"""What other libraries do for per-sample gradients: one function for each, of a model and a clipping bound.

Every function returns a call without arguments that does the whole step, and gives its result as a list of tensors in
the order of the module's parameters. What a library cannot do raises, and the reason goes into the table.
"""

import copy
import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from _per_sample_models import Model
from torch import Tensor, nn

Step = Callable[[], Sequence[Tensor]]


def _sum_of(model: Model, module: nn.Module) -> Tensor:
    x, y = model.batch
    return F.cross_entropy(module(x), y, reduction="sum")


def _clipped(gradients: Sequence[Tensor], bound: float) -> list[Tensor]:
    norms = sum(g.flatten(1).square().sum(1) for g in gradients).sqrt()
    factors = (bound / norms).clamp(max=1)
    return [torch.tensordot(factors, g, 1) for g in gradients]


def _by_functorch(model: Model, chunk: int | None = None) -> Step:
    names = [name for name, _ in model.module.named_parameters()]
    values = {name: value.detach() for name, value in model.module.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model.module, values, (x[None],)), y[None])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0), chunk_size=chunk)

    def run() -> list[Tensor]:
        gradients = each(values, *model.batch)
        return [gradients[name] for name in names]

    return run


def vmap(model: Model, bound: float) -> Step:
    """Clip what vmap of grad gives."""
    step = _by_functorch(model)
    return lambda: _clipped(step(), bound)


def vmap_chunked(model: Model, bound: float) -> Step:
    """The same in chunks of 16; each chunk is clipped and dropped."""
    x, y = model.batch
    chunks = [model._replace(batch=pair) for pair in zip(x.split(16), y.split(16), strict=True)]
    steps = [_by_functorch(chunk) for chunk in chunks]

    def run() -> list[Tensor]:
        total = None
        for step in steps:
            own = _clipped(step(), bound)
            total = own if total is None else [a + b for a, b in zip(total, own, strict=True)]
        assert total is not None
        return total

    return run


def vmap_compiled(model: Model, bound: float) -> Step:
    """The same under torch.compile."""
    return torch.compile(vmap(model, bound), fullgraph=True, dynamic=False)


def opacus_hooks(model: Model, bound: float) -> Step:
    """GradSampleModule, then clip."""
    from opacus.grad_sample import GradSampleModule

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = GradSampleModule(copy.deepcopy(model.module), loss_reduction="sum")
    parameters = list(module.parameters())

    def run() -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _sum_of(model, module).backward()
        gradients = [p.grad_sample for p in parameters]
        for p in parameters:
            p.grad = p.grad_sample = None
        return _clipped(gradients, bound)

    return run


def opacus_ghost(model: Model, bound: float) -> Step:
    """Fast gradient clipping with ghost norms: two backward passes."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping

    module = GradSampleModuleFastGradientClipping(
        copy.deepcopy(model.module), max_grad_norm=bound, use_ghost_clipping=True, loss_reduction="sum"
    )
    parameters = list(module.parameters())
    x, y = model.batch

    def run() -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses = F.cross_entropy(module(x), y, reduction="none")
            losses.sum().backward(retain_graph=True)
            module.zero_grad()
            factors = module.get_clipping_coef()
            module.disable_hooks()
            (factors * losses).sum().backward()
            module.enable_hooks()
        gradients = [p.grad for p in parameters]
        for p in parameters:
            p.grad = p._norm_sample = None
        return gradients

    return run


def backpack(model: Model, bound: float) -> Step:
    """BatchGrad, then clip."""
    import backpack as library
    from backpack.extensions import BatchGrad

    module, criterion = (
        library.extend(copy.deepcopy(model.module)),
        library.extend(nn.CrossEntropyLoss(reduction="sum")),
    )
    parameters = list(module.parameters())

    def run() -> list[Tensor]:
        with library.backpack(BatchGrad()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            criterion(module(model.batch[0]), model.batch[1]).backward()
        gradients = [p.grad_batch for p in parameters]
        for p in parameters:
            p.grad = p.grad_batch = None
        return _clipped(gradients, bound)

    return run


def jax_jitted(model: Model, bound: float) -> Step:
    """jax.jit of vmap(grad), then clip; the models are written in JAX."""
    from _per_sample_jax import clipped

    return clipped(model, bound)


CLIPPED: dict[str, Callable[[Model, float], Step]] = {
    "vmap(grad), then clip": vmap,
    "the same, chunks of 16": vmap_chunked,
    "the same, torch.compile": vmap_compiled,
    "Opacus, hooks": opacus_hooks,
    "Opacus, ghost": opacus_ghost,
    "BackPACK": backpack,
    "JAX, jit": jax_jitted,
}


def gradients_by_vmap(model: Model) -> Step:
    """All gradients by vmap(grad)."""
    return _by_functorch(model)


def gram_by_vmap(model: Model) -> Step:
    """The Gram matrix of those."""
    step = _by_functorch(model)

    def run() -> list[Tensor]:
        rows = torch.cat([g.flatten(1) for g in step()], 1)
        return [rows @ rows.T]

    return run


def fisher_by_vmap(model: Model) -> Step:
    """The mean of their squares."""
    step = _by_functorch(model)
    return lambda: [g.square().mean(0) for g in step()]
