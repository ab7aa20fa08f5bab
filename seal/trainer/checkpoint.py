"""Snapshots of a run: complete or ignored, rotated, refused by a run with other arguments."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from seal.errors import InputError
from seal.files import load_tensors, save_tensors
from seal.progress import Progress

if TYPE_CHECKING:
    from seal.utils.strategy import DeepspeedStrategy

FORMAT = 3
MANIFEST = "manifest.json"
GIGABYTE = 2**30
# Arguments that change nothing a resumed step computes.
FREE_ARGUMENTS = {
    "ckpt_path",
    "config",
    "eval_steps",
    "load_checkpoint",
    "local_rank",
    "logging_steps",
    "max_ckpt_mem",
    "max_ckpt_num",
    "save_path",
    "save_steps",
    "selector_save_dir",
    "timeout_minutes",
    "use_tensorboard",
    "wandb_group",
    "wandb_org",
    "wandb_project",
    "wandb_run_name",
}


class Checkpoints:
    """The snapshots of one run, in one directory.

    A snapshot is written as `.step_<n>.partial` and renamed to `step_<n>` once every rank is done
    and its manifest is on disk, so a directory with the final name is complete. Whatever else a
    step needs (batches, the safe stream) is a pure function of the seed and the step.

    Args:
        directory: where they lie.
        strategy: ranks and collectives.
        engines: what holds weights and optimizers.
        arguments: what the run was started with; a snapshot made with others is refused.
        max_num: snapshots kept.
        max_gb: GiB of snapshots kept, the newest always.
    """

    def __init__(
        self,
        directory: str | Path,
        strategy: DeepspeedStrategy,
        engines: list,
        arguments: dict,
        max_num: int,
        max_gb: float,
    ):
        self.directory = Path(directory)
        self.strategy = strategy
        self.engines = engines
        self.arguments = json.loads(json.dumps(arguments, default=str))
        self.max_num = max_num
        self.max_gb = max_gb

    def save(self, step: int, state: dict) -> None:
        """Writes a snapshot after optimizer step `step`.

        Args:
            state: tensors and numbers the trainer needs beside the engine (weights-only loadable).
        """
        with Progress("writing a checkpoint"):
            self._save(step, state)

    def _save(self, step: int, state: dict) -> None:
        partial = self.directory / f".step_{step}.partial"
        self.strategy.on_rank_0(lambda: _fresh(partial))
        for number, engine in enumerate(self.engines):
            self.strategy.save_engine(engine, partial, f"engine_{number}")
        path = partial / f"rng_rank_{self.strategy.rank}.pt"
        self.strategy.on_all_ranks(lambda: save_tensors(self.strategy.rng_state(), path))
        self.strategy.on_rank_0(lambda: self._complete(partial, step, state))

    def load(self, which: str) -> tuple[int, dict]:
        """Restores the engines, and returns what `save` was given.

        With as many ranks as wrote it, their random states too: the run goes on bit for bit. With
        another number only the order of sums and the draws of dropout differ.

        Args:
            which: a snapshot's directory, or "auto" for the newest complete one.

        Returns:
            (optimizer steps done, state).

        Raises:
            InputError: none there, incomplete, damaged, or made with other arguments.
        """
        found = self._newest() if which == "auto" else Path(which)
        manifest = self._checked(found)
        self.strategy.on_rank_0(lambda: _require_intact(found, manifest["bytes"]))
        for number, engine in enumerate(self.engines):
            self.strategy.load_engine(engine, found, f"engine_{number}")
        if self.strategy.world_size == manifest["world_size"]:
            rng = load_tensors(found / f"rng_rank_{self.strategy.rank}.pt")
            self.strategy.set_rng_state(rng)
        state = load_tensors(found / "trainer.pt")
        self.strategy.print(f"resumed from {found} after step {manifest['step']}")
        return manifest["step"], state

    def complete(self) -> list[Path]:
        """Complete snapshots, oldest first."""
        found = [path.parent for path in self.directory.glob(f"step_*/{MANIFEST}")]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))

    def _complete(self, partial: Path, step: int, state: dict) -> None:
        save_tensors(state, partial / "trainer.pt")
        manifest = {
            "format": FORMAT,
            "step": step,
            "world_size": self.strategy.world_size,
            "arguments": self.arguments,
            "bytes": {path.name: path.stat().st_size for path in partial.iterdir()},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2))
        _sync(partial)
        final = self.directory / f"step_{step}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        self._rotate()

    def _rotate(self) -> None:
        for leftover in self.directory.glob(".step_*.partial"):
            shutil.rmtree(leftover)
        kept = self.complete()
        sizes = {path: _size(path) for path in kept}
        while len(kept) > 1 and (
            len(kept) > self.max_num or sum(sizes[p] for p in kept) > self.max_gb * GIGABYTE
        ):
            shutil.rmtree(kept.pop(0))

    def _newest(self) -> Path:
        complete = self.complete()
        if not complete:
            raise InputError(
                f"--load_checkpoint: no complete checkpoint in {self.directory}; "
                "drop the flag to start afresh"
            )
        return complete[-1]

    def _checked(self, path: Path) -> dict:
        try:
            manifest = json.loads((path / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not a complete checkpoint: no {MANIFEST}") from error
        if manifest["format"] != FORMAT:
            raise InputError(f"{path} has format {manifest['format']}, this code reads {FORMAT}")
        then, now = manifest["arguments"], self.arguments
        changed = [
            f"{name} {then.get(name)!r} -> {now.get(name)!r}"
            for name in sorted((then.keys() | now.keys()) - FREE_ARGUMENTS)
            if then.get(name) != now.get(name)
        ]
        if changed:
            raise InputError(f"{path} was made with other arguments: {'; '.join(changed)}")
        return manifest


def _require_intact(directory: Path, sizes: dict[str, int]) -> None:
    """Compares sizes, and the checksums inside each .pt file (a zip): torch reads past both.

    Raises:
        InputError: naming the first file that is not as it was written.
    """
    for name, size in sizes.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size or not _sums_agree(path):
            raise InputError(
                f"{path} is not as it was written; remove {directory} to go on from the "
                "checkpoint before it"
            )


def _sums_agree(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    # A header with a flipped bit may claim encryption, an unknown compression, a place outside.
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError):
        return False


def _fresh(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _sync(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
