"""Containers and functions in ten minutes.

    python examples/guides/containers_and_functions.py

A model is a value: an immutable tree of tensors, called a container. What the model does is a function of that value.
Everything else follows from these two sentences, so this guide goes through them slowly, and ends with a network that
is trained, looked at, saved and loaded.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

import purenn as pn
from purenn.errors import ImmutableError
from purenn.layers import Dropout, Linear, Sequential, Tanh, dropout, linear, sequential


def a_layer() -> None:
    # `init` draws the parameters from a random key. Nothing is drawn from a generator that you do not see, so the same
    # key always gives the same layer.
    p = Linear.init(pn.random.key(0), in_features=3, out_features=2)
    x = torch.ones(5, 3)

    # The function takes the container first, then the input. Calling the container is a shorter way to say the same.
    y = linear(p, x)
    assert torch.equal(y, p(x))
    print("a layer:", p, "applied to", list(x.shape), "gives", list(y.shape))


def a_tree() -> Sequential:
    # Containers hold containers. Two keys for two draws: `split` makes new keys of one.
    k1, k2 = pn.random.split(pn.random.key(1))
    p = Sequential.of(Linear.init(k1, 1, 32), Tanh(), Linear.init(k2, 32, 1))

    # Every tensor has a path, which is its name everywhere: in errors, in files, in a module's state_dict.
    print("\na tree:", [path for path, _ in pn.tree.named_leaves(p)])

    # Whatever is done to all tensors is one `map`, and the result is a model again.
    doubled = pn.tree.map(lambda leaf: 2 * leaf, p)
    assert torch.equal(doubled.layers[0].weight, 2 * p.layers[0].weight)
    assert pn.tree.count(p) == 32 + 32 + 32 + 1
    return p


def changes(p: Sequential) -> None:
    # A container cannot be changed...
    try:
        p[0].weight = torch.zeros(32, 1)
    except ImmutableError as error:
        print("\nassigning to a field:", error)

    # ... but a changed copy is cheap, since everything that stays the same is shared. `replace` is for one container,
    # `select` for any place in a tree.
    first = pn.replace(p[0], bias=torch.zeros(32))
    without_bias = pn.tree.select(p).paths("**.bias").apply(torch.zeros_like)
    assert torch.equal(without_bias[0].bias, first.bias)
    assert without_bias[0].weight is p[0].weight


def a_gradient(p: Sequential) -> None:
    # A loss is a function of the model, and its gradient has the shape of the model. No `backward`, no `.grad`, no
    # `zero_grad`: gradients are what `pn.grad` returns.
    def loss(p: Sequential, x: Tensor, y: Tensor) -> Tensor:
        return (p(x) - y).square().mean()

    x = torch.linspace(-3, 3, 64).unsqueeze(1)
    y = torch.sin(x)
    grads = pn.grad(loss)(p, x, y)
    print("\na gradient:", grads)

    # So one step of gradient descent is a map over two trees,
    stepped = pn.tree.map(lambda w, g: w - 0.01 * g, p, grads)
    assert loss(stepped, x, y) < loss(p, x, y)

    # and an optimiser is a pair of functions: the state goes in, the new state comes out.
    optimizer = pn.optim.adam(1e-2)
    state, before = optimizer.init(p), loss(p, x, y)
    for _ in range(200):
        p, state = optimizer.step(p, pn.grad(loss)(p, x, y), state)
    after = loss(p, x, y)
    print(f"trained on a sine: loss {before:.4f} -> {after:.4f}")
    assert after < 0.1 * before


def randomness() -> None:
    # A layer that draws takes a key. Without one it is deterministic: there is no training mode to forget to leave.
    p, x = Dropout(p=0.5), torch.ones(1000)
    assert torch.equal(dropout(p, x), x)
    key = pn.random.key(2)
    y = dropout(p, x, key=key)
    assert torch.equal(y, dropout(p, x, key=key))
    print(f"\ndropout with a key: {(y == 0).float().mean():.0%} zeros, twice the same")


@pn.container
class Residual(pn.Layer):
    """Adds what `inner` computes, times a learned factor, to its input.

    Fields with a plain annotation are parameters or other containers, and are trained. `pn.buffer()` is for tensors
    that are saved and moved, but not trained; `pn.static()` for options, which belong to the structure of the tree.
    """

    inner: Linear
    factor: Tensor
    negate: bool = pn.static(default=False)


@pn.applies(Residual)
def residual(p: Residual, x: Tensor) -> Tensor:
    y = p.factor * linear(p.inner, x)
    return x - y if p.negate else x + y


def your_own_container() -> None:
    # Two classes above are all that a layer of your own needs. It works wherever the others do.
    k1, k2 = pn.random.split(pn.random.key(3))
    p = Sequential.of(Linear.init(k1, 3, 4), Residual(Linear.init(k2, 4, 4), torch.tensor(0.1)))
    x = torch.ones(5, 3)
    print("\nyour own container:")
    print(pn.summary(p, x))
    one_each = pn.vmap(pn.grad(lambda p, x: sequential(p, x).sum()), (None, 0))(p, x)
    assert one_each.layers[1].factor.shape == (5,)


def a_file() -> None:
    # A model in a file: tensors under their paths, no code and no pickle. Loading needs the structure, of which a model
    # on the meta device is enough: it has shapes and no data.
    p = Linear.init(pn.random.key(4), 3, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "linear.safetensors"
        pn.save(path, p)
        again = pn.load(path, like=Linear.init(pn.random.key(0), 3, 2, device="meta"))
    assert pn.tree.equal(p, again)
    print("\nsaved and loaded:", again)


def main() -> None:
    a_layer()
    p = a_tree()
    changes(p)
    a_gradient(p)
    randomness()
    your_own_container()
    a_file()


if __name__ == "__main__":
    main()
