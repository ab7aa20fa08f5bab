"""`--dry_run N`: a few real steps, and what the whole run would take; nothing is written."""

import time
from collections.abc import Mapping

from seal.trainer.checkpoint import GIGABYTE
from seal.trainer.passes import Passes
from seal.trainer.scorers import Scored
from seal.trainer.selector_trainer import SelectorTrainer
from seal.trainer.sft_trainer import SFTTrainer

LINE_BYTES = 64  # of a selector, a row, at most


def train(
    args, trainer: SFTTrainer | SelectorTrainer, engines: list, models: int, scored: int = 0
) -> None:
    """Takes `--dry_run` steps and prints a report.

    Args:
        models: how many the run writes.
        scored: rows of the selector that it writes, after each epoch and at the end.
    """
    strategy, seconds = trainer.model.strategy, []
    for engine in engines:
        engine.train()
    for step in range(1, min(args.dry_run, trainer.steps) + 1):
        began = time.perf_counter()
        trainer.take(step)
        seconds.append(time.perf_counter() - began)
    later = seconds[1:] or seconds  # the first one allocates too
    each = sum(later) / len(later)
    every = trainer.plan.save_steps
    snapshots = min(trainer.steps // every if every else 0, args.max_ckpt_num)
    snapshot, model = strategy.sizes(engines)
    disk = {
        f"models ({models:d})": models * model,
        f"checkpoints ({snapshots})": min(
            snapshots * snapshot, max(snapshot, args.max_ckpt_mem * GIGABYTE)
        ),
        "selectors": scored * (args.max_epochs + 1) * LINE_BYTES,
    }
    hours = each * trainer.steps / 3600
    speed = f"{each:.3g} s a step, {hours:.3g} h for {trainer.steps} steps without evaluations"
    _tell(strategy, f"{len(seconds)} steps", speed, disk)


def score(passes: Passes, scored: Scored, share: float, rows: int) -> None:
    """Prints a report on passes over a share of the rows."""
    strategy = passes.parts.strategy
    hours = scored.seconds / share / 3600
    speed = f"{scored.seconds:.3g} s, {hours:.3g} h for {rows} rows"
    kept = sum(done.sums.nbytes for done in passes.used.values())
    disk = {"parts": round(kept / share), "selector": rows * LINE_BYTES}
    _tell(strategy, f"{len(passes.rows)} rows", speed, disk)


def _tell(strategy, looked_at: str, speed: str, disk: Mapping[str, int]) -> None:
    sizes = ", ".join(f"{name} {size / GIGABYTE:.3g}" for name, size in disk.items() if size)
    peak = max(strategy.all_gather_object(strategy.peak_memory())) / GIGABYTE
    strategy.print(
        f"dry run of {looked_at}: {speed}; peak memory {peak:.3g} GiB a rank; "
        f"disk {sum(disk.values()) / GIGABYTE:.3g} GiB ({sizes}); nothing was written"
    )
