"""Timing of several step functions against each other on a machine that others use too."""

import ctypes
import os
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

Step = Callable[[int], None]


def interleaved(steps: dict[str, Step], count: int, warm_up: int, device: str) -> dict[str, list]:
    """Times step after step, one of each schedule in turn, so that all see the same noise.

    Returns:
        name -> `count` pairs (wall seconds, CPU seconds of all threads of this process).
    """
    times: dict[str, list] = {name: [] for name in steps}
    for number in range(warm_up + count):
        order = list(steps) if number % 2 else list(steps)[::-1]
        for name in order:
            taken = timed(partial(steps[name], number), device)
            if number >= warm_up:
                times[name].append(taken)
    return times


def timed(work: Callable[[], None], device: str) -> tuple[float, float]:
    """Wall and CPU seconds of `work`, to its end on the device."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """Median and half the distance between the quartiles, in the unit of `values`."""
    if len(values) < 2:
        return values[0], 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return statistics.median(values), (high - low) / 2


def peak_gib(step: Step, number: int, device: str) -> float:
    """Memory of one step, GiB: on CUDA all that is allocated, on a CPU what the step adds.

    Linux only on a CPU: the high-water mark of the resident set is reset first.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step(number)
        return torch.cuda.max_memory_allocated() / 2**30
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step(number)
    return (_status("VmHWM") - before) / 2**20


def matmul_peak(dtype: torch.dtype, device: str, size: int = 0) -> float:
    """Floating-point operations a second of a large square product, the best of ten."""
    size = size or (8192 if device == "cuda" else 1024)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(timed(lambda: left @ right, device)[0] for _ in range(10))
    return 2 * size**3 / best


def load_average() -> float:
    """Processes that wanted a core over the last minute."""
    return round(os.getloadavg()[0], 1)


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1])
