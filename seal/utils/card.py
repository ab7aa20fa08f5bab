"""The model card beside a saved model: which rows it saw, how it was trained, by which code."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from seal.files import atomic_path

PRIVATE = ("wandb_group", "wandb_org", "wandb_project", "wandb_run_name")
TEMPLATE = """\
---
{front}---

# {name}

{summary} Written by [SEAL](https://arxiv.org/abs/2410.07471), safety-enhanced fine-tuning by
bilevel data selection.
{sections}"""


def write_card(
    directory: str | os.PathLike, summary: str, facts: Mapping[str, Mapping], run: Mapping
) -> None:
    """Writes `README.md` into the directory of a saved model, over the one that peft leaves there.

    Args:
        directory: of the model or adapter.
        summary: a sentence on what was done.
        facts: title of a section -> name -> value, as the training script knows them.
        run: as `seal.utils.record.run_config` makes it: arguments without secrets, command, ...
    """
    directory, arguments = Path(directory), run["arguments"]
    front = {
        "library_name": "peft" if (directory / "adapter_config.json").exists() else "transformers",
        "base_model": arguments["pretrain"],
        "tags": ["seal", "data-selection"],
    }
    code = {name: run[name] for name in ("command", "commit", "world_size")} | run["versions"]
    given = {k: v for k, v in arguments.items() if v is not None and k not in PRIVATE}
    facts = {**facts, "Arguments": given, "Code": code}
    sections = [f"\n## {title}\n\n{_table(values)}" for title, values in facts.items() if values]
    text = TEMPLATE.format(
        front=yaml.safe_dump(front, sort_keys=False),
        name=directory.resolve().name,
        summary=summary,
        sections="".join(sections),
    )
    with atomic_path(directory / "README.md") as tmp:
        tmp.write_text(text, encoding="utf-8")


def _table(values: Mapping) -> str:
    lines = [f"| {name} | {_cell(value)} |\n" for name, value in values.items()]
    return "".join(["| | |\n|---|---|\n", *lines])


def _cell(value: object) -> str:
    """A value on one line, inert in Markdown."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = text.replace("\n", "\\n").replace("|", "\\|").replace("`", "'")
    return f"`{text}`" if text else ""
