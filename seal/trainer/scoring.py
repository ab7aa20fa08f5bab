"""Loss of every row under one model, in parts that survive an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seal.errors import InputError
from seal.files import atomic_path
from seal.trainer.checkpoint import FREE_ARGUMENTS
from seal.trainer.evaluation import row_means
from seal.trainer.sft_trainer import SFTPlan, SFTTrainer
from seal.trainer.step import RowModel

if TYPE_CHECKING:
    from seal.utils.logger import Logger, NoLogger

PART_ROWS = 8192


class Parts:
    """Finished parts of a scoring run: one .npy for each `PART_ROWS` rows of each pass.

    Args:
        directory: where they lie; made on rank 0.
        key: what the run was started with; parts of another run are refused.

    Raises:
        InputError: the directory holds parts of a run with another key.
    """

    def __init__(self, directory: str | Path, key: dict):
        self.directory = Path(directory)
        self.key = json.loads(json.dumps(key, sort_keys=True, default=str))

    def claim(self) -> None:
        """Makes the directory this run's own."""
        stamp = self.directory / "run.json"
        if not stamp.exists():
            with atomic_path(stamp) as tmp:
                tmp.write_text(json.dumps(self.key, indent=2))
            return
        then = json.loads(stamp.read_text())
        fixed = sorted(self.key.keys() - FREE_ARGUMENTS)
        changed = [name for name in fixed if self.key[name] != then.get(name)]
        if changed:
            raise InputError(
                f"{self.directory} holds the parts of a run with other {', '.join(changed)}; "
                "remove it, or give another --work_dir"
            )

    def losses(self, name: str, losses: RowModel) -> np.ndarray:
        """`row_means` of all rows, reading what an earlier run finished.

        Args:
            name: of the pass.

        Returns:
            float64 [N], nats a token.
        """
        total, strategy = len(losses.dataset), losses.strategy
        means = np.empty(total)
        for start in range(0, total, PART_ROWS):
            rows = np.arange(start, min(start + PART_ROWS, total))
            path = self.directory / f"{name}_{start}.npy"
            done = strategy.on_every_rank(path.exists())
            note = f"{name} {start}/{total}"
            part = _load(path, len(rows)) if done else row_means(losses, rows, note)
            means[rows] = part
            if not done:
                strategy.on_rank_0(lambda path=path, part=part: _save(path, part))
        return means

    def complete(self, name: str, n_rows: int) -> np.ndarray | None:
        """The losses of a pass that is wholly on disk, else None."""
        parts = {
            self.directory / f"{name}_{start}.npy": min(PART_ROWS, n_rows - start)
            for start in range(0, n_rows, PART_ROWS)
        }
        if not all(path.exists() for path in parts):
            return None
        return np.concatenate([_load(path, rows) for path, rows in parts.items()])


def tune(losses: RowModel, plan: SFTPlan, logger: Logger | NoLogger) -> None:
    """Plain SFT of the engine on its dataset."""
    SFTTrainer(losses, plan, logger, evaluations={}, save_checkpoint=_nothing).fit()


def _nothing(step: int) -> None:
    """Tuning for a score keeps no checkpoints: it is repeated when interrupted."""


def _save(path: Path, part: np.ndarray) -> None:
    with atomic_path(path) as tmp, open(tmp, "wb") as file:
        np.save(file, part)


def _load(path: Path, rows: int) -> np.ndarray:
    try:
        part = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} does not read ({error}); remove it to score its rows") from error
    if part.shape != (rows,) or not np.isfinite(part).all():
        raise InputError(f"{path} does not hold {rows} losses; remove it to score its rows")
    return part
