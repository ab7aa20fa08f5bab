"""Every flag of the package that several commands share or a script has, declared once."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, TypeVar

from seal.datasets import PUBLISHED_TEMPLATE
from seal.selection.artefact import UNSCORED
from seal.selection.calibration import CONFIDENCE, MAX_CANARY_KEPT

T = TypeVar("T")
REQUIRED = object()


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
at_least_one = bounded(int, "at least 1", lambda value: value >= 1)
seed = bounded(int, "in [0, 2^32)", lambda value: 0 <= value < 2**32)
or_never = bounded(int, "at least 1, or -1", lambda value: value >= 1, -1)
not_negative = bounded(float, "finite, 0 or more", lambda value: 0 <= value < math.inf)
positive = bounded(float, "finite, above 0", lambda value: 0 < value < math.inf)
share = bounded(float, "in (0, 1]", lambda value: 0 < value <= 1)
inner_share = bounded(float, "in (0, 1)", lambda value: 0 < value < 1)
below_one = bounded(float, "in [0, 1)", lambda value: 0 <= value < 1)
topp = bounded(float, "in (0, 1], 0.8 keeps 80 %, or auto", lambda value: 0 < value <= 1, "auto")


class WandbKey(argparse.Action):
    """Sets the flag; a key that is given with it goes to the environment, and nowhere else."""

    def __call__(self, parser, namespace, value, option_string=None):
        """Takes the key, if there is one, out of the command line, which is recorded."""
        namespace.use_wandb = True
        if value is not True:
            os.environ["WANDB_API_KEY"] = value
            words = [word.replace(f"={value}", "=***") for word in sys.argv]
            sys.argv[:] = ["***" if word == value else word for word in words]


class Flag(NamedTuple):
    """What is to be known of a flag.

    Attributes:
        kind: argparse's type; bool for a switch.
        default: REQUIRED for none; shown behind the help.
        help: in a few words, with the unit.
        free: whether it may change when a run is taken up again: nothing computed depends on it.
        model: whether it names a model, which is known by its content too.
        settings: further arguments of `add_argument`.
    """

    kind: Callable
    default: object
    help: str
    free: bool = False
    model: bool = False
    settings: dict | None = None


FREE, MODEL = {"free": True}, {"model": True}
MANY, ANY = {"settings": {"nargs": "+"}}, {"settings": {"nargs": "*"}}
GROUPS: dict[str, dict[str, Flag]] = {
    "every script": {
        "seed": Flag(seed, 42, "of every random choice"),
        "bf16": Flag(bool, False, "weights and arithmetic in bfloat16 (else float32)"),
        "input_key": Flag(str, None, "column of the prompt, or comma-separated, one a dataset"),
        "input_template": Flag(str, PUBLISHED_TEMPLATE, "prompt text around {}"),
        "apply_chat_template": Flag(bool, False, "use the tokenizer's chat template"),
        "local_rank": Flag(int, -1, "set by the launcher", **FREE),
    },
    "one model": {
        "pretrain": Flag(str, REQUIRED, "model directory, hub name or served name", **MODEL),
        "max_len": Flag(room, 512, "tokens a row, or a prompt when answering"),
        "trust_remote_code": Flag(bool, False, "run code that comes with the model"),
    },
    "model": {
        "flash_attn": Flag(bool, False, "use the flash-attn package where it can run"),
        "attn_implementation": Flag(str, None, "a transformers attention, overriding the choice"),
        "use_liger_kernel": Flag(bool, False, "Liger's norms and feed-forward blocks (CUDA)"),
        "gradient_checkpointing": Flag(bool, False, "recompute layers in backward"),
        "gradient_checkpointing_use_reentrant": Flag(bool, False, "torch's reentrant form of it"),
        "load_in_4bit": Flag(bool, False, "QLoRA: 4-bit frozen base (bitsandbytes)"),
        "lora_rank": Flag(int, 0, "LoRA rank; 0 trains every weight"),
        "lora_alpha": Flag(at_least_one, 16, "LoRA scale numerator"),
        "lora_dropout": Flag(float, 0.0, "probability in [0, 1)"),
        "target_modules": Flag(str, "all-linear", "names of the modules LoRA adapts", **ANY),
        "aux_loss_coef": Flag(not_negative, 0.0, "weight of a MoE's balance loss"),
    },
    "data": {
        "dataset": Flag(
            str,
            REQUIRED,
            "files, patterns, directories or hub names, comma-separated; name:prompt:response "
            "names the columns of one",
        ),
        "dataset_probs": Flag(str, "1.0", "sampling share of each dataset"),
        "max_samples": Flag(at_least_one, None, "rows to read of each dataset, all if not given"),
        "output_key": Flag(str, None, "column of the response, as --input_key"),
        "supervise": Flag(str, "all", "assistant turns to learn: all or last"),
        "pretrain_mode": Flag(bool, False, "supervise every token, prompt included"),
    },
    "training": {
        "micro_train_batch_size": Flag(
            at_least_one, 8, "rows of max_len tokens a rank holds at once; shorter ones are packed"
        ),
        "train_batch_size": Flag(at_least_one, 128, "rows an optimizer step"),
        "learning_rate": Flag(not_negative, 2e-6, "AdamW's peak rate"),
        "lr_scheduler": Flag(str, "cosine", "rate over the steps"),
        "lr_warmup_ratio": Flag(below_one, 0.03, "share of the steps that warm up, but constant's"),
        "l2": Flag(not_negative, 0.0, "AdamW's weight decay"),
        "max_norm": Flag(not_negative, 1.0, "gradient norm limit, 0 for none"),
        "zero_stage": Flag(int, 2, "ZeRO 0, 1, 2 or 3"),
        "zpg": Flag(at_least_one, 1, "ZeRO++ partition size, in ranks"),
        "adam_offload": Flag(bool, False, "keep Adam's state on the CPU"),
        "grad_accum_dtype": Flag(str, None, "what gradients add up in: bf16, or fp32 (usual)"),
        "disable_trace_cache": Flag(bool, False, "no ZeRO-3 prefetching by trace"),
        "timeout_minutes": Flag(
            positive,
            30.0,
            "longest wait for another rank, which is named then; the slowest reading of data or "
            "evaluation must fit",
            **FREE,
        ),
        "overwrite": Flag(bool, False, "replace what is there", **FREE),
        "dry_run": Flag(
            at_least_one,
            None,
            "N real steps (batches, when scoring), then time, memory and disk of the whole run; "
            "nothing is written",
            **FREE,
        ),
    },
    "output": {
        "max_epochs": Flag(at_least_one, 2, "passes over the rows"),
        "eval_dataset": Flag(str, None, "rows to evaluate on, but those that are trained on too"),
        "save_path": Flag(str, None, "directory of the model", **FREE),
        "save_steps": Flag(or_never, -1, "steps between checkpoints, -1 for none", **FREE),
        "eval_steps": Flag(or_never, -1, "steps between evaluations, -1: each epoch", **FREE),
        "logging_steps": Flag(at_least_one, 1, "steps between log lines", **FREE),
        "ckpt_path": Flag(str, "./ckpt/checkpoints_sft", "directory of the checkpoints", **FREE),
        "load_checkpoint": Flag(
            str,
            None,
            "resume: a checkpoint's directory, or auto, the newest in --ckpt_path",
            **FREE,
            settings={"nargs": "?", "const": "auto"},
        ),
        "max_ckpt_num": Flag(at_least_one, 3, "checkpoints kept", **FREE),
        "max_ckpt_mem": Flag(at_least_one, 1000, "GB of checkpoints kept", **FREE),
        "use_wandb": Flag(
            str,
            None,
            "log to wandb; log in first, or set WANDB_API_KEY (a key given here is not stored)",
            **FREE,
            settings={"action": WandbKey, "nargs": "?", "const": True},
        ),
        "wandb_org": Flag(str, None, "wandb entity", **FREE),
        "wandb_group": Flag(str, None, "wandb group", **FREE),
        "wandb_project": Flag(str, "seal", "wandb project", **FREE),
        "wandb_run_name": Flag(str, None, "wandb run name, else seal_<time of the start>", **FREE),
        "use_tensorboard": Flag(bool, False, "write TensorBoard event files too", **FREE),
    },
    "selector": {
        "new_dataset": Flag(str, REQUIRED, "rows to select among (--dataset is the safe set)"),
        "new_dataset_probs": Flag(str, "1.0", "as --dataset_probs"),
        "selector_name": Flag(str, "sft_selection_logits", "file name of the selector"),
        "selector_save_dir": Flag(str, "./ckpt", "directory of the selector", **FREE),
        "layer": Flag(
            int, None, "of the hidden states, else the best by held-out anchors, or the middle"
        ),
        "canary_dataset": Flag(
            str, None, "rows known to be bad, scored along, never trained on in stage 2"
        ),
        "canary_fraction": Flag(
            inner_share, 0.05, "canaries taken at most, as a share of the user's rows, in (0, 1)"
        ),
    },
    "bilevel training": {
        "selector_estimator": Flag(
            str,
            "penalty",
            "penalty, Algorithm 2, or penalty_gap, Algorithm 1",
            settings={"choices": ("penalty", "penalty_gap")},
        ),
        "selector_head": Flag(
            str,
            "free",
            "free, a logit a row, or linear, a map of its hidden states",
            settings={"choices": ("free", "linear")},
        ),
        "selector_activation": Flag(str, "softmax", "softmax or sigmoid"),
        "selector_optim": Flag(str, "mirror", "mirror or adam, the published"),
        "selector_learning_rate": Flag(not_negative, 0.1, "of the logits"),
        "selector_lr_scheduler": Flag(str, "constant", "of the logits' rate"),
        "upperlevel_weight": Flag(share, 0.9, "safe loss weight, in (0, 1]"),
        "upperlevel_weight_decay": Flag(not_negative, 0.1, "its fall after each epoch"),
        "stop_churn": Flag(
            not_negative,
            0.0,
            "end when less than this share of the rows crosses the median in an epoch",
        ),
    },
    "scoring": {
        "method": Flag(str, REQUIRED, "how a row is scored; docs/method.md compares the methods"),
        "tune_epochs": Flag(at_least_one, 1, "passes of the models tuned here"),
        "safe_model": Flag(str, None, "a model or adapter already tuned on the safe rows", **MODEL),
        "rows_model": Flag(str, None, "one already tuned on the user's rows", **MODEL),
        "folds": Flag(int, 2, "folds of relative_excess, at least 2"),
        "influence_step": Flag(positive, 1e-4, "step of the difference"),
        "unsafe_dataset": Flag(str, None, "known-bad rows, anchors of knn, probe, larf and shift"),
        "smooth": Flag(bool, False, "give what hidden states predict of the score"),
        "work_dir": Flag(str, None, "finished parts, else <selector_save_dir>/<name>_parts"),
    },
    "selection": {
        "selector_path": Flag(
            str, None, "selector (.parquet, or a published .pt); none keeps every row"
        ),
        "topp": Flag(
            topp,
            None,
            "share of the scored rows kept, in (0, 1], or auto: what the canaries justify",
        ),
        "max_canary_kept": Flag(inner_share, MAX_CANARY_KEPT, "limit of --topp auto"),
        "confidence": Flag(inner_share, CONFIDENCE, "of --topp auto's bound"),
        "unscored": Flag(
            str, "error", "what to do with rows without a score", settings={"choices": UNSCORED}
        ),
        "selector_tokenizer": Flag(str, None, "tokenizer a published .pt was trained with"),
        "selector_max_len": Flag(at_least_one, None, "max_len a published .pt was trained with"),
        "safeinstr_dataset": Flag(str, None, "safe rows mixed in, whatever the selector says"),
        "save_best": Flag(
            bool,
            False,
            "also keep the model of the lowest loss on --eval_dataset, in <save_path>/best",
        ),
        "eval_on_train": Flag(bool, False, "also report the loss on training rows"),
    },
    "answering": {
        "max_new_tokens": Flag(int, 512, "tokens an answer may have"),
        "temperature": Flag(float, 0.0, "0 is greedy"),
        "top_p": Flag(float, 1.0, "share of probability kept"),
        "token_budget": Flag(at_least_one, 16384, "padded tokens a batch"),
    },
    "prompts": {
        "prompts": Flag(str, REQUIRED, "prompt files: .json, .jsonl, .csv (.gz)", **MANY),
        "output_path": Flag(str, REQUIRED, "one .json to write a prompt file", **MANY),
        "lora_path": Flag(str, None, "LoRA adapter directory on top of --pretrain"),
        "generator": Flag(str, None, "the model's name in the output, else of --pretrain"),
        "engine": Flag(str, "hf", "what runs the model", settings={"choices": ("hf", "openai")}),
        "base_url": Flag(str, None, "of --engine openai, up to /v1; key only from the environment"),
        "concurrency": Flag(int, 8, "requests at once of --engine openai"),
        "truncate_prompt": Flag(
            str, None, "cut longer prompts, else an error", settings={"choices": ("left",)}
        ),
    },
    "what is evaluated": {
        "models": Flag(str, [], "NAME=PATH: models or LoRA adapters", **MANY),
        "answers": Flag(str, [], "NAME=DIR: answers made before", **MANY),
        "harmful": Flag(str, [], "prompts to refuse (column category is used)", **MANY),
        "over_refusal": Flag(str, [], "prompts to answer, such as XSTest's", **MANY),
        "preference": Flag(str, [], "prompts with a reference answer to beat", **MANY),
        "references": Flag(str, [], "prompts with the right answer", **MANY),
        "baseline": Flag(str, None, "model that --preference compares with, not the file's"),
        "out": Flag(str, REQUIRED, "directory of results.json, verdicts.jsonl and answers/"),
    },
    "judges": {
        "judges": Flag(
            str,
            ["rules"],
            "rules, trained (--judge_file), openai (a served model), reward (a reward or guard "
            "model)",
            settings={"nargs": "+", "choices": ("rules", "trained", "openai", "reward")},
        ),
        "judge_file": Flag(str, None, "trained: what benchmarks/refusal_judge.py --save wrote"),
        "judge_base_url": Flag(str, None, "openai: up to /v1; the key only from the environment"),
        "judge_model": Flag(str, None, "openai: name of the served model"),
        "judge_cache": Flag(str, None, "openai: verdicts paid for, else OUT/verdicts.sqlite"),
        "judge_max_tokens": Flag(int, 4096, "openai: of a reply"),
        "judge_concurrency": Flag(int, 8, "openai: requests at once"),
        "judge_timeout": Flag(float, 120.0, "openai: seconds a reply"),
        "judge_retries": Flag(int, 6, "openai: further tries of a call"),
        "reward_model": Flag(str, None, "reward: model directory or hub name"),
        "guard_unsafe_label": Flag(str, "unsafe", "reward: label of a guard"),
    },
}
FLAGS = {name: flag for group in GROUPS.values() for name, flag in group.items()}


@cache
def flags_that_are(fact: str) -> frozenset[str]:
    """Names of the flags of which `free` or `model` holds."""
    found = {name for name, flag in FLAGS.items() if flag._asdict()[fact]}
    return frozenset(found | {"config"} if fact == "free" else found)


def take(group: argparse._ActionsContainer, *names: str, **defaults: object) -> None:
    """Adds declared flags to a parser or a group; `defaults` of its own, REQUIRED for none."""
    for name in names:
        _add(group, name, FLAGS[name], defaults.get(name, FLAGS[name].default))


def _add(group: argparse._ActionsContainer, name: str, flag: Flag, default: object) -> None:
    needed, text = default is REQUIRED, flag.help
    if flag.kind is bool:
        settings = {"action": "store_true"}
    else:
        settings = {"default": None if needed else default}
        if flag.kind is not str:
            settings["type"] = flag.kind
        if not needed and default not in (None, []):
            text += f" (default {_shown(default)})"
    group.add_argument(f"--{name}", help=text, required=needed, **settings | (flag.settings or {}))


def _shown(default: object) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    word = " ".join(default) if isinstance(default, list) else str(default)
    return word if word == word.strip() else repr(word)
