"""Measuring two things against each other in one run: strictly in turn, one thread, medians of paired ratios."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Ratio(NamedTuple):
    """What `paired` measured.

    Attributes:
        first: median seconds of one call of the first.
        second: median seconds of one call of the second.
        ratio: median of first / second over the pairs.
        low: the ratio's lower quartile.
        high: the ratio's upper quartile.
    """

    first: float
    second: float
    ratio: float
    low: float
    high: float


def paired(first: Callable[[], Any], second: Callable[[], Any], *, repeats: int = 31, number: int = 1) -> Ratio:
    """Time two functions in turn, A B A B ..., after a warm-up.

    Args:
        first: the one whose ratio is asked for.
        second: what it is compared with.
        repeats: number of pairs. Default: 31.
        number: calls in each half of a pair. Default: 1.
    """

    def seconds(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        for _ in range(number):
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / number

    for call in (first, second, first, second):
        seconds(call)
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    ratios = [a / b for a, b in pairs]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Ratio(
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(ratios),
        low,
        high,
    )


def peak_bytes(call: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """The most memory that a call holds at one time, over what was held before it."""
    call()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def header(title: str, device: torch.device | str = "cpu") -> str:
    """A heading and the circumstances: what a table needs to be believed."""
    kind = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else _processor()
    return (
        f"### {title}\n\ntorch {torch.__version__}, Python {platform.python_version()}, {kind}, "
        f"{torch.get_num_threads()} thread, {time.strftime('%Y-%m-%d')}\n"
    )


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def table(rows: list[list[str]]) -> str:
    """Rows as a Markdown table; the first is the heading."""
    first, *rest = rows
    return "\n".join(
        ["| " + " | ".join(first) + " |", "|" + "---|" * len(first), *("| " + " | ".join(row) + " |" for row in rest)]
    )
