"""Per-sample gradients.

    python examples/guides/per_sample_gradients.py

The gradient of a batch is a mean, and much is lost in it: which samples are hard, which are mislabelled, which
dominate, how noisy the mean is. This guide takes the gradient of each sample, first by two transformations and then
without ever making it, and uses it for five things: norms, private training, influence, Fisher information and the
noise of a batch.

Longer programs: examples/private_digits.py and examples/influence.py.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

import purenn as pn
from purenn.layers import Linear, ReLU, Sequential


def loss(p: Sequential, x: Tensor, target: Tensor) -> Tensor:
    """The loss of one sample: x [64], target []."""
    return F.cross_entropy(p(x), target)


def data() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return torch.tensor(digits.data[:200] / 16, dtype=torch.float32), torch.tensor(digits.target[:200])


def network() -> Sequential:
    k1, k2 = pn.random.split(pn.random.key(0))
    return Sequential.of(Linear.init(k1, 64, 32), ReLU(), Linear.init(k2, 32, 10))


def by_two_transformations(p: Sequential, x: Tensor, target: Tensor) -> Sequential:
    # Write the loss of one sample, differentiate it, and map the gradient over samples. The parameters are shared, so
    # their entry is None. It is the loop over samples, as batched operations.
    gradients = pn.vmap(pn.grad(loss), (None, 0, 0))(p, x, target)
    assert pn.tree.allclose(pn.tree.unstack(gradients)[7], pn.grad(loss)(p, x[7], target[7]), atol=1e-6)
    mean = pn.tree.map(lambda g: g.mean(0), gradients)
    assert pn.tree.allclose(mean, pn.grad(lambda p: F.cross_entropy(p(x), target))(p), atol=1e-6)
    print("a leaf of the gradients:", list(gradients.layers[0].weight.shape))
    return gradients


def by_a_record(p: Sequential, x: Tensor, target: Tensor, gradients: Sequential) -> None:
    # That is 200 times the memory of the model. Most questions do not need it: of a matrix's gradient, which is an
    # outer product, the norm is the product of two norms. `record` runs forward and backward once, keeps what gradients
    # are made of, and answers from that.
    record = pn.per_sample.record(loss, p, (x, target))
    norms = sum(leaf.flatten(1).square().sum(1) for leaf in pn.tree.leaves(gradients)).sqrt()
    torch.testing.assert_close(record.norms(), norms, rtol=1e-4, atol=1e-6)
    print(f"\nnorms: smallest {record.norms().min():.2f}, largest {record.norms().max():.2f}")
    for path, of_leaf in record.norms(per="leaf").items():
        print(f"  of {path}: {of_leaf.mean():.2f} on average")

    # The same record gives losses, the gradients themselves, and any weighted sum of them.
    assert pn.tree.allclose(record.grads(), gradients, atol=1e-5)
    total = record.weighted_sum(torch.ones(200) / 200)
    assert pn.tree.allclose(total, pn.tree.map(lambda g: g.mean(0), gradients), atol=1e-6)


def private(p: Sequential, x: Tensor, target: Tensor) -> None:
    # Differentially private training: no sample may change a step by more than so much. Clip each gradient, add noise
    # to the sum; what a run then reveals is what `pn.privacy.epsilon` computes. (A real one draws a new sample of the
    # data for each step: `pn.privacy.poisson_sample`.)
    clipped = pn.per_sample.clipped_grad(loss, 1.0)
    together, first = clipped(p, (x, target)), clipped(p, (x[1:], target[1:]))
    change = pn.tree.map(torch.sub, together, first)
    assert sum(leaf.square().sum() for leaf in pn.tree.leaves(change)).sqrt() < 1.0 + 1e-3

    # As an optimiser: the mechanism adds the noise to the clipped sum and divides by the expected batch size.
    optimizer = pn.optim.chain(
        pn.privacy.gaussian_mechanism(pn.random.key(1), noise_multiplier=1.0, max_norm=1.0, batch_size=200),
        pn.optim.sgd(0.5),
    )
    state, before = optimizer.init(p), loss(p, x, target)
    for _ in range(30):
        p, state = optimizer.step(p, clipped(p, (x, target)), state)
    print(f"\nthirty private steps: loss {before:.2f} -> {loss(p, x, target):.2f}")
    assert loss(p, x, target) < before


def influence(p: Sequential, x: Tensor, target: Tensor) -> None:
    # Two samples pull in the same direction if the inner product of their gradients is large. All of these products are
    # one matrix, and no gradient is made for it.
    record = pn.per_sample.record(loss, p, (x, target))
    gram = record.gram()
    assert gram.shape == (200, 200)
    torch.testing.assert_close(gram.diagonal(), record.norms().square(), rtol=1e-4, atol=1e-5)
    same = target[:, None] == target[None, :]
    off_diagonal = ~torch.eye(200, dtype=torch.bool)
    alike, unlike = gram[same & off_diagonal].mean(), gram[~same].mean()
    print(f"\nmean inner product of gradients: {alike:.2f} within a class, {unlike:.2f} between classes")
    assert alike > unlike


def curvature_and_noise(p: Sequential, x: Tensor, target: Tensor) -> None:
    # The mean of the squared gradients is the diagonal of the empirical Fisher information.
    record = pn.per_sample.record(loss, p, (x, target))
    fisher = pn.tree.map(lambda square: square / 200, record.second_moment())
    assert all((leaf >= 0).all() for leaf in pn.tree.leaves(fisher))
    largest = max(pn.tree.named_leaves(fisher), key=lambda item: item[1].mean().item())[0]
    print("\nmost informative leaf:", largest)

    # And how noisy is a mean of 200? The noise scale is the batch size at which noise and signal are equal.
    print("noise scale:", record.noise_scale())


def what_has_no_answer(p: Sequential, x: Tensor, target: Tensor) -> None:
    # A loss that mixes samples has no gradient of one sample, and the error says so.
    def mixing(p: Sequential, x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(p(x - x.mean(0)), target, reduction="none")

    try:
        pn.per_sample.record(mixing, p, (x, target), batched=True)
    except pn.errors.BatchingError as error:
        print("\na loss that mixes samples:", error)
    else:
        raise AssertionError("mixing samples was not found out")


def main() -> None:
    torch.set_num_threads(1)
    p, (x, target) = network(), data()
    gradients = by_two_transformations(p, x, target)
    by_a_record(p, x, target, gradients)
    private(p, x, target)
    influence(p, x, target)
    curvature_and_noise(p, x, target)
    what_has_no_answer(p, x, target)


if __name__ == "__main__":
    main()
