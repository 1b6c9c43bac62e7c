"""The main job, run as a user runs it: from the command line."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _program import ENVIRONMENT, ROOT, assert_refused, command, is_picture, run
from safetensors.torch import load_file

import purenn as pn

NAME = "digits_capsnet"


@pytest.mark.slow
def test_reaches_the_accuracy_in_time(tmp_path: Path, device_name: str) -> None:
    """With its default options it gets at least 98.5% of the held-out digits right, in less than ninety seconds."""
    done = run(NAME, "--out", str(tmp_path), "--device", device_name)
    assert done.returncode == 0, done.stderr
    accuracy = float(re.search(r"test accuracy\s*│ ([\d.]+)%", done.stdout)[1])
    seconds = float(re.search(r"epochs, ([\d.]+) s", done.stdout)[1])
    assert accuracy >= 98.5
    assert seconds < 90
    apart = re.search(r"differ by\s*│ (\S+), (\S+) after", done.stdout)
    assert float(apart[1]) <= 1e-6
    assert float(apart[2]) <= 1e-6
    assert is_picture(tmp_path / "digits_capsnet.png", 20_000)
    assert f"{accuracy:.2f}%" in (tmp_path / "digits_capsnet.html").read_text()
    saved = load_file(tmp_path / "capsnet.safetensors")
    assert set(saved) >= {"conv.weight", "primary.conv.bias", "classes.weight", "decoder.2.bias"}


def test_interrupted_and_resumed(tmp_path: Path) -> None:
    """Stopped by Ctrl-C and resumed, it ends with bitwise the parameters of the uninterrupted run."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(NAME, "--epochs", "8", "--out", str(whole)).returncode == 0
    # Where the tests run in the background of a shell, Ctrl-C is ignored by them and by what they start.
    heeding = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", heeding, *command(NAME, "--epochs", "8", "--out", str(parts))],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (parts / "state.safetensors").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted; go on with --resume" in out
    assert not (parts / "capsnet.safetensors").exists()
    resumed = run(NAME, "--epochs", "8", "--out", str(parts), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"resuming after epoch [1-7]\b", resumed.stdout)
    ended = [load_file(folder / "capsnet.safetensors") for folder in (whole, parts)]
    assert pn.tree.equal(*ended)
    assert "has no decoder" not in resumed.stdout
    other = run(NAME, "--epochs", "4", "--out", str(parts), "--resume")
    assert other.returncode == 2
    assert "was started with" in other.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--routing-iterations", "-1"], "--routing-iterations must be at least 1, got -1"),
        (["--device", "abacus"], "--device abacus cannot be used here: "),
        (["--out", __file__], f"--out {__file__} is a file; give a folder"),
        (["--resume", "--out", "no/such/run"], "--resume: there is no run in no/such/run; start one without --resume"),
        (["--epoch-count", "3"], "unrecognized arguments: --epoch-count 3"),
    ],
)
def test_bad_options(options: list[str], text: str) -> None:
    """A bad option ends the program with one line that names it, and status 2."""
    assert_refused(NAME, options, text)
