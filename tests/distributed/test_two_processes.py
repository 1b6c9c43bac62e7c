"""Data-parallel and sharded training of modules and of trees: two processes do what one does.

The checks themselves, and their promises, are in `_two_processes`, which two processes run side by side.
"""

from pathlib import Path

import pytest

CHECKS = [
    "data_parallel_module",
    "data_parallel_module_with_a_pure_optimiser",
    "data_parallel_buffers",
    "fully_sharded_module",
    "fully_sharded_module_with_a_pure_optimiser",
    "data_parallel_tree",
    "clipped_sums",
    "meta_batches",
    "replicated_tree",
    "sharded_tree",
    "sharded_tree_with_an_optimiser_of_torch",
    "tensor_parallel_tree",
    "tensor_parallel_transformers",
    "into_cut_places",
    "saved_and_loaded",
    "ranks",
    "sums_of_every_kind",
    "misuse",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_two_processes(name: str, two_processes: dict[str, str]) -> None:
    """The check of this name holds in both processes."""
    assert not two_processes[name], two_processes[name]


@pytest.mark.slow
def test_every_check_has_its_test(two_processes: dict[str, str]) -> None:
    """No check runs unseen."""
    assert sorted(two_processes) == sorted(CHECKS)


@pytest.mark.slow
def test_a_killed_process_is_an_error_on_the_other(folder_of_two: Path) -> None:
    """If a process is killed, the other gets an error within the time-out of a minute instead of waiting for ever."""
    waited = folder_of_two / "waited"
    assert waited.exists(), (folder_of_two / "printed").read_text()
    assert float(waited.read_text()) < 60
