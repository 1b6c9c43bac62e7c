"""A reverse-mode rule meets forward mode: the same error, however deep, and whatever is in between."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.errors import GradientError

Function = Callable[[Tensor], Tensor]


@pn.custom_vjp
def wave(x: Tensor) -> Tensor:
    return x.sin()


wave.defvjp(lambda x: (x.sin(), (x, x.cos())), lambda kept, gradient: (gradient * kept[1],))

FORWARD: dict[str, Callable[[Function], Function]] = {
    "jvp": lambda f: lambda x: pn.jvp(f, (x,), (x,))[1],
    "jacfwd": lambda f: lambda x: pn.jacfwd(f)(x).sum(0),
    "hessian": lambda f: lambda x: pn.hessian(lambda x: f(x).sum())(x).sum(0),
}
OTHERS: dict[str, Callable[[Function], Function]] = {
    "vmap": lambda f: lambda x: pn.vmap(f)(torch.stack([x, x + 1])).sum(0),
    "vmap of what is closed over": lambda f: lambda x: pn.vmap(lambda a: f(a * x))(torch.ones_like(x)).sum(0),
    "grad": lambda f: lambda x: pn.grad(lambda x: (f(x) ** 2).sum())(x),
    "vjp": lambda f: lambda x: pn.vjp(f, x)[1](x),
    "jit": lambda f: pn.jit(f, backend="eager"),
    "remat": pn.remat,
    "scan": lambda f: lambda x: pn.scan(lambda c, _: (f(c), c), x, None, 2)[0],
    "cond": lambda f: lambda x: pn.cond(x.sum() > -100, f, torch.neg, x),
}


@pytest.mark.parametrize("mode", FORWARD)
def test_refused(device: torch.device, mode: str) -> None:
    """Directly, within one and within two other transformations, and around one."""
    x = torch.tensor([0.3, -0.7], device=device)
    text = (
        "custom_vjp 'wave': its rule is for reverse mode, and forward mode (pn.jvp, pn.jacfwd, pn.hessian) has none. "
        "Use pn.custom_jvp, whose rule serves both modes, or reverse mode: pn.jacrev(pn.grad(f)) is a Hessian."
    )
    between = [(), *((name,) for name in OTHERS), ("vmap", "vmap"), ("vmap", "grad"), ("vmap", "scan"), ("jit", "vmap")]
    for names, outer in itertools.product(between, (None, "vmap", "grad", "jit")):
        f: Function = wave
        for name in reversed(names):
            f = OTHERS[name](f)
        f = FORWARD[mode](f)
        with pytest.raises(GradientError) as error:
            (f if outer is None else OTHERS[outer](f))(x)
        assert str(error.value) == text, (outer, mode, names)
