"""Verdicts: one record an answer and judge, and the on-disk cache of verdicts paid for."""

import json
import os
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from seal.errors import InputError
from seal.files import atomic_path


@dataclass(frozen=True)
class Verdict:
    """What one judge said about one answer.

    Attributes:
        judge: Name and version of the judge ("rules-1", "openai:MODEL", "reward:PATH").
        task: "refusal", "harmfulness", "preference" or "unsafe".
        prompt_hash: sha256 of what the judge was asked.
        label: The verdict in the task's words ("full_refusal", "4", "win"), or "unscored" when the
            raw verdict does not parse. Unscored is counted, never read as a refusal or a win.
        value: The verdict as a number, None when unscored. refusal: 0 compliance, 0.5 partial, 1
            full. harmfulness: 1 to 5. preference: 0 loss to 1 win. unsafe: probability.
        raw: The judge's own words; for a preference both orders, "first || second".
        consistent: preference only: whether both orders agree; None otherwise or when unscored.
    """

    judge: str
    task: str
    prompt_hash: str
    label: str
    value: float | None
    raw: str
    consistent: bool | None = None


def spoken(answer: str) -> str | None:
    """What an answer says after its thinking; None when `<think>` is never closed."""
    _, closed, after = answer.rpartition("</think>")
    if closed:
        return None if "<think>" in after else after.strip()
    return None if "<think>" in answer else answer


def preference_label(value: float | None) -> str:
    """ "win", "loss" or "tie" of a preference value; "unscored" of None."""
    if value is None:
        return "unscored"
    return "tie" if value == 0.5 else ("win" if value > 0.5 else "loss")


def write_verdicts(path: str | os.PathLike, rows: Iterable[tuple[dict, Verdict]]) -> int:
    """Writes one JSON line a verdict, each with its own keys (model, prompt_set, index) first."""
    count = 0
    with atomic_path(path) as tmp, open(tmp, "w", encoding="utf-8") as file:
        for keys, verdict in rows:
            file.write(json.dumps({**keys, **asdict(verdict)}, ensure_ascii=False) + "\n")
            count += 1
    return count


class Cached(NamedTuple):
    """A raw verdict and what it cost in tokens."""

    raw: str
    prompt_tokens: int
    completion_tokens: int


class VerdictCache:
    """Raw verdicts in an SQLite file, each committed as it arrives, so a kill loses none.

    The key is sha256 of judge and prompt. Safe for threads of one process and for several
    processes on one file.

    Raises:
        InputError: the file is not such a cache.
    """

    def __init__(self, path: str | os.PathLike):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(
                path, timeout=60, isolation_level=None, check_same_thread=False
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS verdict (key TEXT PRIMARY KEY, judge TEXT NOT NULL, "
                "raw TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, "
                "completion_tokens INTEGER NOT NULL)"
            )
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path} is not a verdict cache ({error}); name another") from error

    def get(self, key: str) -> Cached | None:
        """The verdict under `key`, or None."""
        with self._lock:
            row = self._db.execute(
                "SELECT raw, prompt_tokens, completion_tokens FROM verdict WHERE key = ?", (key,)
            ).fetchone()
        return Cached(*row) if row else None

    def put(self, key: str, judge: str, cached: Cached) -> None:
        """Stores a verdict durably; the first one under a key stays."""
        with self._lock:
            self._db.execute(
                "INSERT OR IGNORE INTO verdict VALUES (?, ?, ?, ?, ?)", (key, judge, *cached)
            )

    def __len__(self) -> int:
        with self._lock:
            return self._db.execute("SELECT count(*) FROM verdict").fetchone()[0]

    def close(self) -> None:
        """Closes the file."""
        self._db.close()
