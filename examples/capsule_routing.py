"""Three ways to route capsules, on real handwritten digits: what they cost, what they learn, and where votes go.

    python examples/capsule_routing.py
    python examples/capsule_routing.py --epochs 20 --seed 1 --routings agreement attention --out runs/two
    python examples/capsule_routing.py --memory folded        # another form of the same routing by agreement

The same small network is trained with each routing on scikit-learn's digits (1,797 images of 8x8 pixels, 360 of them
held out). The example writes a picture of accuracy, coupling coefficients and of what each component of a class capsule
does, and the trained parameters. Gradients of single examples through all iterations of the routing are one line, and
are held against a loop.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from _shared import digits, parsed, parser_for, progress_bars
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import purenn as pn
from purenn.layers import (
    AgreementRouting,
    AttentionRouting,
    Capsules,
    Conv2d,
    InvertedAttentionRouting,
    Linear,
    PrimaryCapsules,
    SelfRouting,
    capsule_lengths,
    capsules,
    conv2d,
    linear,
    mask_capsules,
    primary_capsules,
)
from purenn.losses import cross_entropy, margin_loss, nll_loss, reconstruction_loss
from purenn.ops import layer_norm

BATCH, LEARNING_RATE, RECONSTRUCTION = 64, 3e-3, 0.01
TYPES, CLASSES, IN_DIM, OUT_DIM, POSITIONS = 8, 10, 8, 16, 4
MOVED, STEPS, SHOWN, CHECKED = 0.8, 7, 6, 32
ROUTINGS = ("agreement", "attention", "inverted", "self")


@pn.container
class Network:
    """A convolution, primary capsules, routed class capsules, and a decoder."""

    conv: Conv2d
    primary: PrimaryCapsules
    classes: Capsules
    decoder: tuple[Linear, Linear]


class Trained(NamedTuple):
    """What is known of one routing after training."""

    params: Network
    accuracies: list[float]
    seconds: float


def initial_params(key: Tensor, routing: str, iterations: int, memory: str) -> Network:
    """A small network whose class capsules are routed in one of four ways."""
    keys = pn.random.split(key, 6)
    in_caps = TYPES * POSITIONS
    made = {
        "agreement": lambda: AgreementRouting(iterations, memory=memory),
        "attention": lambda: AttentionRouting.init(in_caps, CLASSES),
        "self": lambda: SelfRouting.init(keys[5], in_caps, CLASSES, in_dim=IN_DIM),
        "inverted": lambda: InvertedAttentionRouting.init(keys[5], OUT_DIM, iterations=iterations),
    }[routing]()
    # What is squashed at its end saturates if votes are long at first; the others want larger ones.
    std = 0.1 if routing in ("agreement", "attention") else 0.3
    return Network(
        conv=Conv2d.init(keys[0], 1, 64, 3),
        primary=PrimaryCapsules.init(keys[1], 64, types=TYPES, dim=IN_DIM, kernel_size=5, stride=1),
        classes=Capsules.init(keys[2], in_caps, CLASSES, made, in_dim=IN_DIM, out_dim=OUT_DIM, std=std),
        decoder=(Linear.init(keys[3], CLASSES * OUT_DIM, 96), Linear.init(keys[4], 96, 64)),
    )


def primary(params: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """Poses ``[batch, in_caps, in_dim]`` and activations ``[batch, in_caps]`` of the primary capsules of images."""
    u = primary_capsules(params.primary, conv2d(params.conv, images).relu())
    # Self-routing reads where to go from the pose alone, and from squashed poses it would learn slowly.
    own = isinstance(params.classes.routing, SelfRouting)
    return layer_norm(u, (IN_DIM,)) if own else u, capsule_lengths(u)


def classify(params: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """Poses and activations of the class capsules of images, or of one image."""
    return capsules(params.classes, *primary(params, images))


def decode(params: Network, poses: Tensor, label: Tensor) -> Tensor:
    """The images that the decoder makes of the capsules of some classes."""
    first, second = params.decoder
    hidden = linear(first, mask_capsules(poses, label)).relu()
    return linear(second, hidden).sigmoid().unflatten(-1, (1, 8, 8))


def loss_of(params: Network, images: Tensor, targets: Tensor) -> Tensor:
    """The loss of images, or of one image: what suits the activations, and the reconstruction."""
    poses, activations = classify(params, images)
    if isinstance(params.classes.routing, InvertedAttentionRouting):
        loss = cross_entropy(activations, targets)  # logits
    elif isinstance(params.classes.routing, SelfRouting):
        loss = nll_loss((activations + 1e-6).log(), targets)  # shares of one
    else:
        loss = margin_loss(activations, targets)  # lengths
    return loss + reconstruction_loss(decode(params, poses, targets), images, weight=RECONSTRUCTION)


def accuracy(params: Network, images: Tensor, targets: Tensor) -> float:
    """The share of images whose most active capsule is the right one."""
    with torch.no_grad():
        return (classify(params, images)[1].argmax(-1) == targets).double().mean().item()


def train(params: Network, data: tuple[Tensor, ...], epochs: int, seed: int, progress: Progress, name: str) -> Trained:
    """Train with Adam and a falling learning rate, the same batches for every routing."""
    train_images, test_images, train_targets, test_targets = data
    count = len(train_images) // BATCH * BATCH
    gradient, state = pn.grad(loss_of), pn.optim.adam(LEARNING_RATE).init(params)
    bar, accuracies, started = progress.add_task(name, total=epochs), [], time.perf_counter()
    for epoch in range(epochs):
        rate = LEARNING_RATE * 0.5 * (1 + torch.tensor(torch.pi * epoch / epochs).cos().item())
        optimizer = pn.optim.adam(rate)
        order_key = pn.random.fold_in(pn.random.key(seed), epoch + 1)
        order = pn.random.permutation(order_key, len(train_images))[:count].to(train_images.device)
        for rows in order.split(BATCH):
            updates, state = optimizer.update(gradient(params, train_images[rows], train_targets[rows]), state, params)
            params = pn.optim.apply_updates(params, updates)
        accuracies.append(accuracy(params, test_images, test_targets))
        progress.update(bar, advance=1, description=f"{name}: test accuracy {accuracies[-1]:.2%}")
    return Trained(params, accuracies, time.perf_counter() - started)


def routing_cost(params: Network, images: Tensor) -> tuple[float, float]:
    """Milliseconds and peak MiB of forward and backward through votes and routing of all test images."""
    u, activations = (x.detach() for x in primary(params, images))

    def both() -> None:
        pn.grad(lambda p, u: capsules(p, u, activations).activations.square().sum(), (0, 1))(params.classes, u)

    both()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        both()
        times.append(time.perf_counter() - started)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        both()
    held = peak = 0
    events = (event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return 1e3 * min(times), peak / 2**20


def couplings(params: Network, image: Tensor) -> Tensor:
    """Which share of its vote every primary capsule of an image gives to every class, ``[classes, in_caps]``.

    By the routing's own formula, from its votes and its poses: the shares of the next iteration.
    """
    u, activations = primary(params, image)
    votes = torch.einsum("oidk,ik->oid", params.classes.weight, u)
    routing = params.classes.routing
    if isinstance(routing, SelfRouting):
        logits = torch.einsum("oik,ik->oi", routing.weight, u) + routing.bias
    elif isinstance(routing, AttentionRouting):
        logits = torch.einsum("oid,od->oi", votes, votes.sum(1)) / OUT_DIM**0.5
    else:
        logits = torch.einsum("oid,od->oi", votes, capsules(params.classes, u, activations).poses)
    return logits.softmax(0)


def gradient_norms(params: Network, images: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """The gradient's norm for every image, through the whole routing, and how far that is from a loop over images."""

    def norm(params: Network, image: Tensor, target: Tensor) -> Tensor:
        gradients = pn.tree.leaves(pn.grad(loss_of)(params, image, target))
        return torch.stack([g.square().sum() for g in gradients]).sum().sqrt()

    norms = pn.vmap(norm, (None, 0, 0), chunk_size=60)(params, images, targets)
    some = [norm(params, *one) for one in zip(images[:CHECKED], targets[:CHECKED], strict=True)]
    return norms, (torch.stack(some) - norms[:CHECKED]).abs().max().item()


def variations(params: Network, images: Tensor, label: int) -> Tensor:
    """The decoder's images of a digit's mean capsule while one component moves, the strongest ones first."""
    mean = classify(params, images)[0].mean(0)
    steps = torch.linspace(-MOVED, MOVED, STEPS, device=images.device) * mean[label].norm()
    moved = steps[None, :, None, None] * torch.eye(OUT_DIM, device=images.device)[:, None, None, :]
    pictures = decode(params, mean + moved, torch.full(moved.shape[:2], label, device=images.device))[:, :, 0]
    strongest = (pictures[:, -1] - pictures[:, 0]).square().sum((-1, -2)).topk(SHOWN).indices
    framed = torch.nn.functional.pad(pictures[strongest], (1, 1, 1, 1))
    return torch.cat([torch.cat(list(row), dim=1) for row in framed])


@torch.no_grad()
def draw(results: dict[str, Trained], data: tuple[Tensor, ...], path: Path) -> None:
    """The picture: accuracy by epoch; for every routing its couplings and what the components of a capsule do."""
    _, images, _, targets = data
    example, label = images[0], int(targets[0])
    figure, rows = plt.subplots(len(results), 3, figsize=(12, 3.4 * len(results)), layout="constrained", squeeze=False)
    figure.suptitle(f"Couplings and components for a {label}")
    for axes, (name, result) in zip(rows, results.items(), strict=True):
        axes[0].plot(range(1, len(result.accuracies) + 1), [100 * a for a in result.accuracies])
        axes[0].set(xlabel="epoch", ylabel="test accuracy (%)", title=f"{name}: {result.accuracies[-1]:.2%}")
        axes[0].set_ylim(90, 100.2)
        axes[0].grid(alpha=0.3)
        shown = axes[1].imshow(couplings(result.params, example).cpu(), aspect="auto", vmin=0, cmap="viridis")
        axes[1].set(xlabel="primary capsule", ylabel="class", title="coupling coefficients", yticks=range(CLASSES))
        figure.colorbar(shown, ax=axes[1])
        axes[2].imshow(variations(result.params, images[targets == label], label).cpu(), cmap="gray_r")
        axes[2].set(title="each row: one component moved", xticks=[], ylabel="strongest components", yticks=[])
    figure.savefig(path, dpi=100)
    plt.close(figure)


def described(result: Trained, data: tuple[Tensor, ...]) -> dict[str, str]:
    """What the table says of a routing."""
    milliseconds, mebibytes = routing_cost(result.params, data[1])
    norms, apart = gradient_norms(result.params, data[1], data[3])
    return {
        "parameters": f"{pn.tree.count(result.params):,}",
        "test accuracy": f"{result.accuracies[-1]:.2%}",
        "training": f"{result.seconds:.1f} s",
        "routing, both passes": f"{milliseconds:.1f} ms",
        "peak memory of that": f"{mebibytes:.1f} MiB",
        "largest per-sample gradient": f"{norms.max():.2f}",
        "vmap and loop differ by": f"{apart:.1e}",
    }


def options() -> argparse.Namespace:
    """The command line, checked."""
    parser = parser_for("capsule_routing", "Three ways to route capsules, on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the training images (default: 15)")
    parser.add_argument("--routings", nargs="+", choices=ROUTINGS, default=list(ROUTINGS[:3]), help="which to train")
    parser.add_argument("--routing-iterations", type=int, default=3, help="of those that iterate (default: 3)")
    parser.add_argument(
        "--memory", choices=("auto", "votes", "folded", "tiled"), default="auto", help="form of routing by agreement"
    )
    args = parsed(parser, "epochs", "routing-iterations")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args = options()
    console, data = Console(), tuple(digits(args.device).values())
    results: dict[str, Trained] = {}
    with progress_bars(console) as progress:
        for name in dict.fromkeys(args.routings):
            params = initial_params(pn.random.key(args.seed), name, args.routing_iterations, args.memory)
            params = pn.tree.to(params, args.device)
            results[name] = train(params, data, args.epochs, args.seed, progress, name)
    table = Table("routing", *results, title=f"Routings on 8x8 digits, {args.epochs} epochs")
    found = [described(result, data) for result in results.values()]
    for name in found[0]:
        table.add_row(name, *(cells[name] for cells in found))
    for name, result in results.items():
        pn.save(args.out / f"{name}.safetensors", result.params)
    draw(results, data, args.out / "capsule_routing.png")
    console.print(table)
    console.print(f"picture and parameters: {args.out}")


if __name__ == "__main__":
    main()
