"""What a run of a training script does, in tokens and steps, from its flags and its rows."""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from seal.command.speed import Speed
from seal.errors import InputError
from seal.selection.scorers import ONE_PASS, tuned_rows
from seal.trainer.selector_trainer import SelectorPlan
from seal.utils import cli


class Rows(NamedTuple):
    """A dataset: rows that are trained on (the skipped ones left out), and tokens a row."""

    count: int
    mean_tokens: float


class Phase(NamedTuple):
    """A part of a run, over all ranks.

    Attributes:
        learned: tokens through a forward and a backward pass.
        read: tokens through a forward pass alone.
        steps: optimizer steps.
    """

    name: str
    learned: float
    read: float
    steps: int


def seconds_of(phase: Phase, speed: Speed, ranks: int, sharing: int) -> float:
    """How long a phase takes on `ranks` ranks, `sharing` of them sharing the optimizer's step."""
    tokens = phase.learned * speed.learn + phase.read * speed.read
    return tokens / ranks + phase.steps * speed.step / sharing


def selector_phases(args: argparse.Namespace, rows: dict[str, Rows]) -> list[Phase]:
    """Selector training: a batch of safe rows beside each batch of the user's, every epoch."""
    safe, user = rows["dataset"], rows["new_dataset"]
    plan = cli.settings(SelectorPlan, args, eval_steps=0, save_steps=0)
    gap = args.selector_estimator == "penalty_gap"
    steps = -(-user.count // plan.train_batch_size)
    safe_tokens = steps * plan.train_batch_size * safe.mean_tokens
    user_tokens = user.count * user.mean_tokens
    engines = 2 if gap and not args.lora_rank else 1
    phases = []
    for epoch in range(plan.max_epochs):
        passes = (plan.gamma(epoch) > 0) + gap  # backward passes over the user's rows
        phases.append(
            Phase(
                f"epoch {epoch + 1}",
                learned=safe_tokens + passes * user_tokens,
                read=0 if plan.gamma(epoch) > 0 else user_tokens,
                steps=steps * engines,
            )
        )
    return phases + [Phase("final scores", 0, 2 * user_tokens, 0)] * gap


def sft_phases(args: argparse.Namespace, rows: dict[str, Rows]) -> list[Phase]:
    """Fine-tuning on the kept rows; `--topp auto` is counted as every row."""
    share = args.topp if args.selector_path and args.topp != "auto" else 1
    kept = round(share * rows["dataset"].count)
    tokens = kept * rows["dataset"].mean_tokens
    if "safeinstr_dataset" in rows:
        kept += rows["safeinstr_dataset"].count
        tokens += rows["safeinstr_dataset"].count * rows["safeinstr_dataset"].mean_tokens
    steps = -(-kept // args.train_batch_size)
    return [Phase(f"epoch {epoch + 1}", tokens, 0, steps) for epoch in range(args.max_epochs)]


def score_phases(args: argparse.Namespace, rows: dict[str, Rows]) -> list[Phase]:
    """Scoring: models tuned first, where the method has any, then passes over the user's rows."""
    if args.method not in ONE_PASS:
        raise InputError(f"--method {args.method}: known are {list(ONE_PASS)}")
    safe, user = rows["dataset"], rows["new_dataset"]
    ready = {"safe_ready": bool(args.safe_model), "rows_ready": bool(args.rows_model)}
    on_safe, on_user = tuned_rows(args.method, safe.count, user.count, folds=args.folds, **ready)
    steps = -(-(on_safe + on_user) // args.train_batch_size)
    tokens = on_safe * safe.mean_tokens + on_user * user.mean_tokens
    phases = [Phase("tuning", args.tune_epochs * tokens, 0, args.tune_epochs * steps)]
    if args.method == "influence":  # the mean safe gradient, down and up
        phases.append(Phase("safe gradient", 2 * safe.count * safe.mean_tokens, 0, 2))
    phases.append(Phase("scores", 0, ONE_PASS[args.method] * user.count * user.mean_tokens, 0))
    return [phase for phase in phases if phase.learned or phase.read]


class Script(NamedTuple):
    """A training script: its parser, the flags that name its rows, and what it does with them."""

    parser: Callable[[], cli.Parser]
    datasets: tuple[str, ...]
    phases: Callable[[argparse.Namespace, dict[str, Rows]], list[Phase]]


SCRIPTS = {
    "train_sft_selector.py": Script(
        cli.selector_parser, ("dataset", "new_dataset"), selector_phases
    ),
    "train_sft.py": Script(cli.sft_parser, ("dataset", "safeinstr_dataset"), sft_phases),
    "score_dataset.py": Script(cli.score_parser, ("dataset", "new_dataset"), score_phases),
}
