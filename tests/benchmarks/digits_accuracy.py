"""Test accuracy of a small capsule network on real digits, over several seeds, by both carriers.

    python tests/benchmarks/digits_accuracy.py [--seeds 5] [--epochs 30] [--device cuda]

scikit-learn's digits, 1,437 images of 8x8 pixels to train on and 360 held out, each training image shifted by up to one
pixel, by interpolation. The functional run takes gradients of a container and steps of `pn.optim.adam`; the other one
trains the same network, from the same values and on the same batches, as an nn.Module with torch.optim.Adam.

The recipe (shifts, stride, types, epochs) was chosen by the accuracy on the held-out images of one split. Each seed
therefore has a split of its own here; what is compared, the two carriers, does not depend on that choice.
"""

import argparse
import statistics

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

import bridge
import purenn as pn
from purenn.losses import margin_loss, reconstruction_loss
from purenn.models import CapsNet, capsnet

BATCH, LEARNING_RATE, RECONSTRUCTION = 64, 3e-3, 0.01


def load(split: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test images in [0, 1], and their classes, by a stratified split; the recipe was chosen on split 0."""
    digits = load_digits()
    train, test, train_target, test_target = train_test_split(
        digits.images / 16.0, digits.target, test_size=360, stratify=digits.target, random_state=split
    )
    images = (torch.tensor(x, dtype=torch.float32, device=device).unsqueeze(1) for x in (train, test))
    return (*images, *(torch.tensor(y, device=device) for y in (train_target, test_target)))  # type: ignore[return-value]


def initial(seed: int) -> CapsNet:
    """A network like that of examples/digits_capsnet.py, with 128 primary capsules: 8 types at 4x4 positions."""
    return CapsNet.init(
        pn.random.key(seed),
        image_shape=(1, 8, 8),
        channels=128,
        kernel_size=3,
        primary_types=8,
        primary_kernel_size=3,
        primary_stride=1,
        decoder=(96, 128),
    )


def loss_of(p: CapsNet, image: Tensor, target: Tensor) -> Tensor:
    out = capsnet(p, image, label=target)
    assert out.reconstruction is not None
    return margin_loss(out.lengths, target) + reconstruction_loss(out.reconstruction, image, weight=RECONSTRUCTION)


def batches(seed: int, epoch: int, images: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The batches of an epoch, every image shifted by up to one pixel in both directions."""
    order_key, shift_key = pn.random.split(pn.random.fold_in(pn.random.key(seed), epoch + 1))
    count = len(images) // BATCH * BATCH
    order = pn.random.permutation(order_key, len(images))[:count].to(images.device)
    shifts = pn.random.uniform(shift_key, (2, count, 1, 1), low=-1, high=1).to(images.device)
    pixels = torch.arange(8, device=images.device)
    # Linear interpolation along each axis is a product with a matrix: entry (i, j) is the share of pixel j in pixel i.
    rows, columns = (1 - (pixels[:, None] + shifts - pixels).abs()).relu()
    shifted = (rows @ images[order, 0] @ columns.mT).unsqueeze(1)
    return list(zip(shifted.split(BATCH), targets[order].split(BATCH), strict=True))


def rate(epoch: int, epochs: int) -> float:
    return LEARNING_RATE * 0.5 * (1 + torch.tensor(torch.pi * epoch / epochs).cos().item())


def train_functional(seed: int, epochs: int, images: Tensor, targets: Tensor) -> CapsNet:
    p = pn.tree.to(initial(seed), images.device)
    state = pn.optim.adam(LEARNING_RATE).init(p)
    gradient = pn.grad(loss_of)
    for epoch in range(epochs):
        optimizer = pn.optim.adam(rate(epoch, epochs))
        for image, target in batches(seed, epoch, images, targets):
            updates, state = optimizer.update(gradient(p, image, target), state, p)
            p = pn.optim.apply_updates(p, updates)
    return p


def train_module(seed: int, epochs: int, images: Tensor, targets: Tensor) -> CapsNet:
    module = bridge.to_module(pn.tree.to(initial(seed), images.device), copy=True)
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate(epoch, epochs)
        for image, target in batches(seed, epoch, images, targets):
            optimizer.zero_grad()
            loss_of(module, image, target).backward()  # type: ignore[arg-type]
            optimizer.step()
    return bridge.from_module(module)


@torch.no_grad()
def accuracy(p: CapsNet, images: Tensor, targets: Tensor) -> float:
    return 100 * (capsnet(p, images).lengths.argmax(-1) == targets).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"### Accuracy on digits\n\ntorch {torch.__version__}, {args.device}, {args.epochs} epochs\n")
    print("| seed | functional, % | as a module, % |\n|---|---|---|", flush=True)
    found: list[tuple[float, float]] = []
    for seed in range(args.seeds):
        train, test, train_target, test_target = load(1 + seed, args.device)
        functional, module = (
            accuracy(run(seed, args.epochs, train, train_target), test, test_target)
            for run in (train_functional, train_module)
        )
        found.append((functional, module))
        print(f"| {seed} | {functional:.2f} | {module:.2f} |", flush=True)
    means = [statistics.mean(column) for column in zip(*found, strict=True)]
    print(f"| mean | {means[0]:.2f} | {means[1]:.2f} |\n\nGoal: a mean of at least 99.0%.")


if __name__ == "__main__":
    main()
