"""Bilevel training of the data selector, in penalty form."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from seal.errors import Stopped
from seal.models.selector import Selector
from seal.progress import Progress
from seal.trainer.evaluation import mean_loss
from seal.trainer.order import EpochBatches, cycled_batch
from seal.trainer.step import RowModel, require_finite

if TYPE_CHECKING:
    from seal.datasets import SFTDataset
    from seal.utils.logger import Logger, NoLogger


@dataclass(frozen=True)
class SelectorPlan:
    """How long (epochs, rows a step), how often (steps; 0 is never), the upper level's weight.

    Training ends early after an epoch, not the first, in which less than the share `stop_churn` of
    the rows crossed the median of the logits; 0 never does.

    The weight of the safe loss is `upperlevel_weight - epoch * upperlevel_weight_decay` (epochs
    from 0), never below 0; gamma of the paper is one minus it.
    """

    max_epochs: int
    train_batch_size: int
    seed: int
    upperlevel_weight: float
    upperlevel_weight_decay: float
    logging_steps: int = 1
    eval_steps: int = 0
    save_steps: int = 0
    stop_churn: float = 0.0

    def gamma(self, epoch: int) -> float:
        """Weight of the fine-tuning loss in `epoch` (from 0), in [0, 1]."""
        weight = self.upperlevel_weight - epoch * self.upperlevel_weight_decay
        return 1.0 - max(0.0, weight)

    def forward_equivalents(self, tracked: bool) -> float:
        """What the loop costs, in forward passes a user row; a backward pass counts two more.

        A level of weight zero takes a forward pass only; a tracker trains in every step.
        """
        gammas = [self.gamma(epoch) for epoch in range(self.max_epochs)]
        levels = sum((3 if gamma < 1 else 1) + (3 if gamma > 0 else 1) for gamma in gammas)
        return levels + tracked * 3 * self.max_epochs


class SelectorTrainer:
    """Trains the model on both levels and the selector on the row losses it sees.

    One step takes a batch of safe rows and a batch of user rows:

    - model: gradient of `(1 - gamma) * mean safe loss + gamma * mean weight_i * loss_i`, where a
      row's loss is its mean over tokens; a level of weight zero is not backpropagated.
    - selector: gradient of `mean weight_i * loss_i` with respect to the logits (Algorithm 2), or
      of `mean weight_i * (loss_i - tracked loss_i)` where a tracker is given (Algorithm 1).
    - tracker: gradient of `mean weight_i * loss_i` alone, so that it follows the lower level.

    Every user row is visited once an epoch; the safe rows cycle.

    Source: Shen et al. 2024 (arXiv 2410.07471), Algorithms 1 and 2.

    Args:
        model: over one dataset: the safe rows, then the user rows.
        n_safe: how many of its rows are the safe set.
        selector: over the user rows.
        selector_rate: its learning rate at each optimizer step (0-based).
        plan: epochs, batch size, cadence, upper-level weight.
        logger: where metrics go.
        evaluations: name -> rows; logged as "<name>/loss".
        save_epoch: called with the number of finished epochs.
        save_checkpoint: called with the optimizer step when one is due.
        tracker: the same dataset under the lower level's own model: another engine, or another
            adapter of the same one; None for Algorithm 2.
    """

    def __init__(
        self,
        model: RowModel,
        n_safe: int,
        selector: Selector,
        selector_rate: Callable[[int], float],
        plan: SelectorPlan,
        logger: Logger | NoLogger,
        evaluations: dict[str, SFTDataset],
        save_epoch: Callable[[int], None],
        save_checkpoint: Callable[[int], None],
        tracker: RowModel | None = None,
    ):
        self.tracker = tracker
        self.model = model
        self.n_safe = n_safe
        self.selector = selector
        self.selector_rate = selector_rate
        self.plan = plan
        self.logger = logger
        self.evaluations = evaluations
        self.save_epoch = save_epoch
        self.save_checkpoint = save_checkpoint
        self.steps_per_epoch = math.ceil(selector.n_rows / plan.train_batch_size)
        self.steps = plan.max_epochs * self.steps_per_epoch

    def fit(self, first_step: int = 0) -> None:
        """Trains from optimizer step `first_step` to the end.

        Raises:
            NonFiniteLoss: on every rank, before the bad step is taken.
            Stopped: on every rank, asked to by a signal, after a checkpoint.
        """
        with Progress("training", self.steps, "steps", first_step) as work:
            self._fit(first_step, work)

    def _fit(self, first_step: int, work: Progress) -> None:
        plan = self.plan
        for engine in self._engines():
            engine.train()
        for step in range(first_step + 1, self.steps + 1):
            if self._settled(step - 1):
                break
            metrics = self.take(step)
            work.update(loss=metrics["train/row_loss"])
            if step % plan.logging_steps == 0:
                self.logger.log(step, metrics, f"{work.left} left")
            if plan.eval_steps and step % plan.eval_steps == 0:
                self.evaluate(step)
            if step % self.steps_per_epoch == 0:
                self._end_epoch(step)
            stopping = self.model.strategy.must_stop(self.logger.failure)
            if stopping or (plan.save_steps and step % plan.save_steps == 0):
                self.save_checkpoint(step)
            if stopping:
                raise Stopped(f"stopped after step {step}")
        self.model.strategy.agree(self.logger.failure)

    def _settled(self, step: int) -> bool:
        """Whether an epoch, not the first, ends at this step and has moved too few rows."""
        epoch, over = divmod(step, self.steps_per_epoch)
        return epoch > 1 and over == 0 and self.selector.churn() < self.plan.stop_churn

    def _end_epoch(self, step: int) -> None:
        """Writes the selector, and logs how it stands."""
        self.save_epoch(step // self.steps_per_epoch)
        metrics = {
            "selector/effective_rows": self.selector.effective_rows(),
            "selector/entropy": self.selector.entropy(),
            "selector/churn": self.selector.churn(),
        }
        self.logger.log(step, metrics)

    def take(self, step: int) -> dict[str, float]:
        """Optimizer step `step` (from 1) of the run, with its epoch; see `train_step`."""
        epoch, number = divmod(step - 1, self.steps_per_epoch)
        if number == 0:
            self.selector.begin_epoch()
        n_rows, plan = self.selector.n_rows, self.plan
        rows = EpochBatches(n_rows, plan.train_batch_size, plan.seed, epoch)[number]
        return {"train/epoch": epoch + 1, **self.train_step(rows, epoch, step)}

    def train_step(self, user_rows: np.ndarray, epoch: int, step: int) -> dict[str, float]:
        """One optimizer step of the model, then one update of the selector.

        Returns:
            Metrics: both losses (nats a token, mean over rows), gamma, gradient norm, rates, speed.
        """
        model, gamma, began = self.model, self.plan.gamma(epoch), time.perf_counter()
        safe_rows = cycled_batch(self.n_safe, self.plan.train_batch_size, self.plan.seed, step - 1)
        rows = np.concatenate([safe_rows, self.n_safe + user_rows])
        tokens = torch.from_numpy(model.dataset.supervised[rows])
        lengths = model.dataset.lengths[rows]
        visited = torch.from_numpy(user_rows)
        weights = self.selector.weights(visited)
        share = torch.cat(
            [
                torch.full((len(safe_rows),), (1.0 - gamma) / len(safe_rows)),
                gamma * weights / len(user_rows),
            ]
        )
        nll = model.backward(rows, (share / tokens).float())
        passed = np.array([lengths.sum(), lengths[(share != 0).numpy()].sum()])  # forward, backward
        require_finite(nll, rows, model.dataset, step)
        row_losses = (nll / tokens).float()
        baseline = None
        if self.tracker:
            share = weights / len(user_rows) / tokens[len(safe_rows) :]
            tracked = self.tracker.backward(self.n_safe + user_rows, share.float())
            passed = passed + lengths[len(safe_rows) :].sum()
            require_finite(tracked, self.n_safe + user_rows, model.dataset, step)
            baseline = (tracked / tokens[len(safe_rows) :]).float()
        model_rate = model.engine.get_lr()[0]
        norms = [model.strategy.step(engine, step) for engine in self._engines()]
        rate = self.selector_rate(step - 1)
        self.selector.update(visited, row_losses[len(safe_rows) :], rate, baseline)
        return {
            "train/safe_loss": float(row_losses[: len(safe_rows)].mean()),
            "train/row_loss": float(row_losses[len(safe_rows) :].mean()),
            "train/gamma": gamma,
            "train/grad_norm": norms[0],
            "train/lr": model_rate,
            "train/selector_lr": rate,
            **model.strategy.speed(model.engine, time.perf_counter() - began, *passed.tolist()),
        }

    def _engines(self) -> list:
        """The model's engine, then the tracker's where it has one of its own."""
        if self.tracker is None or self.tracker.engine is self.model.engine:
            return [self.model.engine]
        return [self.model.engine, self.tracker.engine]

    def evaluate(self, step: int) -> None:
        """Logs the mean loss per row of every evaluation set."""
        for name, rows in self.evaluations.items():
            self.logger.log(step, {f"{name}/loss": mean_loss(self.model.over(rows), per="row")})
