"""Supervised fine-tuning on the rows that were kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from seal.errors import Stopped
from seal.progress import Progress
from seal.trainer.evaluation import mean_loss
from seal.trainer.order import EpochBatches
from seal.trainer.step import RowModel, require_finite

if TYPE_CHECKING:
    from seal.datasets import SFTDataset
    from seal.utils.logger import Logger, NoLogger


@dataclass(frozen=True)
class SFTPlan:
    """How long (epochs, rows a step) and how often (optimizer steps; 0 is never)."""

    max_epochs: int
    train_batch_size: int
    seed: int
    logging_steps: int = 1
    eval_steps: int = 0
    save_steps: int = 0


class SFTTrainer:
    """Minimises the mean loss per supervised token of the whole global batch.

    Args:
        model: over the training rows.
        plan: epochs, batch size and cadence.
        logger: where metrics go.
        evaluations: name -> rows; logged as "<name>/loss".
        save_checkpoint: called with the optimizer step when one is due.
        save_best: called with the step when eval/loss is the lowest so far; None for never.

    Attributes:
        best_loss: the lowest eval/loss so far, nats a token; part of a checkpoint.
    """

    def __init__(
        self,
        model: RowModel,
        plan: SFTPlan,
        logger: Logger | NoLogger,
        evaluations: dict[str, SFTDataset],
        save_checkpoint: Callable[[int], None],
        save_best: Callable[[int], None] | None = None,
    ):
        self.model = model
        self.plan = plan
        self.logger = logger
        self.evaluations = evaluations
        self.save_checkpoint = save_checkpoint
        self.save_best = save_best
        self.best_loss = math.inf
        self.steps_per_epoch = math.ceil(len(model.dataset) / plan.train_batch_size)
        self.steps = plan.max_epochs * self.steps_per_epoch

    def fit(self, first_step: int = 0, what: str = "training") -> None:
        """Trains from optimizer step `first_step` to the end; progress is shown as `what`.

        Raises:
            NonFiniteLoss: on every rank, before the bad step is taken.
            Stopped: on every rank, asked to by a signal, after a checkpoint.
        """
        with Progress(what, self.steps, "steps", first_step) as work:
            self._fit(first_step, work)

    def _fit(self, first_step: int, work: Progress) -> None:
        plan = self.plan
        self.model.engine.train()
        for step in range(first_step + 1, self.steps + 1):
            metrics = self.take(step)
            work.update(loss=metrics["train/loss"])
            if step % plan.logging_steps == 0:
                self.logger.log(step, metrics, f"{work.left} left")
            if plan.eval_steps and (step % plan.eval_steps == 0 or step == self.steps):
                self.evaluate(step)
            stopping = self.model.strategy.must_stop(self.logger.failure)
            if stopping or (plan.save_steps and step % plan.save_steps == 0):
                self.save_checkpoint(step)
            if stopping:
                raise Stopped(f"stopped after step {step}")
        self.model.strategy.agree(self.logger.failure)

    def take(self, step: int) -> dict[str, float]:
        """Optimizer step `step` (from 1) of the run, with its epoch; see `train_step`."""
        epoch, number = divmod(step - 1, self.steps_per_epoch)
        n_rows, plan = len(self.model.dataset), self.plan
        rows = EpochBatches(n_rows, plan.train_batch_size, plan.seed, epoch)[number]
        return {"train/epoch": epoch + 1, **self.train_step(rows, step)}

    def train_step(self, rows: np.ndarray, step: int) -> dict[str, float]:
        """One optimizer step on one global batch.

        Returns:
            Metrics: loss (nats a token, before the step), gradient norm, learning rate, speed.
        """
        model, began = self.model, time.perf_counter()
        passed = int(model.dataset.lengths[rows].sum())
        tokens = int(model.dataset.supervised[rows].sum())
        nll = model.backward(rows, torch.full((len(rows),), 1.0 / tokens))
        require_finite(nll, rows, model.dataset, step)
        learning_rate = model.engine.get_lr()[0]
        norm = model.strategy.step(model.engine, step)
        return {
            "train/loss": float(nll.sum()) / tokens,
            "train/grad_norm": norm,
            "train/lr": learning_rate,
            **model.strategy.speed(model.engine, time.perf_counter() - began, passed, passed),
        }

    def evaluate(self, step: int) -> None:
        """Logs the mean loss per token of every evaluation set."""
        for name, rows in self.evaluations.items():
            loss = mean_loss(self.model.over(rows), per="token")
            self.logger.log(step, {f"{name}/loss": loss})
            if name == "eval" and self.save_best and loss < self.best_loss:
                self.best_loss = loss
                self.save_best(step)
