"""Finished parts of a scoring run on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seal.errors import InputError
from seal.files import atomic_path

if TYPE_CHECKING:
    from seal.utils.strategy import DeepspeedStrategy

PART_ROWS = 8192


class Parts:
    """One .npy file for each `PART_ROWS` rows of each pass, and a note when a pass is complete.

    Args:
        strategy: ranks; rank 0 writes.
        directory: where the files lie; None keeps nothing.
        key: what the run was started with; files of another run are refused.

    Raises:
        InputError: the directory holds files of a run with another key.
    """

    def __init__(
        self,
        strategy: DeepspeedStrategy,
        directory: str | Path | None = None,
        key: dict | None = None,
    ):
        self.strategy = strategy
        self.directory = None if directory is None else Path(directory)
        if self.directory is not None:
            plain = json.loads(json.dumps(key or {}, sort_keys=True, default=str))
            strategy.claim(self.directory)
            strategy.on_rank_0(lambda: self._claim(plain))

    def rows(self, name: str, total: int, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """What `work` gives for rows 0 to `total`, reading what an earlier run finished.

        Args:
            name: of the pass.
            work: int64 [R] row numbers to float [R, ...], on every rank.
        """
        found = []
        for start in range(0, total, PART_ROWS):
            rows = np.arange(start, min(start + PART_ROWS, total))
            part = self._read(f"{name}_{start}.npy", len(rows))
            if part is None:
                part = work(rows)
                self._write(f"{name}_{start}.npy", lambda file, part=part: np.save(file, part))
            found.append(part)
        return np.concatenate(found)

    def finished(self, name: str, total: int) -> tuple[np.ndarray, dict] | None:
        """The rows of a complete pass and its note, else None."""
        if not self._on_disk(f"{name}.json"):
            return None
        names = [f"{name}_{start}.npy" for start in range(0, total, PART_ROWS)]
        if not all(map(self._on_disk, names)):
            return None
        sizes = [min(PART_ROWS, total - start) for start in range(0, total, PART_ROWS)]
        parts = [self._read(name, size) for name, size in zip(names, sizes, strict=True)]
        whole = np.concatenate(parts) if parts else np.empty(0)
        self.strategy.print(f"taking up {name} from {self.directory}")
        return whole, json.loads((self.directory / f"{name}.json").read_text())

    def finish(self, name: str, note: dict) -> None:
        """Marks a pass as complete."""
        self._write(f"{name}.json", lambda file: file.write(json.dumps(note).encode()))

    def _on_disk(self, name: str) -> bool:
        there = self.directory is not None and (self.directory / name).exists()
        return self.strategy.on_every_rank(there)

    def _read(self, name: str, rows: int) -> np.ndarray | None:
        if not self._on_disk(name):
            return None
        path = self.directory / name
        try:
            part = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{path} does not read ({error}); remove it to score its rows"
            ) from error
        if len(part) != rows or not np.isfinite(part).all():
            raise InputError(f"{path} does not hold {rows} rows; remove it to score its rows")
        return part

    def _write(self, name: str, write: Callable) -> None:
        def whole() -> None:
            with atomic_path(self.directory / name) as tmp, open(tmp, "wb") as file:
                write(file)

        if self.directory is not None:
            self.strategy.on_rank_0(whole)

    def _claim(self, key: dict) -> None:
        stamp = self.directory / "run.json"
        if not stamp.exists():
            with atomic_path(stamp) as tmp:
                tmp.write_text(json.dumps(key, indent=2))
            return
        then = json.loads(stamp.read_text())
        changed = [n for n in sorted(key) if key[n] != then.get(n)]
        if changed:
            raise InputError(
                f"{self.directory} holds the parts of a run with other {', '.join(changed)}; "
                "remove it, or give another --work_dir"
            )
