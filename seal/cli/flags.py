"""Every flag of the training scripts, declared once, and what turns flags into settings."""

import argparse
import hashlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from seal.datasets import load_rows, tokenize_rows
from seal.errors import InputError
from seal.files import claim
from seal.provenance import model_fingerprint
from seal.selection.artefact import selection_meta
from seal.selection.calibration import (
    CONFIDENCE,
    MAX_CANARY_KEPT,
    canaries_needed,
    draw_canaries,
)
from seal.utils.config import config_words, meant, words_of
from seal.utils.logger import Logger, NoLogger, WandbSettings
from seal.utils.record import run_config

T = TypeVar("T")
USED = (
    "config.json",
    "adapter_config.json",
    "metrics.jsonl",
    "seal_run.json",
)  # of a model or a run


class Parser(argparse.ArgumentParser):
    """argparse that raises InputError for what it does not take.

    Flags may stand in the YAML file of `--config`; those of the command line win.
    """

    def __init__(
        self,
        description: str,
        formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter,
    ):
        super().__init__(
            description=description, formatter_class=formatter_class, allow_abbrev=False
        )
        adder(self)(
            "--config",
            free=True,
            metavar="YAML",
            action="append",
            help="file of flags, as `max_len: 512`; given again, the later file wins",
        )

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
        """Flags as Python values; see `seal.utils.config.words_of`."""
        return super().parse_args(words_of(values, self._flags(), source))

    def _flags(self) -> list[argparse.Action]:
        return [action for action in self._actions if action.dest not in ("help", "config")]

    def error(self, message: str):
        """Reports a flag that does not parse, and what an unknown one may have been meant for."""
        what, _, words = message.partition("unrecognized arguments: ")
        if not what and words.startswith("--"):
            name = words.split()[0].split("=")[0].removeprefix("--")
            known = [action.dest for action in self._actions]
            message = f"unknown flag --{name}; {meant(name, known, '--')}"
        raise InputError(message)


def adder(group: argparse._ArgumentGroup | Parser) -> Callable:
    """Adds flags to a group, and what is to be known of them.

    `free`: may change when a run is taken up again, since nothing that it computes depends on it.
    `model`: names a model, which is known by its content too.
    """

    def add(name: str, free: bool = False, model: bool = False, **settings) -> None:
        action = group.add_argument(name, **settings)
        action.free, action.model = free, model

    return add


@cache
def flags_that_are(fact: str) -> frozenset[str]:
    """Names of the flags of which `free` or `model` holds."""
    parsers = (selector_parser(), score_parser(), sft_parser())
    actions = [action for parser in parsers for action in parser._actions]
    return frozenset(action.dest for action in actions if vars(action).get(fact))


class WandbKey(argparse.Action):
    """Sets the flag; a key that is given with it goes to the environment, and nowhere else."""

    def __call__(self, parser, namespace, value, option_string=None):
        """Takes the key, if there is one, out of the command line, which is recorded."""
        namespace.use_wandb = True
        if value is not True:
            os.environ["WANDB_API_KEY"] = value
            words = [word.replace(f"={value}", "=***") for word in sys.argv]
            sys.argv[:] = ["***" if word == value else word for word in words]


def bounded(kind: type[T], within: str, fits: Callable[[T], bool], *words: T) -> Callable[[str], T]:
    """A flag's type with its bound, for argparse.

    Args:
        kind: int or float.
        within: the bound in words, after "must be".
        fits: whether a value is within; not a number never is.
        words: values outside it that are allowed too.
    """

    def read(word: str) -> T:
        if word in words:
            return word
        value = kind(word)
        if not (value in words or fits(value)):
            raise argparse.ArgumentTypeError(f"must be {within}, got {word}")
        return value

    read.__name__ = kind.__name__
    return read


room = bounded(int, "at least 4 tokens", lambda value: value >= 4)
seed = bounded(int, "in [0, 2^32)", lambda value: 0 <= value < 2**32)
at_least_one = bounded(int, "at least 1", lambda value: value >= 1)
or_never = bounded(int, "at least 1, or -1", lambda value: value >= 1, -1)
not_negative = bounded(float, "finite, 0 or more", lambda value: 0 <= value < math.inf)
positive = bounded(float, "finite, above 0", lambda value: 0 < value < math.inf)
share = bounded(float, "in (0, 1]", lambda value: 0 < value <= 1)
inner_share = bounded(float, "in (0, 1)", lambda value: 0 < value < 1)
topp = bounded(float, "in (0, 1], 0.8 keeps 80 %, or auto", lambda value: 0 < value <= 1, "auto")


def model_flags(parser: Parser) -> None:
    """The model, its precision, attention and LoRA."""
    group = parser.add_argument_group("model")
    add = adder(group)
    add("--pretrain", model=True, required=True, help="model directory or hub name")
    add("--bf16", action="store_true", help="weights and arithmetic in bfloat16 (else float32)")
    add("--flash_attn", action="store_true", help="use the flash-attn package where it can run")
    add("--attn_implementation", help="a transformers attention name, overriding the choice")
    add("--gradient_checkpointing", action="store_true", help="recompute layers in backward")
    add(
        "--gradient_checkpointing_use_reentrant",
        action="store_true",
        help="torch's reentrant form of checkpointing",
    )
    add("--load_in_4bit", action="store_true", help="QLoRA: 4-bit frozen base (bitsandbytes)")
    add("--lora_rank", type=int, default=0, help="LoRA rank; 0 trains every weight (default 0)")
    add("--lora_alpha", type=at_least_one, default=16, help="LoRA scale numerator (default 16)")
    add("--lora_dropout", type=float, default=0.0, help="probability in [0, 1) (default 0)")
    add(
        "--target_modules",
        nargs="*",
        default="all-linear",
        help="names of the modules LoRA adapts, or all-linear (default all-linear)",
    )
    add("--aux_loss_coef", type=not_negative, default=0.0, help="weight of a MoE's balance loss")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")


def data_flags(parser: Parser) -> None:
    """Datasets, their columns and how rows become text."""
    group = parser.add_argument_group("data")
    add = adder(group)
    add(
        "--dataset",
        required=True,
        help="files, patterns, directories or hub names, comma-separated; name:prompt:response "
        "names the columns of one",
    )
    add("--dataset_probs", default="1.0", help="sampling share of each dataset (default 1.0)")
    add("--max_samples", type=at_least_one, help="rows to read of each dataset (default all)")
    add("--max_len", type=room, default=512, help="tokens a row (default 512)")
    add("--input_key", help="column of the prompt, or comma-separated, one a dataset")
    add("--output_key", help="column of the response, likewise")
    add(
        "--input_template",
        default="Human: {}\nAssistant: ",
        help="prompt text around {} (default 'Human: {}\\nAssistant: ')",
    )
    add("--apply_chat_template", action="store_true", help="use the tokenizer's chat template")
    add("--supervise", default="all", help="assistant turns to learn: all or last (default all)")
    add("--pretrain_mode", action="store_true", help="supervise every token, prompt included")


def training_flags(parser: Parser) -> None:
    """Optimisation, parallelism and randomness."""
    group = parser.add_argument_group("training")
    add = adder(group)
    add(
        "--micro_train_batch_size",
        type=at_least_one,
        default=8,
        help="rows of max_len tokens a rank holds at once; shorter rows are packed (default 8)",
    )
    add(
        "--train_batch_size",
        type=at_least_one,
        default=128,
        help="rows an optimizer step (default 128)",
    )
    add("--learning_rate", type=not_negative, default=2e-6, help="AdamW's peak rate (default 2e-6)")
    add("--lr_scheduler", default="cosine", help="rate over the steps (default cosine)")
    add(
        "--lr_warmup_ratio",
        type=bounded(float, "in [0, 1)", lambda value: 0 <= value < 1),
        default=0.03,
        help="share of the steps over which the rate rises, but for constant (default 0.03)",
    )
    add("--l2", type=not_negative, default=0.0, help="AdamW's weight decay (default 0)")
    add(
        "--max_norm",
        type=not_negative,
        default=1.0,
        help="gradient norm limit, 0 for none (default 1)",
    )
    add("--seed", type=seed, default=42, help="of every random choice (default 42)")
    add("--zero_stage", type=int, default=2, help="ZeRO 0, 1, 2 or 3 (default 2)")
    add("--zpg", type=at_least_one, default=1, help="ZeRO++ partition size, in ranks (default 1)")
    add("--adam_offload", action="store_true", help="keep Adam's state on the CPU")
    add("--grad_accum_dtype", help="what gradients add up in: fp32 or bf16 (default fp32)")
    add("--disable_trace_cache", action="store_true", help="no ZeRO-3 prefetching by trace")
    add(
        "--timeout_minutes",
        free=True,
        type=positive,
        default=30.0,
        help="longest wait for another rank, which is named then; the slowest reading of data or "
        "evaluation must fit (default 30)",
    )
    add(
        "--overwrite",
        free=True,
        action="store_true",
        help="replace the selector or model that is there",
    )
    add("--local_rank", free=True, type=int, default=-1, help="set by the launcher")


def selector_flags(parser: Parser) -> argparse._ArgumentGroup:
    """What is scored and where the selector goes; returns the group for more."""
    group = parser.add_argument_group("selector")
    add = adder(group)
    add("--new_dataset", required=True, help="the rows to select among (--dataset is the safe set)")
    add("--new_dataset_probs", default="1.0", help="as --dataset_probs (default 1.0)")
    add("--selector_name", default="sft_selection_logits", help="file name of the selector")
    add(
        "--selector_save_dir",
        free=True,
        default="./ckpt",
        help="directory of the selector (default ./ckpt)",
    )
    add("--canary_dataset", help="rows known to be bad, scored along, never trained on in stage 2")
    add(
        "--canary_fraction",
        type=inner_share,
        default=0.05,
        help="canaries taken, at most, as a share of the user's rows, in (0, 1) (default 0.05)",
    )
    return group


def output_flags(parser: Parser, save_path: str | None) -> None:
    """How long to train; what is written, where and how often."""
    group = parser.add_argument_group("output")
    add = adder(group)
    add("--max_epochs", type=at_least_one, default=2, help="passes over the rows (default 2)")
    add("--eval_dataset", help="rows to evaluate on; any that are also trained on are left out")
    add(
        "--save_path",
        free=True,
        default=save_path,
        help=f"directory of the model (default {save_path})",
    )
    add(
        "--save_steps",
        free=True,
        type=or_never,
        default=-1,
        help="steps between checkpoints, -1 for none",
    )
    add(
        "--eval_steps",
        free=True,
        type=or_never,
        default=-1,
        help="steps between evaluations, -1: each epoch",
    )
    add(
        "--logging_steps",
        free=True,
        type=at_least_one,
        default=1,
        help="steps between log lines (default 1)",
    )
    add(
        "--ckpt_path",
        free=True,
        default="./ckpt/checkpoints_sft",
        help="directory of the checkpoints",
    )
    add(
        "--load_checkpoint",
        free=True,
        nargs="?",
        const="auto",
        help="resume: a checkpoint's directory, or auto, the newest in --ckpt_path",
    )
    add(
        "--max_ckpt_num",
        free=True,
        type=at_least_one,
        default=3,
        help="checkpoints kept (default 3)",
    )
    add(
        "--max_ckpt_mem",
        free=True,
        type=at_least_one,
        default=1000,
        help="GB of checkpoints kept (default 1000)",
    )
    add(
        "--use_wandb",
        free=True,
        action=WandbKey,
        nargs="?",
        const=True,
        help="log to wandb; log in first, or set WANDB_API_KEY (a key given here is not stored)",
    )
    add("--wandb_org", free=True, help="wandb entity")
    add("--wandb_group", free=True, help="wandb group")
    add("--wandb_project", free=True, default="seal", help="wandb project (default seal)")
    add(
        "--wandb_run_name",
        free=True,
        default=f"seal_{datetime.now():%m%dT%H:%M}",
        help="wandb run name (default seal_<month><day>T<hour>:<minute>)",
    )
    add(
        "--use_tensorboard",
        free=True,
        action="store_true",
        help="write TensorBoard event files too",
    )


def selector_parser() -> Parser:
    """Flags of examples/train_sft_selector.py."""
    parser = Parser(description="Train a data selector by bilevel optimisation.")
    model_flags(parser)
    data_flags(parser)
    training_flags(parser)
    output_flags(parser, save_path=None)
    add = adder(selector_flags(parser))
    add(
        "--selector_estimator",
        default="penalty",
        help="penalty, Algorithm 2, or penalty_gap, Algorithm 1 (default penalty)",
    )
    add(
        "--selector_head",
        default="free",
        help="free, a logit a row, or linear, a map of its hidden states (default free)",
    )
    add("--layer", type=int, help="of a linear head's states (default: the middle of the model)")
    add("--selector_activation", default="softmax", help="softmax or sigmoid (default softmax)")
    add("--selector_optim", default="mirror", help="mirror or adam, the published (default mirror)")
    add(
        "--selector_learning_rate",
        type=not_negative,
        default=0.1,
        help="of the logits (default 0.1)",
    )
    add("--selector_lr_scheduler", default="constant", help="(default constant)")
    add("--upperlevel_weight", type=share, default=0.9, help="safe loss weight, in (0, 1]")
    add(
        "--upperlevel_weight_decay",
        type=not_negative,
        default=0.1,
        help="its fall after each epoch",
    )
    add(
        "--stop_churn",
        type=not_negative,
        default=0.0,
        help="end when less than this share of the rows crosses the median in an epoch (default 0)",
    )
    return parser


def score_parser() -> Parser:
    """Flags of examples/score_dataset.py."""
    parser = Parser(description="Score rows with one pass over them.")
    model_flags(parser)
    data_flags(parser)
    training_flags(parser)
    add = adder(selector_flags(parser))
    add("--method", required=True, help="how a row is scored; docs/method.md compares the methods")
    add(
        "--tune_epochs",
        type=at_least_one,
        default=1,
        help="passes of the models tuned here (default 1)",
    )
    add("--safe_model", model=True, help="a model or adapter already tuned on the safe rows")
    add("--rows_model", model=True, help="a model or adapter already tuned on the user's rows")
    add("--folds", type=int, default=2, help="folds of relative_excess, at least 2 (default 2)")
    add(
        "--influence_step",
        type=positive,
        default=1e-4,
        help="step of the difference (default 1e-4)",
    )
    add("--unsafe_dataset", help="known-bad rows, anchors of knn, probe, larf and shift")
    add("--layer", type=int, help="of the hidden states (default: the best by held-out anchors)")
    add("--smooth", action="store_true", help="give what hidden states predict of the score")
    add("--work_dir", help="finished parts (default <selector_save_dir>/<selector_name>_parts)")
    return parser


def sft_parser() -> Parser:
    """Flags of examples/train_sft.py."""
    parser = Parser(description="Supervised fine-tuning on the rows a selector keeps.")
    model_flags(parser)
    data_flags(parser)
    training_flags(parser)
    output_flags(parser, save_path="./ckpt")
    group = parser.add_argument_group("selection")
    add = adder(group)
    add("--selector_path", help="selector (.parquet, or a published .pt); none keeps every row")
    add(
        "--topp",
        type=topp,
        help="share of the scored rows kept, in (0, 1], or auto: what the canaries justify",
    )
    add(
        "--max_canary_kept",
        type=inner_share,
        default=0.05,
        help="limit of --topp auto (default 0.05)",
    )
    add(
        "--confidence", type=inner_share, default=0.95, help="of --topp auto's bound (default 0.95)"
    )
    add("--unscored", default="error", help="rows without a score: error, drop or keep")
    add("--selector_tokenizer", help="tokenizer a published .pt was trained with")
    add("--selector_max_len", type=at_least_one, help="max_len a published .pt was trained with")
    add("--safeinstr_dataset", help="safe rows mixed in whole, whatever the selector says")
    add(
        "--save_best",
        action="store_true",
        help="also keep the model of the lowest loss on --eval_dataset, in <save_path>/best",
    )
    add("--eval_on_train", action="store_true", help="also report the loss on training rows")
    return parser


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


def get_logger(
    args: argparse.Namespace, run_dir: str | Path, strategy, steps: int, first_step: int = 0
) -> Logger | NoLogger:
    """The logger of these flags; where it does not start on rank 0, no rank goes on."""
    wandb = None
    if args.use_wandb:
        wandb = WandbSettings(
            args.wandb_project, args.wandb_run_name, args.wandb_org, args.wandb_group
        )
    settings = {"wandb": wandb, "tensorboard": args.use_tensorboard}
    logger = strategy.on_rank_0(
        lambda: Logger(run_dir, run_config(vars(args)), steps, first_step, **settings)
    )
    return logger or NoLogger()


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
    if not args.canary_dataset:
        return safe, user, None
    known_bad = read_rows(args, strategy, tokenizer, args.canary_dataset)
    canaries = draw_canaries(known_bad, safe, user, args.canary_fraction, args.seed)
    strategy.print(f"canaries: {canaries}")
    needed = canaries_needed(MAX_CANARY_KEPT, CONFIDENCE)
    if len(canaries) < needed:
        strategy.print(
            f"warning: --topp auto needs {needed} canaries at its defaults; raise "
            f"--canary_fraction, {args.canary_fraction:g} of {len(user)} rows now, or give more"
        )
    return safe, user, canaries


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
            if path.exists():
                raise InputError(f"{path} exists; give another --selector_name, or --overwrite")
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


def checkpoint_flags(args: argparse.Namespace, row_ids: np.ndarray) -> dict:
    """Arguments of `Checkpoints`, beside the strategy and the engines."""
    return {
        "directory": args.ckpt_path,
        "arguments": identity(args, row_ids),
        "max_num": args.max_ckpt_num,
        "max_gb": args.max_ckpt_mem,
    }
