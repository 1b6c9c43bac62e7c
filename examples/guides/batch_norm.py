"""Batch normalisation done purely.

    python examples/guides/batch_norm.py

Batch normalisation is where "a model is a function" seems to end: in training it mixes the examples of a batch, writes
running averages, and behaves differently from evaluation. Written purely, all three are visible in its signature:

    y, p_new = batch_norm(p, x, train=True)

The averages are buffers, leaves that are saved and moved but not trained. The new ones are in `p_new`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import purenn as pn
from purenn.layers import BatchNorm1d, Linear, ReLU, Sequential, batch_norm


def one_call() -> None:
    p = BatchNorm1d.init(3)
    x = 5 + 2 * pn.random.normal(pn.random.key(0), (1000, 3))
    y, new = batch_norm(p, x, train=True)
    assert torch.equal(p.running_mean, torch.zeros(3))  # the argument stays as it was
    print("before:", p.running_mean, " after a batch:", new.running_mean)
    torch.testing.assert_close(new.running_mean, 0.1 * x.mean(0))
    torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-5, rtol=0)

    # In evaluation the averages are used, and the same container comes back. The result is a pair all the same: what a
    # function returns depends on the model, never on a flag.
    _, same = batch_norm(new, x)
    assert same is new


def model(key: Tensor) -> Sequential:
    # What contains a stateful layer is stateful: `sequential` returns a pair now, and so does the loss.
    k1, k2 = pn.random.split(key)
    return Sequential.of(Linear.init(k1, 3, 8), BatchNorm1d.init(8), ReLU(), Linear.init(k2, 8, 1))


def loss(p: Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, Sequential]:
    prediction, p = p(x, train=True)
    return (prediction - y).square().mean(), p


def training() -> None:
    # `has_aux` carries the new model out of the gradient. The optimiser then changes what is trained, in the model that
    # has the new averages already: the gradient has a hole where a buffer is, and `step` keeps such leaves.
    p = pn.tree.to(model(pn.random.key(1)), torch.float64)
    x = pn.random.normal(pn.random.key(2), (64, 3), dtype=torch.float64)
    y = x[:, :1] * x[:, 1:2]

    module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)).double()
    module.load_state_dict({path.removeprefix("layers."): leaf for path, leaf in pn.tree.named_leaves(p)})

    optimizer = pn.optim.sgd(0.1)
    state = optimizer.init(p)
    for _ in range(50):
        grads, p = pn.grad(loss, has_aux=True)(p, x, y)
        p, state = optimizer.step(p, grads, state)
    assert grads.layers[1].running_mean is pn.tree.HOLE

    # The same fifty steps with torch.nn, for comparison:
    torch_optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(50):
        torch_optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        torch_optimizer.step()
    for path, leaf in pn.tree.named_leaves(p):
        torch.testing.assert_close(leaf, module.state_dict()[path.removeprefix("layers.")], rtol=0, atol=1e-9)
    print(f"\nfifty steps, as in torch.nn to 1e-9: loss {loss(p, x, y)[0]:.4f}")


def ensembles() -> None:
    # Purity pays when models multiply. Under vmap each model has averages of its own, and what is mapped is not a part
    # of the batch: torch.func refuses to do this with a module.
    models = pn.ensemble(model)(pn.random.split(pn.random.key(3), 5))
    x, y = pn.random.normal(pn.random.key(4), (64, 3)), torch.zeros(64, 1)
    grads, models = pn.vmap(pn.grad(loss, has_aux=True), (0, None, None))(models, x, y)
    assert models.layers[1].running_mean.shape == (5, 8)
    assert grads.layers[0].weight.shape == (5, 8, 3)
    print("averages of five models:", list(models.layers[1].running_mean.shape))


def per_sample() -> None:
    # One question has no answer: the gradient of one sample, when all samples of the batch are normalised together. A
    # batch of one has no variance, and the error says so, instead of giving numbers that mean nothing.
    p, x, y = model(pn.random.key(5)), torch.randn(4, 3), torch.zeros(4, 1)
    try:
        pn.vmap(pn.grad(loss, has_aux=True), (None, 0, 0))(p, x[:, None], y[:, None])
    except pn.errors.ShapeError as error:
        print("\nper-sample gradients in training:", error)
    else:
        raise AssertionError("a batch of one has no statistics")

    # With fixed averages, or with a norm that does not mix samples (LayerNorm, GroupNorm), there is an answer.
    def fixed(p: Sequential, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(p(x[None])[0], y[None])

    grads = pn.vmap(pn.grad(fixed), (None, 0, 0))(p, x, y)
    assert grads.layers[0].weight.shape == (4, 8, 3)


def recalibration() -> None:
    # Since state is a value, unusual things are easy. Averages for new data, parameters untouched: run batches, keep
    # buffers. momentum=None makes the averages plain means of all batches.
    p = BatchNorm1d.init(3, momentum=None)
    batches = [pn.random.normal(key, (256, 3)) + 3 for key in pn.random.split(pn.random.key(6), 10)]
    for x in batches:
        _, p = batch_norm(p, x, train=True)
    torch.testing.assert_close(p.running_mean, torch.cat(batches).mean(0))
    print("\nrecalibrated on ten batches:", int(p.num_batches_tracked), "batches seen")

    # Or keep them as they are while everything else is trained: evaluate the norms, differentiate their affine part.
    y, unchanged = batch_norm(p, batches[0], train=False)
    assert unchanged is p
    assert y.mean().abs() < 0.2


def main() -> None:
    one_call()
    training()
    ensembles()
    per_sample()
    recalibration()


if __name__ == "__main__":
    main()
