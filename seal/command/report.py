"""`seal report`: one HTML file that says what a selection kept, dropped, cost and led to.

The file is self-contained: no script, no network.
"""

import argparse
import shlex
import sys
from pathlib import Path

from seal.cli.declared import take
from seal.command.dataset import add_dataset_flags, add_topp_flags, read_rows
from seal.errors import InputError
from seal.files import require_new
from seal.utils.record import shared

EXAMPLE = """\
seal report ckpt/demo_softmax.parquet --dataset demo/user.jsonl --topp 0.7 \\
      --column provenance --metrics runs/selector/metrics.jsonl --out report.html"""


def add_parser(subparsers) -> None:
    """Adds the subcommand to what `add_subparsers` returned."""
    parser = subparsers.add_parser(
        "report",
        help="write one HTML file on a selection: what was kept and dropped, cost, evaluation",
    )
    parser.add_argument("selection", type=Path, help="the selector's .parquet file")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="file to write")
    add_topp_flags(parser)
    add_dataset_flags(parser, required=False)
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        help="break the cut down by this column; may be repeated (default: provenance, source "
        "and category where they exist)",
    )
    parser.add_argument("--metrics", type=Path, help="metrics.jsonl of a training")
    parser.add_argument(
        "--results",
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        help="results.json of examples/evaluate.py or of the quickstart; may be repeated",
    )
    parser.add_argument("--rows", type=int, default=10, help="rows shown in each list (default 10)")
    parser.add_argument("--no_text", action="store_true", help="write no row text")
    take(parser, "overwrite")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    """Writes the report; returns where it is and its size in bytes, and the same for a reader."""
    from seal.report import write_report  # reads datasets: too slow for `seal --help`

    read = [args.selection, args.metrics, *args.results, *(args.dataset or "").split(",")]
    if args.out.resolve() in {Path(path).resolve() for path in read if path}:
        raise InputError(f"--out {args.out} is one of the files to read; give another")
    if not args.overwrite:
        require_new(args.out, "--out")
    doubts: list[str] = []
    path = write_report(
        args.out,
        selection=args.selection,
        topp=args.topp,
        max_canary_kept=args.max_canary_kept,
        confidence=args.confidence,
        dataset=None if args.dataset is None else read_rows(args),
        results=args.results,
        metrics=args.metrics,
        columns=args.column,
        redact_text=args.no_text,
        rows_shown=args.rows,
        command=shlex.join(["seal", *map(shared, sys.argv[1:])]),
        warn=doubts.append,
    )
    size = path.stat().st_size
    text = [f"wrote {path} ({size / 1000:.0f} kB)", *(f"warning: {doubt}" for doubt in doubts)]
    return {"report": str(path), "bytes": size, "doubts": doubts}, "\n".join(text)
