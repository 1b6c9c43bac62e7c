"""The Triton kernels of dynamic routing: interpreted, compiled for a GPU that need not be there, and on a GPU."""

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vmap

from purenn.ops import _routing_op, _routing_triton, route_by_agreement


def test_interpreted() -> None:
    """Run step by step on the CPU, in a process that has chosen so from its start, they equal the other forms."""
    pytest.importorskip("triton", minversion="3.7")  # earlier interpreters fail with numpy 2.4
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "_routing_interpreted.py"],
        cwd=Path(__file__).parent,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


SIZES = {"out_caps": 10, "out_dim": 16}
TILES = {**SIZES, "in_dim": 8, "LEAKY": True, "N": 16, "OUT": 16, "D": 16, "K": 16}
ROWS = {**SIZES, "ROWS": 32, "D": 16}


@pytest.mark.parametrize(
    ("name", "constants", "warps", "capability"),
    [
        ("sweep", {**TILES, "PULL": True}, 8, 80),
        ("sweep", {**TILES, "PULL": False}, 8, 90),
        ("gradients", {**TILES, "STOP": False, "EACH": False}, 8, 90),
        ("gradients", {**TILES, "STOP": True, "EACH": True}, 8, 90),
        ("add_poses", ROWS, 4, 90),
        ("pull_poses", ROWS, 4, 90),
    ],
)
def test_compiled_for_a_gpu(
    name: str, constants: dict, warps: int, capability: int, request: pytest.FixtureRequest
) -> None:
    """At the paper's sizes they become machine code for an A100 or H100, within a small GPU's shared memory."""
    triton = pytest.importorskip("triton")
    if request.config.getoption("--shapes"):
        pytest.skip("triton reads the source of functions, around which --shapes puts its checks")
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    kernel = getattr(importlib.import_module("purenn.ops._routing_triton_kernels"), name)
    types = dict.fromkeys(kernel.arg_names, "i32")
    types |= dict.fromkeys(types.keys() & {"states", "sums", "of_sums", "of_pose", "parts"}, "*fp32")
    types |= dict.fromkeys(types.keys() & {"W", "u", "of_W", "of_u"}, "*bf16") | dict.fromkeys(constants, "constexpr")
    source = compiler.ASTSource(kernel, signature=types, constexprs=constants)
    made = triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": True})
    assert len(made.asm["cubin"]) > 0
    assert made.metadata.shared <= 99 * 1024


@pytest.mark.parametrize(
    ("change", "run"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float64}, False),
        ({"dtype_of_u": torch.bfloat16}, False),
        ({"out_caps": 600}, False),
        ({"examples": 0}, False),
        ({"triton": False}, False),
        ({"capability": (7, 5)}, False),
    ],
    ids=str,
)
def test_where_they_run(change: dict, run: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU like an A100, or not: for its age, without Triton, in double or mixed precision, at sizes too large."""
    given = {"dtype": torch.float32, "out_caps": 10, "examples": 4, "triton": True, "capability": (8, 0), **change}
    monkeypatch.setattr(_routing_triton.importlib.util, "find_spec", lambda name: object() if given["triton"] else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: given["capability"])
    monkeypatch.setattr(torch.version, "hip", None)
    _routing_triton._is_supported.cache_clear()
    with FakeTensorMode():
        W = torch.empty(1, given["out_caps"], 70, 16, 8, dtype=given["dtype"], device="cuda")
        u = torch.empty(1, given["examples"], 70, 8, dtype=given.get("dtype_of_u", given["dtype"]), device="cuda")
        assert _routing_triton.kernels_run(W, u) == run
        assert not _routing_triton.kernels_run(W.to("cpu"), u.to("cpu"))
    _routing_triton._is_supported.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_chosen(dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run on a GPU in single and half precision, and nowhere else; the result is that of the other forms."""
    calls: list[str] = []
    for name in ("sums_by_kernels", "gradients_by_kernels"):
        run = getattr(_routing_op, name)
        monkeypatch.setattr(_routing_op, name, lambda *args, name=name, run=run: calls.append(name) or run(*args))
    generator = torch.Generator().manual_seed(0)
    W = (0.1 * torch.randn(10, 70, 16, 8, generator=generator)).to(device, dtype)
    u = torch.randn(20, 70, 8, generator=generator).to(device, dtype)

    def results(memory: str) -> tuple[torch.Tensor, ...]:
        route = functools.partial(route_by_agreement, memory=memory)
        loss = lambda W, u: route(W, u).float().sin().sum()  # noqa: E731
        return route(W, u), *grad(loss, (0, 1))(W, u), *vmap(grad(loss, (0, 1)), (None, 0))(W, u)

    for got, expected in zip(results("tiled"), results("votes"), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=200 * torch.finfo(dtype).eps)
    assert bool(calls) == (device.type == "cuda" and dtype != torch.float64)
