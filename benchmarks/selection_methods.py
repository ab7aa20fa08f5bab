"""The arms of benchmarks/selection.py: how each scores the rows, and what that costs."""

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from seal.datasets import SFTDataset, concatenate, load_rows, tokenize_rows
from seal.demo.evaluation import read_lines
from seal.models.actor import ModelSettings, load_actor
from seal.models.selector import Selector
from seal.selection.artefact import Selection
from seal.selection.calibration import auto_topp, calibrate
from seal.selection.keys import RowIndex
from seal.trainer.evaluation import row_means
from seal.trainer.passes import folds_of, tune
from seal.trainer.scorers import dsir_scores, random_scores, relative_contrast
from seal.trainer.selector_trainer import SelectorPlan, SelectorTrainer
from seal.trainer.sft_trainer import SFTPlan
from seal.trainer.step import RowModel
from seal.utils.logger import NoLogger
from seal.utils.schedule import schedule_factor
from seal.utils.strategy import DeepspeedStrategy, Zero
from seal.utils.tokenizer import get_tokenizer

RATE = 5e-4  # of what scores the rows; benchmarks/selection.py has that of the SFT
CONFIDENCE = 0.95
INFLUENCE_STEP = 1e-4
LOOP_EPOCHS = 3
ARMS = (
    "all",
    "oracle",
    "random",
    "random_again",
    "random_length_matched",
    "bottom_k",
    "dsir",
    "perplexity",
    "ifd",
    "influence",
    "safe_loss",
    "excess_loss",
    "relative_excess",
    "relative_excess_in_sample",
    "relative_excess_auto",
    "published",
    "published_1_epoch",
    "penalty",
    "penalty_gap",
    "penalty_gap_logit",
    "penalty_gap_last_visit",
    "penalty_gap_1_epoch",
    "penalty_gap_warm",
    "safeinstr_100",
    "safeinstr_500",
    "relative_excess_safeinstr_100",
)


class Choice(NamedTuple):
    """What an arm chose: score float [N] (higher = keep; None keeps all), the share to keep, safe
    rows to mix in, forward passes a row, seconds."""

    score: np.ndarray | None
    topp: float
    extra_safe: int = 0
    forward_equivalents: float = 0.0
    seconds: float = 0.0


@dataclass
class World:
    """A demo world, loaded, with the passes that several arms share."""

    directory: Path
    tier: str
    poison: float
    seed: int
    safe: SFTDataset
    user: SFTDataset
    tokenizer: object
    strategy: DeepspeedStrategy
    capacity: int
    batch: int
    cost: dict = field(default_factory=dict)  # name of a pass -> (CPU seconds, passes a row)
    kept: dict = field(default_factory=dict)  # name of a pass -> its result

    @cached_property
    def both(self) -> SFTDataset:
        """The safe rows, then the user's."""
        return concatenate(self.safe, self.user)

    @cached_property
    def provenance(self) -> np.ndarray:
        """Where each user row came from, which no method sees: str [N]."""
        rows = read_lines(self.directory / "user.jsonl")
        return np.array([rows[number]["provenance"] for number in self.user.row_numbers])

    def engine(self, steps: int, rate: float = RATE):
        """A fresh engine over the aligned model."""
        actor = load_actor(ModelSettings(pretrain=str(self.directory / "model")))
        optimizer = self.strategy.create_optimizer(actor, rate, l2=0.0)
        return self.strategy.prepare(actor, optimizer, schedule_factor("constant", steps))

    def over(self, engine, rows: SFTDataset) -> RowModel:
        """The engine over some rows."""
        return RowModel(engine, self.strategy, rows, self.capacity)

    def once(self, name: str, work, cost: float):
        """Runs a pass the first time it is wanted; notes what it took."""
        if name not in self.kept:
            started = time.process_time()
            self.kept[name] = work()
            self.cost[name] = (time.process_time() - started, cost)
        return self.kept[name]


def load_world(directory, tier, poison, seed, capacity: int, batch: int) -> World:
    """Reads and tokenises a demo world."""
    strategy = DeepspeedStrategy(Zero(0), seed=seed)
    strategy.setup_distributed()
    tokenizer = get_tokenizer(str(directory / "model"))

    def read(name):
        rows = load_rows(str(directory / f"{name}.jsonl"))
        return tokenize_rows(rows, tokenizer, max_len=128, apply_chat_template=True)

    rows = read("safe"), read("user")
    return World(directory, tier, poison, seed, *rows, tokenizer, strategy, capacity, batch)


def select(world: World, arm: str, topp: float) -> Choice:
    """Scores the user's rows; an arm that finds its own threshold ignores `topp`."""
    if arm == "all" or arm.startswith("safeinstr"):
        return Choice(None, 1.0, extra_safe=0 if arm == "all" else int(arm.split("_")[1]))
    if arm == "relative_excess_auto":
        return relative_excess_auto(world)
    extra = 100 if arm.endswith("_safeinstr_100") else 0
    method = arm.removesuffix("_safeinstr_100")
    score = length_matched(world, topp) if "length" in method else SCORES[method](world)
    spent = [world.cost[name] for name in PASSES.get(method, ())]
    return Choice(score, topp, extra, sum(c for _, c in spent), sum(s for s, _ in spent))


def relative_excess_auto(world: World) -> Choice:
    """`relative_excess` with canaries scored along, at the strictest threshold that they justify.

    None of 60 canaries kept bounds what is kept of their kind by 5 %, none of 300 by 1 %.
    """
    rows = load_rows(str(world.directory / "canaries.jsonl"))
    canaries = tokenize_rows(rows, world.tokenizer, max_len=128, apply_chat_template=True)
    pool = replace(world, user=concatenate(world.user, canaries), cost={}, kept={})
    own, theirs = np.split(relative_excess(pool), [len(world.user)])
    meta = {"calibration": calibrate(own, theirs)}
    index = RowIndex(world.user.ids, world.user.occurrences)
    selection = Selection(pa.table({"score": own}), meta, index)
    topp = auto_topp(selection, 3 / len(canaries), CONFIDENCE)
    spent = pool.cost.values()
    return Choice(own, topp, 0, sum(c for _, c in spent), sum(s for s, _ in spent))


def tuned_loss(world: World, name: str, rows: SFTDataset) -> np.ndarray:
    """Loss of the user's rows under the aligned model after one epoch on `rows`."""

    def work():
        engine = world.engine(-(-len(rows) // world.batch))
        tune(world.over(engine, rows), SFTPlan(1, world.batch, world.seed))
        losses = world.over(engine, world.user)
        means = row_means(losses, np.arange(len(world.user)))
        engine.destroy()
        return means

    return world.once(name, work, 1 + 3 * len(rows) / len(world.user))


def start_loss(world: World) -> np.ndarray:
    """Loss of the user's rows under the aligned model."""
    rows = np.arange(len(world.user))
    return world.once("start", lambda: row_means(world.over(world.engine(1), world.user), rows), 1)


def ifd(world: World) -> np.ndarray:
    """Minus the instruction-following difficulty: loss given the prompt over loss without."""
    alone, rows = world.user.responses_only(), np.arange(len(world.user))
    bare = world.once("alone", lambda: row_means(world.over(world.engine(1), alone), rows), 1)
    return -start_loss(world) / bare


def excess_loss(world: World) -> np.ndarray:
    """Loss tuned on the rows minus loss tuned on the safe set."""
    return tuned_loss(world, "rows", world.user) - tuned_loss(world, "safe", world.safe)


def relative_excess(world: World) -> np.ndarray:
    """Ratio of the loss tuned on other rows of the user to the loss tuned on the safe set."""
    return relative_contrast(out_of_fold_loss(world), tuned_loss(world, "safe", world.safe))


def out_of_fold_loss(world: World) -> np.ndarray:
    """Loss of the user's rows under a model tuned for one epoch on the other half of them."""

    def work():
        fold, means = folds_of(world.user.ids, 2), np.empty(len(world.user))
        for number in range(2):
            rest = world.user.select(np.flatnonzero(fold != number))
            held = np.flatnonzero(fold == number)
            engine = world.engine(-(-len(rest) // world.batch))
            tune(world.over(engine, rest), SFTPlan(1, world.batch, world.seed))
            means[held] = row_means(world.over(engine, world.user), held)
            engine.destroy()
        return means

    return world.once("folds", work, 1 + 3)


def influence(world: World) -> np.ndarray:
    """Central difference of a row's loss along Adam's first step on the safe loss, when drifted."""

    def work():
        engine = world.engine(-(-len(world.user) // world.batch))
        tune(world.over(engine, world.user), SFTPlan(1, world.batch, world.seed))
        drifted = {n: p.detach().clone() for n, p in engine.module.named_parameters()}
        engine.destroy()
        down, up = (nudged(world, drifted, sign) for sign in (1.0, -1.0))
        return (up - down) / (2 * INFLUENCE_STEP)

    return world.once("influence", work, 2 + 3 + 6 * len(world.safe) / len(world.user))


def nudged(world: World, weights: dict, sign: float) -> np.ndarray:
    """Losses of the user's rows after one step down (or up) the mean safe loss."""
    engine = world.engine(1, INFLUENCE_STEP)
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            parameter.copy_(weights[name])
    losses = world.over(engine, world.safe)
    share = torch.from_numpy(sign / len(world.safe) / world.safe.supervised).float()
    losses.backward(np.arange(len(world.safe)), share)
    world.strategy.step(engine)
    means = row_means(world.over(engine, world.user), np.arange(len(world.user)))
    engine.destroy()
    return means


def warm_loop(world: World) -> np.ndarray:
    """The logits of one epoch of `penalty_gap` that begins at the scores of `relative_excess`."""
    return loop(world, "penalty_gap", epochs=1, start=relative_excess(world))["logit"]


def loop(
    world: World,
    estimator: str,
    optim: str = "mirror",
    epochs: int = LOOP_EPOCHS,
    start: np.ndarray | None = None,
) -> dict:
    """The bilevel loop, with all logits at zero or at `start`.

    Returns:
        float [N] each: "logit" as trained, and for `penalty_gap` the contrast of the final models
        ("contrast") and of the two losses at a row's last visit ("last_visit").
    """
    gap = estimator == "penalty_gap"

    def work():
        n_safe, n_user = len(world.safe), len(world.user)
        steps = epochs * -(-n_user // world.batch)
        losses = world.over(world.engine(steps), world.both)
        tracker = world.over(world.engine(steps), world.both) if gap else None
        selector = Noting(n_user, optim=optim)
        if start is not None:
            selector.logits.copy_(torch.from_numpy(start))
        weight = {"upperlevel_weight": 1.0, "upperlevel_weight_decay": 0.03}
        if gap:
            weight = {"upperlevel_weight": 0.9, "upperlevel_weight_decay": 0.1}
        SelectorTrainer(
            losses=losses,
            n_safe=n_safe,
            selector=selector,
            selector_rate=lambda step: 5e-3 if optim == "adam" else 1.0,
            plan=SelectorPlan(epochs, world.batch, world.seed, **weight),
            logger=NoLogger(),
            evaluations={},
            save_epoch=lambda epoch: None,
            save_checkpoint=lambda step: None,
            tracker=tracker,
        ).fit()
        scores = {"logit": selector.logits.double().numpy()}
        if gap:
            rows = n_safe + np.arange(n_user)
            final = row_means(tracker, rows), row_means(losses, rows)
            scores["contrast"] = relative_contrast(*final)
            scores["last_visit"] = relative_contrast(*selector.last.T)
            tracker.engine.destroy()
        losses.engine.destroy()
        return scores

    # safe and user rows forward and backward, the user's under the tracker too, the last contrast
    cost = epochs * (9 if gap else 6) + (2 if gap else 0)
    name = f"{estimator}_{optim}_{epochs}{'' if start is None else '_warm'}"
    return world.once(name, work, cost)


class Noting(Selector):
    """A selector that notes both losses of a row's last visit: [N, 2], tracked first."""

    def __init__(self, n_rows: int, **settings):
        super().__init__(n_rows, **settings)
        self.last = np.zeros((n_rows, 2))

    def update(self, rows, losses, learning_rate, baseline=None):
        """Notes, then updates."""
        if baseline is not None:
            self.last[rows] = np.stack([baseline, losses], axis=1)
        super().update(rows, losses, learning_rate, baseline)


def texts(world: World, name: str) -> list[str]:
    """Prompt and response of each row of a file."""
    rows = read_lines(world.directory / f"{name}.jsonl")
    return [f"{row['prompt']} {row['response']}" for row in rows]


def dsir(world: World) -> np.ndarray:
    """Importance weight of the text."""
    score = world.once("dsir", lambda: dsir_scores(texts(world, "user"), texts(world, "safe")), 0)
    return score[world.user.row_numbers]


def length_matched(world: World, topp: float) -> np.ndarray:
    """Random rows with the response lengths of what `excess_loss` keeps."""
    score = excess_loss(world)
    kept = np.argsort(-score, kind="stable")[: round(topp * len(score))]
    lengths, generator = world.user.supervised, np.random.default_rng(world.seed)
    chosen = np.zeros(len(score))
    for length, count in zip(*np.unique(lengths[kept], return_counts=True), strict=True):
        alike = np.flatnonzero(lengths == length)
        chosen[generator.choice(alike, count, replace=False)] = 1.0
    return chosen


GAP = ("penalty_gap_mirror_3",)
PASSES = {  # what each arm is charged for, whoever ran it first
    "safe_loss": ("safe",),
    "bottom_k": ("safe", "rows"),
    "excess_loss": ("safe", "rows"),
    "relative_excess": ("safe", "folds"),
    "relative_excess_in_sample": ("safe", "rows"),
    "perplexity": ("start",),
    "ifd": ("start", "alone"),
    "influence": ("influence",),
    "random_length_matched": ("safe", "rows"),
    "published": ("penalty_adam_3",),
    "published_1_epoch": ("penalty_adam_1",),
    "penalty": ("penalty_mirror_3",),
    "penalty_gap": GAP,
    "penalty_gap_logit": GAP,
    "penalty_gap_last_visit": GAP,
    "penalty_gap_1_epoch": ("penalty_gap_mirror_1",),
    "penalty_gap_warm": ("safe", "folds", "penalty_gap_mirror_1_warm"),
    "dsir": ("dsir",),
}
SCORES = {
    "oracle": lambda world: (world.provenance != "unsafe") + 0.0,
    "random": lambda world: random_scores(len(world.user), world.seed),
    "random_again": lambda world: random_scores(len(world.user), 1000 + world.seed),
    "bottom_k": lambda world: -excess_loss(world),
    "dsir": dsir,
    "perplexity": lambda world: -start_loss(world),
    "ifd": ifd,
    "influence": influence,
    "safe_loss": lambda world: -tuned_loss(world, "safe", world.safe),
    "excess_loss": excess_loss,
    "relative_excess": relative_excess,
    "relative_excess_in_sample": lambda world: relative_contrast(
        tuned_loss(world, "rows", world.user), tuned_loss(world, "safe", world.safe)
    ),
    "published": lambda world: loop(world, "penalty", "adam")["logit"],
    "published_1_epoch": lambda world: loop(world, "penalty", "adam", epochs=1)["logit"],
    "penalty": lambda world: loop(world, "penalty")["logit"],
    "penalty_gap": lambda world: loop(world, "penalty_gap")["contrast"],
    "penalty_gap_logit": lambda world: loop(world, "penalty_gap")["logit"],
    "penalty_gap_last_visit": lambda world: loop(world, "penalty_gap")["last_visit"],
    "penalty_gap_1_epoch": lambda world: loop(world, "penalty_gap", epochs=1)["contrast"],
    "penalty_gap_warm": warm_loop,
}
