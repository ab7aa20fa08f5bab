"""Metrics: one console line a step, metrics.jsonl always, wandb and TensorBoard when asked."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from seal.errors import InputError
from seal.files import atomic_path
from seal.progress import say


@dataclass(frozen=True)
class WandbSettings:
    """Where wandb records the run; the key comes from wandb's own login or WANDB_API_KEY."""

    project: str
    run_name: str
    org: str | None = None
    group: str | None = None


class Logger:
    """Writes metrics of the training run on rank 0.

    Args:
        run_dir: directory of metrics.jsonl.
        config: what the run was started with, already free of secrets.
        total_steps: optimizer steps of the whole run.
        first_step: steps done before (a resumed run).
        wandb: None for no wandb.
        tensorboard: write event files to run_dir/tensorboard.

    Raises:
        InputError: wandb has no key, or is not reached.
    """

    def __init__(
        self,
        run_dir: str | Path,
        config: dict,
        total_steps: int,
        first_step: int = 0,
        wandb: WandbSettings | None = None,
        tensorboard: bool = False,
    ):
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        self._file = _open_metrics(run_dir / "metrics.jsonl", first_step)
        self._steps = total_steps
        self.failure: Exception | None = None
        self._started = time.perf_counter()
        self._wandb = _start_wandb(wandb, run_dir, config) if wandb else None
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run_dir / "tensorboard"))

    def log(self, step: int, metrics: dict[str, float], note: str = "") -> None:
        """Records numbers under their keys ("train/loss", "eval/loss") at an optimizer step.

        The other ranks are at work meanwhile: a failure is kept in `failure` for them to agree on.

        Args:
            note: shown after them.
        """
        try:
            self._log(step, metrics, note)
        except Exception as failure:
            self.failure = self.failure or failure

    def _log(self, step: int, metrics: dict[str, float], note: str) -> None:
        seconds = round(time.perf_counter() - self._started, 3)
        self._file.write(json.dumps({"step": step, "seconds": seconds, **metrics}) + "\n")
        shown = [f"{key.removeprefix('train/')} {value:.4g}" for key, value in metrics.items()]
        say("  ".join([f"step {step} of {self._steps}", *shown, *filter(None, [note])]))
        if self._wandb:
            self._wandb.log(metrics, step=step)
        if self._board:
            for key, value in metrics.items():
                self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Flushes and closes every sink."""
        self._file.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()


class NoLogger:
    """What every rank but the first holds: the same calls, no effect."""

    failure = None

    def log(self, step: int, metrics: dict[str, float], note: str = "") -> None:
        """Records nothing."""

    def close(self) -> None:
        """Closes nothing."""


def last_metrics(run_dir: str | Path) -> dict[str, float]:
    """The last value of every metric of a run, with the step and seconds of the last line."""
    last = {}
    for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines():
        last |= json.loads(line)
    return last


def _open_metrics(path: Path, first_step: int) -> TextIO:
    """The metrics file, its lines after `first_step` dropped: a resumed run writes them again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = (line for line in lines if line.endswith("\n"))  # a killed run may leave half a line
    kept = [line for line in whole if json.loads(line)["step"] <= first_step]
    with atomic_path(path) as tmp:
        tmp.write_text("".join(kept))
    return open(path, "a", buffering=1)


def _start_wandb(settings: WandbSettings, run_dir: Path, config: dict):
    import wandb

    try:
        return wandb.init(
            entity=settings.org,
            project=settings.project,
            group=settings.group,
            name=settings.run_name,
            config=config,
            dir=str(run_dir),
        )
    except wandb.errors.Error as error:
        raise InputError(
            f"wandb does not start ({str(error).splitlines()[0]}); run `wandb login`, set "
            "WANDB_API_KEY or WANDB_MODE=offline, or leave out --use_wandb"
        ) from error
