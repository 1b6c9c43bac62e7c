"""States of a training in a folder: which stay, what comes back, and what a process that is killed leaves behind."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import purenn as pn
from purenn.errors import ArgumentError, CheckpointError
from purenn.layers import Linear

KILLED = Path(__file__).with_name("_killed_training.py")


def state(seed: int, device: torch.device) -> Linear:
    return Linear.init(pn.random.key(seed, device), 3, 2)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_keeps_the_newest(tmp_path: Path, device: torch.device, asynchronous: bool) -> None:
    """The newest states stay, with their text, and come back with the same bits."""
    with pn.Checkpointer(tmp_path / "run", keep=2, asynchronous=asynchronous) as checkpoints:
        assert checkpoints.restore(like=state(0, device)) is None
        for step in range(5):
            checkpoints.save(step, state(step, device), metadata={"epoch": str(step)})
    assert checkpoints.steps() == [3, 4]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [checkpoints.path(n).name for n in (3, 4)]
    found = checkpoints.restore(like=state(0, device))
    assert found is not None
    assert found[0] == 4
    assert pn.tree.equal(found[1], state(4, device))
    step_3 = checkpoints.restore(like=state(0, device), step=3)
    assert step_3 is not None
    assert pn.tree.equal(step_3[1], state(3, device))
    assert checkpoints.metadata(3) == {"epoch": "3"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_states_in_several_files(tmp_path: Path, device: torch.device, asynchronous: bool) -> None:
    """A state that is larger than a file has several; of those that are gone, and of killed saves, none is left."""
    options: dict[str, Any] = {"keep": 2, "asynchronous": asynchronous, "max_shard_size": 10}
    with pn.Checkpointer(tmp_path, **options) as checkpoints:
        for step in range(4):
            checkpoints.save(step, state(step, device), metadata={"epoch": str(step)})
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.metadata(3) == {"epoch": "3"}
    found = checkpoints.restore(like=state(0, device))
    assert found is not None
    assert found[0] == 3
    assert pn.tree.equal(found[1], state(3, device))
    for name in ("step_0000000009-00001-of-00003.safetensors", ".step_0000000009.safetensors.index.json.0123abcd"):
        (tmp_path / name).touch()
    with pn.Checkpointer(tmp_path, **options) as checkpoints:
        checkpoints.save(3, state(5, device))
        checkpoints.save(4, state(4, device))
    steps = [f"step_{step:010d}" for step in (3, 4)]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 6
    assert all(name.startswith(tuple(steps)) for name in names)
    with pn.Checkpointer(tmp_path, keep=2) as checkpoints:
        checkpoints.save(4, state(6, device))
        checkpoints.save(5, state(7, device))
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoints.path(step).name for step in (4, 5)]


def test_the_same_step_again(tmp_path: Path, device: torch.device) -> None:
    """A state of the same step takes the place of the first one."""
    checkpoints = pn.Checkpointer(tmp_path)
    for seed in (1, 2):
        checkpoints.save(7, state(seed, device))
    assert checkpoints.steps() == [7]
    found = checkpoints.restore(like=state(0, device))
    assert found is not None
    assert pn.tree.equal(found[1], state(2, device))


def test_later_writes_into_a_state_are_not_saved(tmp_path: Path, device: torch.device) -> None:
    """An asynchronous save holds the values of the moment when it was called."""
    weight = torch.zeros(200_000, device=device)
    checkpoints = pn.Checkpointer(tmp_path, asynchronous=True)
    checkpoints.save(0, {"weight": weight})
    weight.fill_(1)
    found = checkpoints.restore(like={"weight": weight})
    assert found is not None
    assert not found[1]["weight"].any()


def test_a_failure_to_write_arrives(tmp_path: Path, device: torch.device) -> None:
    """What goes wrong in the thread is raised by the next call, once."""
    checkpoints = pn.Checkpointer(tmp_path, asynchronous=True)
    checkpoints.save(0, {"rate": 0.1})
    with pytest.raises(CheckpointError, match=r"'rate' is 0\.1, no tensor"):
        checkpoints.wait()
    checkpoints.wait()
    checkpoints.save(0, state(0, device))
    checkpoints.wait()
    assert checkpoints.steps() == [0]


def test_a_program_that_ends(tmp_path: Path) -> None:
    """What an asynchronous save has begun is written though the program comes to its end and nobody waits."""
    program = (
        f"import torch, purenn as pn; pn.Checkpointer({str(tmp_path)!r}, asynchronous=True, max_shard_size=1 << 22)"
        ".save(0, {str(n): torch.ones(1 << 20) for n in range(8)})"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=100)
    assert done.stderr == ""
    found = pn.Checkpointer(tmp_path).restore(like={str(n): torch.zeros(1 << 20) for n in range(8)})
    assert found is not None
    assert all(leaf.all() for leaf in found[1].values())


def test_errors(tmp_path: Path, device: torch.device) -> None:
    """Wrong use says what was wrong and what to do."""
    checkpoints = pn.Checkpointer(tmp_path / "run")
    checkpoints.save(4, state(0, device))
    cases = [
        (lambda: pn.Checkpointer(tmp_path, keep=0), ArgumentError, "Checkpointer: keep must be at least 1, got 0."),
        (
            lambda: pn.Checkpointer(tmp_path, max_shard_size=0),
            ArgumentError,
            "Checkpointer: max_shard_size must be at least 1, got 0.",
        ),
        (
            lambda: pn.Checkpointer(checkpoints.path(4)),
            CheckpointError,
            f"Checkpointer: {checkpoints.path(4)} is a file; give a folder.",
        ),
        (
            lambda: checkpoints.save(-1, state(0, device)),
            ArgumentError,
            "Checkpointer.save: step must not be negative, got -1.",
        ),
        (
            lambda: checkpoints.save(3, state(0, device)),
            ArgumentError,
            f"Checkpointer.save: {tmp_path / 'run'} has a state of step 4 already, which would be taken for newer than "
            f"step 3: go on from that one, or give this course of the training a folder of its own.",
        ),
        (
            lambda: checkpoints.restore(like=state(0, device), step=3),
            CheckpointError,
            f"Checkpointer.restore: {tmp_path / 'run'} has no state of step 3, only of [4].",
        ),
        (lambda: checkpoints.metadata(3), CheckpointError, f"metadata: there is no file {checkpoints.path(3)}."),
    ]
    for call, kind, text in cases:
        with pytest.raises(kind) as caught:
            call()
        assert str(caught.value) == text
    assert checkpoints.steps() == [4]


def test_damaged_files_are_refused(tmp_path: Path, device: torch.device) -> None:
    """A state that was cut short is an error that names the file; the one before it is still there."""
    checkpoints = pn.Checkpointer(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(step, device))
    whole = checkpoints.path(2).read_bytes()
    checkpoints.path(2).write_bytes(whole[:-5])
    with pytest.raises(CheckpointError, match=r"step_0000000002.safetensors cannot be read as a safetensors file"):
        checkpoints.restore(like=state(0, device))
    found = checkpoints.restore(like=state(0, device), step=1)
    assert found is not None
    assert pn.tree.equal(found[1], state(1, device))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """A training that is killed 30 times at random moments ends with the same bits as an undisturbed one.

    It saves in one file or in several, in a thread or not, as is drawn for each of its lives.
    """

    def run(folder: str, kills: int) -> int:
        command = [sys.executable, str(KILLED), str(tmp_path / folder), str(kills), "400"]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)

    assert run("whole", 0) == 0
    assert run("killed", 30) >= 20
    whole, killed = (load_file(tmp_path / name / "step_0000000400.safetensors") for name in ("whole", "killed"))
    assert pn.tree.equal(whole, killed)
    # What the last kill has left behind is gone with the next state.
    pn.Checkpointer(tmp_path / "killed", keep=2).save(401, killed)
    names = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert names == ["step_0000000400.safetensors", "step_0000000401.safetensors"]
