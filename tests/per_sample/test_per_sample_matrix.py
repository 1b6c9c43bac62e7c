"""Per-example gradients of all kinds of losses against a loop over the examples, in float64."""

import pytest
import torch
from _per_sample_cases import CASES, EXAMPLES, Case
from torch import Tensor

import purenn as pn

NAMES = list(CASES)


def looped(case: Case) -> list[Tensor]:
    """The gradients ``[examples, *shape]`` of all leaves, by an ordinary gradient for each example."""
    each = [pn.tree.leaves(pn.grad(case.f)(case.p, *[x[n] for x in case.batch])) for n in range(EXAMPLES)]
    return [torch.stack(leaf).to_dense() for leaf in zip(*each, strict=True)]


def close(found: Tensor, wanted: Tensor) -> bool:
    """Whether they are equal up to rounding in float64."""
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-10, atol=1e-11 * max(scale, 1e-3))


def flat(leaves: list[Tensor]) -> Tensor:
    """All leaves side by side, ``[examples, parameters]``."""
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_loop(name: str, device: torch.device) -> None:
    """Gradients, norms, weighted and clipped sums, Gram matrix and second moment are those of a loop."""
    case = CASES[name](device)
    wanted = looped(case)
    rows = flat(wanted)
    norms = rows.norm(dim=1)
    record = pn.per_sample.record(case.f, case.p, case.batch)
    assert close(record.losses, torch.stack([case.f(case.p, *[x[n] for x in case.batch]) for n in range(EXAMPLES)]))
    assert close(record.norms(), norms)
    weights = torch.linspace(-1, 2, EXAMPLES, dtype=rows.dtype, device=device)
    bound = float(norms.median())
    factors = torch.where(norms > bound, bound / norms, 1.0)
    for found, leaf in zip(pn.tree.leaves(record.weighted_sum(weights)), wanted, strict=True):
        assert close(found, torch.tensordot(weights, leaf, 1))
    for found, leaf in zip(pn.tree.leaves(record.clipped_sum(bound)), wanted, strict=True):
        assert close(found, torch.tensordot(factors, leaf, 1))
    for found, leaf in zip(pn.tree.leaves(record.second_moment()), wanted, strict=True):
        assert close(found, leaf.square().mean(0))
    assert close(record.gram(), rows @ rows.T)
    for found, leaf in zip(pn.tree.leaves(record.grads()), wanted, strict=True):
        assert close(found, leaf)
    by_leaf = record.norms("leaf")
    assert all(close(found, flat([leaf]).norm(dim=1)) for found, leaf in zip(by_leaf.values(), wanted, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_finds_norms_as_expected(name: str, device: torch.device) -> None:
    """Every leaf takes the path that is meant for it, so that no rule is lost without being noticed."""
    case = CASES[name](device)
    explanation = pn.per_sample.record(case.f, case.p, case.batch).explain()
    forms = {leaf.path: leaf.form for leaf in explanation.leaves}
    assert forms == {
        path: form if case.forms.get(path) == "any" else case.forms.get(path, "closed form")
        for path, form in forms.items()
    }


COMPILED = (
    *(
        "linear_short_sequence",
        "conv2d_grouped",
        "conv_transpose2d",
        "layer_norm",
        "group_norm",
        "embedding_with_padding",
    ),
    *("tied_embedding_and_output", "slices_of_a_weight", "einsums", "capsule_routing", "attention_by_torch", "gru"),
    *("written_in_place", "weight_norm", "frozen_leaves", "transformations_inside", "module_convolutions"),
    *("module_attention", "module_tied"),
)


@pytest.mark.parametrize("name", COMPILED)
def test_compiles(name: str, device: torch.device) -> None:
    """The whole step is traced by pn.jit, with the same result."""
    case = CASES[name](device)

    def step(p: object, batch: tuple) -> tuple[Tensor, object]:
        record = pn.per_sample.record(case.f, p, batch)
        return record.norms(), record.clipped_sum(0.5)

    wanted, found = step(case.p, case.batch), pn.jit(step, backend="eager")(case.p, case.batch)
    for mine, other in zip(pn.tree.leaves(found), pn.tree.leaves(wanted), strict=True):
        assert close(mine, other)
