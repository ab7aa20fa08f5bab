"""What a run was started with: kept beside what it writes."""

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from seal.files import atomic_path
from seal.provenance import commit, versions

HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w.-]+)?$")


def run_config(flags: Mapping) -> dict:
    """What this run was started with: flags, command, versions, commit; to be shared.

    Of local paths the last part is left.
    """
    return {
        "arguments": {name: shared(value) for name, value in flags.items()},
        "command": shlex.join(map(shared, sys.argv)),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": versions(),
        "commit": commit(),
    }


def write_run(flags: Mapping, run_dir: str | Path, selection: Mapping | None = None) -> None:
    """Writes `seal_run.json` beside what the run made; `selection`: how its rows were chosen."""
    run = run_config(flags) | ({"selection": dict(selection)} if selection else {})
    with atomic_path(Path(run_dir) / "seal_run.json") as tmp:
        tmp.write_text(json.dumps(run, indent=2, default=str))


def shared(value: object) -> object:
    """A word without the folders of the local paths in it; hub names stay."""
    if not isinstance(value, str) or "/" not in value:
        return value
    flag, equals, value = value.rpartition("=") if value.startswith("--") else ("", "", value)
    parts = [part if _is_hub_name(part) else Path(part).name for part in value.split(",")]
    return f"{flag}{equals}{','.join(parts)}"


def _is_hub_name(word: str) -> bool:
    """Whether it reads as `owner/name`, and nothing of that name is here."""
    return bool(HUB_NAME.match(word)) and not Path(word).exists()
