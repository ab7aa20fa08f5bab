"""`seal convert`: a published selector (a bare tensor, .pt) into a selection artefact."""

import argparse

from seal.cli.declared import REQUIRED, take
from seal.command.dataset import add_dataset_flags, read_rows
from seal.errors import InputError, said
from seal.selection.artefact import write_selection

EXAMPLE = """\
seal convert selector.pt --dataset user.jsonl --selector_tokenizer MODEL \\
      --out selector.parquet"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "convert", help="turn a published .pt selector into a .parquet one"
    )
    parser.add_argument("file", help="the published selector (.pt)")
    add_dataset_flags(parser, required=True)
    names = ("selector_tokenizer", "selector_max_len", "input_template")
    take(parser, *names, selector_tokenizer=REQUIRED, selector_max_len=2048)
    parser.add_argument("--out", required=True, help="the .parquet file to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    from transformers import AutoTokenizer

    from seal.selection.published import published_columns

    rows = read_rows(args)
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.selector_tokenizer)
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer {args.selector_tokenizer!r}: {said(error)}") from error
    columns, meta = published_columns(
        args.file, rows, tokenizer, args.selector_max_len, args.input_template
    )
    counts = write_selection(args.out, columns, meta).meta["dataset"]
    result = {"file": args.file, "out": args.out, "dataset": counts}
    return result, f"{counts['scored']} of {counts['raw']} rows have a logit: {args.out}"
