"""Which code and files made a result, without importing anything heavy."""

import functools
import hashlib
import importlib.metadata
import os
import subprocess
from pathlib import Path

import seal

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "datasets", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """Installed versions of the packages a result depends on; nothing is imported."""
    found = {"seal": seal.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str | None:
    """The commit of the checkout this package runs from; None when it is installed elsewhere."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def sha256_of_file(path: str | os.PathLike) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
