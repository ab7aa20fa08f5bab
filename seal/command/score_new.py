"""`seal score-new`: predicted scores for rows that a selector never saw.

A linear head on the model's mean hidden states is fitted to the selector's scores, kept beside the
selector as <selector>.head.npz, and used again when nothing has changed. Its rank correlation on
held-out rows says how far to trust it. The artefact is marked `predicted`.
"""

import argparse
from pathlib import Path

from seal.command.dataset import add_dataset_flags, hide_bars
from seal.errors import InputError
from seal.provenance import sha256_of_file

EXAMPLE = """\
seal score-new ckpt/mine.parquet --pretrain MODEL --dataset user.jsonl \\
      --new_dataset more.jsonl --out ckpt/more.parquet"""
TEXT = ("max_len", "input_template", "apply_chat_template", "pretrain_mode", "supervise")
LOW = 0.5  # rank correlation on held-out rows below which a prediction ranks poorly


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("score-new", help="predict scores for rows a selector never saw")
    parser.add_argument("file", help="the selector (.parquet)")
    add_dataset_flags(parser, required=True)
    parser.add_argument("--new_dataset", required=True, help="the rows to predict scores for")
    parser.add_argument("--pretrain", required=True, help="model directory or hub name")
    parser.add_argument("--out", required=True, help="the predicted selector to write (.parquet)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    from seal.selection.amortised import fit_head, load_head, mean_states, save_head
    from seal.selection.artefact import read_selection, selection_meta, write_selection

    selection = read_selection(args.file)
    if selection.meta["method"] == "predicted":
        raise InputError(f"{args.file} holds predicted scores; give the selector they came from")
    text = {name: value for name, value in selection.meta["arguments"].items() if name in TEXT}
    text.setdefault("max_len", 512)
    embed, read = _model(args, text)
    head_path = Path(args.file).with_suffix(".head.npz")
    key = {"selector": sha256_of_file(args.file), "model": args.pretrain, "text": text}
    head = load_head(head_path, key)
    if head is None:
        rows, score = _scored(read(args.dataset), selection)
        head = fit_head(mean_states(embed, rows), score, rows.ids)
        save_head(head_path, head, key)
    new = read(args.new_dataset)
    predicted = head.predict(mean_states(embed, new))
    merit = {"selector": key["selector"], "spearman": head.spearman, "n": head.n}
    meta = selection_meta(
        method="predicted",
        arguments={"selector": args.file, "new_dataset": args.new_dataset, **text},
        fingerprint=new.fingerprint,
        raw=new.raw,
        skipped=new.skipped,
        model=args.pretrain,
        tokenizer=args.pretrain,
        max_len=text["max_len"],
        seed=None,
    )
    columns = {"id": new.ids, "occurrence": new.occurrences, "row": new.row_numbers}
    write_selection(args.out, columns | {"score": predicted}, meta | {"predicted": merit})
    result = {"out": args.out, "head": str(head_path), "rows": len(new), **merit}
    note = "" if head.spearman >= LOW else ", too low to rank rows by"
    return result, (
        f"{len(new)} rows scored: {args.out}\nrank correlation on held-out rows "
        f"{head.spearman:.3f} (n = {head.n}){note}; head: {head_path}"
    )


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
        raise InputError(
            f"none of the {len(rows)} dataset rows is among the selector's {len(selection)} rows; "
            "--dataset is what the selector scored"
        )
    return rows.select((lines >= 0).nonzero()[0]), selection.score[lines[lines >= 0]].astype(float)
