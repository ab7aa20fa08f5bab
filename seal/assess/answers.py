"""Answer files: AlpacaEval's JSON and a JSONL beside it, and the parts an unfinished run leaves."""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from seal.assess.prompts import Prompt, read_records
from seal.errors import InputError
from seal.files import atomic_path
from seal.provenance import sha256_of_file


class Answer(NamedTuple):
    """One answer; `finish_reason` is "stop" or "length", `tokens` counts the answer's own."""

    index: int
    output: str
    finish_reason: str
    tokens: int


class Parts:
    """Finished answers of a run that is not finished, one file a rank, kept per fingerprint.

    Args:
        output: The answer file to be; the parts lie in `<output>.parts/<fingerprint>/`.
        fingerprint: Of everything the answers depend on. Other fingerprints are left alone.
        rank: Whose file `append` writes.
    """

    def __init__(self, output: str | os.PathLike, fingerprint: str, rank: int):
        self.directory = Path(f"{output}.parts") / fingerprint[:16]
        self._own = self.directory / f"rank{rank}.jsonl"

    def done(self) -> dict[int, Answer]:
        """Finished answers of every rank, by prompt index; a line cut by a kill is left out."""
        found = {}
        for path in sorted(self.directory.glob("rank*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:
                answer = Answer(*json.loads(line))
                found[answer.index] = answer
        return found

    def append(self, answers: Iterable[Answer]) -> None:
        """Adds answers durably, after dropping a line that a kill cut."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self._own, "a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(b"".join(json.dumps(answer).encode() + b"\n" for answer in answers))
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Deletes these parts, and the parent when it holds no others."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.parent.exists() and not any(self.directory.parent.iterdir()):
            self.directory.parent.rmdir()


def write_answers(
    path: str | os.PathLike,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    generator: str,
    meta: dict,
) -> None:
    """Writes `path` (AlpacaEval's JSON), the same as .jsonl with more columns, and .meta.json.

    Args:
        path: Ends in .json.
        prompts, answers: [N] each, answer i to prompt i.
        generator: The model's name.
        meta: What the answers depend on; `sha256` of `path` is added.
    """
    path = Path(path)
    if [answer.index for answer in answers] != list(range(len(prompts))):
        raise RuntimeError(f"{len(answers)} answers are not one a prompt in order ({len(prompts)})")
    rows = [
        {
            "instruction": prompt.text,
            "output": answer.output,
            "generator": generator,
            "dataset": prompt.source,
        }
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    with atomic_path(path.with_suffix(".jsonl")) as tmp, open(tmp, "w", encoding="utf-8") as file:
        for row, answer in zip(rows, answers, strict=True):
            more = {"finish_reason": answer.finish_reason, "tokens": answer.tokens}
            file.write(json.dumps({**row, **more}, ensure_ascii=False) + "\n")
    with atomic_path(path) as tmp:
        tmp.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    with atomic_path(meta_path(path)) as tmp:
        tmp.write_text(json.dumps({**meta, "sha256": sha256_of_file(path)}, indent=1) + "\n")


def meta_path(path: str | os.PathLike) -> Path:
    """Where the settings behind an answer file are written."""
    return Path(path).with_suffix(".meta.json")


def read_settings(path: str | os.PathLike) -> dict | None:
    """What an answer file was generated with, None when it came without its .meta.json."""
    meta = meta_path(path)
    return json.loads(meta.read_text())["settings"] if meta.is_file() else None


def is_complete(path: str | os.PathLike, fingerprint: str) -> bool:
    """True when `path` was finished with this fingerprint and not changed since."""
    if not (Path(path).is_file() and meta_path(path).is_file()):
        return False
    meta = json.loads(meta_path(path).read_text())
    same = meta.get("fingerprint") == fingerprint
    return same and meta.get("sha256") == sha256_of_file(path)


def read_answers(path: str | os.PathLike, prompts: Sequence[Prompt]) -> list[str]:
    """Reads the outputs of an answer file (AlpacaEval's form, JSON or JSONL) for `prompts`.

    Raises:
        InputError: another number of answers, another instruction, or an output that is no text.
    """
    records = read_records(path)
    if len(records) != len(prompts):
        raise InputError(
            f"{path} holds {len(records)} answers to {len(prompts)} prompts; generate it from the "
            "same prompt file"
        )
    for i, (record, prompt) in enumerate(zip(records, prompts, strict=True)):
        if record.get("instruction") != prompt.text:
            raise InputError(
                f"{path}: answer {i} is to {str(record.get('instruction'))[:60]!r}, the prompt is "
                f"{prompt.text[:60]!r}; generate it from the same prompt file"
            )
        if not isinstance(record.get("output"), str):
            raise InputError(f"{path}: answer {i} has no text in 'output'")
    return [record["output"] for record in records]
