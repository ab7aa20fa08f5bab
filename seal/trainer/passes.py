"""The passes over rows that every score is made of: each is run once, shared and resumable."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from seal.datasets import SFTDataset
from seal.errors import InputError
from seal.ids import folds_of
from seal.models.actor import ModelSettings, load_actor
from seal.selection.representation import States
from seal.trainer.evaluation import Moved, half_means, half_sums, pooled_states
from seal.trainer.scoring import Parts
from seal.trainer.sft_trainer import SFTPlan, SFTTrainer
from seal.trainer.step import RowModel
from seal.utils.logger import NoLogger
from seal.utils.schedule import WARMUP_RATIO, schedule_factor

if TYPE_CHECKING:
    from seal.utils.strategy import DeepspeedStrategy

HELD_OUT = 20  # one safe row in so many is kept from tuning, to see how far the model moved


@dataclass(frozen=True)
class Tuning:
    """How a model is tuned for a score; the fields are the flags of the same names.

    Attributes:
        tune_epochs: passes over the rows.
        train_batch_size: rows a step.
        learning_rate: AdamW's peak.
        folds: of the out-of-fold loss, at least 2.
        influence_step: size of the step along the safe gradient.

    Raises:
        InputError: fewer than two folds.
    """

    tune_epochs: int = 1
    train_batch_size: int = 128
    learning_rate: float = 2e-6
    lr_scheduler: str = "cosine"
    lr_warmup_ratio: float = WARMUP_RATIO
    folds: int = 2
    influence_step: float = 1e-4
    seed: int = 42

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise InputError(f"--folds must be at least 2, got {self.folds}")


class Engines:
    """Makes engines of the model that scores start from, each equal to the last.

    Args:
        strategy: ranks and engines.
        settings: of the model.
        tokenizer: saved with a model.
        capacity: tokens a micro-batch may hold.
        l2: AdamW's weight decay.
    """

    def __init__(
        self,
        strategy: DeepspeedStrategy,
        settings: ModelSettings,
        tokenizer,
        capacity: int,
        l2: float = 0.0,
    ):
        self.strategy = strategy
        self.settings = settings
        self.tokenizer = tokenizer
        self.capacity = capacity
        self.l2 = l2

    def engine(
        self,
        start: str | None,
        rate: float,
        scheduler: str,
        steps: int,
        warmup_ratio: float = WARMUP_RATIO,
    ):
        """A fresh engine of a model directory, or of the start (None)."""
        self.strategy.seed_everything()
        with self.strategy.loading():
            actor = load_actor(replace(self.settings, pretrain=start or self.settings.pretrain))
        optimizer = self.strategy.create_optimizer(actor, rate, self.l2)
        factor = schedule_factor(scheduler, steps, warmup_ratio)
        return self.strategy.prepare(actor, optimizer, factor)

    def over(self, engine, rows: SFTDataset) -> RowModel:
        """The engine over some rows."""
        return RowModel(engine, self.strategy, rows, self.capacity, self.settings.aux_loss_coef)

    def release(self, engine) -> None:
        """Ends an engine that `engine` made."""
        self.strategy.release(engine)

    def save(self, engine, directory: str) -> None:
        """Writes a model that `engine` can start from."""
        self.strategy.save_model(engine, self.tokenizer, directory)


class Done(NamedTuple):
    """A finished pass: what it gave, and what it took.

    It gives float64 [R, 2], nats of even and odd tokens, or float32 [R, K, 3, H], pooled states.

    The note holds `cost` (forward passes a row of the user), `seconds`, `cpu_seconds` and `moved`:
    mean loss of held-out rows before and after tuning, {"safe": [b, a], "rows": [b, a]}, and of
    safe responses behind each other's prompts ("swapped").
    """

    sums: np.ndarray
    note: dict


class Passes:
    """Losses of the user's rows under the models that scores compare, and their hidden states.

    Methods named for a loss return float64 [N], nats a token, higher = less expected. A training
    step costs three forward passes. With `half` set, the losses are those of the even or odd
    tokens, and the anchors one half of them, by id.

    Args:
        engines: makes the models.
        safe: the trusted rows.
        rows: the rows to score.
        tuning: how models are tuned.
        parts: where finished passes are kept.
        ready: model directories to use as they are, for "safe" or "rows".
        texts: gives the texts of `rows` and of the safe rows, for scores without a model.
        unsafe: known-bad rows, for scores that need them as anchors beside the safe ones.
        layers: rising, where hidden states may be taken.

    Attributes:
        half: None for whole rows, 0 or 1 for their even or odd supervised tokens; NaN where a row
            has none.
        evidence: what a method says for its own score; head: its map from states to scores.
        used: names of the passes that were asked for since it was last emptied.
    """

    def __init__(
        self,
        engines: Engines,
        safe: SFTDataset,
        rows: SFTDataset,
        tuning: Tuning,
        parts: Parts,
        ready: Mapping[str, str | None] | None = None,
        texts: Callable[[], tuple[list[str], list[str]]] | None = None,
        unsafe: SFTDataset | None = None,
        layers: Sequence[int] = (),
    ):
        self.engines = engines
        self.safe = safe
        self.rows = rows
        self.tuning = tuning
        self.parts = parts
        self.ready = dict(ready or {})
        self.texts = texts
        self.unsafe = unsafe
        self.layers = list(layers)
        self.evidence: dict = {}
        self.head: dict | None = None
        self.half: int | None = None
        self.used: dict[str, Done] = {}
        self._done: dict[str, Done] = {}
        self._drifted: str | None = self.ready.get("rows")
        held = folds_of(safe.ids, HELD_OUT) == 0
        apart = held.any() and not held.all()
        self._tuned_on = safe.select(np.flatnonzero(~held)) if apart else safe
        self._held_safe = safe.select(np.flatnonzero(held)) if apart else safe

    def start_loss(self) -> np.ndarray:
        """Loss under the model as it comes."""
        return self._means(self._pass("start", self.rows))

    def response_loss(self) -> np.ndarray:
        """Loss under the model as it comes, of responses without their prompts."""
        return self._means(self._pass("alone", self.rows.responses_only()))

    def safe_loss(self) -> np.ndarray:
        """Loss under a model tuned on the safe rows."""
        return self._means(self._pass("safe", self.rows, self.ready.get("safe"), self._tuned_on))

    def rows_loss(self) -> np.ndarray:
        """Loss under a model tuned on the very rows."""
        return self._means(self._pass("rows", self.rows, self.ready.get("rows"), self.rows))

    def out_of_fold_loss(self) -> np.ndarray:
        """Loss under a model tuned on the other folds of the rows.

        A model that has trained on a row knows it by heart, and a memorised hard row looks like an
        unsafe one.

        Raises:
            InputError: a fold is empty.
        """
        if self.ready.get("rows"):
            return self.rows_loss()
        folds = self.tuning.folds
        fold, sums = folds_of(self.rows.ids, folds), np.empty((len(self.rows), 2))
        for number in range(folds):
            held, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
            if len(held) == 0 or len(rest) == 0:
                raise InputError(
                    f"--folds {folds} leaves a fold empty over {len(fold)} rows; lower it"
                )
            held_rows, rest_rows = self.rows.select(held), self.rows.select(rest)
            sums[held] = self._pass(f"fold{number}", held_rows, tune_on=rest_rows)
        return self._means(sums)

    def nudged_loss(self, direction: float) -> np.ndarray:
        """Loss after one step down (1) or up (-1) the mean safe loss, at a model tuned on the rows.

        At the aligned model itself the safe gradient is nearly zero.
        """
        if self._drifted is None:
            self._drifted = self._tune_and_keep()
        name = "down" if direction > 0 else "up"
        return self._means(self._pass(name, self.rows, self._drifted, direction=direction))

    def states(self, layer: int) -> States:
        """Hidden states of the rows at a layer, under the model as it comes."""
        return self._states("states", self.rows, [layer])[layer]

    def anchors(self, layers: list[int]) -> list[dict[int, States]]:
        """Hidden states, by layer, of the safe rows and, where they are given, the unsafe ones."""
        sides = []
        for name, rows in (("safe", self.safe), ("unsafe", self.unsafe)):
            if rows is None:
                continue
            content = hashlib.sha256(rows.ids.tobytes()).hexdigest()[:8]  # not in the parts' key
            found = self._states(f"{name}_states_{content}", rows, layers)
            if self.half is not None:
                kept = folds_of(rows.ids, 2) == self.half
                found = {layer: states.at(kept) for layer, states in found.items()}
            sides.append(found)
        return sides

    def _states(self, name: str, rows: SFTDataset, layers: list[int]) -> dict[int, States]:
        found = self._pass("_".join([name, *map(str, layers)]), rows, layers=layers)
        return {
            layer: States(*found[:, place].swapaxes(0, 1)) for place, layer in enumerate(layers)
        }

    def _means(self, sums: np.ndarray) -> np.ndarray:
        return half_means(sums, self.rows.supervised, self.half)

    def _pass(
        self,
        name: str,
        rows: SFTDataset,
        start: str | None = None,
        tune_on: SFTDataset | None = None,
        direction: float | None = None,
        layers: list[int] | None = None,
    ) -> np.ndarray:
        """Loss of rows under one model, or their states, see `Done`.

        Args:
            start: a model to use as it is; None for the start, tuned on `tune_on` where given.
            direction: of a step along the safe gradient first.
            layers: take states there, instead of losses.
        """
        if name not in self._done:
            found = self.parts.finished(name, len(rows))
            if found is None:
                with self._noted(name) as note:
                    sums = self._run(name, rows, start, tune_on, direction, layers, note)
                self._done[name] = Done(sums, note)
            else:
                self._done[name] = Done(*found)
        self.used[name] = self._done[name]
        return self._done[name].sums

    def _run(self, name, rows, start, tune_on, direction, layers, note) -> np.ndarray:
        tune_on = None if start or direction is not None else tune_on
        with self._engine(start, tune_on, direction) as engine:
            if tune_on is not None:
                self._tune(name, engine, tune_on, rows, note)
            if direction is not None:
                self._step_along_safe_gradient(engine, direction)
                note["cost"] += 3 * len(self.safe) / len(self.rows)
            model = self.engines.over(engine, rows)
            if layers is None:
                work, depth = partial(half_sums, model, note=name), 1.0
            else:
                work = partial(pooled_states, model, layers=layers, note=name)
                depth = layers[-1] / engine.module.n_layers
            found = self.parts.rows(name, len(rows), work)
        note["cost"] += depth * len(rows) / len(self.rows)
        return found

    def _tune_and_keep(self) -> str:
        """Directory of a model tuned on the rows, for the passes that start from it."""
        if self.parts.directory is None:
            self._scratch = tempfile.TemporaryDirectory()
            kept = self.parts.strategy.from_rank_0(lambda: self._scratch.name)
        else:
            kept = str(self.parts.directory / "drifted")
        found = self.parts.finished("drifted", 0)
        if found is None:
            with self._noted("drifted") as note, self._engine(None, self.rows) as engine:
                self._tune("drifted", engine, self.rows, self.rows, note)
                self.engines.save(engine, kept)
            found = np.empty((0, 2)), note
        self._done["drifted"] = self.used["drifted"] = Done(*found)
        return kept

    @contextlib.contextmanager
    def _noted(self, name: str) -> Iterator[dict]:
        """The note of a pass that runs inside; what it took is added at the end."""
        note = {"cost": 0.0, "moved": None}
        wall, cpu = time.perf_counter(), time.process_time()
        yield note
        note["seconds"] = round(time.perf_counter() - wall, 1)
        note["cpu_seconds"] = round(time.process_time() - cpu, 1)
        self.parts.finish(name, note)

    @contextlib.contextmanager
    def _engine(self, start, tune_on=None, direction=None) -> Iterator:
        gc.collect()  # an engine that was destroyed holds cycles
        tuning, rate, steps = self.tuning, self.tuning.learning_rate, 1
        if tune_on is not None:
            steps = tuning.tune_epochs * -(-len(tune_on) // tuning.train_batch_size)
        if direction is not None:
            rate = tuning.influence_step
        scheduler = "constant" if tune_on is None else tuning.lr_scheduler
        engine = self.engines.engine(start, rate, scheduler, steps, tuning.lr_warmup_ratio)
        yield engine
        self.engines.release(engine)

    def _tune(self, name: str, engine, tune_on: SFTDataset, rows: SFTDataset, note: dict) -> None:
        """Tunes an engine for a pass, and notes how far the loss of held-out rows moved."""
        tuning, model = self.tuning, self.engines.over(engine, tune_on)
        safe = tune_on is self._tuned_on
        moved = Moved(model, self._held_safe, rows, tuning.seed, swapped=safe)
        plan = SFTPlan(tuning.tune_epochs, tuning.train_batch_size, tuning.seed)
        tune(model, plan, f"tuning for {name}")
        note["moved"] = moved.losses()
        note["steps"] = tuning.tune_epochs * -(-len(tune_on) // tuning.train_batch_size)
        note["cost"] += (3 * tuning.tune_epochs * len(tune_on) + moved.rows) / len(self.rows)

    def _step_along_safe_gradient(self, engine, direction: float) -> None:
        """One optimizer step of size `influence_step` on the mean safe loss."""
        model, batch = self.engines.over(engine, self.safe), self.tuning.train_batch_size
        share = direction / len(self.safe) / self.safe.supervised
        for start in range(0, len(self.safe), batch):
            rows = np.arange(start, min(start + batch, len(self.safe)))
            model.backward(rows, torch.from_numpy(share[rows]).float())
        model.strategy.step(engine)


def tune(model: RowModel, plan: SFTPlan, what: str = "tuning") -> None:
    """Plain SFT of the engine on its dataset; without checkpoints: it is repeated if broken off."""
    SFTTrainer(model, plan, NoLogger(), {}, save_checkpoint=lambda step: None).fit(what=what)
