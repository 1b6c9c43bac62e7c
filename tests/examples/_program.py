"""Running an example as a user does: from the command line."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def command(name: str, *options: str) -> list[str]:
    """The command line of an example; a warning to the user is an error."""
    return [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / f"{name}.py"), *options]


def run(name: str, *options: str, columns: int = 200) -> subprocess.CompletedProcess:
    """The finished example, on a terminal of some columns."""
    environment = {**ENVIRONMENT, "COLUMNS": str(columns)}
    return subprocess.run(
        command(name, *options), capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )


def is_picture(path: Path, size: int = 15_000) -> bool:
    """Whether there is a picture of more than some bytes."""
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > size


def assert_refused(name: str, options: list[str], text: str) -> None:
    """A bad option ends the program with one line that names it, and status 2."""
    done = run(name, *options)
    assert done.returncode == 2
    assert f"{name}.py: error: {text}" in done.stderr
    assert "Traceback" not in done.stderr
