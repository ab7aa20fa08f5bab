"""Which code, files and weights made a result, without importing anything heavy."""

import functools
import hashlib
import importlib.metadata
import os
import subprocess
from pathlib import Path

import seal

MODEL_FILES = ("*.safetensors", "*.bin", "*.model", "*.json")
PIECES, PIECE = 64, 2**16  # pieces hashed of a file, bytes of each: smaller files are hashed whole
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


def model_fingerprint(model: str) -> str:
    """Says whether a model or adapter directory still holds the same; a hub name is itself.

    Of each file the name, the size and `PIECES` pieces are hashed, spread evenly: a large model
    takes a second, and training changes every piece.

    Returns:
        32 hex digits, or the hub name.
    """
    directory = Path(model)
    if not directory.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted(path for pattern in MODEL_FILES for path in directory.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            for start in range(0, size, max(PIECE, size // PIECES)):
                file.seek(start)
                digest.update(file.read(PIECE))
    return digest.hexdigest()[:32]
