"""torch.compile traces the transformations themselves, without a graph break."""

import pytest
import torch
from _transform_models import DOUBLE, Net, inputs, loss, make, net
from torch import Tensor

import purenn as pn


def with_aux(p: Net, x: Tensor) -> tuple[Tensor, dict]:
    y = net(p, x)
    return y.square().sum(), {"y": y, "word": "text"}


def after_one_step(p: Net, x: Tensor) -> Tensor:
    return loss(pn.tree.map(lambda w, g: w - 0.1 * g, p, pn.grad(loss)(p, x)), x)


def with_options(p: Net, x: Tensor) -> tuple[Tensor, None]:
    """Examples by keyword, and leaves that are no tensors."""

    def one(part: dict, *, scale: Tensor) -> tuple[Tensor, None]:
        return net(p, part["x"]) * scale * part["power"], part["nothing"]

    return pn.vmap(one)({"x": x, "power": 2, "nothing": None}, scale=x[:, 0])


def with_trees_of_axes(p: Net, x: Tensor) -> dict:
    def one(part: dict, rows: list) -> dict:
        return {"out": net(p, part["x"]) + rows[0].sum() * rows[1], "x": part["shared"] * part["x"]}

    shared = {"shared": x[0], "x": x}
    return pn.vmap(one, ({"x": 0, "shared": None}, [1, None]), {"x": 1, "out": 0})(shared, [x.T, x[0, 0]])


CASES = {
    "grad": pn.grad(loss),
    "value_and_grad with auxiliary output": pn.value_and_grad(with_aux, has_aux=True),
    "vmap": pn.vmap(net, (None, 0)),
    "vmap with keywords and other leaves": with_options,
    "vmap with trees of axes": with_trees_of_axes,
    "per-sample gradients": pn.vmap(pn.grad(loss), (None, 0)),
    "second order": pn.grad(lambda p, x: pn.grad(loss)(p, x).second.weight.square().sum()),
    "meta-gradient": pn.grad(lambda p, x: pn.vmap(after_one_step, (None, 0))(p, x).sum()),
    "jvp": lambda p, x: pn.jvp(lambda p: net(p, x), (p,), (pn.tree.partition(p)[0],))[1],
    "vjp": lambda p, x: pn.vjp(lambda p: net(p, x), p)[1](torch.ones(5, 2, dtype=DOUBLE, device=x.device)),
    "jacrev": pn.jacrev(net),
    "jacrev of several outputs": pn.jacrev(lambda p, x: {"y": net(p, x), "loss": loss(p, x)}),
    "jacfwd": pn.jacfwd(net),
    "hessian": pn.hessian(loss),
}


@pytest.mark.parametrize("name", CASES)
def test_traces_whole(name: str, device: torch.device) -> None:
    """Compiled with fullgraph=True it equals the uncompiled function."""
    p, x, fn = make(device), inputs(device), CASES[name]
    torch.compiler.reset()
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    assert pn.tree.allclose(compiled(p, x), fn(p, x), rtol=0, atol=1e-10)
