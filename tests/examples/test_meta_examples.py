"""The meta-learning examples, run as a user runs them: from the command line."""

import re
from pathlib import Path

import pytest
from _program import assert_refused, is_picture, run


def percentages(text: str, row: str) -> list[float]:
    """The numbers of a table's row."""
    return [float(number) for number in re.findall(r"([\d.]+)%?\s*│", re.search(rf"│ {row}.*", text)[0])]


def test_guide() -> None:
    """Every snippet of the guide for users of other libraries runs and agrees."""
    done = run("coming_from_meta_libraries")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agrees") == 4


@pytest.mark.slow
def test_few_shot_digits(tmp_path: Path) -> None:
    """Digits that were never seen are told apart after a few steps, far better than before them."""
    done = run("few_shot_digits", "--iterations", "40", "--shots", "5", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for name in ("MAML", "ANIL"):
        before, *after = percentages(done.stdout, name)
        assert before < 45
        assert max(after) > 60
    assert is_picture(tmp_path / "few_shot_digits.png")


@pytest.mark.slow
def test_sinusoid(tmp_path: Path) -> None:
    """The meta-learned start fits new curves better after its steps than one that was trained on all curves."""
    done = run("sinusoid", "--iterations", "300", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    maml, plain = (percentages(done.stdout, name) for name in ("meta-learned start", "trained on all curves"))
    assert maml[2] < 0.5 * maml[0]
    assert maml[2] < plain[2]
    assert is_picture(tmp_path / "sinusoid.png")


@pytest.mark.slow
def test_learning_rate(tmp_path: Path) -> None:
    """The learned rate is larger than the one at the start and far better; the same seed gives the same answer."""
    done = [run("learning_rate", "--iterations", "20", "--out", str(tmp_path / name)) for name in ("one", "two")]
    assert all(each.returncode == 0 for each in done), done[0].stderr
    start, learned = (percentages(done[0].stdout, name) for name in ("at the start", "learned"))
    assert learned[0] > 2 * start[0]
    assert learned[-1] > start[-1] + 20
    first, second = (re.findall(r"│.*", each.stdout) for each in done)
    assert first == second
    assert is_picture(tmp_path / "one" / "learning_rate.png")


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("few_shot_digits", ["--shots", "0"], "--shots must be at least 1, got 0"),
        ("sinusoid", ["--iterations", "-1"], "--iterations must be at least 1, got -1"),
        ("learning_rate", ["--rate", "0"], "--rate must be above 0, got 0.0"),
        ("sinusoid", ["--out", __file__], f"--out {__file__} is a file; give a folder"),
    ],
)
def test_bad_options(name: str, options: list[str], text: str) -> None:
    """A bad option ends the program with one line that names it, and status 2."""
    assert_refused(name, options, text)
