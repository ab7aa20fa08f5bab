"""`seal export`: the kept rows as a file that any trainer reads."""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seal.command.dataset import add_dataset_flags, read_rows, row_keys
from seal.command.sources import source_lines
from seal.errors import InputError
from seal.files import atomic_path
from seal.selection.artefact import UNSCORED, Selection, select_rows
from seal.selection.published import load_selection

if TYPE_CHECKING:
    import datasets

FORMATS = ("jsonl", "messages", "alpaca", "sharegpt", "parquet", "weights")
_BATCH = 1000  # rows held as Python objects at a time
_LLAMA_FACTORY = {
    "alpaca": {
        "formatting": "alpaca",
        "columns": {
            "prompt": "instruction",
            "query": "input",
            "response": "output",
            "system": "system",
            "history": "history",
        },
    },
    "sharegpt": {
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "system": "system"},
    },
}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "export", help="write the kept rows for any trainer", description=__doc__
    )
    parser.add_argument("file", help="the selector (.parquet)")
    add_dataset_flags(parser, required=True)
    parser.add_argument("--topp", type=float, required=True, help="share of scored rows to keep")
    parser.add_argument("--format", choices=FORMATS, default="jsonl", help="default: jsonl")
    parser.add_argument("--out", required=True, help="the file to write")
    parser.add_argument(
        "--unscored", choices=UNSCORED, default="error", help="rows without a score"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    selection, rows, out = load_selection(args.file), read_rows(args), Path(args.out)
    selected = select_rows(*row_keys(rows), selection, args.topp, args.unscored)
    kept = rows.select(selected.indices)
    if args.format == "parquet":
        _write_parquet(out, kept, selection)
    elif args.format == "jsonl":
        _write_lines(out, source_lines(kept))
    else:
        _write_lines(out, _records(kept, selection, _CONVERTERS[args.format]))
    result = {
        "out": args.out,
        "format": args.format,
        "topp": args.topp,
        "kept": len(kept),
        "rows": len(rows),
        "scored": selected.scored,
        "unscored": selected.unscored,
        "missing": selected.missing,
    }
    text = f"kept {len(kept)} of {len(rows)} rows at topp {args.topp:g}: {args.out}"
    if selected.unscored:
        text += f"\n{selected.unscored} rows have no score: {args.unscored}"
    if selected.missing:
        text += f"\n{selected.missing} rows of the selector are not in this dataset"
    if args.format in _LLAMA_FACTORY:
        result["dataset_info"] = str(_describe(out, _LLAMA_FACTORY[args.format]))
        text += f"\nentry {out.stem!r} in {result['dataset_info']}"
    return result, text


def to_messages(messages: list[dict], weight: float) -> dict:
    """OpenAI messages, as TRL and others read them."""
    return {"messages": messages}


def to_weights(messages: list[dict], weight: float) -> dict:
    """Messages with the row's weight: a column, and ms-swift's `loss_scale` on each answer."""
    scaled = [
        {**message, "loss_scale": weight} if message["role"] == "assistant" else message
        for message in messages
    ]
    return {"messages": scaled, "weight": weight}


def to_alpaca(messages: list[dict], weight: float) -> dict:
    """Alpaca record of the last turn; earlier turns become `history`."""
    system, turns = _turns(messages)
    return {
        "instruction": turns[-2],
        "input": "",
        "output": turns[-1],
        "system": system,
        "history": [list(pair) for pair in zip(turns[:-2:2], turns[1:-2:2], strict=True)],
    }


def to_sharegpt(messages: list[dict], weight: float) -> dict:
    """ShareGPT record."""
    system, turns = _turns(messages)
    speakers = ("human", "gpt") * (len(turns) // 2)
    pairs = zip(speakers, turns, strict=True)
    return {"conversations": [{"from": s, "value": v} for s, v in pairs], "system": system}


_CONVERTERS = {
    "messages": to_messages,
    "weights": to_weights,
    "alpaca": to_alpaca,
    "sharegpt": to_sharegpt,
}


def _turns(messages: list[dict]) -> tuple[str, list[str]]:
    """(system prompt or "", contents of the turns user, assistant, user, ...)."""
    has_system = messages[0]["role"] == "system"
    turns = messages[has_system:]
    roles = [message["role"] for message in turns]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise InputError(f"roles {roles}, needs user and assistant in turn; use --format messages")
    system = messages[0]["content"] if has_system else ""
    return system, [message["content"] for message in turns]


def _records(
    kept: "datasets.Dataset", selection: Selection, convert: Callable[[list[dict], float], dict]
) -> Iterator[bytes]:
    _, weights = _scores(kept, selection)
    i = 0
    for batch in kept.select_columns(["messages", "row"]).iter(_BATCH):
        for messages, row in zip(batch["messages"], batch["row"], strict=True):
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
            try:
                record = convert(turns, float(f"{weights[i]:.7g}"))
            except InputError as error:
                raise InputError(f"row {row}: {error}") from error
            yield json.dumps(record, ensure_ascii=False).encode() + b"\n"
            i += 1


def _scores(kept: "datasets.Dataset", selection: Selection) -> tuple[pa.Array, np.ndarray]:
    """Scores (null where there is none) and weights (1, the mean, where there is none)."""
    lines = selection.index.find(*row_keys(kept))
    score = pa.array(selection.score[lines], mask=lines < 0)
    return score, np.where(lines >= 0, selection.weight[lines], np.float32(1))


def _write_lines(out: Path, lines: Iterable[bytes]) -> None:
    with atomic_path(out) as tmp, open(tmp, "wb") as file:
        file.writelines(lines)


def _write_parquet(out: Path, kept: "datasets.Dataset", selection: Selection) -> None:
    """The columns of `load_rows`, and each row's score and weight."""
    score, weight = _scores(kept, selection)
    writer, start = None, 0
    with atomic_path(out) as tmp:
        for batch in kept.with_format("arrow").iter(10 * _BATCH):
            stop = start + len(batch)
            batch = batch.append_column("score", score[start:stop])
            batch = batch.append_column("weight", pa.array(weight[start:stop]))
            writer = writer or pq.ParquetWriter(tmp, batch.schema, compression="zstd")
            writer.write_table(batch)
            start = stop
        writer.close()


def _describe(out: Path, entry: dict) -> Path:
    """Adds the entry that LLaMA-Factory needs to `dataset_info.json` beside `out`."""
    path = out.parent / "dataset_info.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known[out.stem] = {"file_name": out.name, **entry}
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not a JSON object, the entry cannot be added") from error
    with atomic_path(path) as tmp:
        tmp.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
