"""`seal export`: the kept rows as a file that any trainer reads."""

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seal.cli.declared import take
from seal.command.dataset import add_dataset_flags, add_topp_flags, read_rows
from seal.command.sources import source_lines
from seal.errors import InputError
from seal.files import atomic_path, require_new
from seal.selection.artefact import Selection, select_rows
from seal.selection.calibration import share_kept
from seal.selection.evidence import doubts
from seal.selection.load import load_selection

if TYPE_CHECKING:
    import datasets

FORMATS = ("jsonl", "messages", "alpaca", "sharegpt", "parquet", "weights")
INFO = "dataset_info.json"  # of LLaMA-Factory
_BATCH = 10_000  # rows held as Python objects at a time
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_LLAMA_FACTORY = {
    "alpaca": {
        "formatting": "alpaca",
        "columns": _ALPACA | {"system": "system", "history": "history"},
    },
    "sharegpt": {
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "system": "system"},
    },
}
EXAMPLE = """\
seal export ckpt/mine_softmax.parquet --dataset user.jsonl --topp 0.8 --format messages \\
      --out kept.jsonl"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("export", help="write the kept rows for any trainer")
    parser.add_argument("file", help="the selector (.parquet)")
    add_dataset_flags(parser, required=True)
    add_topp_flags(parser)
    parser.add_argument("--format", choices=FORMATS, default="jsonl", help="default: jsonl")
    parser.add_argument("--out", required=True, help="the file to write")
    take(parser, "unscored", "overwrite")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    from seal.datasets.identity import row_keys

    out = Path(args.out)
    if not args.overwrite:
        require_new(out, "--out")
    _entries(out, args.format)  # refused before anything is written
    selection, rows = load_selection(args.file), read_rows(args)
    topp = share_kept(selection, args.topp, args.max_canary_kept, args.confidence)
    selected = select_rows(*row_keys(rows), selection, topp, args.unscored)
    tables = _kept_tables(rows, selected.indices, selection)
    if args.format == "parquet":
        _write_parquet(out, map(_with_all_keys, tables))
    elif args.format == "jsonl":
        _write_lines(out, source_lines(rows, selected.indices))
    else:
        _write_lines(out, _records(tables, args.format))
    result = {
        "out": args.out,
        "format": args.format,
        "topp": topp,
        "kept": len(selected.indices),
        "rows": len(rows),
        "scored": selected.scored,
        "unscored": selected.unscored,
        "missing": selected.missing,
    }
    text = f"kept {result['kept']} of {len(rows)} rows at topp {topp:g}: {args.out}"
    if selected.unscored:
        text += f"\n{selected.unscored} rows have no score: {args.unscored}"
    if selected.missing:
        text += f"\n{selected.missing} rows of the selector are not in this dataset"
    result["doubts"] = doubts(selection.meta)
    text += "".join(f"\nwarning: {doubt}" for doubt in result["doubts"])
    info, (before, after) = out.parent / INFO, _entries(out, args.format)
    if after != before:
        with atomic_path(info) as tmp:
            tmp.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if args.format in _LLAMA_FACTORY:
        result["dataset_info"] = str(info)
        text += f"\nentry {out.stem!r} in {info}"
    elif after != before:
        text += f"\nno longer in {info}: {out.stem!r}, of another format"
    return result, text


def record_of(kind: str, messages: list[dict], tools: list[dict] | None, weight: float) -> dict:
    """A row as a record of `kind`; plain text is `text` in every kind.

    "weights" are messages with ms-swift's `loss_scale`; in "alpaca" the last turn is the record and
    earlier ones are its `history`.
    """
    weighted = {"weight": weight} if kind == "weights" else {}
    if messages and messages[0]["role"] == "text":
        return {"text": messages[0]["content"]} | weighted
    if kind == "weights":
        scale = weight or 1e-9  # 0 would say that a turn is not learned
        messages = [
            {**m, "loss_scale": m.get("weight", scale)} if m["role"] == "assistant" else m
            for m in messages
        ]
    if kind in ("messages", "weights"):
        return {"messages": messages} | ({"tools": tools} if tools else {}) | weighted
    system, turns = _turns(messages, tools)
    pairs = [list(pair) for pair in zip(turns[::2], turns[1::2], strict=True)]
    if kind == "alpaca":
        last = {"instruction": turns[-2], "input": "", "output": turns[-1]}
        return last | {"system": system, "history": pairs[:-1]}
    said = [
        {"from": who, "value": text}
        for pair in pairs
        for who, text in zip(("human", "gpt"), pair, strict=True)
    ]
    return {"conversations": said, "system": system}


def _turns(messages: list[dict], tools: list[dict] | None) -> tuple[str, list[str]]:
    """(system prompt or "", contents of the turns user, assistant, user, ...)."""
    first = messages[0] if messages else {"role": None}
    system = first["content"] if first["role"] == "system" else ""
    turns = messages[bool(system) :]
    roles = [message["role"] for message in turns]
    beside = sorted({key for m in messages for key in m} - {"role", "content"})
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise InputError(f"roles {roles}, needs user and assistant in turn; use --format messages")
    if beside or tools:
        raise InputError(f"holds {', '.join(beside or ['tools'])}; use --format messages")
    return system, [message["content"] for message in turns]


def _kept_tables(
    rows: "datasets.Dataset", indices: np.ndarray, selection: Selection
) -> Iterator[pa.Table]:
    """The kept rows in order, a table a batch: columns of `load_rows`, `score` and `weight`.

    A row without a score has a null there and weight 1, the mean.
    """
    kept = np.zeros(len(rows), bool)
    kept[indices] = True
    start = 0
    for batch in rows.with_format("arrow").iter(_BATCH):
        table = batch.filter(pa.array(kept[start : start + len(batch)])).combine_chunks()
        start += len(batch)
        lines = selection.index.find(table["id"], table["occurrence"].to_numpy())
        score = pa.array(selection.score[lines], mask=lines < 0)
        weight = np.where(lines >= 0, selection.weight[lines], np.float32(1))
        yield table.append_column("score", score).append_column("weight", pa.array(weight))


def _records(tables: Iterable[pa.Table], kind: str) -> Iterator[bytes]:
    encode = json.JSONEncoder(ensure_ascii=False).encode
    for table in tables:
        columns = (table[name].to_pylist() for name in ("row", "weight"))
        for turns, row, weight in zip(_conversations(table), *columns, strict=True):
            try:
                record = record_of(kind, *turns, float(f"{weight:.7g}"))
            except InputError as error:
                raise InputError(f"row {row}: {error}") from error
            yield encode(record).encode() + b"\n"


def _write_lines(out: Path, lines: Iterable[bytes]) -> None:
    with atomic_path(out) as tmp, open(tmp, "wb") as file:
        file.writelines(lines)


def _conversations(table: pa.Table) -> Iterator[tuple[list[dict], list[dict] | None]]:
    """Messages with all their keys, and tools."""
    from seal.datasets.prompts import whole

    extra = table["extra"] if "extra" in table.column_names else pa.nulls(len(table))
    return map(whole, table["messages"].to_pylist(), extra.to_pylist())


def _with_all_keys(table: pa.Table) -> pa.Table:
    """`messages` and `tools` as JSON where some message has more than role and content."""
    if "extra" not in table.column_names:
        return table
    messages, tools = zip(*_conversations(table), strict=True)
    table = table.drop(["messages", "extra"])
    for name, values in (("messages", messages), ("tools", tools)):
        texts = [json.dumps(value) if value else None for value in values]
        table = table.append_column(name, pa.array(texts, pa.string()))
    return table


def _write_parquet(out: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    with atomic_path(out) as tmp, pq.ParquetWriter(tmp, first.schema, compression="zstd") as writer:
        for table in chain([first], tables):
            writer.write_table(table)


def _entries(out: Path, kind: str) -> tuple[dict, dict]:
    """What `INFO` beside `out` holds, and what it is to hold.

    LLaMA-Factory needs an entry for `out` in its kinds; in others one of ours would mislead it.
    """
    path, ours = out.parent / INFO, {"file_name": out.name}
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if kind in _LLAMA_FACTORY:
            return known, {**known, out.stem: ours | _LLAMA_FACTORY[kind]}
        stale = known.get(out.stem) in [ours | entry for entry in _LLAMA_FACTORY.values()]
        return known, {name: known[name] for name in known if not (stale and name == out.stem)}
    except (ValueError, TypeError, AttributeError) as error:
        if kind not in _LLAMA_FACTORY:
            return {}, {}  # nothing of ours
        raise InputError(f"{path}: not a JSON object, the entry cannot be added") from error
