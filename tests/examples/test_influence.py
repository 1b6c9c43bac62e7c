"""Wrong labels found by influence, run as a user runs it: from the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@pytest.mark.slow
def test_finds_wrong_labels(tmp_path: Path, device_name: str) -> None:
    """Most wrong labels are among the most influential images, and the tangent kernel reads most test images."""
    command = [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / "influence.py")]
    given = ["--out", str(tmp_path), "--device", device_name]
    done = subprocess.run([*command, *given], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    count = int(re.search(r"wrong labels\s*│ (\d+) of 1437", done.stdout)[1])
    first = float(re.search(rf"found among the {count} most influential\s*│ ([\d.]+)%", done.stdout)[1])
    second = float(re.search(rf"found among {2 * count}\s*│ ([\d.]+)%", done.stdout)[1])
    kernel = float(re.search(r"tangent kernel\s*│ ([\d.]+)%", done.stdout)[1])
    assert first > 75
    assert second > 95
    assert kernel > 92
    assert (tmp_path / "influence.png").read_bytes().startswith(b"\x89PNG")
