"""`seal score-new`: predicted scores for rows that a selector never saw.

The selector's own head where it carries one (`probe`, `--selector_head linear`). Else a linear head
on the model's hidden states is fitted to the ranks of its scores, and its rank correlation on
held-out rows says how far to trust it. The artefact, marked `predicted`, carries the head, so that
`score-new` on it predicts for more rows without fitting again.
"""

import argparse

from seal.cli.declared import take
from seal.command.dataset import add_dataset_flags, hide_bars
from seal.errors import InputError
from seal.provenance import sha256_of_file
from seal.selection.artefact import no_common_row, read_selection, selection_meta, write_selection
from seal.utils.record import shared

EXAMPLE = """\
seal score-new ckpt/mine.parquet --pretrain MODEL --dataset user.jsonl \
      --new_dataset more.jsonl --out ckpt/more.parquet"""
TEXT = ("max_len", "input_template", "apply_chat_template", "pretrain_mode", "supervise")
LOW = 0.5  # rank correlation on held-out rows below which a prediction ranks poorly


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("score-new", help="predict scores for rows a selector never saw")
    parser.add_argument("file", help="the selector (.parquet)")
    add_dataset_flags(parser, required=False)
    take(parser, "new_dataset", "pretrain")
    parser.add_argument("--out", required=True, help="the predicted selector to write (.parquet)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    from seal.selection.representation import Head, layers_to_try, middle
    from seal.trainer.amortised import features, fit_head

    selection = read_selection(args.file)
    text = {name: value for name, value in selection.meta["arguments"].items() if name in TEXT}
    text.setdefault("max_len", 512)
    kept = selection.meta.get("head")
    if kept is None and args.dataset is None:
        raise InputError(f"{args.file} carries no head; --dataset, what it scored, gives one")
    actor, read = _model(args, text)
    if kept:
        head, layer = Head.from_meta(kept), kept["layer"]
        merit = selection.meta.get("predicted") or {"spearman": None, "n": len(selection)}
    else:
        layer = middle(layers_to_try(actor.n_layers))
        rows, score = _scored(read(args.dataset), selection)
        head, merit = fit_head(features(actor, rows, layer), score, rows.ids)
    new = read(args.new_dataset)
    score = head.predict(features(actor, new, layer))
    merit = {"selector": sha256_of_file(args.file), **merit}
    given = {"selector": args.file, "new_dataset": args.new_dataset}
    meta = selection_meta(
        method="predicted",
        arguments={name: shared(value) for name, value in given.items()} | text,
        fingerprint=new.fingerprint,
        raw=new.raw,
        skipped=new.skipped,
        model=args.pretrain,
        tokenizer=args.pretrain,
        max_len=text["max_len"],
        seed=None,
    )
    columns = {"id": new.ids, "occurrence": new.occurrences, "row": new.row_numbers}
    meta |= {"predicted": merit, "head": head.to_meta(layer)}
    write_selection(args.out, columns | {"score": score}, meta)
    result = {"out": args.out, "rows": len(new), "layer": layer, **merit}
    return result, f"{len(new)} rows scored: {args.out}\n{_worth(merit)}"


def _worth(merit: dict) -> str:
    if merit["spearman"] is None:
        return "by the selector's own head"
    note = "" if merit["spearman"] >= LOW else ", too low to rank rows by"
    return f"rank correlation on held-out rows {merit['spearman']:.3f} (n = {merit['n']}){note}"


def _model(args: argparse.Namespace, text: dict):
    """The frozen model, and what reads and tokenises a dataset for it."""
    import torch
    import transformers

    from seal.datasets import load_rows, tokenize_rows
    from seal.models.actor import ModelSettings, load_actor
    from seal.models.probe import settle
    from seal.utils.tokenizer import get_tokenizer

    hide_bars()
    transformers.utils.logging.disable_progress_bar()
    cuda = torch.cuda.is_available()
    tokenizer = get_tokenizer(args.pretrain)
    actor = load_actor(ModelSettings(pretrain=args.pretrain, bf16=cuda))

    def read(names: str):
        keys = {"input_key": args.input_key, "output_key": args.output_key}
        probs = {"probs": args.dataset_probs} if names == args.dataset else {}
        rows = load_rows(names, seed=args.seed, **keys, **probs)
        return tokenize_rows(rows, tokenizer, **text)

    actor = actor.to("cuda" if cuda else "cpu").eval()
    settle(actor, actor)
    return actor, read


def _scored(rows, selection):
    """The rows that have a score, and the scores, float64 [rows]."""
    lines = selection.index.find(rows.ids, rows.occurrences)
    if (lines < 0).all():
        raise no_common_row(len(rows), selection)
    return rows.select((lines >= 0).nonzero()[0]), selection.score[lines[lines >= 0]].astype(float)
