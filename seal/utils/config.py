"""A YAML file of flags as the words of a command line."""

import argparse
import difflib
from collections.abc import Iterable
from pathlib import Path

import yaml

from seal.errors import InputError

# What other trainers call our flags.
ELSEWHERE = {
    "batch_size": "train_batch_size",
    "epochs": "max_epochs",
    "gradient_accumulation_steps": "train_batch_size",
    "learning_rate_scheduler": "lr_scheduler",
    "lora_r": "lora_rank",
    "lora_target_modules": "target_modules",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "max_grad_norm": "max_norm",
    "max_length": "max_len",
    "max_seq_length": "max_len",
    "model": "pretrain",
    "model_name_or_path": "pretrain",
    "num_train_epochs": "max_epochs",
    "out": "save_path",
    "output": "save_path",
    "output_dir": "save_path",
    "per_device_train_batch_size": "micro_train_batch_size",
    "resume_from_checkpoint": "load_checkpoint",
    "safe_dataset": "dataset",
    "selector": "selector_path",
    "top_p": "topp",
    "train_file": "dataset",
    "user_dataset": "new_dataset",
    "warmup_ratio": "lr_warmup_ratio",
    "weight_decay": "l2",
}


def meant(name: str, known: Iterable[str], dashes: str = "") -> str:
    """What a flag that does not exist was perhaps meant for, in words."""
    known = list(known)
    same = [ELSEWHERE[name]] if ELSEWHERE.get(name) in known else []
    found = same or difflib.get_close_matches(name, known, n=1)
    return f"did you mean {dashes}{found[0]}?" if found else "--help lists the flags"


def config_words(path: str, actions: list[argparse.Action]) -> list[str]:
    """The words that say on a command line what a YAML mapping says; see `words_of`.

    Raises:
        InputError: the file is no such mapping, or a key or the type of a value is wrong.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        reason += f"; this is {Path.cwd()}" if isinstance(error, FileNotFoundError) else ""
        raise InputError(f"--config {path} cannot be read: {reason}") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path} must hold `flag: value` lines")
    return words_of(values, actions, f"--config {path}")


def words_of(values: dict, actions: list[argparse.Action], source: str) -> list[str]:
    """The words for flags and their values; argparse then reads both alike.

    Args:
        values: by flag, without dashes. True and False set a switch, a list gives a flag several
            values (commas between them for datasets, their probabilities and columns), and None
            leaves the default.
        actions: the flags that may stand in it.
        source: of the values, for messages.

    Raises:
        InputError: a key or the type of a value is wrong.
    """
    known = {action.dest: action for action in actions}
    words = []
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{source}: unknown flag {name!r}; {meant(str(name), known)}")
        try:
            words += _words(known[name], value)
        except ValueError as error:
            raise InputError(f"{source}: {name} {error}") from error
    return words


def _words(action: argparse.Action, value: object) -> list[str]:
    """One flag and its value or values; a ValueError says what it takes."""
    flag = action.option_strings[0]
    if value is None:
        return []
    if isinstance(value, bool) and action.nargs in (0, "?"):
        return [flag] * value
    if action.nargs == 0:
        raise ValueError(f"is a switch: true or false, got {value!r}")
    if isinstance(value, list) and action.dest.endswith(("dataset", "_probs", "_key")):
        value = ",".join(_word(action, item) for item in value)
    if isinstance(value, list) and action.nargs in ("*", "+"):
        return [flag, *(_word(action, item) for item in value)]
    return [f"{flag}={_word(action, value)}"]


def _word(action: argparse.Action, value: object) -> str:
    if isinstance(value, bool | list | dict):
        raise ValueError(f"takes text or a number, got {value!r}")
    try:
        (action.type or str)(str(value))
    except argparse.ArgumentTypeError:
        pass  # of the type, but out of bounds: argparse says so
    except ValueError as error:
        raise ValueError(f"takes {action.type.__name__}, got {value!r}") from error
    return str(value)
