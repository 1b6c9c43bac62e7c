"""Private training of digits, run as a user runs it: from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@pytest.mark.slow
def test_accuracy_at_a_stated_epsilon(tmp_path: Path, device_name: str) -> None:
    """Each run costs at most the epsilon asked for, accuracy grows with it, and the curve is drawn."""
    command = [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / "private_digits.py")]
    given = ["--epsilons", "0.5", "4", "--out", str(tmp_path), "--device", device_name]
    done = subprocess.run([*command, *given], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    low, high, without = json.loads((tmp_path / "private_digits.json").read_text())
    assert 0.49 < low["epsilon"] <= 0.5
    assert 3.9 < high["epsilon"] <= 4
    assert low["noise_multiplier"] > high["noise_multiplier"] > without["noise_multiplier"] == 0
    assert 0.5 < low["accuracy"] < high["accuracy"]
    assert high["accuracy"] > 0.88
    picture = (tmp_path / "private_digits.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
