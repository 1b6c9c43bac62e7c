"""How far a computation is from what the device could do at most."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Work(NamedTuple):
    """What a computation cannot do without.

    Attributes:
        moved: bytes of what it reads and writes, everything once.
        operations: additions and multiplications.
    """

    moved: float
    operations: float


class Peaks(NamedTuple):
    """What was measured on the device: bytes copied, and float32 operations of a matrix product, in a second."""

    moved: float
    operations: float

    @classmethod
    def of(cls, device: torch.device) -> "Peaks":
        """Measure both, with sizes that no cache holds."""
        size = 2**27 if device.type == "cuda" else 2**24
        x, y = torch.ones(2, size, device=device)
        side = 8192 if device.type == "cuda" else 1024
        a = torch.ones(side, side, device=device)
        copied, multiplied = seconds(lambda: y.copy_(x), device), seconds(lambda: a @ a, device)
        return cls(2 * 4 * size / copied, 2 * side**3 / multiplied)

    def least_seconds(self, work: Work) -> float:
        """The roofline: the longer of moving the bytes and doing the operations."""
        return max(work.moved / self.moved, work.operations / self.operations)


def seconds(call: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """The least time of a call; on a GPU of the call recorded as a graph, so that starting kernels does not count."""
    if device.type == "cuda":
        return _seconds_of_graph(call, repeats)
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _seconds_of_graph(call: Callable[[], Any], repeats: int) -> float:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    found = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 10 * 1e-3)
    return min(found)
