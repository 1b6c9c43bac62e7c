"""Coming from functorch's make_functional, or from torch.func.functional_call.

    python examples/guides/from_make_functional.py

functorch split a module into a function and a tuple of tensors, and torch.func does it with a dict:

    func, params = make_functional(module)                  p = bridge.from_module(module)
    func(params, x)                                         p(x)
    func, params, buffers = make_functional_with_buffers    y, p = p(x, train=True)       where buffers change
    functional_call(module, {**params, **buffers}, (x,))    p(x)
    combine_state_for_ensemble(modules)                     pn.tree.stack([bridge.from_module(m) for m in modules])
    grad(loss)(params, x)                                   pn.grad(loss)(p, x)
    {name: w - lr * g ...}                                  pn.tree.map(lambda w, g: w - lr * g, p, grads)

What is new is that parameters and function stay together in one value, that buffers and frozen parameters look after
themselves, and that layers which torch.func refuses, such as batch normalisation in training, work.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import bridge
import purenn as pn


def make_module(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def per_sample_gradients() -> None:
    module = make_module(0)
    x, target = torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1])

    # Before:
    params = {name: value.detach() for name, value in module.named_parameters()}

    def loss_before(params: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, params, (x[None],)), target[None])

    before = vmap(grad(loss_before), (None, 0, 0))(params, x, target)

    # After: the module is gone from the loss, and the model is one argument.
    def loss(p: Any, x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(p(x), target)

    p = bridge.from_module(module)
    after = pn.vmap(pn.grad(loss), (None, 0, 0))(p, x, target)
    for path, leaf in pn.tree.named_leaves(after):
        torch.testing.assert_close(leaf, before[path])
    print("per-sample gradients agree:", {path: list(leaf.shape) for path, leaf in pn.tree.named_leaves(after)})


def ensembles() -> None:
    modules = [make_module(seed) for seed in range(4)]
    x = torch.randn(5, 8)

    # Before: torch.func.stack_module_state, a skeleton on meta, and a function around functional_call.
    params, buffers = torch.func.stack_module_state(modules)
    before = vmap(lambda p, b: functional_call(modules[0], (p, b), (x,)))(params, buffers)

    # After:
    models = pn.tree.stack([bridge.from_module(module) for module in modules])
    after = pn.vmap(lambda p: p(x))(models)
    torch.testing.assert_close(after, before)
    print("\nensemble of four agrees:", list(after.shape))


def buffers() -> None:
    # torch.func refuses this: batch normalisation writes into its buffers while it is mapped over.
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    batches = torch.randn(3, 6, 8)
    try:
        vmap(lambda x: functional_call(module, state, (x,)))(batches)
    except (RuntimeError, ValueError) as error:
        print("\ntorch.func on batch normalisation:", type(error).__name__)
    else:
        raise AssertionError("torch.func has learned to map over batch normalisation: rewrite this section")

    # As a value it returns what it would have written: here, three models with running averages of their own.
    p = bridge.from_module(module)
    y, new = pn.vmap(lambda x: p(x, train=True))(batches)
    averages = dict(pn.tree.named_leaves(new))["1.running_mean"]
    assert y.shape == (3, 6, 4)
    assert averages.shape == (3, 4)
    print("here:", list(y.shape), "and running averages", list(averages.shape))


def names_and_ties() -> None:
    # make_functional gave a bare tuple; here leaves keep the names of the state_dict, and shared parameters are shared
    # still: there is one leaf, and one gradient, for both places.
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.decode = nn.Linear(4, 10, bias=False)
            self.decode.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.decode(self.embed(tokens))

    p = bridge.from_module(Tied())
    assert [path for path, _ in pn.tree.named_leaves(p)] == ["embed.weight"]
    assert pn.tree.count(p) == 40
    print("\nwith a tie:", p)


def main() -> None:
    per_sample_gradients()
    ensembles()
    buffers()
    names_and_ties()


if __name__ == "__main__":
    main()
