"""Compiled graphs on disk: what a second process finds."""

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

import purenn as pn


def test_graphs_are_found_on_disk(device: torch.device) -> None:
    """What has been compiled once, a scanned step included, is not compiled again for another jitted function."""

    def loss(w: Tensor) -> Tensor:
        return pn.scan(lambda carry, _: ((carry * w).tanh(), None), w, length=3)[0].sum()

    w = torch.linspace(0, 1, 5, device=device)
    with fresh_cache():
        first = pn.jit(pn.grad(loss))(w)
        counters.clear()
        again = pn.jit(pn.grad(loss))(w + 1)
        found, missed = counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]
    assert (found > 0, missed) == (True, 0)
    torch.testing.assert_close(first, pn.grad(loss)(w))
    torch.testing.assert_close(again, pn.grad(loss)(w + 1))
