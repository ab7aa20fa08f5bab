"""Prompt and answer files: JSON, JSONL and CSV, plain or gzipped, read as plain records."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from seal.datasets import readers
from seal.errors import InputError

PROMPT_KEYS = ("prompt", "instruction", "question")
REFERENCE_KEYS = ("reference", "output", "response", "answer", "completion")
CATEGORY_KEYS = ("category", "type")


class Prompt(NamedTuple):
    """One prompt of a set.

    `reference` is the answer to compare with ("" when the file has none), `category` and `label`
    are the file's own ("" when absent), `source` names the data set within the file.
    """

    text: str
    reference: str
    category: str
    label: str
    source: str


def read_records(path: str | os.PathLike) -> list[dict]:
    """Reads a .json (list), .jsonl, .csv or .tsv file, or one of them with .gz, in file order.

    Raises:
        InputError: the file is absent, of another kind, damaged, or holds no record.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} is not a file; give .json, .jsonl or .csv, plain or .gz")
    records = [record for _, record in readers.read_records(Path(path))]
    if not records:
        raise InputError(f"{path} holds no record; at least one is needed")
    return records


def read_object(path: str | os.PathLike) -> dict:
    """Reads a file that holds one JSON object.

    Raises:
        InputError: the file is absent or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, an object is needed")
    return content


def read_prompts(path: str | os.PathLike, input_key: str | None = None) -> list[Prompt]:
    """Reads a prompt file; see PROMPT_KEYS, REFERENCE_KEYS and CATEGORY_KEYS for the columns.

    Args:
        path: What `read_records` reads.
        input_key: Column of the prompt; the first of PROMPT_KEYS that the file has when None.

    Raises:
        InputError: no such column, or a prompt that is empty or not text.
    """
    records = read_records(path)
    key = input_key or next((k for k in PROMPT_KEYS if k in records[0]), None)
    if key is None or key not in records[0]:
        raise InputError(
            f"{path} has columns {', '.join(sorted(records[0]))}, none is "
            f"{input_key or ' or '.join(PROMPT_KEYS)}; name the prompt's column with --input_key"
        )
    bad = [i for i, r in enumerate(records) if not isinstance(r.get(key), str) or not r[key]]
    if bad:
        raise InputError(
            f"{path}: {len(bad)} of {len(records)} rows have no text in {key!r}, first at row "
            f"{bad[0]}; remove them"
        )
    return [
        Prompt(
            text=record[key],
            reference=_first(record, REFERENCE_KEYS),
            category=_first(record, CATEGORY_KEYS),
            label=_first(record, ("label",)),
            source=_first(record, ("dataset", "source")),
        )
        for record in records
    ]


def _first(record: dict, keys: tuple[str, ...]) -> str:
    value = next((record[k] for k in keys if record.get(k) is not None), "")
    return value if isinstance(value, str) else str(value)


def sha256_of_text(*parts: str) -> str:
    """Hex sha256 of the parts as a JSON list, so that no two lists share a text."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()
