"""Coming from JAX and Equinox.

    python examples/guides/from_jax.py

The ideas are the ones you know: models are pytrees, functions are pure, keys are explicit, and grad, vmap, jit and scan
compose. The tensors are torch's, so everything that takes tensors works, and nothing is traced unless you ask.

    jax.random.key(0), split, fold_in         pn.random.key(0), split, fold_in
    jax.random.normal(key, (3,))              pn.random.normal(key, (3,))
    eqx.Module                                @pn.container
    eqx.field(static=True)                    pn.static()
    eqx.nn.Linear(3, 2, key=key)              Linear.init(key, 3, 2)
    jax.tree.map, eqx.tree_at                 pn.tree.map, pn.tree.select(p).paths(...).set
    eqx.partition(p, eqx.is_array), combine   pn.tree.partition(p), pn.tree.combine
    jax.grad, value_and_grad, jvp, vjp        pn.grad, value_and_grad, jvp, vjp
    jax.vmap(f, in_axes=(None, 0))            pn.vmap(f, in_dims=(None, 0))
    jax.jit(f, static_argnames=...)           pn.jit(f, static_argnames=...)
    jax.checkpoint, jax.lax.scan, cond        pn.remat, pn.scan, pn.cond
    jax.custom_vjp                            pn.custom_vjp
    optax.adam(1e-3)                          pn.optim.adam(1e-3)
    eqx.tree_serialise_leaves                 pn.save, pn.load
"""

import torch
from torch import Tensor

import purenn as pn
from purenn.errors import TraceError
from purenn.layers import BatchNorm1d, Linear, Sequential, Tanh


@pn.container
class MLP(pn.Layer):
    """In Equinox: class MLP(eqx.Module), with __init__ and __call__.

    Here the constructor always takes the fields, so that any tree can be rebuilt from its parts. Drawing parameters is
    the business of a class method, and applying them that of a function.
    """

    hidden: Linear
    out: Linear
    slope: float = pn.static(default=0.1)

    @classmethod
    def init(cls, key: Tensor, in_features: int, width: int) -> "MLP":
        """Draw the parameters."""
        k1, k2 = pn.random.split(key)
        return cls(Linear.init(k1, in_features, width), Linear.init(k2, width, 1))


@pn.applies(MLP)
def mlp(p: MLP, x: Tensor) -> Tensor:
    return p.out(torch.nn.functional.leaky_relu(p.hidden(x), p.slope))


def loss(p: MLP, x: Tensor, y: Tensor) -> Tensor:
    return (mlp(p, x) - y).square().mean()


def transformations() -> None:
    # Keys are tensors, of any shape that vmap makes of them.
    k1, k2 = pn.random.split(pn.random.key(0))
    p = MLP.init(k1, 4, 8)
    x, y = pn.random.normal(k2, (16, 4)), torch.zeros(16, 1)

    # No filter_grad: what is differentiated are the trainable leaves. Buffers, integers and frozen leaves have the
    # placeholder HOLE in the gradient, as None stands for them in Equinox.
    per_sample = pn.vmap(pn.grad(loss), (None, 0, 0))(p, x, y)
    mean = pn.tree.map(lambda g: g.mean(0), per_sample)
    assert pn.tree.allclose(mean, pn.grad(loss)(p, x, y), atol=1e-6)
    print("vmap(grad):", per_sample)

    # filter_vmap over an ensemble: draw it from many keys, apply it along the leading axis.
    models = pn.ensemble(MLP.init)(pn.random.split(k1, 3), 4, 8)
    assert pn.vmap(mlp, (0, None))(models, x).shape == (3, 16, 1)


def batches() -> None:
    # The first difference: layers take leading batch axes, as torch's do. You need no vmap for a batch, and should not
    # use it for one: a batched matrix product is faster than a vmapped vector product.
    p = Linear.init(pn.random.key(1), 4, 2)
    x = torch.ones(7, 5, 4)
    assert p(x).shape == (7, 5, 2)
    torch.testing.assert_close(pn.vmap(p)(x), p(x))
    print("\nbatch axes are native:", list(p(x).shape))


def eager_and_compiled() -> None:
    # The second: eager is the normal case. Python's `if`, `print` and breakpoints work on values.
    def clipped(x: Tensor) -> Tensor:
        return x if x.sum() < 1 else x / x.sum()

    clipped(torch.ones(3))

    # Only `pn.jit` traces, by the rules of jax.jit, and says so when they are broken.
    try:
        pn.jit(clipped, backend="eager")(torch.ones(3))
    except TraceError as error:
        print("\nan `if` on a value in jit:", error)
    step = pn.jit(lambda x: pn.cond(x.sum() < 1, lambda x: x, lambda x: x / x.sum(), x), backend="eager")
    torch.testing.assert_close(step(torch.ones(3)), torch.full((3,), 1 / 3))

    # The default backend is inductor, torch's compiler. "eager" runs the traced graph as it is, which is quick to
    # start.
    step(torch.zeros(3))
    print("traced once for two calls:", step.cache_info())


def state() -> None:
    # The third: state is neither an index into a store nor a collection beside the parameters. A layer with running
    # averages returns itself with the new ones.
    p = Sequential.of(Linear.init(pn.random.key(2), 4, 4), BatchNorm1d.init(4), Tanh())
    y, new = p(torch.randn(8, 4), train=True)
    assert pn.is_stateful(p)
    assert p.layers[1].num_batches_tracked == 0
    assert new.layers[1].num_batches_tracked == 1
    print("\nstate goes in and comes out:", list(y.shape))


def loops() -> None:
    # scan has JAX's signature. In eager it is a Python loop, in jit one operation whose body is compiled once.
    def body(carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        carry = 0.9 * carry + x
        return carry, carry

    last, all_of_them = pn.scan(body, torch.tensor(0.0), torch.ones(10))
    assert all_of_them.shape == (10,)
    print(f"\nscan: {last:.4f}")


def nothing_leaks() -> None:
    # Two draws from one key are as wrong here as there. The guard `strict` raises when a key is used twice.
    key = pn.random.key(3)
    try:
        with pn.random.strict():
            twice = pn.random.normal(key, (2,)), pn.random.normal(key, (2,))
            raise AssertionError(f"two equal draws: {twice}")
    except pn.errors.KeyReuseError as error:
        print("\na key used twice:", str(error).split(":")[0])


def main() -> None:
    transformations()
    batches()
    eager_and_compiled()
    state()
    loops()
    nothing_leaks()


if __name__ == "__main__":
    main()
