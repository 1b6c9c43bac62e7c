"""Promises about torch: values, gradients, second derivatives and buffers are the module's."""

from typing import Any

import optree
from _cases import Case, tensors, total
from _derivatives import against_differences, derivatives, number_of, same
from _drawn import key_decides
from torch import Tensor

import purenn as pn


def forward(case: Case) -> None:
    """The output is torch's, in values, shapes and dtypes."""
    expected = case.reference(case.fresh_module(), *case.inputs())
    if expected is not None:
        same(case.apply(case.p, *case.inputs())[0], expected)


def gradients(case: Case) -> None:
    """The gradients with respect to every parameter and input are torch's."""
    if case.sample.expected is not key_decides:
        floats, others = case.inputs()
        found = pn.grad(case.loss, case.argnums)(case.p, floats, others)
        same(_by_name(case, found), _torch_gradients(case, create_graph=False)[0])


def second_order(case: Case) -> None:
    """So is the gradient of a function of them, or what finite differences say where torch has none."""
    if case.sample.expected is key_decides:
        return
    floats, others = case.inputs()
    inner = pn.grad(case.loss, case.argnums)

    def outer(p: Any, floats: tuple, others: tuple) -> Tensor:
        return number_of(_by_name(case, inner(p, floats, others)))

    try:
        first, point = _torch_gradients(case, create_graph=True)
        value = number_of(first)
        expected = derivatives(value, point)
    except RuntimeError as error:
        if "not implemented" not in str(error) and "is not differentiable" not in str(error):
            raise
        # torch has no such derivative: finite differences have.
        return against_differences(case, second=True)
    found = _by_name(case, pn.grad(outer, case.argnums)(case.p, floats, others))
    same(found, expected)


def buffers(case: Case) -> None:
    """After three steps in training all parameters and buffers are the module's."""
    module, p = case.fresh_module(), case.p
    # Stateful layers are told their mode, and have samples in both.
    module.train(case.sample.train or not pn.is_stateful(p))
    for step in range(3):
        floats, others = case.inputs(step)
        case.reference(module, floats, others)
        p = case.apply(p, floats, others)[1]
    # Draws that are given to a pooling, which torch counts as a buffer without being asked.
    ours, theirs = (
        {name: value for name, value in named if name != "_random_samples"}
        for named in (pn.tree.named_leaves(p), module.state_dict().items())
    )
    assert list(ours) == list(theirs), f"{list(ours)}, expected {list(theirs)}"
    same(list(ours.values()), list(theirs.values()))


def _torch_gradients(case: Case, *, create_graph: bool) -> tuple[list[Tensor], list[Tensor]]:
    module = case.fresh_module()
    floats, others = case.inputs()
    floats = tuple(x.detach().requires_grad_() for x in floats)
    point = [*module.parameters(), *floats]
    y = case.differentiable(module, floats, others, twice=create_graph)
    value = total([one for one in tensors(y) if one.is_floating_point()])
    return derivatives(value, point, create_graph=create_graph), point


def _by_name(case: Case, gradients: tuple[Any, ...]) -> list[Tensor]:
    # In the order of the module's parameters, then the inputs.
    found = dict(zip(case.argnums, gradients, strict=True))
    named = dict(pn.tree.named_leaves(found[0])) if 0 in found else {}
    names = [name for name, _ in case.module.named_parameters()]
    return [*(named[name] for name in names), *optree.tree_leaves(found.get(1, ()))]
