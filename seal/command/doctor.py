"""`seal doctor`: what this machine can run, what is missing, and how to get it."""

import argparse
import importlib.metadata
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from seal.command.dataset import aligned

NEEDED = ("torch", "deepspeed", "transformers", "peft", "accelerate", "datasets", "safetensors")
GPU_EXTRAS = {
    "flash-attn": "faster attention; without it varlen attention of torch is used",
    "liger-kernel": "fused GPU kernels",
    "bitsandbytes": "4-bit base models (--load_in_4bit)",
}
_INSTALL = "pip install -r requirements.txt && pip install -e ."
_GB = 1e9


class Check(NamedTuple):
    """One finding. `ok`: True, False (something needed is missing), None (only a remark)."""

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


EXAMPLE = "seal doctor --json"


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("doctor", help="what this machine can run and what is missing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    cuda, checks = accelerator()
    version = ".".join(map(str, sys.version_info[:3]))
    python = Check("python", sys.version_info >= (3, 11), version, "install Python 3.11 or later")
    checks = [python, *packages(cuda), *checks, *tools(cuda), *resources()]
    ok = all(check.ok is not False for check in checks)
    works = verdict({check.name: check for check in checks}, cuda)
    marks = {True: "ok", False: "MISSING", None: "-"}
    lines = []
    for check in checks:
        remedy = f"  ({check.remedy})" if check.remedy and not check.ok else ""
        lines.append(f"{marks[check.ok]:<8} {check.name:<14} {check.found}{remedy}")
    result = {"ok": ok, "checks": [check._asdict() for check in checks], "works": works}
    return result, "\n".join([*lines, "", aligned(works)])


def packages(cuda: bool) -> list[Check]:
    """The needed packages against the ranges of setup.py, and the GPU extras."""
    ranges, checks = _ranges(), []
    for name in NEEDED:
        found, wanted = _version(name), ranges.get(name)
        fits = found is not None and (wanted is None or wanted.contains(found, prereleases=True))
        remedy = f"{_INSTALL} (needs {name}{wanted or ''})"
        checks.append(Check(name, fits, found or "not installed", remedy))
    how = "pip install -e .[gpu]" if cuda else "needs a CUDA GPU"
    for name, purpose in GPU_EXTRAS.items():
        checks.append(_remark(name, _version(name), "not installed", f"{purpose}; {how}"))
    return checks


def accelerator() -> tuple[bool, list[Check]]:
    """Whether CUDA works, and what computes here, in which precision."""
    if _version("torch") is None:
        return False, [Check("accelerator", None, "unknown: torch is not installed", _INSTALL)]
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        remedy = f"no CUDA device seen (torch built for CUDA: {built}); small models train on CPU"
        flags = _first_line("/proc/cpuinfo", "flags").split()
        native = {"avx512_bf16", "amx_bf16"}.intersection(flags)
        bf16 = "on CPU, native" if native else "on CPU, emulated: slower than float32"
        return False, [Check("accelerator", None, "cpu", remedy), Check("bf16", True, bf16)]
    devices = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    names = ", ".join(f"{device.name} {device.total_memory / _GB:.0f} GB" for device in devices)
    bf16 = "yes" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return True, [
        Check("accelerator", True, f"cuda {torch.version.cuda}: {names}"),
        _remark("bf16", bf16, "no", "this GPU lacks it: train in float32"),
    ]


def tools(cuda: bool) -> list[Check]:
    """What DeepSpeed needs to build its operators at first start."""
    wanted = {"c++": ("c++", "apt install g++"), "ninja": ("ninja", "pip install ninja")}
    if cuda:
        wanted["nvcc"] = ("nvcc", "install the CUDA toolkit, set CUDA_HOME")
    use = "DeepSpeed builds its operators with it at first start"
    return [
        _remark(name, shutil.which(command), "not found", f"{use}: {remedy}")
        for name, (command, remedy) in wanted.items()
    ]


def resources() -> list[Check]:
    """Cores, and memory, disk and shared memory in GB (10^9 bytes)."""
    kilobytes = _first_line("/proc/meminfo", "MemAvailable").split()
    shm = shutil.disk_usage("/dev/shm").free / _GB if Path("/dev/shm").is_dir() else None
    checks = [Check("cores", True, str(len(os.sched_getaffinity(0))))]
    for name, free, least, remedy in (
        ("memory", int(kilobytes[0]) / 1e6 if kilobytes else None, 4, "use a smaller model"),
        ("disk", shutil.disk_usage(".").free / _GB, 10, "free space, or move HF_HOME elsewhere"),
        ("shared memory", shm, 1, "workers and NCCL use /dev/shm: docker run --shm-size 8g"),
    ):
        found = "unknown" if free is None else f"{free:.1f} GB free"
        checks.append(Check(name, True if free and free >= least else None, found, remedy))
    return checks


def verdict(checks: dict[str, Check], cuda: bool) -> dict[str, str]:
    """What a user can do here: task -> `yes`, or what it lacks."""
    lacks = [name for name in ("python", *NEEDED) if not checks[name].ok]
    train = f"no, fix {', '.join(lacks)}" if lacks else "yes"
    if not lacks and not cuda:
        train = "yes, on CPU: right for the demo task and tests, slow for real models"
    four_bit = cuda and checks["bitsandbytes"].ok and not lacks
    return {
        "show, compare": "yes",
        "export, convert": "yes" if checks["datasets"].ok else "no, fix datasets",
        "train a selector, fine-tune": train,
        "4-bit base model": "yes" if four_bit else "no, needs a CUDA GPU and bitsandbytes",
    }


def _remark(name: str, found: str | None, absent: str, remedy: str) -> Check:
    return Check(name, True if found else None, found or absent, remedy)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ranges() -> dict:
    """name -> packaging.specifiers.SpecifierSet from setup.py; empty when seal is not installed."""
    if _version("seal") is None or _version("packaging") is None:
        return {}
    from packaging.requirements import Requirement

    needed = map(Requirement, importlib.metadata.requires("seal") or ())
    return {need.name: need.specifier for need in needed if need.marker is None}


def _first_line(path: str, key: str) -> str:
    """The value of the first `key: value` line of a /proc file; empty where there is none."""
    if not Path(path).is_file():
        return ""
    lines = Path(path).read_text().splitlines()
    return next((line.partition(":")[2] for line in lines if line.startswith(key)), "")
