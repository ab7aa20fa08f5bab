"""Snapshots of a run: complete or ignored, rotated, refused by a run with other arguments."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from seal.errors import InputError
from seal.files import atomic_path, load_tensors, save_tensors
from seal.progress import Progress

if TYPE_CHECKING:
    from seal.utils.strategy import DeepspeedStrategy

FORMAT = 4
MANIFEST, ORDER = "manifest.json", "order.json"
GIGABYTE = 2**30


class Checkpoints:
    """The snapshots of one run, in a directory of its own below one that runs share.

    The name of a run's directory is a digest of its arguments. A snapshot is written as
    `.step_<n>.partial` and renamed to `step_<n>` once every rank is done and its manifest is on
    disk, so a directory with the final name is complete. Whatever else a step needs (batches, the
    safe stream) is a pure function of the seed and the step.

    The order in which snapshots were written or gone on from is kept beside them: the last one is
    the newest, whatever its step, and those of an abandoned future are the first to go.

    Args:
        directory: that runs share; those of other runs in it are left alone.
        strategy: ranks and collectives.
        engines: what holds weights and optimizers.
        arguments: what its steps depend on; a snapshot made with others is refused.
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
        self.arguments = json.loads(json.dumps(arguments, default=str))
        self.shared = Path(directory)
        self.directory = self.shared / f"run_{_digest(self.arguments)}"
        self.strategy = strategy
        self.engines = engines
        self.max_num = max_num
        self.max_gb = max_gb

    def begin(self, which: str | None, *outputs: str | Path) -> tuple[int, dict]:
        """Starts the run, afresh or from a snapshot, and claims what it will write.

        With as many ranks as wrote the snapshot, their random states too: the run goes on bit for
        bit. With another number only the order of sums and the draws of dropout differ.

        Args:
            which: a snapshot's directory, "auto" for the newest complete one, None for none.
            outputs: what else the run writes.

        Returns:
            (optimizer steps done, what `save` was given; {} afresh).

        Raises:
            InputError: none there, incomplete, damaged, or made with other arguments; or a run
                with these arguments, or one that writes an output, has not ended.
        """
        found = self.strategy.from_rank_0(lambda: self._find(which))
        self.strategy.claim(*outputs, self.directory)
        if found is None:
            self.strategy.on_rank_0(self._start_over)
            return 0, {}
        path, manifest = found
        with Progress("loading the checkpoint"):
            state = self._load(path, manifest)
        own = path.name if path.resolve().parent == self.directory.resolve() else None
        self.strategy.on_rank_0(lambda: self._note(own))
        self.strategy.print(f"resumed from {path} after step {manifest['step']}")
        return manifest["step"], state

    def save(self, step: int, state: dict) -> None:
        """Writes a snapshot after optimizer step `step`.

        Args:
            state: tensors and numbers the trainer needs beside the engine (weights-only loadable).
        """
        partial = self.directory / f".step_{step}.partial"
        with Progress("writing a checkpoint"):
            self.strategy.on_rank_0(lambda: _fresh(partial))
            for number, engine in enumerate(self.engines):
                self.strategy.save_engine(engine, partial, f"engine_{number}")
            path = partial / f"rng_rank_{self.strategy.rank}.pt"
            self.strategy.on_all_ranks(lambda: save_tensors(self.strategy.rng_state(), path))
            self.strategy.on_rank_0(lambda: self._complete(partial, step, state))

    def complete(self) -> list[Path]:
        """Complete snapshots in the order of writing."""
        order, found = self._order(), self.directory.glob(f"step_*/{MANIFEST}")
        places = {name: place for place, name in enumerate(order)}
        return sorted((path.parent for path in found), key=lambda p: places.get(p.name, -1))

    def newest(self) -> float | None:
        """When the newest complete snapshot was written, in seconds; None without any."""
        times = [(path / MANIFEST).stat().st_mtime for path in self.complete()]
        return max(times, default=None)

    def _find(self, which: str | None) -> tuple[Path, dict] | None:
        """The snapshot to go on from and its manifest."""
        if which is None:
            return None
        if which != "auto":
            return Path(which), self._checked(Path(which))
        for name in reversed(self._order()):
            if name is None:
                break
            if (self.directory / name / MANIFEST).exists():
                return self.directory / name, self._checked(self.directory / name)
        told = f"; of other runs there are {others}" if (others := self._others()) else ""
        raise InputError(
            f"--load_checkpoint: no complete checkpoint of this run in {self.shared}{told}; "
            "drop the flag to start afresh"
        )

    def _start_over(self) -> None:
        if others := self._others():
            self.strategy.print(
                f"starting from the beginning; {self.shared} holds checkpoints of other runs, "
                f"which stay: {others}"
            )
        if old := self.complete():
            self._note(None)
            self.strategy.print(
                f"starting afresh; {len(old)} checkpoints of a run with these arguments are there, "
                f"--load_checkpoint {old[-1]} goes on from the newest"
            )

    def _load(self, path: Path, manifest: dict) -> dict:
        rank, world_size = self.strategy.rank, self.strategy.world_size
        mine = sorted(manifest["bytes"].items())[rank::world_size]
        self.strategy.on_all_ranks(lambda: _require_intact(path, dict(mine)))
        for number, engine in enumerate(self.engines):
            self.strategy.load_engine(engine, path, f"engine_{number}")
        if world_size == manifest["world_size"]:
            self.strategy.set_rng_state(load_tensors(path / f"rng_rank_{rank}.pt"))
        return load_tensors(path / "trainer.pt")

    def _complete(self, partial: Path, step: int, state: dict) -> None:
        save_tensors(state, partial / "trainer.pt")
        manifest = {
            "format": FORMAT,
            "step": step,
            "world_size": self.strategy.world_size,
            "arguments": self.arguments,
            "bytes": {path.name: path.stat().st_size for path in partial.iterdir()},
        }
        with atomic_path(partial / MANIFEST) as tmp:
            tmp.write_text(json.dumps(manifest, indent=2))
        final = self.directory / f"step_{step}"
        shutil.rmtree(final, ignore_errors=True)
        self._note(final.name)
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

    def _order(self) -> list[str | None]:
        """Names of snapshots as they were written or gone on from; None for a start afresh."""
        path = self.directory / ORDER
        if not path.exists():
            return []
        try:
            order = json.loads(path.read_text())
            if not all(name is None or Path(name).name == name for name in order):
                raise ValueError("other names than those of checkpoints")
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} does not read; remove it, and name a checkpoint") from error
        return order

    def _note(self, name: str | None) -> None:
        """Puts a snapshot, or a start afresh, at the end of the order."""
        order = [*(other for other in self._order() if other != name), name]
        with atomic_path(self.directory / ORDER) as tmp:
            tmp.write_text(json.dumps(order))

    def _others(self) -> str:
        """Up to three checkpoints of other runs, each with what it was started with instead."""
        paths = [*self.shared.glob(f"*/*/{MANIFEST}"), *self.shared.glob(f"*/{MANIFEST}")]
        found = {path.parent.parent: path.parent for path in sorted(paths)}
        found.pop(self.directory, None)
        told = []
        for snapshot in found.values():
            try:
                then = _manifest(snapshot)["arguments"]
                if then.keys() == self.arguments.keys():  # else of another script
                    told.append(f"{snapshot} ({'; '.join(self._changed(then)[:3])})")
            except InputError:
                told.append(str(snapshot))
        return ", ".join(told[:3])

    def _changed(self, then: dict) -> list[str]:
        now = self.arguments
        return [
            f"{name} {then.get(name)!r} -> {now.get(name)!r}"
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ]

    def _checked(self, path: Path) -> dict:
        manifest = _manifest(path)
        if manifest["format"] != FORMAT:
            raise InputError(f"{path} has format {manifest['format']}, this code reads {FORMAT}")
        if changed := self._changed(manifest["arguments"]):
            raise InputError(f"{path} was made with other arguments: {'; '.join(changed)}")
        return manifest


def _digest(arguments: dict) -> str:
    """Names a run by what it computes; an argument that is not given counts for nothing."""
    fixed = {name: value for name, value in sorted(arguments.items()) if value is not None}
    return hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:12]


def _manifest(path: Path) -> dict:
    """What a snapshot says of itself.

    Raises:
        InputError: it says nothing, or something else.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        kinds = {"format": int, "step": int, "world_size": int, "arguments": dict, "bytes": dict}
        if not all(isinstance(manifest[name], kind) for name, kind in kinds.items()):
            raise ValueError("values of another kind")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a complete checkpoint: no {MANIFEST}") from error
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


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
