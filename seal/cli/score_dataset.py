"""Score rows with one pass over them: contrasts, baselines, influence. The artefact is the same.

    deepspeed score_dataset.py --method excess_loss --pretrain MODEL --dataset safe.jsonl \
        --new_dataset user.jsonl --selector_name excess

Writes `<selector_save_dir>/<selector_name>.parquet`. Started again after an interruption, it takes
up the finished parts of `--work_dir`. Methods that share a `--work_dir` share their passes.
"""

import os
import tempfile
from pathlib import Path

import datasets
import numpy as np

from seal.cli import dry_run, flags
from seal.datasets import concatenate, load_rows
from seal.errors import InputError
from seal.models.actor import ModelSettings, count_layers
from seal.progress import Progress
from seal.selection.artefact import Selection, read_selection, write_selection
from seal.selection.calibration import calibrate
from seal.selection.evidence import told
from seal.selection.representation import check_anchors, check_enough, layers_to_try
from seal.trainer.passes import Engines, Passes, Tuning
from seal.trainer.scorers import ANCHORED, MODEL_FREE, OVER_STATES, check_method, score_rows
from seal.trainer.scoring import Parts
from seal.utils import entry
from seal.utils.tokenizer import get_tokenizer

FEWEST_DRY = 16  # rows of each set in a dry run
# The rows of --dataset and its kind are in a pass's key by their content.
NOT_OF_A_PASS = ("method", "selector_name", "work_dir", "layer", "smooth", "unsafe_dataset")
NOT_OF_A_PASS += ("dataset", "new_dataset", "canary_dataset")


def score(args) -> Path | None:
    """Runs the chosen method; returns the artefact's path."""
    check_method(args.method)
    if args.dry_run and model_free(args):
        raise InputError(f"--dry_run: --method {args.method} runs no model and ends at once")
    if args.method in ANCHORED and not args.unsafe_dataset:
        raise InputError(f"--method {args.method} needs --unsafe_dataset, rows known to be bad")
    strategy = flags.get_strategy(args)
    path = Path(args.selector_save_dir) / f"{args.selector_name}.parquet"
    flags.refuse_existing(args, strategy, path)
    tokenizer = get_tokenizer(args.pretrain, args.trust_remote_code)
    safe, user, canaries = flags.read_rows_to_score(args, strategy, tokenizer)
    unsafe = read_anchors(args, strategy, tokenizer, safe, user, canaries)
    pool = concatenate(user, canaries) if canaries else user
    share = 1.0
    if args.dry_run:
        share = min(1.0, args.dry_run * args.train_batch_size / len(pool))
        few = [max(FEWEST_DRY, round(share * len(rows))) for rows in (safe, pool)]
        safe, pool = safe.sample(few[0], args.seed), pool.sample(few[1], args.seed)
    passes = prepare(args, strategy, tokenizer, path, safe, pool, len(user), unsafe)
    scored = score_rows(passes, args.method, args.smooth)
    if args.dry_run:
        return dry_run.score(passes, scored, share, len(user))
    model = None if model_free(args) else args.pretrain
    meta = flags.artefact_meta(args, user, args.method, model) | {
        "seconds": {"score": scored.seconds},
        "cpu_seconds": scored.cpu_seconds,
        "forward_equivalents": round(scored.forward_equivalents, 2),
        "evidence": scored.evidence,
        "head": scored.head,
    }
    if canaries:
        own, theirs = np.split(scored.columns["score"], [len(user)])
        meta |= {"calibration": calibrate(own, theirs)}
    columns = {name: column[: len(user)] for name, column in scored.columns.items()}
    columns |= {"id": user.ids, "occurrence": user.occurrences, "row": user.row_numbers}
    strategy.on_rank_0(lambda: write_selection(path, columns, meta))
    strategy.print(
        f"selector: {path}, {len(user)} rows scored in {scored.seconds:.1f} s, "
        f"{scored.forward_equivalents:.1f} forward passes a row"
    )
    strategy.print("\n".join(told(meta)))
    return path


def prepare(args, strategy, tokenizer, path, safe, pool, n_user, unsafe) -> Passes:
    """The passes over the rows, whose finished parts are kept; a dry run keeps none."""
    settings, tuning = flags.settings(ModelSettings, args), flags.settings(Tuning, args)
    layers, parts = [], Parts(strategy)
    if args.smooth or args.method in OVER_STATES:
        layers = layers_to_try(count_layers(settings), args.layer)
    if not (model_free(args) or args.dry_run):
        key = flags.identity(args, np.concatenate([safe.ids, pool.ids]))
        key = {name: value for name, value in key.items() if name not in NOT_OF_A_PASS}
        parts = Parts(strategy, args.work_dir or path.with_name(f"{path.stem}_parts"), key)
    capacity = args.micro_train_batch_size * args.max_len
    return Passes(
        Engines(strategy, settings, tokenizer, capacity, args.l2),
        safe,
        pool,
        tuning,
        parts,
        ready={"safe": args.safe_model, "rows": args.rows_model},
        texts=lambda: strategy.main_first(lambda: texts(args, n_user, pool)),
        unsafe=unsafe,
        layers=layers,
    )


def model_free(args) -> bool:
    """Whether no model is run."""
    return args.method in MODEL_FREE and not args.smooth


def read_anchors(args, strategy, tokenizer, safe, user, canaries):
    """The known-bad rows where the method needs them, else None; refuses what cannot judge."""
    if args.method == "pu_probe":
        for name, rows in (("--dataset", safe), ("--new_dataset", user)):
            check_enough(name, rows.ids)
    if args.method not in ANCHORED:
        return None
    unsafe = flags.read_rows(args, strategy, tokenizer, args.unsafe_dataset)
    strategy.print(f"unsafe rows: {unsafe}")
    scored = {"--new_dataset": user.ids, "--canary_dataset": canaries.ids if canaries else None}
    check_anchors(safe.ids, unsafe.ids, scored)
    return unsafe


def texts(args, n_user: int, pool) -> tuple[list[str], list[str]]:
    """The texts of the rows to score, canaries last, and of all safe rows."""

    def read(names, probs="1.0", rows=None):
        messages = load_rows(names, probs=probs, **flags.source_flags(args))["messages"]
        chosen = range(len(messages)) if rows is None else rows
        return [" ".join(turn["content"] for turn in messages[int(at)]) for at in chosen]

    scored = read(args.new_dataset, args.new_dataset_probs, pool.row_numbers[:n_user])
    if len(pool) > n_user:
        scored += read(args.canary_dataset, rows=pool.row_numbers[n_user:])
    return scored, read(args.dataset, args.dataset_probs)


def score_rows_of(
    dataset: datasets.Dataset | str,
    safe: datasets.Dataset | str,
    method: str,
    *,
    pretrain: str,
    out: str | os.PathLike,
    **further,
) -> Selection:
    """Scores every row by one method, in this process, and writes the selector.

    The scores and the file are those of `examples/score_dataset.py` with the same flags. A
    `datasets.Dataset` goes through a temporary file, so that it is read like any other.

    Args:
        dataset: rows to score, of any schema of `docs/data.md`, or the name of a file or dataset.
        safe: the trusted rows, likewise.
        method: how a row is scored; `docs/method.md` compares the methods.
        pretrain: model directory or hub name.
        out: the .parquet file to write.
        further: any other flag of the script by its name (`docs/flags.md`): True sets a switch, and
            `unsafe_dataset` and `canary_dataset` take rows as `dataset` does.

    Returns:
        The selector: `score`, float32 [N], higher = keep, beside `id`, `row` and `meta`.

    Raises:
        InputError: an unknown method or flag, a value out of bounds, unreadable rows, or a
            selector is there and `overwrite` is not given.

    Examples:
        >>> seal.score(rows, "safe.jsonl", "relative_excess", pretrain="MODEL", out="mine.parquet")
        >>> kept = seal.select(rows, "mine.parquet", topp=0.8)
    """
    out = Path(out)
    if out.exists() and not further.get("overwrite"):
        raise InputError(f"{out} exists; give another out, or overwrite=True")
    if out.suffix != ".parquet":
        raise InputError(f"out must end in .parquet, got {out}")
    values = {"new_dataset": dataset, "dataset": safe, "method": method, "pretrain": pretrain}
    values = further | values | {"selector_save_dir": out.parent, "selector_name": out.stem}
    with tempfile.TemporaryDirectory() as scratch, Progress("working"):
        for name, value in values.items():
            if isinstance(value, datasets.Dataset):
                values[name] = f"{scratch}/{name}.parquet"
                value.with_format(None).to_parquet(values[name])
        return read_selection(score(flags.score_parser().parse_values(values, "score")))


def main() -> None:
    """Runs the script on the command line's flags."""
    score(flags.score_parser().parse_args())


if __name__ == "__main__":
    entry.run(main)
