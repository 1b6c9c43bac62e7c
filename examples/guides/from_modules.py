"""Coming from nn.Module.

    python examples/guides/from_modules.py

You have modules, optimisers, hooks and files of parameters, and they work. This guide shows how much of that stays: the
same model as a module and as a value, and what changes in a training loop.

    nn.Linear(3, 2)                             Linear.init(key, 3, 2)
    module(x)                                   p(x), or linear(p, x)
    module.train(); module(x)                   y, p = p(x, train=True, key=key)      where it has state
    loss.backward(); parameter.grad             grads = pn.grad(loss)(p, x)
    optimizer.step()                            p, state = optimizer.step(p, grads, state)
    parameter.requires_grad_(False)             p = pn.tree.freeze(p, "encoder.**")
    module.apply(f), module.named_parameters()  pn.tree.map(f, p), pn.tree.named_leaves(p)
    module.register_forward_hook                pn.capture, pn.intervene
    module.to("cuda")                           p = pn.tree.to(p, "cuda")
    torch.save(module.state_dict())             pn.save(path, p)
"""

from typing import Any

import torch
from torch import Tensor, nn

import bridge
import purenn as pn
from purenn.layers import BatchNorm1d, Linear, ReLU, Sequential


def existing() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def the_same_training_twice() -> None:
    x = pn.random.normal(pn.random.key(0), (32, 4), dtype=torch.float64)
    y = x.sum(1, keepdim=True)

    # `from_module` makes a value of any module, and never touches it. The leaves share the module's storage, into which
    # the optimiser below writes: so copy them.
    module = existing().double()
    p = pn.tree.map(torch.clone, bridge.from_module(module))

    # A step as you know it:
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        optimizer.step()

    # The same step without side effects. Batch normalisation has state, so the model returns its new self beside the
    # output, and the loss hands it on.
    def loss(p: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        prediction, p = p(x, train=True)
        return (prediction - y).square().mean(), p

    rule = pn.optim.adam(1e-2)
    state = rule.init(p)
    for _ in range(20):
        grads, p = pn.grad(loss, has_aux=True)(p, x, y)
        p, state = rule.step(p, grads, state)

    # Both end at the same numbers, running averages included.
    final = dict(pn.tree.named_leaves(p))
    assert set(final) == set(module.state_dict())
    difference = max((final[name] - value).abs().max().item() for name, value in module.state_dict().items())
    assert difference < 1e-9
    print(f"twenty steps of both: largest difference {difference:.0e}")


def native_containers() -> None:
    # `from_module` runs the module's own code. `convert` goes further, and makes purenn's layers of torch's: these can
    # be taken apart, replaced and printed. `report` says what became what.
    module = existing().eval()
    print("\nwhat becomes what:")
    print(bridge.report(module))
    p = bridge.convert(module)
    x = torch.randn(3, 4)
    y, _ = p(x)
    torch.testing.assert_close(y, module(x))
    assert isinstance(p, Sequential)
    assert isinstance(p[0], Linear)


def and_back() -> None:
    # A container is a module when you want one: for hooks, for torch.optim, for a library that asks for modules.
    k1, k2 = pn.random.split(pn.random.key(1))
    p = Sequential.of(Linear.init(k1, 4, 8), BatchNorm1d.init(8), ReLU(), Linear.init(k2, 8, 1))
    module = bridge.to_module(p, copy=True)
    seen: list[str] = []
    module.layers[2].register_forward_hook(lambda module, inputs, output: seen.append("a hook has fired"))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()
    module(torch.randn(16, 4)).square().mean().backward()
    optimizer.step()
    assert seen == ["a hook has fired"]

    # The names in the state_dict are the paths, and the way back is `from_module`.
    assert list(module.state_dict()) == [path for path, _ in pn.tree.named_leaves(p)]
    assert isinstance(bridge.from_module(module), Sequential)
    print("\nas a module:", list(module.state_dict())[:3], "...,", seen[0])


def what_you_gain() -> None:
    # Anything that is a function of the parameters is now one line: the gradient of each sample,
    p = bridge.from_module(existing())
    x = torch.randn(6, 4)

    def output(p: Any, row: Tensor) -> Tensor:
        return p(row[None])[0].sum()

    rows = pn.vmap(pn.grad(output), (None, 0))(p, x)
    # the curvature along a direction, by forward over reverse,
    direction = pn.tree.map(torch.ones_like, pn.tree.partition(p)[0])
    _, curved = pn.jvp(lambda p: pn.grad(lambda p: p(x)[0].square().sum())(p), (p,), (direction,))
    # or three models at once.
    three = pn.tree.stack([bridge.from_module(existing()) for _ in range(3)])
    outputs, _ = pn.vmap(lambda p: p(x))(three)
    leaf = dict(pn.tree.named_leaves(rows))["0.weight"]
    print("\na gradient for each sample:", list(leaf.shape))
    print("a product with the Hessian:", list(dict(pn.tree.named_leaves(curved))["0.weight"].shape))
    print("three models at once:", list(outputs.shape))
    assert leaf.shape == (6, 8, 4)
    assert outputs.shape == (3, 6, 1)


def what_is_different() -> None:
    # Three habits to change.
    # 1. A call returns what is new; nothing happens behind it. If you drop the result, you drop the change.
    p = BatchNorm1d.init(2)
    p(torch.randn(4, 2), train=True)
    assert p.num_batches_tracked == 0
    # 2. There is no mode. Dropout drops where it is given a key, batch normalisation averages where train=True.
    # 3. There is no global generator. Draws come from keys, and a function that draws takes one.
    print("\nno side effects: a result that is dropped has changed nothing")


def main() -> None:
    the_same_training_twice()
    native_containers()
    and_back()
    what_you_gain()
    what_is_different()


if __name__ == "__main__":
    main()
