"""The comparison of routings, run as a user runs it: from the command line."""

import re
from pathlib import Path

import pytest
from _program import assert_refused, is_picture, run
from safetensors.torch import load_file

NAME = "capsule_routing"


def columns(out: str) -> dict[str, dict[str, str]]:
    """What the table says, by routing."""
    lines = [line for line in out.splitlines() if line.startswith(("│", "┃"))]
    (_, *routings), *rows = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
    return {routing: {name: cells[number] for name, *cells in rows} for number, routing in enumerate(routings)}


@pytest.mark.slow
def test_compares_three_routings(tmp_path: Path, device_name: str) -> None:
    """With its default options every routing gets most digits right, and per-sample gradients equal a loop."""
    done = run(NAME, "--out", str(tmp_path), "--device", device_name, columns=80)
    assert done.returncode == 0, done.stderr
    found = columns(done.stdout)
    assert list(found) == ["agreement", "attention", "inverted"]
    for cells in found.values():
        assert float(cells["test accuracy"].rstrip("%")) >= 95
        assert float(cells["vmap and loop differ by"]) <= 1e-3
    assert is_picture(tmp_path / "capsule_routing.png", 20_000)


def test_one_epoch(tmp_path: Path) -> None:
    """One epoch of a fourth routing writes the picture and the parameters."""
    done = run(NAME, "--epochs", "1", "--routings", "self", "--out", str(tmp_path), columns=80)
    assert done.returncode == 0, done.stderr
    assert list(columns(done.stdout)) == ["self"]
    assert re.search(r"picture and parameters: ", done.stdout)
    assert (tmp_path / "capsule_routing.png").read_bytes().startswith(b"\x89PNG")
    assert set(load_file(tmp_path / "self.safetensors")) >= {"conv.weight", "classes.routing.weight"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--routing-iterations", "-1"], "--routing-iterations must be at least 1, got -1"),
        (["--device", "abacus"], "--device abacus cannot be used here: "),
        (["--out", __file__], f"--out {__file__} is a file; give a folder"),
        (["--routings", "postal"], "argument --routings: invalid choice: 'postal'"),
    ],
)
def test_bad_options(options: list[str], text: str) -> None:
    """A bad option ends the program with one line that names it, and status 2."""
    assert_refused(NAME, options, text)
