"""`seal merge-scores`: selectors of the parts of one dataset, scored apart, as one selector.

The parts are given in the order in which `--dataset` names their files in fine-tuning. Their scores
must be of one scale: the same method under the same models and flags.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from seal.cli.declared import flags_that_are
from seal.errors import InputError
from seal.provenance import sha256_of_file
from seal.selection.artefact import BLOCK, read_selection, write_blocks
from seal.selection.calibration import calibrate
from seal.selection.format import SCHEMA
from seal.utils.record import shared

EXAMPLE = "seal merge-scores ckpt/part_1.parquet ckpt/part_2.parquet --out ckpt/all.parquet"
# method -> the models that must be given, so that every part is scored under the same ones
MODELS = {
    "safe_loss": ("safe_model",),
    "excess_loss": ("safe_model", "rows_model"),
    "relative_excess": ("safe_model", "rows_model"),
    "influence": ("rows_model",),
}
OF_ITS_OWN_ROWS = (
    "penalty",
    "penalty_gap",
    "unrolled",
    "published",
    "dsir",
    "subspace",
    "pu_probe",
)
# arguments that may differ from part to part, for no score depends on them
FREE = flags_that_are("free") | set(
    "adam_offload canary_fraction micro_train_batch_size new_dataset new_dataset_probs "
    "selector_name work_dir zero_stage zpg".split()
)


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("merge-scores", help="join the scores of parts of one dataset")
    parser.add_argument("files", nargs="+", metavar="file", help="the parts' selectors (.parquet)")
    parser.add_argument("--out", required=True, help="the selector of all parts (.parquet)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    from seal.datasets.identity import occurrences

    parts = [read_part(path) for path in args.files]
    require_one_scale(parts)
    ids = np.concatenate([part.ids for part in parts])
    blocks = joined_blocks(parts, ids, occurrences(ids))
    merged = write_blocks(args.out, len(ids), blocks, joined_meta(parts))
    counts = merged.meta["dataset"]
    result = {"out": args.out, "parts": len(parts), "dataset": counts}
    return result, f"{counts['scored']} rows of {len(parts)} parts: {args.out}"


class Part(NamedTuple):
    """A part that was scored; its columns are read again when they are written. ids: V16 [N]."""

    path: str
    meta: dict
    file: pq.ParquetFile
    ids: np.ndarray


def read_part(path: str) -> Part:
    """Reads and checks a part, and forgets all but its ids."""
    selection = read_selection(path)
    return Part(path, selection.meta, selection.file, selection.id)


def require_one_scale(parts: list[Part]) -> None:
    """Raises InputError for parts whose scores do not compare."""
    first = parts[0]
    method, arguments = first.meta["method"], first.meta["arguments"]
    smoothed = arguments.get("smooth", False)
    if smoothed or method in OF_ITS_OWN_ROWS:
        name = "--smooth" if smoothed else method
        raise InputError(f"scores of {name} are relative to the rows they were made with")
    if lacking := [name for name in MODELS.get(method, ()) if not arguments.get(name)]:
        raise InputError(
            f"{first.path}: {method} tuned models of its own; scores compare between parts where "
            f"all are given the same --{' and --'.join(lacking)}"
        )
    for part in parts[1:]:
        facts = [_scale(one.meta) for one in (first, part)]
        for name in sorted(facts[0].keys() | facts[1].keys()):
            one, other = (known.get(name) for known in facts)
            if one != other:
                raise InputError(
                    f"{part.path} is of another scale than {first.path}: {name} is {other!r}, "
                    f"not {one!r}"
                )
    seen = {}
    for part in parts:
        twin = seen.setdefault(part.meta["dataset"]["fingerprint"], part)
        if twin is not part:
            raise InputError(f"{part.path} and {twin.path} scored the same rows")


def _scale(meta: dict) -> dict:
    """What has to agree."""
    names = ("method", "model", "tokenizer", "max_len")
    arguments = {f"--{k}": v for k, v in meta["arguments"].items() if k not in FREE}
    return {name: meta[name] for name in names} | arguments


def joined_blocks(parts: list[Part], ids: np.ndarray, occurrence: np.ndarray) -> Iterator[dict]:
    """The lines of all parts, as of one dataset that holds the parts' rows one after the other."""
    line = first_row = 0
    for part in parts:
        for batch in part.file.iter_batches(BLOCK, columns=SCHEMA.names[1:]):
            block = {name: batch[name].to_numpy(zero_copy_only=False) for name in SCHEMA.names[1:]}
            here = slice(line, line + len(batch))
            block |= {"id": ids[here], "occurrence": occurrence[here]}
            yield block | {"row": block["row"] + first_row}
            line += len(batch)
        first_row += part.meta["dataset"]["raw"]


def joined_meta(parts: list[Part]) -> dict:
    """What the parts agree on, and their sums; the reliability is the mean over rows.

    Canaries are those of the part that has the most: other parts may have drawn the same ones.
    """
    metas, rows = [part.meta for part in parts], [len(part.ids) for part in parts]
    meta = {
        key: value for key, value in metas[0].items() if all(m.get(key) == value for m in metas)
    }
    counts = [m["dataset"] for m in metas]
    skipped = sum((Counter(count["skipped"]) for count in counts), Counter())
    names = "".join(count["fingerprint"] for count in counts)
    meta["dataset"] = {
        "fingerprint": hashlib.sha256(names.encode()).hexdigest()[:32],
        "raw": sum(count["raw"] for count in counts),
        "skipped": dict(skipped),
    }
    first = metas[0]["arguments"].items()
    meta["arguments"] = {k: v for k, v in first if all(m["arguments"].get(k) == v for m in metas)}
    meta["seed"] = metas[0]["seed"]
    meta["parts"] = [
        {"file": shared(part.path), "sha256": sha256_of_file(part.path), "rows": n}
        for part, n in zip(parts, rows, strict=True)
    ]
    if all(m.get("evidence") for m in metas):
        worth = [m["evidence"].get("reliability") for m in metas]
        mean = None if None in worth else float(np.average(worth, weights=rows))
        meta["evidence"] = metas[0]["evidence"] | {"reliability": mean}
    if all("calibration" in m for m in metas):
        canaries = max((m["calibration"]["canary_scores"] for m in metas), key=len)
        score = np.concatenate(
            [part.file.read(columns=["score"])["score"].to_numpy() for part in parts]
        )
        meta["calibration"] = calibrate(score, np.array(canaries))
    return meta
