"""Ensembles and model soups.

    python examples/guides/ensembles_and_soups.py

An ensemble is not a list of models. It is one model whose leaves have a leading axis, made, trained and applied by
vmap: a batched matrix product instead of many small ones. Averaged along that axis it is a single model again, a soup.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

import purenn as pn
from purenn.layers import Linear, ReLU, Sequential

MODELS, STEPS = 8, 100


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four hundred images and their classes to train on, and others to test on."""
    data = load_digits()
    images, classes = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    return images[:400], classes[:400], images[400:], classes[400:]


def network(key: Tensor) -> Sequential:
    k1, k2 = pn.random.split(key)
    return Sequential.of(Linear.init(k1, 64, 32), ReLU(), Linear.init(k2, 32, 10))


def loss(p: Sequential, x: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(p(x), target)


def accuracy(logits: Tensor, target: Tensor) -> float:
    return (logits.argmax(-1) == target).double().mean().item()


def batches(key: Tensor, images: Tensor, classes: Tensor, steps: int, size: int) -> list[tuple[Tensor, Tensor]]:
    drawn = pn.random.randint(key, (steps, size), low=0, high=len(images))
    return [(images[rows], classes[rows]) for rows in drawn]


def make() -> Sequential:
    # `pn.ensemble` maps an initializer over keys.
    models = pn.ensemble(network)(pn.random.split(pn.random.key(0), MODELS))
    print("eight models in one tree:", {path: list(leaf.shape) for path, leaf in pn.tree.named_leaves(models)})

    # Stacking models that exist already gives the same, and unstacking gives them back.
    first, *rest = pn.tree.unstack(models)
    assert pn.tree.equal(pn.tree.stack([first, *rest]), models)
    return models


def train(models: Sequential, images: Tensor, classes: Tensor) -> Sequential:
    # `fit_ensemble` is vmap over a training step. Each model has its own optimiser state, all see the same batch (with
    # shared=False, each its own). jit=True compiles the step.
    models, losses = pn.optim.fit_ensemble(
        loss, pn.optim.adam(1e-2), models, batches(pn.random.key(1), images, classes, STEPS, size=64)
    )
    assert losses.shape == (STEPS, MODELS)
    print(f"losses after {STEPS} steps: between {losses[-1].min():.2f} and {losses[-1].max():.2f}")
    return models


def predict(models: Sequential, images: Tensor, classes: Tensor) -> None:
    # One call for all models. The mean of the probabilities is better than the typical member, and the disagreement of
    # the members says where not to trust it.
    logits = pn.vmap(lambda p: p(images))(models)
    probabilities = logits.softmax(-1)
    alone = [accuracy(own, classes) for own in logits]
    together = accuracy(probabilities.mean(0), classes)
    print(f"\naccuracy: members {sum(alone) / MODELS:.1%} on average, together {together:.1%}")
    assert together > sum(alone) / MODELS

    # Where members disagree with the common answer, it is wrong more often.
    answers = probabilities.mean(0).argmax(-1)
    dissent = (logits.argmax(-1) != answers).double().mean(0)
    right, wrong = dissent[answers == classes].mean(), dissent[answers != classes].mean()
    print(f"members that disagree: {right:.1%} where the answer is right, {wrong:.1%} where it is wrong")
    assert wrong > 2 * right


def bad_soup(models: Sequential, images: Tensor, classes: Tensor) -> None:
    # Models from different starts cannot be averaged: their hidden units have nothing to do with each other.
    soup = pn.soup(models)
    print(f"\na soup of strangers: {accuracy(soup(images), classes):.1%}")
    assert accuracy(soup(images), classes) < 0.9


def good_soup(start: Sequential, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    # A soup is for models that went different ways from one trained start: here eight, by different batches. All are in
    # one valley of the loss, whose middle is a good place to be. It costs what a single model costs.
    images, classes, held_out_images, held_out_classes = data
    judge_images, test_images = held_out_images.split([200, 1197])
    judge_classes, test_classes = held_out_classes.split([200, 1197])
    models = pn.tree.stack([start] * MODELS)
    # In each step there is a batch for every model; small ones, so that the ways differ.
    steps = [batches(key, images, classes, MODELS, size=16) for key in pn.random.split(pn.random.key(2), 25)]
    separate = [(torch.stack([x for x, _ in step]), torch.stack([y for _, y in step])) for step in steps]
    models, _ = pn.optim.fit_ensemble(loss, pn.optim.sgd(0.5), models, separate, shared=False)

    logits = pn.vmap(lambda p: p(test_images))(models)
    alone = [accuracy(own, test_classes) for own in logits]
    plain = pn.soup(models)
    # The greedy soup takes in what does no harm, best first. It is judged on data of its own.
    greedy = pn.soup(models, score=lambda p: accuracy(p(judge_images), judge_classes))
    print(f"fine-tuned members: {min(alone):.1%} to {max(alone):.1%}, on average {sum(alone) / MODELS:.1%}")
    print(f"their soup: {accuracy(plain(test_images), test_classes):.1%}, ", end="")
    print(f"greedy: {accuracy(greedy(test_images), test_classes):.1%}")
    assert accuracy(plain(test_images), test_classes) > sum(alone) / MODELS + 0.01
    assert pn.tree.count(plain) == pn.tree.count(start)


def main() -> None:
    torch.set_num_threads(1)
    data = images, classes, test_images, test_classes = digits()
    models = train(make(), images, classes)
    predict(models, test_images, test_classes)
    bad_soup(models, test_images, test_classes)
    good_soup(pn.tree.unstack(models)[0], data)


if __name__ == "__main__":
    main()
