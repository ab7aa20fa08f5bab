"""Timing of several step functions against each other on a machine that others use too."""

import ctypes
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

Run = Callable[[int], None]  # takes the optimizer step of that number


def interleaved(
    runs: dict[str, Run], count: int, warm_up: int, device: str, seconds: float
) -> dict[str, list]:
    """Times step after step, one of each schedule in turn, so that all see the same noise.

    Args:
        seconds: no further step begins after them, but each schedule is timed once.

    Returns:
        name -> up to `count` pairs (wall seconds, CPU seconds of all threads of this process).
    """
    times: dict[str, list] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    for number in range(warm_up + count):
        if number > warm_up and time.perf_counter() > end:
            break
        for name in list(runs) if number % 2 else list(runs)[::-1]:
            taken = timed(partial(runs[name], number), device)
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


def allocated_gib(device: str) -> float:
    """What this process holds on the GPU at this moment; 0 on a CPU."""
    return torch.cuda.memory_allocated() / 2**30 if device == "cuda" else 0.0


def added_gib(work: Callable[[], None], device: str) -> float:
    """The most memory `work` adds to what the process holds before it, GiB.

    Linux only on a CPU: the high-water mark of the resident set is reset first.
    """
    if device == "cuda":
        before = allocated_gib(device)
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 2**30 - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 2**20


def profile(work: Callable[[], None], device: str, seconds: float) -> str:
    """The ten operations that take most of a step, and the share of it in which the device idles.

    Args:
        seconds: what the step takes when it is not profiled.
    """
    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities) as recorded:
        timed(work, device)
    spent = {
        event.key: ((event.self_device_time_total if cuda else event.self_cpu_time_total), event)
        for event in recorded.key_averages()
        if (event.device_type == DeviceType.CUDA) == cuda and not event.is_user_annotation
    }
    busy = sum(taken for taken, _ in spent.values()) / 1e6
    lines = [f"step {seconds:.3f} s, operations {busy:.3f} s, idle {1 - busy / seconds:.0%}"]
    for name, (taken, event) in sorted(spent.items(), key=lambda item: -item[1][0])[:10]:
        share = taken / 1e6 / busy
        lines.append(f"{taken / 1e3:10.2f} ms {share:5.1%} {event.count:6d} calls  {name[:120]}")
    return "\n".join(lines)


def matmul_peak(dtype: torch.dtype, device: str, size: int = 0) -> float:
    """Floating-point operations a second of a large square product, the best of ten."""
    size = size or (8192 if device == "cuda" else 1024)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(timed(lambda: left @ right, device)[0] for _ in range(10))
    return 2 * size**3 / best


def device_name(device: str) -> str:
    """The GPU's name, or the processor's architecture and cores."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores"


def load_average() -> float:
    """Processes that wanted a core over the last minute."""
    return round(os.getloadavg()[0], 1)


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1])
