"""Files that are either whole or absent, and outputs that one run at a time may write."""

import difflib
import errno
import fcntl
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from seal.errors import InputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary sibling of `path`; on success it is synced and renamed to `path`.

    On any exception the temporary file is removed and `path` is left as it was. Parent
    directories are created.

    Examples:
        >>> with atomic_path("config.json") as tmp:
        ...     tmp.write_text("{}")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    tmp = Path(name)
    try:
        yield tmp
        with open(tmp, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary sibling folder; on success it is renamed to `path`, else removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield folder
        folder.chmod(0o755)
        os.replace(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_new(path: Path, flag: str) -> None:
    """Refuses, with InputError, to replace what is there; `flag` gave the path or its name."""
    if path.exists():
        raise InputError(f"{path} exists; give another {flag}, or --overwrite")


def no_room(failure: BaseException | None) -> InputError | None:
    """What to tell the user where a write failed for want of space; None for anything else."""
    number = failure.errno if isinstance(failure, OSError) else None
    # safetensors gives the number in its text only
    if number in NO_ROOM or any(f"(os error {code})" in str(failure) for code in NO_ROOM):
        return InputError(
            f"no room to write ({failure}); what was whole before is whole still: make room"
        )
    return None


def save_tensors(content: dict, path: str | os.PathLike) -> None:
    """Writes a .pt file of plain tensors and numbers, and waits until it is on the disk.

    Raises:
        OSError: it cannot be written, for the reason it gives; torch alone does not tell.
    """
    import torch

    with open(path, "wb") as file:
        noted = _Noted(file)
        try:
            torch.save(content, noted)
            file.flush()
            os.fsync(file.fileno())
        except RuntimeError as error:
            raise noted.failure or error from None


class _Noted:
    """A file for torch to write to, which keeps what made a write fail."""

    def __init__(self, file: BinaryIO):
        self.file, self.failure = file, None

    def write(self, data: bytes) -> int:
        return self._noting(self.file.write, data)

    def flush(self) -> None:
        self._noting(self.file.flush)

    def _noting(self, work: Callable, *given: bytes):
        try:
            return work(*given)
        except OSError as error:
            self.failure = error
            raise


def load_tensors(path: str | os.PathLike) -> dict:
    """Reads a .pt file of plain tensors and numbers onto the CPU; code in it is refused, not run.

    Raises:
        InputError: it does not read as that.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} does not read as plain tensors ({reason}); remove it") from error


def claim(path: str | os.PathLike) -> TextIO:
    """Locks an output for this process: as long as the file returned is open, and no longer.

    The lock is on `.<name>.lock` beside `path`. It ends with the process, however that ends, so a
    lock file that a killed run leaves behind blocks nobody.

    Raises:
        InputError: another process holds it, or it cannot be written there.
    """
    path = Path(path).resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.parent / f".{path.name}.lock", "a+")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise InputError(
            f"{path} belongs to a run that has not ended; wait for it, or write elsewhere"
        ) from error
    return file


def model_is_here(name: str) -> bool:
    """Whether a model is a directory of this machine, rather than a name on the hub.

    Raises:
        InputError: it can be neither; said at once, before a hub is asked.
    """
    path = Path(name)
    if path.suffix == ".gguf" or (any(path.glob("*.gguf")) and not any(path.glob("*.json"))):
        raise InputError(
            f"{name} is GGUF, quantised for llama.cpp, and nothing trains from it; give the model "
            "it was made from, a directory with config.json and *.safetensors"
        )
    if path.is_file():
        raise InputError(f"{name} is a file; give the directory of the model")
    if path.is_dir():
        if not any(path.glob("*.json")):
            raise InputError(f"{name} holds no model: no config.json, no adapter_config.json")
        return True
    local = name.startswith(("/", ".", "~")) or name.count("/") > 1
    if local or ("/" in name and path.parent.is_dir()):
        raise InputError(f"{name} is not there; {meant(path) or 'look at the path'}")
    return False


def meant(path: Path) -> str:
    """What lies beside a path that is not there and has nearly its name, as a question; or ""."""
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / close[0]}?" if close else ""
