"""One epoch of optimizer steps, the same for every trainer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from seal.errors import Stopped
from seal.trainer.step import RowLosses, epoch_batches

if TYPE_CHECKING:
    from seal.utils.logger import Logger, NoLogger


class Plan(Protocol):
    """How many rows a step, and how often what happens (in optimizer steps; 0 is never)."""

    train_batch_size: int
    seed: int
    logging_steps: int
    eval_steps: int
    save_steps: int


class Trainer(Protocol):
    """What an epoch needs of a trainer; `save_checkpoint` is called when a checkpoint is due."""

    losses: RowLosses
    plan: Plan
    logger: Logger | NoLogger
    n_rows: int

    def train_step(self, rows: np.ndarray, step: int) -> dict[str, float]: ...

    def evaluate(self, step: int) -> None: ...

    def save_checkpoint(self, step: int) -> None: ...


def steps_per_epoch(trainer: Trainer) -> int:
    """Optimizer steps that visit every row once; the last may be short."""
    return math.ceil(trainer.n_rows / trainer.plan.train_batch_size)


def train_epoch(trainer: Trainer, epoch: int, first_step: int) -> None:
    """Takes the steps of an epoch (from 0) behind optimizer step `first_step`.

    Raises:
        Stopped: on every rank, asked to by a signal, after a checkpoint.
    """
    plan = trainer.plan
    batches = epoch_batches(trainer.n_rows, plan.train_batch_size, plan.seed, epoch)
    for step, rows in enumerate(batches, epoch * len(batches) + 1):
        if step <= first_step:
            continue
        metrics = trainer.train_step(rows, step)
        if step % plan.logging_steps == 0:
            trainer.logger.log(step, {"train/epoch": epoch + 1, **metrics})
        trainer.logger.advance()
        if plan.eval_steps and step % plan.eval_steps == 0:
            trainer.evaluate(step)
        stopping = trainer.losses.strategy.must_stop()
        if stopping or (plan.save_steps and step % plan.save_steps == 0):
            trainer.save_checkpoint(step)
        if stopping:
            raise Stopped(f"stopped after step {step}")
