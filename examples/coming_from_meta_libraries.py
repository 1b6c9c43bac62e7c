"""Coming from higher, learn2learn or TorchOpt.

    python examples/coming_from_meta_libraries.py

Those libraries make copies of a module whose parameters are parts of a graph. Here the parameters are an argument, so
there is nothing to copy: an inner loop is a function from parameters to parameters, and whatever differentiates
functions differentiates it. Each section below names the other library's idiom and does the same, and checks itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bridge
import purenn as pn

torch.manual_seed(0)
tasks = torch.randn(2, 8, 10, 3)  # inputs to adapt to and to judge by: [2, tasks, points, features]
targets = tasks.sum(-1, keepdim=True).sin()
support, query = ((x, y) for x, y in zip(tasks, targets, strict=True))


def loss(p: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(p(x), y)


# A module that you have becomes an argument in one line; so does one of this library's models.
module = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))


def from_higher() -> None:
    """The inner loop.

    higher:
        with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (fmodel, diffopt):
            for _ in range(5):
                diffopt.step(loss(fmodel(x), y))
            loss(fmodel(u), v).backward()
    """
    p = bridge.from_module(module)
    adapt = pn.meta.inner_loop(loss, pn.optim.sgd(0.05), steps=5)
    (x, y), (u, v) = ((a[0], b[0]) for a, b in (support, query))
    grads = pn.grad(lambda p: loss(adapt(p, x, y)[0], u, v))(p)
    assert [name for name, _ in pn.tree.named_leaves(grads)] == [name for name, _ in module.named_parameters()]
    # Any optimiser of pn.optim can be the inner one, and any of its numbers can be learned: a learning rate is a
    # tensor (higher: `override=` and `get_trainable_opt_params`).
    by_rate = pn.grad(lambda rate: loss(pn.meta.inner_loop(loss, pn.optim.adam(rate), 5)(p, x, y)[0], u, v))
    assert by_rate(torch.tensor(0.01)).isfinite()
    # `track_higher_grads=False` is first_order=True.
    first_order = pn.meta.inner_loop(loss, pn.optim.sgd(0.05), steps=5, first_order=True)
    assert torch.equal(adapt(p, x, y)[1], first_order(p, x, y)[1])


def from_learn2learn() -> None:
    """MAML over many tasks.

    learn2learn:
        maml = l2l.algorithms.MAML(module, lr=0.05)
        for x, y, u, v in tasks:
            learner = maml.clone()
            for _ in range(5):
                learner.adapt(loss(learner(x), y))
            loss(learner(u), v).backward()
        optimizer.step()
    """
    made = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    meta_gradient = pn.meta.value_and_grad(pn.meta.maml(loss, pn.optim.sgd(0.05), steps=5))
    values = []
    for _ in range(30):
        # No loop over tasks: their data are stacked. The outer optimiser may stay torch's.
        value, grads = meta_gradient(bridge.from_module(made), support, query)
        for parameter, (_, grad) in zip(made.parameters(), pn.tree.named_leaves(grads), strict=True):
            parameter.grad = grad
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]
    # l2l.algorithms.MetaSGD: step sizes of their own, learned as well.
    p = pn.meta.MetaSGD.init(bridge.from_module(made), rate=0.05)
    grads = pn.meta.grad(pn.meta.meta_sgd(loss, steps=5))(p, support, query)
    assert pn.tree.leaves(grads.rates)[0].shape == (16, 3)
    # ANIL is MAML with a selection; Reptile has a gradient-like direction.
    anil = pn.meta.maml(loss, pn.optim.sgd(0.05), steps=5, select="2")
    assert pn.meta.grad(anil)(bridge.from_module(made), support, query) is not None
    direction = pn.meta.reptile(loss, pn.optim.sgd(0.05), steps=5)(bridge.from_module(made), *support)
    assert len(pn.tree.leaves(direction)) == 4


def from_torchopt() -> None:
    """Functional optimisers, and gradients around the inner loop.

    TorchOpt:
        optimizer = torchopt.adam(lr=0.01)
        updates, state = optimizer.update(grads, state)
        params = torchopt.apply_updates(params, updates)
    """
    p = bridge.from_module(module)
    optimizer = pn.optim.adam(0.01)
    state = optimizer.init(p)
    x, y = support[0][0], support[1][0]
    updates, state = optimizer.update(pn.grad(loss)(p, x, y), state, p)
    p = pn.optim.apply_updates(p, updates)
    # Momentum is in the state and nowhere else: the same arguments give the same answer, under vmap as well.
    per_task = pn.vmap(lambda x, y: optimizer.update(pn.grad(loss)(p, x, y), state, p)[0])(*support)
    assert pn.tree.leaves(per_task)[0].shape == (8, 16, 3)
    # torchopt.MetaSGD and MetaAdam are inner loops with pn.optim.sgd and adam. With unroll="vjp" memory does not grow
    # with the number of steps.
    long = pn.meta.maml(loss, pn.optim.adam(0.01), steps=30, unroll="vjp")
    assert pn.meta.grad(long)(p, support, query) is not None
    # torchopt.diff.implicit: derivatives of a solution without the way to it, by pn.meta.implicit.


def many_tasks() -> None:
    """One function, four ways to run it.

    All give the same numbers, in all libraries' place: batched (`how="vmap"`), summed over stacked parameters ("sum"),
    one by one ("loop"), or chosen by what the task loss contains ("auto", the default).
    """
    p, task_loss = bridge.from_module(module), pn.meta.maml(loss, pn.optim.sgd(0.05), steps=2)
    first, *others = [pn.meta.grad(task_loss, how)(p, support, query) for how in ("auto", "vmap", "sum", "loop")]
    assert all(pn.tree.allclose(other, first, rtol=0, atol=1e-5) for other in others)
    print(pn.meta.choose(task_loss, p, support, query))
    # Compiled, with a step that is compiled once however many there are: unroll="scan".
    compiled = pn.meta.maml(loss, pn.optim.sgd(0.05), steps=2, unroll="scan")
    fast = pn.jit(pn.meta.grad(compiled), backend="eager")  # or inductor, the default
    assert pn.tree.allclose(fast(p, support, query), first, rtol=0, atol=1e-5)


def main() -> None:
    for section in (from_higher, from_learn2learn, from_torchopt, many_tasks):
        section()
        print(section.__name__, "agrees")


if __name__ == "__main__":
    main()
