"""Score rows with one pass over them: contrasts, baselines, influence. The artefact is the same.

    deepspeed score_dataset.py --method excess_loss --pretrain MODEL --dataset safe.jsonl \
        --new_dataset user.jsonl --selector_name excess

Writes `<selector_save_dir>/<selector_name>.parquet`. Started again after an interruption, it takes
up the finished parts of `--work_dir`.
"""

import time
from pathlib import Path

import numpy as np
import torch

from seal.cli import flags
from seal.datasets import concatenate, load_rows, tokenize_rows
from seal.errors import InputError
from seal.models.actor import ModelSettings, load_actor
from seal.models.attention import attention_note
from seal.selection.artefact import selection_meta, write_selection
from seal.selection.calibration import calibrate, draw_canaries
from seal.selection.scorers import (
    MODEL_FREE,
    ONE_PASS,
    dsir_scores,
    folds_of,
    random_scores,
    relative_contrast,
    tuned_rows,
)
from seal.trainer.scoring import Parts, tune
from seal.trainer.sft_trainer import SFTPlan
from seal.trainer.step import RowModel
from seal.utils import entry, record
from seal.utils.logger import NoLogger
from seal.utils.schedule import schedule_factor
from seal.utils.tokenizer import get_tokenizer


def score(args) -> None:
    """Runs the chosen method."""
    if args.method not in ONE_PASS:
        raise InputError(f"--method {args.method}: known are {list(ONE_PASS)}")
    if args.folds < 2:
        raise InputError(f"--folds must be at least 2, got {args.folds}")
    strategy = flags.get_strategy(args)
    tokenizer = get_tokenizer(args.pretrain, **flags.tokenizer_flags(args))

    def read(names, probs="1.0"):
        rows = load_rows(names, probs=probs, **flags.source_flags(args))
        return tokenize_rows(rows, tokenizer, **flags.text_flags(args))

    safe = strategy.main_first(lambda: read(args.dataset, args.dataset_probs))
    user = strategy.main_first(lambda: read(args.new_dataset))
    strategy.print(f"safe rows: {safe}\nuser rows: {user}")
    pool = user
    if args.canary_dataset:
        known_bad = strategy.main_first(lambda: read(args.canary_dataset))
        canaries = draw_canaries(known_bad, safe, user, args.canary_fraction, args.seed)
        strategy.print(f"canaries: {canaries}")
        pool = concatenate(user, canaries)
    started = time.perf_counter()
    if args.method in MODEL_FREE:
        columns = {"score": strategy.main_first(lambda: without_model(args, user, pool))}
    else:
        strategy.print(attention_note(args.flash_attn, args.attn_implementation, args.bf16))
        columns = Passes(args, strategy, tokenizer, safe, pool).run(args.method)
    seconds = time.perf_counter() - started
    cost = forward_equivalents(args, len(safe), len(user))
    path = Path(args.selector_save_dir) / f"{args.selector_name}.parquet"
    identity = {"id": user.ids, "occurrence": user.occurrences, "row": user.row_numbers}
    meta = describe(args, user, seconds, cost)
    if args.canary_dataset:
        score = columns["score"]
        meta |= {"calibration": calibrate(score[: len(user)], score[len(user) :])}
    columns = {name: column[: len(user)] for name, column in columns.items()}
    strategy.on_rank_0(lambda: write_selection(path, identity | columns, meta))
    strategy.print(
        f"selector: {path}, {len(user)} rows scored in {seconds:.1f} s, "
        f"{cost:.1f} forward passes a row"
    )


class Passes:
    """The passes over the user's rows that the model-based methods are made of.

    Args:
        args: the script's flags.
        safe, user: tokenised rows.
    """

    def __init__(self, args, strategy, tokenizer, safe, user):
        self.args, self.strategy, self.tokenizer = args, strategy, tokenizer
        self.safe, self.user = safe, user
        self.work = Path(args.work_dir or f"{args.selector_save_dir}/{args.selector_name}_parts")
        self.parts = Parts(self.work, record.identity(vars(args), [*safe.ids, *user.ids]))
        strategy.claim(self.work)
        strategy.on_rank_0(self.parts.claim)

    def run(self, method: str) -> dict:
        """Columns of the artefact for one method."""
        if method == "perplexity":
            loss = self.losses("start", self.args.pretrain)
            return {"score": -loss, "loss": loss}
        if method == "ifd":
            loss = self.losses("start", self.args.pretrain)
            alone = self.losses("alone", self.args.pretrain, rows=self.user.responses_only())
            return {"score": -loss / alone, "loss": loss}
        if method == "influence":
            return self.influence()
        safe_loss = self.losses("safe", self.args.safe_model, self.safe)
        if method == "safe_loss":
            return {"score": -safe_loss, "loss": safe_loss}
        if method == "relative_excess":
            rows_loss = self.out_of_fold()
            return {"score": relative_contrast(rows_loss, safe_loss), "loss": rows_loss}
        rows_loss = self.losses("rows", self.args.rows_model, self.user)
        return {"score": rows_loss - safe_loss, "loss": rows_loss}

    def out_of_fold(self) -> np.ndarray:
        """Loss of each row under a model tuned on the other folds, float64 [N], nats a token.

        A model that has trained on a row knows it by heart, and a memorised hard row looks like an
        unsafe one.
        """
        if self.args.rows_model:
            return self.losses("rows", self.args.rows_model)
        fold, means = folds_of(self.user.ids, self.args.folds), np.empty(len(self.user))
        for number in range(self.args.folds):
            held, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
            if len(held) == 0 or len(rest) == 0:
                raise InputError(
                    f"--folds {self.args.folds} leaves a fold empty over {len(fold)} rows; lower it"
                )
            held_rows, rest_rows = self.user.select(held), self.user.select(rest)
            means[held] = self.losses(f"fold{number}", None, rest_rows, rows=held_rows)
        return means

    def influence(self) -> dict:
        """Change of a row's loss along one step down the safe loss, by central difference.

        The step is Adam's first, the sign of the mean safe gradient, at a model tuned on the rows:
        at the aligned model itself the safe gradient is nearly zero. Equals the inner product of
        TracIn (Pruthi et al. 2020) and LESS (Xia et al. 2024) without a gradient per row.
        """
        drifted = self.args.rows_model
        if drifted is None:
            drifted = str(self.work / "drifted")
            engine = self.engine(self.args.pretrain, self.user)
            self.strategy.save_model(engine, self.tokenizer, drifted)
            engine.destroy()
        down = self.losses("down", drifted, direction=1.0)
        up = self.losses("up", drifted, direction=-1.0)
        return {"score": (up - down) / (2 * self.args.influence_step), "loss": (up + down) / 2}

    def losses(self, name, ready, tune_on=None, rows=None, direction=None) -> np.ndarray:
        """Each row's loss under one model, float64 [N], nats a token.

        Args:
            name: of the pass; finished parts are read from the work directory.
            ready: model or adapter directory to use as it is; None to tune the start on `tune_on`.
            rows: other rows than the user's.
            direction: 1 or -1: take one step down or up the mean safe loss first.
        """
        rows = self.user if rows is None else rows
        found = self.parts.complete(name, len(rows))
        if all(self.strategy.all_gather_object(found is not None)):
            return found
        engine = self.engine(ready or self.args.pretrain, None if ready else tune_on, direction)
        if direction is not None:
            self.step_along_safe_gradient(engine, direction)
        means = self.parts.losses(name, self.over(engine, rows))
        engine.destroy()
        return means

    def engine(self, pretrain, tune_on=None, direction=None):
        """A fresh engine, tuned where `tune_on` is given; the same after a resume as before it."""
        args = self.args
        self.strategy.seed_everything()
        with self.strategy.loading():
            actor = load_actor(flags.settings(ModelSettings, args, pretrain=pretrain))
        rate = args.learning_rate if direction is None else args.influence_step
        steps = args.tune_epochs * -(-len(tune_on) // args.train_batch_size) if tune_on else 1
        factor = schedule_factor(args.lr_scheduler if tune_on else "constant", steps)
        optimizer = self.strategy.create_optimizer(actor, rate, args.l2)
        engine = self.strategy.prepare(actor, optimizer, factor)
        if tune_on:
            self.strategy.print(f"tuning on {len(tune_on)} rows, {steps} steps")
            plan = SFTPlan(args.tune_epochs, args.train_batch_size, args.seed)
            tune(self.over(engine, tune_on), plan, NoLogger())
        return engine

    def step_along_safe_gradient(self, engine, direction: float) -> None:
        """One optimizer step of size `--influence_step` on the mean safe loss."""
        losses = self.over(engine, self.safe)
        share = direction / len(self.safe) / self.safe.supervised
        for start in range(0, len(self.safe), self.args.train_batch_size):
            rows = np.arange(start, min(start + self.args.train_batch_size, len(self.safe)))
            losses.backward(rows, torch.from_numpy(share[rows]).float())
        self.strategy.step(engine)

    def over(self, engine, rows) -> RowModel:
        """The engine over some rows."""
        capacity = self.args.micro_train_batch_size * self.args.max_len
        return RowModel(engine, self.strategy, rows, capacity, self.args.aux_loss_coef)


def without_model(args, user, pool) -> np.ndarray:
    """Scores of the methods that look at text, or at nothing, float64 [rows of the pool]."""
    if args.method == "random":
        return random_scores(len(pool), args.seed)

    def texts(names, rows=None):
        messages = load_rows(names, **flags.source_flags(args))["messages"]
        chosen = range(len(messages)) if rows is None else rows
        return [" ".join(turn["content"] for turn in messages[int(at)]) for at in chosen]

    scored = texts(args.new_dataset, user.row_numbers)
    if args.canary_dataset:
        scored += texts(args.canary_dataset, pool.row_numbers[len(user) :])
    return dsir_scores(scored, texts(args.dataset))


def forward_equivalents(args, n_safe: int, n_user: int) -> float:
    """What the method cost, in forward passes a user row; a training step counts three."""
    ready = {"safe_ready": bool(args.safe_model), "rows_ready": bool(args.rows_model)}
    tuned = sum(tuned_rows(args.method, n_safe, n_user, folds=args.folds, **ready))
    steps = 2 * 3 * n_safe if args.method == "influence" else 0
    return ONE_PASS[args.method] + (3 * args.tune_epochs * tuned + steps) / n_user


def describe(args, user, seconds: float, cost: float) -> dict:
    """The artefact's metadata."""
    run = record.run_config(vars(args))
    model = None if args.method in MODEL_FREE else args.pretrain
    extra = {
        "command": run["command"],
        "seconds": {"score": round(seconds, 1)},
        "forward_equivalents": round(cost, 2),
    }
    return extra | selection_meta(
        method=args.method,
        arguments=run["arguments"],
        fingerprint=user.fingerprint,
        raw=user.raw,
        skipped=user.skipped,
        model=model,
        tokenizer=args.pretrain,
        max_len=args.max_len,
        seed=args.seed,
    )


def main() -> None:
    """Runs the script on the command line's flags."""
    score(flags.score_parser().parse_args())


if __name__ == "__main__":
    entry.run(main)
