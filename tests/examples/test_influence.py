"""Wrong labels found by influence, run as a user runs it: from the command line."""

import re
from pathlib import Path

import pytest
from _program import assert_refused, is_picture, run


@pytest.mark.slow
def test_finds_wrong_labels(tmp_path: Path, device_name: str) -> None:
    """Most wrong labels are among the most influential images, and the tangent kernel reads most test images."""
    done = run("influence", "--out", str(tmp_path), "--device", device_name)
    assert done.returncode == 0, done.stderr
    count = int(re.search(r"wrong labels\s*│ (\d+) of 1437", done.stdout)[1])
    first = float(re.search(rf"found among the {count} most influential\s*│ ([\d.]+)%", done.stdout)[1])
    second = float(re.search(rf"found among {2 * count}\s*│ ([\d.]+)%", done.stdout)[1])
    kernel = float(re.search(r"tangent kernel\s*│ ([\d.]+)%", done.stdout)[1])
    assert first > 75
    assert second > 95
    assert kernel > 92
    assert is_picture(tmp_path / "influence.png")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--wrong", "1"], "--wrong must be between 0 and 1, got 1.0"),
        (["--hidden", "0"], "--hidden must be at least 1, got 0"),
        (["--device", "abacus"], "--device abacus cannot be used here: "),
        (["--out", __file__], f"--out {__file__} is a file; give a folder"),
    ],
)
def test_bad_options(options: list[str], text: str) -> None:
    """A bad option ends the program with one line that names it, and status 2."""
    assert_refused("influence", options, text)
