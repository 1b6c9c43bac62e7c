"""What several examples need: the handwritten digits, the options of their command lines, and bars of progress."""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor


def digits(device: torch.device | str = "cpu", *, flat: bool = False) -> dict[str, Tensor]:
    """The handwritten digits in a fixed, stratified split of 1,437 and 360.

    Returns:
        ``train`` and ``test``: images, [n, 1, 8, 8] or flat [n, 64], in [0, 1]; ``train_target`` and ``test_target``:
        their classes, [n].
    """
    data = load_digits()
    parts = train_test_split(data.images / 16.0, data.target, test_size=360, stratify=data.target, random_state=0)
    train, test, train_target, test_target = parts
    shape = (-1, 64) if flat else (-1, 1, 8, 8)
    images = {"train": train, "test": test}
    targets = {"train_target": train_target, "test_target": test_target}
    return {name: torch.tensor(x, dtype=torch.float32, device=device).view(shape) for name, x in images.items()} | {
        name: torch.tensor(y, dtype=torch.int64, device=device) for name, y in targets.items()
    }


def parser_for(name: str, description: str, *, device: bool = True) -> argparse.ArgumentParser:
    """A parser of the options that every example has: ``--seed``, ``--out`` and mostly ``--device``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="folder for what is written")
    if device:
        parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    return parser


def parsed(parser: argparse.ArgumentParser, *at_least_one: str) -> argparse.Namespace:
    """The options, checked: these are at least one, the device is there, and the folder is no file."""
    args = parser.parse_args()
    for option in at_least_one:
        value = getattr(args, option.replace("-", "_"))
        if value < 1:
            parser.error(f"--{option} must be at least 1, got {value}")
    if "device" in args:
        try:
            args.device = torch.device(args.device)
            torch.empty(0, device=args.device)
        except (RuntimeError, AssertionError) as error:
            parser.error(f"--device {args.device} cannot be used here: {str(error).splitlines()[0]}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file; give a folder")
    return args


def progress_bars(console: Console) -> Progress:
    """Bars with a name, how much is done, and the time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)
