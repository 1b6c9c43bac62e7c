"""Fixtures shared by all tests: one thread, a device from the command line, warnings as errors."""

import importlib
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("purenn", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("purenn")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default=None, help="cpu or cuda; all that are present by default")
    parser.addoption("--shapes", action="store_true", help="check the shapes of all results; compiles nothing")


def pytest_configure(config: pytest.Config) -> None:
    # Tests may run in several processes; threads of each would fight for the cores.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if config.getoption("--shapes"):
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # what checks cannot be compiled
        importlib.import_module("_shape_checks").install()
    # torch falls back to a slow loop where an operation has no batching rule: no layer may rest on that.
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device_name" not in metafunc.fixturenames:
        return
    asked = metafunc.config.getoption("--device")
    present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if asked is not None and asked.split(":")[0] not in present:
        raise pytest.UsageError(f"--device {asked}: this machine has {' and '.join(present)} only")
    metafunc.parametrize("device_name", [asked] if asked else present, scope="session")


@pytest.fixture(scope="session")
def device(device_name: str) -> torch.device:
    """The device to test on: the CPU always, CUDA when it is present, or the one given by ``--device``."""
    return torch.device(device_name)
