"""Meta-learning.

    python examples/guides/meta_learning.py

Learn parameters from which a new task is learned in a few steps. The steps are a function of the parameters at the
start, and a function can be differentiated: that is all of MAML (Finn, Abbeel, Levine, 2017). The tasks here are sines
of different height and phase, of which a few points are given.
"""

import torch
from torch import Tensor

import purenn as pn
from purenn.layers import Linear, Sequential, Tanh

TASKS, SHOTS, RATE = 25, 10, 0.05


def network(key: Tensor) -> Sequential:
    k1, k2, k3 = pn.random.split(key, 3)
    return Sequential.of(Linear.init(k1, 1, 40), Tanh(), Linear.init(k2, 40, 40), Tanh(), Linear.init(k3, 40, 1))


def loss(p: Sequential, x: Tensor, y: Tensor) -> Tensor:
    return (p(x) - y).square().mean()


def draw_tasks(key: Tensor, shots: int = SHOTS) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Points to adapt to and points to judge by, each a pair of [tasks, shots, 1]."""
    k1, k2, k3 = pn.random.split(key, 3)
    height = pn.random.uniform(k1, (TASKS, 1, 1), low=0.1, high=5.0)
    phase = pn.random.uniform(k2, (TASKS, 1, 1), low=0.0, high=torch.pi)
    x = pn.random.uniform(k3, (TASKS, 2 * shots, 1), low=-5.0, high=5.0)
    y = height * torch.sin(x - phase)
    return (x[:, :shots], y[:, :shots]), (x[:, shots:], y[:, shots:])


def by_hand(p: Sequential) -> None:
    # Adapting to one task: some steps of gradient descent, in plain Python.
    def adapted_loss(p: Sequential, support: tuple[Tensor, Tensor], query: tuple[Tensor, Tensor]) -> Tensor:
        for _ in range(3):
            p = pn.tree.map(lambda w, g: w - RATE * g, p, pn.grad(loss)(p, *support))
        return loss(p, *query)

    # Its gradient goes through the steps. vmap makes one for each task, and the meta-gradient is their mean. Take the
    # mean after the gradient: vmap(grad), not grad of a vmapped loss.
    support, query = draw_tasks(pn.random.key(1))
    each = pn.vmap(pn.grad(adapted_loss), (None, 0, 0))(p, support, query)
    by_vmap = pn.tree.map(lambda g: g.mean(0), each)

    # `pn.meta` has the same in two calls: `maml` makes the adapted loss, `meta.grad` the mean over tasks, in whichever
    # of several equal ways is the fastest here.
    task_loss = pn.meta.maml(loss, pn.optim.sgd(RATE), steps=3)
    assert pn.tree.allclose(pn.meta.grad(task_loss)(p, support, query), by_vmap, rtol=1e-3, atol=1e-4)
    # A pure function does the same in each step: by "scan" the loss is called once, and what it did is repeated.
    repeated = pn.meta.maml(loss, pn.optim.sgd(RATE), steps=3, unroll="scan")
    assert pn.tree.allclose(pn.meta.grad(repeated)(p, support, query), by_vmap, rtol=1e-3, atol=1e-4)
    print("three inner steps, 25 tasks: by hand and by pn.meta the same gradient")


def after_adapting(p: Sequential, steps: int, key: Tensor) -> float:
    """The mean loss on new tasks after some steps of adapting."""
    support, query = draw_tasks(key)
    task_loss = pn.meta.maml(loss, pn.optim.sgd(RATE), steps=steps)
    return pn.vmap(task_loss, (None, 0, 0))(p, support, query).mean().item()


def train(start: Sequential, steps: int, first_order: bool) -> Sequential:
    task_loss = pn.meta.maml(loss, pn.optim.sgd(RATE), steps=1, first_order=first_order)
    gradient, optimizer = pn.meta.grad(task_loss), pn.optim.adam(3e-3)
    p, state = start, optimizer.init(start)
    for key in pn.random.split(pn.random.key(2), steps):
        p, state = optimizer.step(p, gradient(p, *draw_tasks(key)), state)
    return p


def compare(start: Sequential, steps: int) -> Sequential:
    # The usual alternative is to train on all tasks together: the best single function is nearly flat, and nothing is
    # known about how to change it.
    gradient, optimizer = pn.grad(lambda p, support, query: loss(p, *support)), pn.optim.adam(3e-3)
    joint, state = start, optimizer.init(start)
    for key in pn.random.split(pn.random.key(2), steps):
        joint, state = optimizer.step(joint, gradient(joint, *draw_tasks(key)), state)

    # First-order MAML leaves the second derivatives out: cheaper, and another gradient.
    models = {
        "untrained": start,
        "joint": joint,
        "first-order": train(start, steps, first_order=True),
        "MAML": train(start, steps, first_order=False),
    }
    print("\nmean loss on new tasks after n steps of adapting")
    print("                 n=0    n=1    n=5")
    found = {}
    for name, p in models.items():
        found[name] = [after_adapting(p, n, pn.random.key(3)) for n in (0, 1, 5)]
        print(f"{name:12}" + "".join(f"{value:7.2f}" for value in found[name]))
    # Trained for one step, MAML is the best after one.
    assert found["MAML"][1] < 0.5 * found["MAML"][0]
    assert found["MAML"][1] < min(found[name][1] for name in ("untrained", "joint", "first-order"))
    return models["MAML"]


def learned_rates(p: Sequential) -> None:
    # Anything that the inner loop uses can be learned: tensors in its optimiser, for instance. Here a step size, by the
    # derivative of the loss after adapting with respect to its logarithm.
    support, query = draw_tasks(pn.random.key(4))

    def after(log_rate: Tensor, p: Sequential) -> Tensor:
        def adapted(support: tuple[Tensor, Tensor], query: tuple[Tensor, Tensor]) -> Tensor:
            grads = pn.grad(loss)(p, *support)
            return loss(pn.tree.map(lambda w, g: w - log_rate.exp() * g, p, grads), *query)

        return pn.vmap(adapted)(support, query).mean()

    log_rate = torch.tensor(RATE).log()
    start = after(log_rate, p)
    for _ in range(20):
        log_rate = log_rate - 0.1 * pn.grad(after)(log_rate, p).clamp(-1, 1)
    print(f"\na step size learned: {RATE} -> {log_rate.exp():.3f}, loss {start:.3f} -> {after(log_rate, p):.3f}")
    assert after(log_rate, p) <= start


def a_part_of_the_model(p: Sequential) -> None:
    # Options of the inner loop: adapt the last layer only (ANIL), differentiate through the last steps only, keep
    # nothing but the parameters of each step (remat).
    support, query = draw_tasks(pn.random.key(5))
    sgd = pn.optim.sgd(RATE)
    adapt = pn.meta.inner_loop(loss, sgd, steps=2, select="layers.4.**")
    adapted, losses = adapt(p, support[0][0], support[1][0])
    assert torch.equal(adapted.layers[0].weight, p.layers[0].weight)
    assert not torch.equal(adapted.layers[4].weight, p.layers[4].weight)
    assert losses.shape == (2,)

    full = pn.meta.grad(pn.meta.maml(loss, sgd, steps=4))(p, support, query)
    again = pn.meta.grad(pn.meta.maml(loss, sgd, steps=4, remat=True))(p, support, query)
    assert pn.tree.allclose(full, again, rtol=1e-3, atol=1e-4)
    print("the last layer alone adapts; remat gives the same gradient")


def main() -> None:
    torch.set_num_threads(1)
    start = network(pn.random.key(0))
    by_hand(start)
    p = compare(start, steps=150)
    learned_rates(p)
    a_part_of_the_model(p)


if __name__ == "__main__":
    main()
