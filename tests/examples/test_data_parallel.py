"""examples/data_parallel.py: two processes end with the parameters of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_row_57_two_processes_equal_one(tmp_path: Path) -> None:
    """Under torchrun and alone the example gives the same parameters, in each of its ways, and learns."""
    example = [str(ROOT / "examples" / "data_parallel.py"), "--steps", "10", "--timeout", "4", "--out"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    commands = {"two": [*torchrun, *example, str(tmp_path / "two")], "one": [*example, str(tmp_path / "one")]}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = {
        name: subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment)
        for name, command in commands.items()
    }
    try:
        printed = {name: process.communicate(timeout=240)[0] for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
    assert [process.returncode for process in running.values()] == [0, 0]
    assert printed["two"].startswith("2 processes, 10 steps of 64 rows\n")
    assert printed["one"].splitlines()[1:] == printed["two"].splitlines()[1:]
    losses = [float(line.split()[-1]) for line in printed["one"].splitlines()[1:]]
    assert all(loss < 0.95 * losses[0] for loss in losses[1:])
    one, two = (safetensors.torch.load_file(tmp_path / name / "parameters.safetensors") for name in ("one", "two"))
    assert set(one) == set(two)
    assert {name.split(".")[0] for name in one} == {"tree", "sharded", "clipped", "meta", "module"}
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6)
