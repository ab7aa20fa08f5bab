"""What a run was started with: kept beside what it writes, compared when it is taken up again."""

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seal.errors import InputError
from seal.files import atomic_path
from seal.provenance import commit, model_fingerprint, versions

SECRET = "use_wandb"
MODELS = ("pretrain", "safe_model", "rows_model")


def run_config(flags: Mapping) -> dict:
    """What this run was started with: flags without secrets, command, versions, commit."""
    key = flags.get(SECRET)
    command = without_key(sys.argv, key) if isinstance(key, str) else sys.argv
    return {
        "arguments": {name: value for name, value in flags.items() if name != SECRET},
        "command": shlex.join(command),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": versions(),
        "commit": commit(),
    }


def without_key(words: list[str], key: str) -> list[str]:
    """A command line without its wandb key: `--use_wandb KEY` and `--use_wandb=KEY`."""
    return ["***" if word == key else word.replace(f"={key}", "=***") for word in words]


def write_config(flags: Mapping, run_dir: str | Path) -> None:
    """Writes the run's own part of config.json, under "seal", beside a model's when it is there.

    Raises:
        InputError: the directory cannot be written.
    """
    path = Path(run_dir) / "config.json"
    try:
        content = json.loads(path.read_text()) if path.exists() else {}
        with atomic_path(path) as tmp:
            tmp.write_text(json.dumps(content | {"seal": run_config(flags)}, indent=2, default=str))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from error


def identity(flags: Mapping, row_ids: np.ndarray) -> dict:
    """What a checkpoint or a part belongs to: arguments, and models and rows by their content."""
    arguments = run_config(flags)["arguments"]
    models = {name: arguments[name] for name in MODELS if arguments.get(name)}
    contents = {f"{name}'s content": model_fingerprint(path) for name, path in models.items()}
    rows = hashlib.sha256(row_ids.tobytes()).hexdigest()[:32]
    return arguments | contents | {"rows' content": rows}
