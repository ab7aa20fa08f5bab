"""The parsers of the scripts, and what turns their flags into settings."""

import argparse
import hashlib
import json
import os
import sys
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

from seal.cli.declared import GROUPS, flags_that_are, take
from seal.datasets import load_rows, tokenize_rows
from seal.errors import Finished, InputError, choice
from seal.files import claim, require_new
from seal.provenance import model_fingerprint
from seal.selection.artefact import selection_meta
from seal.selection.calibration import (
    CONFIDENCE,
    MAX_CANARY_KEPT,
    canaries_needed,
    draw_canaries,
)
from seal.trainer.checkpoint import Checkpoints
from seal.utils.config import config_words, meant, words_of
from seal.utils.logger import Logger, NoLogger, WandbSettings
from seal.utils.record import run_config

T = TypeVar("T")
# What a model or a run leaves in its folder.
USED = ("config.json", "adapter_config.json", "metrics.jsonl", "seal_run.json")


class Parser(argparse.ArgumentParser):
    """argparse that raises InputError for what it does not take.

    Flags may stand in the YAML file of `--config`; those of the command line win.

    Args:
        groups: of GROUPS.
        defaults: of this script, where they differ.
    """

    def __init__(self, description: str, *groups: str, **defaults):
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=as_written, allow_abbrev=False)
        self.add_argument(
            "--config",
            metavar="YAML",
            action="append",
            help="file of flags, as `max_len: 512`; given again, the later file wins",
        )
        for title in groups:
            take(self.add_argument_group(title), *GROUPS[title], **defaults)

    def parse_args(self, words: list[str] | None = None) -> argparse.Namespace:
        """The flags of the command line, and those of the file that it names."""
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config", nargs="?", const="", action="append", default=[])
        words = sys.argv[1:] if words is None else words
        args, _ = finder.parse_known_args(words)
        if not all(args.config) or not args.config:  # argparse says what is missing
            return super().parse_args(words)
        given = [word for path in args.config for word in config_words(path, self._flags())]
        return super().parse_args([*given, *words])

    def parse_values(self, values: dict, source: str) -> argparse.Namespace:
        """Flags as Python values, see `seal.utils.config.words_of`; they win over a `config`."""
        files = [f"--config={path}" for name, path in values.items() if name == "config"]
        values = {name: value for name, value in values.items() if name != "config"}
        return self.parse_args([*files, *words_of(values, self._flags(), source)])

    def _flags(self) -> list[argparse.Action]:
        return [action for action in self._actions if action.dest not in ("help", "config")]

    def error(self, message: str):
        """Reports a flag that does not parse, and what an unknown one may have been meant for."""
        what, _, words = message.partition("unrecognized arguments: ")
        if not what and words.startswith("--"):
            name = words.split()[0].split("=")[0].removeprefix("--")
            known = [action.dest for action in self._actions]
            message = f"unknown flag --{name}; {meant(name, known, '--')}"
        raise InputError(choice(message))


SAFE_UNUSED = ("random", "perplexity", "ifd", "subspace")  # methods that never look at --dataset
TRAINING = ("every script", "one model", "model", "data", "training")


def selector_parser() -> Parser:
    """Flags of examples/train_sft_selector.py."""
    groups = (*TRAINING, "output", "selector", "bilevel training")
    return Parser("Train a data selector by bilevel optimisation.", *groups)


def score_parser() -> Parser:
    """Flags of examples/score_dataset.py."""
    return Parser("Score rows with one pass over them.", *TRAINING, "selector", "scoring")


def sft_parser() -> Parser:
    """Flags of examples/train_sft.py."""
    groups = (*TRAINING, "output", "selection")
    about = "Supervised fine-tuning on the rows a selector keeps."
    return Parser(about, *groups, save_path="./ckpt")


def check_batch(args: argparse.Namespace, world_size: int) -> None:
    """Refuses a batch that the ranks cannot share, before anything is loaded.

    Raises:
        InputError: naming the value, the limit and the remedy.
    """
    together = args.micro_train_batch_size * world_size
    if args.train_batch_size % together:
        raise InputError(
            f"--train_batch_size {args.train_batch_size} does not divide by "
            f"--micro_train_batch_size {args.micro_train_batch_size} x {world_size} ranks; "
            f"{max(1, args.train_batch_size // together) * together} does"
        )


def settings(cls: type[T], args: argparse.Namespace, **overrides) -> T:
    """A settings dataclass filled from the flags that bear its fields' names."""
    names = {field.name for field in fields(cls)} - set(overrides)
    return cls(**{name: vars(args)[name] for name in names}, **overrides)


def cadence(args: argparse.Namespace, steps_per_epoch: int) -> dict[str, int]:
    """eval_steps and save_steps with 0 for never: -1 evaluates each epoch, and never saves."""
    return {
        "eval_steps": steps_per_epoch if args.eval_steps == -1 else args.eval_steps,
        "save_steps": 0 if args.save_steps == -1 else args.save_steps,
    }


def get_strategy(args: argparse.Namespace):
    """The DeepSpeed strategy of these flags, processes already joined."""
    from seal.utils.strategy import DeepspeedStrategy, Precision, Zero

    if args.load_in_4bit and args.zero_stage == 3:
        raise InputError(
            "--load_in_4bit with --zero_stage 3: packed 4-bit weights are not parted over ranks; "
            "use --zero_stage 2, a quarter of the base fits on each"
        )
    if args.local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    strategy = DeepspeedStrategy(
        Zero(args.zero_stage, args.zpg, args.adam_offload, args.disable_trace_cache),
        Precision(args.bf16, args.grad_accum_dtype),
        max_norm=args.max_norm,
        seed=args.seed,
        timeout_minutes=args.timeout_minutes,
    )
    check_batch(args, strategy.world_size)
    strategy.setup_distributed()
    return strategy


def begin(
    args: argparse.Namespace, engines: list, strategy, row_ids: np.ndarray, steps: int, *outputs
) -> tuple[Checkpoints, int, dict, Logger | NoLogger]:
    """Starts a run or goes on with one; a dry run claims and writes nothing.

    Args:
        row_ids: of all rows that it trains on.
        outputs: what it writes beside checkpoints; metrics go to the first.

    Returns:
        Its checkpoints, the steps done and the state saved with them, and its logger.

    Raises:
        Finished: the run to go on with has ended before.
    """
    checkpoints = Checkpoints(
        args.ckpt_path,
        strategy,
        engines,
        identity(args, row_ids),
        args.max_ckpt_num,
        args.max_ckpt_mem,
    )
    if args.dry_run:
        return checkpoints, 0, {}, NoLogger()
    if args.load_checkpoint == "auto" and not args.overwrite:
        folder = Path(outputs[0])
        if strategy.from_rank_0(lambda: _is_finished(args, checkpoints, folder)):
            raise Finished(f"{folder} is what this run made, to its end; --overwrite trains again")
    first_step, state = checkpoints.begin(args.load_checkpoint, *outputs)
    wandb = None
    if args.use_wandb:
        name = args.wandb_run_name or f"seal_{datetime.now():%m%dT%H:%M}"
        wandb = WandbSettings(args.wandb_project, name, args.wandb_org, args.wandb_group)
    settings = {"wandb": wandb, "tensorboard": args.use_tensorboard}
    logger = strategy.on_rank_0(  # where it does not start, no rank goes on
        lambda: Logger(outputs[0], run_config(vars(args)), steps, first_step, **settings)
    )
    return checkpoints, first_step, state, logger or NoLogger()


def _is_finished(args: argparse.Namespace, checkpoints: Checkpoints, folder: Path) -> bool:
    """Whether `folder` holds what a run like this made after its newest checkpoint."""
    written, made = checkpoints.newest(), folder / "seal_run.json"
    if written is None or not made.exists() or made.stat().st_mtime < written:
        return False
    free, given = flags_that_are("free"), run_config(vars(args))["arguments"]
    try:
        then = json.loads(made.read_text())["arguments"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # not as a run leaves it
    now = json.loads(json.dumps(given, default=str)).items()
    return {n: v for n, v in then if n not in free} == {n: v for n, v in now if n not in free}


def source_flags(args: argparse.Namespace) -> dict:
    """Arguments of `load_rows` that every dataset of a run shares."""
    return {
        "seed": args.seed,
        "max_samples": args.max_samples,
        "input_key": args.input_key,
        "output_key": args.output_key,
        "trust_remote_code": args.trust_remote_code,
    }


def text_flags(args: argparse.Namespace) -> dict:
    """Arguments of `tokenize_rows`."""
    return {
        "max_len": args.max_len,
        "input_template": args.input_template,
        "apply_chat_template": args.apply_chat_template,
        "pretrain_mode": args.pretrain_mode,
        "supervise": args.supervise,
    }


def read_rows(args: argparse.Namespace, strategy, tokenizer, names: str, probs: str = "1.0"):
    """The rows of some datasets, tokenised, on every rank."""

    def read():
        rows = load_rows(names, probs=probs, **source_flags(args))
        return tokenize_rows(rows, tokenizer, **text_flags(args))

    return strategy.main_first(read)


def read_rows_to_score(args: argparse.Namespace, strategy, tokenizer):
    """The safe rows, the user's, and the canaries or None, tokenised; their counts are printed."""
    safe = read_rows(args, strategy, tokenizer, args.dataset, args.dataset_probs)
    user = read_rows(args, strategy, tokenizer, args.new_dataset, args.new_dataset_probs)
    strategy.print(f"safe rows: {safe}\nuser rows: {user}")
    note_template(args, strategy, tokenizer)
    if vars(args).get("method") not in SAFE_UNUSED:
        check_apart(strategy, safe.ids, user.ids)
    if not args.canary_dataset:
        return safe, user, None
    known_bad = read_rows(args, strategy, tokenizer, args.canary_dataset)
    canaries = draw_canaries(known_bad, safe, user, args.canary_fraction, args.seed)
    strategy.print(f"canaries: {canaries}")
    needed = canaries_needed(MAX_CANARY_KEPT, CONFIDENCE)
    if len(canaries) < needed:
        share = -(-100 * needed // len(user)) / 100
        strategy.print(
            f"warning: --topp auto needs {needed} canaries at its defaults; give so many, and a "
            f"--canary_fraction of {share:.2f} or more ({args.canary_fraction:g} now)"
        )
    return safe, user, canaries


def check_apart(strategy, safe: np.ndarray, user: np.ndarray) -> None:
    """Says how many safe rows, by id (V16), are the user's too.

    Raises:
        InputError: all rows of one set are: nothing could be told apart.
    """
    shared = int(np.isin(safe, user).sum())
    which = f"{shared} of the {len(safe)} safe rows also stand in --new_dataset"
    if shared == len(safe) or np.isin(user, safe).all():
        raise InputError(
            f"{which}, which holds {len(user)}: one set is all in the other, and nothing tells "
            "them apart; take the safe rows out of it (--safeinstr_dataset trains on them too)"
        )
    if shared:
        strategy.print(f"warning: {which}, where they pass for safe; take them out of one")


def note_template(args: argparse.Namespace, strategy, tokenizer) -> None:
    """Warns where an instruct model would learn turns that are not its own."""
    if tokenizer.chat_template and not (args.apply_chat_template or args.pretrain_mode):
        strategy.print(
            "warning: the tokenizer's chat template is not used; an instruct model needs "
            "--apply_chat_template"
        )


def refuse_existing(args: argparse.Namespace, strategy, *selectors: Path) -> None:
    """Refuses to replace a selector, or a model or run in --save_path, unless asked to.

    Raises:
        InputError: on every rank, naming what is there and the ways on.
    """

    def look() -> None:
        for path in selectors:
            require_new(path, "--selector_name")
        folder = Path(args.save_path) if "save_path" in args and args.save_path else None
        if folder and any((folder / name).exists() for name in USED):
            claim(folder).close()  # refuses that of a run at work, in its own words
            raise InputError(
                f"{folder} holds a model or a run: give another --save_path, --load_checkpoint to "
                "go on with it, or --overwrite"
            )

    if not args.overwrite and not vars(args).get("load_checkpoint"):
        strategy.on_rank_0(look)


def identity(args: argparse.Namespace, row_ids: np.ndarray) -> dict:
    """What a checkpoint or a part belongs to: arguments, and models and rows by their content."""
    fixed = {n: value for n, value in vars(args).items() if n not in flags_that_are("free")}
    models = [name for name in sorted(flags_that_are("model")) if fixed.get(name)]
    contents = {f"{name}'s content": model_fingerprint(fixed[name]) for name in models}
    rows = hashlib.sha256(row_ids.tobytes()).hexdigest()[:32]
    return fixed | contents | {"rows' content": rows}


def artefact_meta(args: argparse.Namespace, user, method: str, model: str | None) -> dict:
    """What the artefact of `user`, the scored rows, says of the run, beside its figures."""
    run = run_config(vars(args))
    return {"command": run["command"]} | selection_meta(
        method=method,
        arguments=run["arguments"],
        fingerprint=user.fingerprint,
        raw=user.raw,
        skipped=user.skipped,
        model=model,
        tokenizer=args.pretrain,
        max_len=args.max_len,
        seed=args.seed,
    )
