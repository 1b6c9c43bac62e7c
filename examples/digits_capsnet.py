"""A capsule network on real handwritten digits, functional from end to end and as a module at the end.

    python examples/digits_capsnet.py
    python examples/digits_capsnet.py --epochs 10 --seed 1 --routing-iterations 2 --out runs/two
    python examples/digits_capsnet.py --resume        # goes on where an interrupted run stopped

It trains on scikit-learn's digits (1,797 images of 8x8 pixels, 360 of them held out), finds the hardest images by their
per-sample gradients, carries the trained network as an nn.Module and trains that a little further, and writes a
picture, a page to explore in a browser, the trained parameters and a table of what it found.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from _digits_page import write_page
from _shared import digits, parsed, parser_for, progress_bars
from rich.console import Console
from rich.table import Table
from torch import Tensor

import bridge
import purenn as pn
from purenn.losses import margin_loss, reconstruction_loss
from purenn.models import CapsNet, capsnet, decode

BATCH, LEARNING_RATE, RECONSTRUCTION = 64, 3e-3, 0.01
SHOWN, VARIED, MOVED = 12, (2, 4, 7), 0.5


@pn.container
class TrainingState:
    """Everything that a run needs to go on: saved after every epoch."""

    params: CapsNet
    optimizer: Any
    epoch: Tensor


def initial_params(key: Tensor, iterations: int) -> CapsNet:
    """A small capsule network for images of 8x8 pixels."""
    return CapsNet.init(
        key,
        image_shape=(1, 8, 8),
        channels=128,
        kernel_size=3,
        primary_types=16,
        primary_kernel_size=3,
        primary_stride=2,
        iterations=iterations,
        decoder=(96, 128),
    )


def loss_of(params: CapsNet, image: Tensor, target: Tensor) -> Tensor:
    """The loss of images, or of one image."""
    out = capsnet(params, image, label=target)
    assert out.reconstruction is not None
    return margin_loss(out.lengths, target) + reconstruction_loss(out.reconstruction, image, weight=RECONSTRUCTION)


def accuracy(lengths: Tensor, target: Tensor) -> float:
    """The share of examples whose longest capsule is the right one."""
    return (lengths.argmax(-1) == target).double().mean().item()


def train(state: TrainingState, data: dict[str, Tensor], args: argparse.Namespace, console: Console) -> TrainingState:
    """Train epoch by epoch, saving the state and the history after each."""
    steps = len(data["train"]) // BATCH
    history = read_history(args) if args.resume else []
    gradient = pn.value_and_grad(loss_of)
    order_key = pn.random.fold_in(pn.random.key(args.seed), 1)
    with progress_bars(console) as progress:
        bar = progress.add_task("training", total=args.epochs, completed=int(state.epoch))
        for epoch in range(int(state.epoch), args.epochs):
            params, optimizer_state = state.params, state.optimizer
            # The order of an epoch depends on the seed and its number alone, so a resumed run sees the same one.
            order = pn.random.permutation(pn.random.fold_in(order_key, epoch), len(data["train"])).to(args.device)
            optimizer = pn.optim.adam(
                LEARNING_RATE * 0.5 * (1 + torch.tensor(torch.pi * epoch / args.epochs).cos().item())
            )
            total = 0.0
            for rows in order[: steps * BATCH].split(BATCH):
                loss, grads = gradient(params, data["train"][rows], data["train_target"][rows])
                updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
                params = pn.optim.apply_updates(params, updates)
                total += loss.item()
            test_accuracy = accuracy(capsnet(params, data["test"]).lengths, data["test_target"])
            history.append({"loss": total / steps, "test accuracy": test_accuracy})
            state = TrainingState(params, optimizer_state, torch.tensor(epoch + 1))
            pn.save(
                args.out / "state.safetensors",
                state,
                metadata={"settings": settings(args), "history": json.dumps(history)},
            )
            progress.update(bar, advance=1, description=f"loss {total / steps:.4f}, test accuracy {test_accuracy:.2%}")
    return state


def settings(args: argparse.Namespace) -> str:
    """What must be the same for a run to be resumed."""
    return json.dumps({"epochs": args.epochs, "seed": args.seed, "routing-iterations": args.routing_iterations})


def read_history(args: argparse.Namespace) -> list[dict[str, float]]:
    """Loss and test accuracy of every epoch so far."""
    return json.loads(pn.tree.metadata(args.out / "state.safetensors")["history"])


def gradient_norms(params: CapsNet, images: Tensor, targets: Tensor) -> Tensor:
    """The norm of the gradient of every single image, without a loop."""
    gradients = pn.vmap(pn.grad(loss_of), (None, 0, 0), chunk_size=60)(params, images, targets)
    squares = [leaf.flatten(1).square().sum(1) for leaf in pn.tree.leaves(gradients)]
    return torch.stack(squares).sum(0).sqrt()


def as_module(params: CapsNet, data: dict[str, Tensor], seed: int) -> tuple[CapsNet, float, float]:
    """Carry the network as a module, train that for a few steps, and come back.

    Returns:
        The container after those steps, and how much the two carriers differ before and after them.
    """
    module = bridge.to_module(params, copy=True)
    apart = [carriers_apart(module, params, data["test"])]
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)
    rows = pn.random.permutation(pn.random.fold_in(pn.random.key(seed), 2), len(data["train"])).to(data["train"].device)
    for batch in rows[: 10 * BATCH].split(BATCH):
        optimizer.zero_grad()
        loss_of(module, data["train"][batch], data["train_target"][batch]).backward()  # type: ignore[arg-type]
        optimizer.step()
    after = bridge.from_module(module)
    apart.append(carriers_apart(module, after, data["test"]))
    return after, apart[0], apart[1]


@torch.no_grad()
def carriers_apart(module: torch.nn.Module, params: CapsNet, images: Tensor) -> float:
    """The largest difference between the logits of the module and of the container."""
    return (module(images).lengths - capsnet(params, images).lengths).abs().max().item()


def variations(params: CapsNet, images: Tensor, digit: int, rows: int = 5, columns: int = 9) -> Tensor:
    """One picture: what the decoder makes of a digit's mean capsule while its components move, the strongest first."""
    mean = capsnet(params, images).poses.mean(0)
    steps = torch.linspace(-MOVED, MOVED, columns, device=images.device)
    # [component, step, class, dim]: one component moved at a time
    moved = steps[None, :, None, None] * torch.eye(mean.shape[-1], device=images.device)[:, None, None, :]
    label = torch.full(moved.shape[:2], digit, device=images.device)
    pictures = decode(params, mean + moved, label=label)[:, :, 0]
    strongest = (pictures[:, -1] - pictures[:, 0]).square().sum((-1, -2)).topk(rows).indices
    framed = torch.nn.functional.pad(pictures[strongest], (1, 1, 1, 1))
    return torch.cat([torch.cat(list(row), dim=1) for row in framed])


def draw(params: CapsNet, data: dict[str, Tensor], norms: Tensor, history: list[dict[str, float]], path: Path) -> None:
    """The picture: accuracy by epoch, the hardest digits, and what the components of a capsule mean."""
    figure = plt.figure(figsize=(11, 6.0), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 0.85))
    left, right = top.subfigures(1, 2)

    axes = left.subplots()
    epochs = range(1, len(history) + 1)
    axes.plot(epochs, [100 * entry["test accuracy"] for entry in history], color="tab:blue")
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title="Accuracy on 360 held-out digits")
    axes.set_ylim(
        max(0, min(98, 100 * min(entry["test accuracy"] for entry in history[len(history) // 4 :])) - 1), 100.2
    )
    axes.grid(alpha=0.3)

    hardest = norms.topk(SHOWN).indices
    guess = capsnet(params, data["test"][hardest]).lengths.argmax(-1)
    right.suptitle("Hardest test digits: largest per-sample gradients")
    for axes, row, said in zip(right.subplots(2, SHOWN // 2).flat, hardest.tolist(), guess.tolist(), strict=True):
        true = int(data["test_target"][row])
        axes.imshow(data["test"][row, 0].cpu(), cmap="gray_r")
        axes.set_title(
            f"{true}" if said == true else f"{true}, read as {said}",
            fontsize=9,
            color="black" if said == true else "tab:red",
        )
        axes.axis("off")

    bottom.suptitle(f"Reconstructions while one component of the class capsule is moved by -{MOVED} to +{MOVED}")
    for panel, digit in zip(bottom.subfigures(1, 3), VARIED, strict=True):
        axes = panel.subplots()
        axes.imshow(variations(params, data["test"][data["test_target"] == digit], digit).cpu(), cmap="gray_r", vmin=0)
        axes.set_title(f"digit {digit}: its five strongest components", fontsize=10)
        axes.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def options() -> argparse.Namespace:
    """The command line, checked."""
    parser = parser_for("digits_capsnet", "A capsule network on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training images (default: 30)")
    parser.add_argument("--routing-iterations", type=int, default=3, help="of dynamic routing (default: 3)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    args = parsed(parser, "epochs", "routing-iterations")
    saved = args.out / "state.safetensors"
    if args.resume:
        if not saved.exists():
            parser.error(f"--resume: there is no run in {args.out}; start one without --resume")
        found = pn.tree.metadata(saved).get("settings")
        if found != settings(args):
            parser.error(f"--resume: the run in {args.out} was started with {found}, not {settings(args)}")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args = options()
    console = Console()
    started = time.perf_counter()
    data = digits(args.device)
    params = pn.tree.to(
        initial_params(pn.random.fold_in(pn.random.key(args.seed), 0), args.routing_iterations), args.device
    )
    state = TrainingState(params, pn.optim.adam(LEARNING_RATE).init(params), torch.tensor(0))
    if args.resume:
        state = pn.load(args.out / "state.safetensors", like=state)
        console.print(f"resuming after epoch {int(state.epoch)}")
    try:
        state = train(state, data, args, console)
    except KeyboardInterrupt:
        console.print("interrupted; go on with --resume")
        raise SystemExit(130) from None
    trained = time.perf_counter() - started
    history = read_history(args)

    lengths = capsnet(state.params, data["test"]).lengths
    norms = gradient_norms(state.params, data["test"], data["test_target"])
    after, before_steps, after_steps = as_module(state.params, data, args.seed)
    pn.save(args.out / "capsnet.safetensors", state.params)
    draw(state.params, data, norms, history, args.out / "digits_capsnet.png")
    wrong = lengths.argmax(-1) != data["test_target"]
    facts = {
        "parameters": f"{pn.tree.count(state.params):,}",
        "training": f"{args.epochs} epochs, {trained:.1f} s",
        "test accuracy": f"{accuracy(lengths, data['test_target']):.2%} ({int(wrong.sum())} of {len(wrong)} wrong)",
        "largest per-sample gradient": f"{norms.max():.3f} (median {norms.median():.3f})",
    }
    write_page(
        args.out / "digits_capsnet.html",
        state.params,
        data["test"],
        data["test_target"],
        difficulty=norms,
        facts=facts,
        picture=args.out / "digits_capsnet.png",
    )

    table = Table(title="Capsule network on 8x8 digits", show_header=False)
    for name, value in (
        *facts.items(),
        ("wrong ones among the 12 hardest", f"{int(wrong[norms.topk(SHOWN).indices].sum())} of {int(wrong.sum())}"),
        ("module and container differ by", f"{before_steps:.1e}, {after_steps:.1e} after 10 Adam steps of the module"),
        (
            "test accuracy after those steps",
            f"{accuracy(capsnet(after, data['test']).lengths, data['test_target']):.2%}",
        ),
        ("picture", str(args.out / "digits_capsnet.png")),
        ("page for a browser", str(args.out / "digits_capsnet.html")),
        ("parameters saved", str(args.out / "capsnet.safetensors")),
    ):
        table.add_row(name, value)
    console.print(table)


if __name__ == "__main__":
    main()
