"""Private training of digits, run as a user runs it: from the command line."""

import json
from pathlib import Path

import pytest
from _program import assert_refused, is_picture, run


@pytest.mark.slow
def test_accuracy_at_a_stated_epsilon(tmp_path: Path, device_name: str) -> None:
    """Each run costs at most the epsilon asked for, accuracy grows with it, and the curve is drawn."""
    done = run("private_digits", "--epsilons", "0.5", "4", "--out", str(tmp_path), "--device", device_name)
    assert done.returncode == 0, done.stderr
    low, high, without = json.loads((tmp_path / "private_digits.json").read_text())
    assert 0.49 < low["epsilon"] <= 0.5
    assert 3.9 < high["epsilon"] <= 4
    assert low["noise_multiplier"] > high["noise_multiplier"] > without["noise_multiplier"] == 0
    assert 0.5 < low["accuracy"] < high["accuracy"]
    assert high["accuracy"] > 0.88
    assert is_picture(tmp_path / "private_digits.png")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--epsilons", "0"], "--epsilons must be positive"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--device", "abacus"], "--device abacus cannot be used here: "),
        (["--out", __file__], f"--out {__file__} is a file; give a folder"),
    ],
)
def test_bad_options(options: list[str], text: str) -> None:
    """A bad option ends the program with one line that names it, and status 2."""
    assert_refused("private_digits", options, text)
