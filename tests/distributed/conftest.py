"""Processes that work together, launched once for all tests."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def launch(commands: Sequence[Sequence[str]], *, seconds: float = 240) -> list[tuple[int, str]]:
    """Run programs side by side; their exit statuses and what they print."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        for command in commands
    ]
    try:
        printed = [process.communicate(timeout=seconds)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, text) for process, text in zip(running, printed, strict=True)]


@pytest.fixture(scope="session")
def folder_of_two(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """What two processes have written that ran `_two_processes`; the first test that asks for it runs them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "two_processes"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            script = str(HERE / "_two_processes.py")
            done = launch([["-W", "error", script, str(rank), str(folder)] for rank in range(2)])
            (folder / "printed").write_text("\n".join(text for _, text in done))
    return folder


@pytest.fixture(scope="session")
def two_processes(folder_of_two: Path) -> dict[str, str]:
    """What went wrong in each check, empty for nothing."""
    failures: dict[str, str] = {}
    for rank in range(2):
        results = folder_of_two / f"{rank}.json"
        assert results.exists(), (folder_of_two / "printed").read_text()
        for name, text in json.loads(results.read_text()).items():
            failures[name] = failures.get(name, "") + (f"process {rank}:\n{text}\n" if text else "")
    return failures
