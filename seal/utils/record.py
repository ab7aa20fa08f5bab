"""What a run was started with: kept beside what it writes, compared when it is taken up again."""

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seal.files import atomic_path
from seal.provenance import commit, model_fingerprint, versions

SECRET = "use_wandb"
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w.-]+)?$")
MODELS = ("pretrain", "safe_model", "rows_model")


def run_config(flags: Mapping) -> dict:
    """What this run was started with: flags, command, versions, commit; to be shared.

    Secrets are left out, and of local paths the last part is left.
    """
    key = flags.get(SECRET)
    command = without_key(sys.argv, key) if isinstance(key, str) else sys.argv
    return {
        "arguments": {name: _shared(value) for name, value in _open(flags).items()},
        "command": shlex.join(map(_shared, command)),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": versions(),
        "commit": commit(),
    }


def without_key(words: list[str], key: str) -> list[str]:
    """A command line without its wandb key: `--use_wandb KEY` and `--use_wandb=KEY`."""
    return ["***" if word == key else word.replace(f"={key}", "=***") for word in words]


def write_run(flags: Mapping, run_dir: str | Path) -> None:
    """Writes `seal_run.json` beside what the run has made."""
    with atomic_path(Path(run_dir) / "seal_run.json") as tmp:
        tmp.write_text(json.dumps(run_config(flags), indent=2, default=str))


def identity(flags: Mapping, row_ids: np.ndarray) -> dict:
    """What a checkpoint or a part belongs to: arguments, and models and rows by their content."""
    arguments = _open(flags)
    models = {name: arguments[name] for name in MODELS if arguments.get(name)}
    contents = {f"{name}'s content": model_fingerprint(path) for name, path in models.items()}
    rows = hashlib.sha256(row_ids.tobytes()).hexdigest()[:32]
    return arguments | contents | {"rows' content": rows}


def _open(flags: Mapping) -> dict:
    return {name: value for name, value in flags.items() if name != SECRET}


def _shared(value: object) -> object:
    """A word without the folders of the local paths in it; hub names stay."""
    if not isinstance(value, str) or "/" not in value:
        return value
    flag, equals, value = value.rpartition("=") if value.startswith("--") else ("", "", value)
    parts = [part if _is_hub_name(part) else Path(part).name for part in value.split(",")]
    return f"{flag}{equals}{','.join(parts)}"


def _is_hub_name(word: str) -> bool:
    """Whether it reads as `owner/name`, and nothing of that name is here."""
    return bool(HUB_NAME.match(word)) and not Path(word).exists()
