"""Build the published datasets from their public sources.

    python examples/build_redorca.py --out data

BlueOrca, the safe set, is 112,000 SlimOrca rows that are held back. RedOrca, the rows to select
among, is 22,400 Anthropic red-team rows and then 89,600 other SlimOrca rows, unshuffled. Counts and
order are published; which rows were drawn is not, so here a seed draws them.

Writes OUT/BlueOrca/train.jsonl, OUT/RedOrca/train.jsonl (`messages`, and `provenance`, which
training never sees) and OUT/redorca.json: counts, what was skipped and why, sha256 of both files.
--slimorca and --redteam also take local .json, .jsonl or .parquet files of the same format.
Source: Shen et al. 2024 (arXiv 2410.07471), section 5.
"""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np

from seal.errors import InputError
from seal.files import atomic_path

ROLES = {"system": "system", "human": "user", "gpt": "assistant"}  # SlimOrca's names and ours
TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class Counts:
    """Rows of each part; the defaults are published."""

    blue: int = 112_000
    red: int = 22_400
    orca: int = 89_600


def load(name: str, columns: set[str], data_dir: str | None = None) -> datasets.Dataset:
    """A hub dataset's train split, or a local file of that format.

    Raises:
        InputError: neither such a file nor such a dataset is in reach, or `columns` are missing.
    """
    suffix = Path(name.removesuffix(".gz")).suffix
    try:
        if Path(name).exists():
            kind = "parquet" if suffix == ".parquet" else "json"
            source = datasets.load_dataset(kind, data_files=name, split="train")
        else:
            source = datasets.load_dataset(name, data_dir=data_dir, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read {name}: {reason}; give a local file instead") from error
    missing = columns - set(source.column_names)
    if missing:
        raise InputError(f"{name} has no {sorted(missing)}; its columns: {source.column_names}")
    return source


def orca_messages(record: dict, keep_system: bool) -> list[dict]:
    """Messages of a SlimOrca row (`conversations` of from, value).

    The published runs used the question alone, so the system turn goes unless `keep_system`.
    """
    turns = [
        {"role": ROLES.get(turn["from"], turn["from"]), "content": turn["value"] or ""}
        for turn in record["conversations"]
    ]
    return [turn for turn in turns if keep_system or turn["role"] != "system"]


def redteam_messages(record: dict, whole: bool) -> list[dict]:
    """Messages of a red-team attempt (`transcript`): its first exchange, or the `whole` talk."""
    parts = TURN.split(record["transcript"])[1:]
    turns = [
        {"role": "user" if name == "Human" else "assistant", "content": text.strip()}
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    if not whole:
        return turns[:2]
    return turns[:-1] if turns and turns[-1]["role"] == "user" else turns


def usable(messages: list[dict]) -> bool:
    """True for user and assistant in turn, nothing empty, the assistant last."""
    talk = [turn for turn in messages if turn["role"] != "system"]
    roles = [turn["role"] for turn in talk]
    return (
        len(talk) > 1
        and roles == ["user", "assistant"] * (len(talk) // 2)
        and all(turn["content"].strip() for turn in talk)
    )


def prompt_key(messages: list[dict]) -> bytes:
    """What may not occur twice: the first user turn, spaces and case aside."""
    text = next(turn["content"] for turn in messages if turn["role"] == "user")
    return hashlib.sha256(" ".join(text.lower().split()).encode()).digest()


class Draw:
    """Takes rows in a seeded order; no prompt is taken twice, in this draw or another's.

    Args:
        taken: prompt keys so far, shared by all draws.
        skipped: reason to count.
    """

    def __init__(self, taken: set[bytes], skipped: Counter):
        self.taken = taken
        self.skipped = skipped

    def rows(self, candidates: Iterable[list[dict]], count: int, what: str) -> Iterator[list[dict]]:
        """Yields `count` conversations.

        Raises:
            InputError: the source runs out before.
        """
        found = 0
        if not count:
            return
        for messages in candidates:
            if not usable(messages):
                self.skipped[f"{what}: empty or broken turns"] += 1
                continue
            key = prompt_key(messages)
            if key in self.taken:
                self.skipped[f"{what}: prompt taken before"] += 1
                continue
            self.taken.add(key)
            yield messages
            found += 1
            if found == count:
                return
        raise InputError(f"{what} has {found} usable rows, {count} are needed; ask for fewer")


def shuffled(source: datasets.Dataset, seed: int) -> Iterator[dict]:
    """Each record once, in an order that depends on the seed alone."""
    for number in np.random.default_rng(seed).permutation(len(source)):
        yield source[int(number)]


def rated(records: Iterable[dict], least: float, skipped: Counter) -> Iterator[dict]:
    """The red-team attempts whose success was rated `least` or more."""
    for record in records:
        if record["rating"] >= least:
            yield record
        else:
            skipped["red team: rated too low"] += 1


def write_rows(path: Path, rows: Iterable[tuple[list[dict], str]]) -> dict:
    """Writes JSONL, whole or not at all; returns its rows, sha256 and prompt keys."""
    digest, keys, provenances = hashlib.sha256(), set(), Counter()
    with atomic_path(path) as tmp, open(tmp, "wb") as file:
        for messages, provenance in rows:
            record = {"messages": messages, "provenance": provenance}
            line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
            file.write(line)
            digest.update(line)
            keys.add(prompt_key(messages))
            provenances[provenance] += 1
    report = {"file": path.name, "rows": dict(provenances), "sha256": digest.hexdigest()}
    return {"report": report, "keys": keys}


def build(args: argparse.Namespace) -> dict:
    """Writes both sets; returns the manifest."""
    counts = Counts(args.blue_rows, args.red_rows, args.orca_rows)
    slimorca = load(args.slimorca, {"conversations"})
    redteam = load(args.redteam, {"transcript", "rating"}, data_dir=args.redteam_dir)
    skipped: Counter = Counter()
    draw = Draw(set(), skipped)
    orca = (orca_messages(r, args.keep_system) for r in shuffled(slimorca, args.seed))
    attempts = rated(shuffled(redteam, args.seed + 1), args.min_rating, skipped)
    red = (redteam_messages(r, args.whole_transcript) for r in attempts)

    def red_then_orca() -> Iterator[tuple[list[dict], str]]:
        for messages in draw.rows(red, counts.red, "red team"):
            yield messages, "redteam"
        for messages in draw.rows(orca, counts.orca, "SlimOrca"):
            yield messages, "slimorca"

    blue_rows = ((m, "slimorca") for m in draw.rows(orca, counts.blue, "SlimOrca"))
    blue = write_rows(args.out / "BlueOrca/train.jsonl", blue_rows)
    redorca = write_rows(args.out / "RedOrca/train.jsonl", red_then_orca())
    common = blue["keys"] & redorca["keys"]
    if common:
        raise AssertionError(f"{len(common)} prompts are in both sets")
    manifest = {
        "format": "redorca-1",
        "BlueOrca": blue["report"],
        "RedOrca": redorca["report"],
        "asked": asdict(counts),
        "skipped": dict(sorted(skipped.items())),
        "prompts_in_common": len(common),
        "sources": {"slimorca": args.slimorca, "redteam": args.redteam},
        "seed": args.seed,
        "keep_system": args.keep_system,
        "whole_transcript": args.whole_transcript,
        "min_rating": args.min_rating,
    }
    with atomic_path(args.out / "redorca.json") as tmp:
        tmp.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, counts = parser.add_argument, Counts()
    add("--out", type=Path, default=Path("data"), help="folder to write (default data)")
    add("--slimorca", default="Open-Orca/SlimOrca", help="hub name or file")
    add("--redteam", default="Anthropic/hh-rlhf", help="hub name or file")
    add("--redteam_dir", default="red-team-attempts", help="folder inside the hub dataset")
    add("--seed", type=int, default=42, help="of both draws (default 42)")
    add("--blue_rows", type=int, default=counts.blue, help="rows (default %(default)s)")
    add("--red_rows", type=int, default=counts.red, help="rows (default %(default)s)")
    add("--orca_rows", type=int, default=counts.orca, help="rows (default %(default)s)")
    add("--min_rating", type=float, default=0.0, help="success of an attempt, 0 to 4 (default 0)")
    add("--whole_transcript", action="store_true", help="every turn, not the first exchange alone")
    add("--keep_system", action="store_true", help="keep SlimOrca's system turn")
    return parser.parse_args(argv)


def main() -> int:
    """Builds both sets and prints the manifest; returns the exit status."""
    try:
        print(json.dumps(build(parse()), indent=2))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
