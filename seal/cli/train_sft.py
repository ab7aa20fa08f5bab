"""Supervised fine-tuning on the rows a selector keeps.

    deepspeed train_sft.py --pretrain MODEL --dataset user.jsonl --selector_path S --topp 0.8

Without `--selector_path`, or with `--topp 1`, this is plain SFT on every row. Writes the model,
or its LoRA adapter, and its model card to `--save_path`.
"""

import math
from contextlib import closing
from pathlib import Path

from seal.cli import dry_run, flags
from seal.datasets import concatenate, load_rows
from seal.datasets.rendering import turn_end
from seal.errors import InputError
from seal.models.actor import ModelSettings, load_actor
from seal.provenance import sha256_of_file
from seal.selection.artefact import select_rows
from seal.selection.calibration import share_kept
from seal.selection.evidence import doubts
from seal.selection.load import load_selection
from seal.trainer.sft_trainer import SFTPlan, SFTTrainer
from seal.trainer.step import RowModel
from seal.utils import entry, record
from seal.utils.card import write_card
from seal.utils.logger import last_metrics
from seal.utils.schedule import schedule_factor
from seal.utils.tokenizer import get_tokenizer

NOTE = (
    "selector {selector}: {kept} of {rows} rows kept at topp {topp:g}; {unscored} rows had no "
    "score, {missing} scored rows are not in this dataset"
)
EVAL_ON_TRAIN_ROWS = 1000  # enough for a loss, cheap enough to take often


def train(args) -> None:
    """Runs the whole second stage."""
    if args.selector_path and args.topp is None:
        raise InputError(
            "--selector_path needs --topp: 0.8 keeps 80 % of the scored rows, 1 all of them, auto "
            "what the canaries justify"
        )
    if not args.selector_path and args.topp not in (None, 1):
        raise InputError(f"--topp {args.topp} needs --selector_path, the selector to keep rows by")
    if args.save_best and not args.eval_dataset:
        raise InputError("--save_best compares losses on --eval_dataset; give one")
    strategy = flags.get_strategy(args)
    flags.refuse_existing(args, strategy)
    tokenizer = get_tokenizer(args.pretrain, args.trust_remote_code)
    rows, held_out, selected = read_data(args, strategy, tokenizer)
    steps_per_epoch = -(-len(rows) // args.train_batch_size)
    steps = args.max_epochs * steps_per_epoch

    factor = schedule_factor(args.lr_scheduler, steps, args.lr_warmup_ratio)
    with strategy.loading():
        actor = load_actor(flags.settings(ModelSettings, args))
    actor.require_apart(args.save_path)
    if args.apply_chat_template:
        actor.end_at(turn_end(tokenizer))
    optimizer = strategy.create_optimizer(actor, args.learning_rate, args.l2)
    engine = strategy.prepare(actor, optimizer, factor)
    capacity = args.micro_train_batch_size * args.max_len
    model = RowModel(engine, strategy, rows, capacity, args.aux_loss_coef)
    evaluations = {}
    if held_out:
        evaluations["eval"] = held_out
    if args.eval_on_train:
        evaluations["eval_on_train"] = rows.sample(EVAL_ON_TRAIN_ROWS, args.seed)

    checkpoints, first_step, state, logger = flags.begin(
        args, [engine], strategy, rows.ids, steps, args.save_path
    )

    def save_best(step: int) -> None:
        strategy.save_model(engine, tokenizer, f"{args.save_path}/best")
        strategy.print(f"best so far: {args.save_path}/best, step {step}")

    trainer = SFTTrainer(
        model=model,
        plan=flags.settings(SFTPlan, args, **flags.cadence(args, steps_per_epoch)),
        logger=logger,
        evaluations=evaluations,
        save_checkpoint=lambda step: checkpoints.save(step, {"best_loss": trainer.best_loss}),
        save_best=save_best if args.save_best else None,
    )
    if args.dry_run:
        return dry_run.train(args, trainer, [engine], models=1 + args.save_best)
    trainer.best_loss = state.get("best_loss", math.inf)
    with closing(logger), strategy.stoppable():
        trainer.fit(first_step)
        strategy.save_model(engine, tokenizer, args.save_path)
    strategy.on_rank_0(lambda: describe(args, rows, selected))
    strategy.print(f"model: {args.save_path}")


def read_data(args, strategy, tokenizer):
    """The rows to train on, the evaluation rows or None, and what `select` says of its choice."""
    rows = flags.read_rows(args, strategy, tokenizer, args.dataset, args.dataset_probs)
    strategy.print(f"rows: {rows}")
    flags.note_template(args, strategy, tokenizer)
    selected = {}
    if args.selector_path:
        everything = rows
        rows, selected = strategy.main_first(lambda: select(args, everything))
        warnings = [f"warning: {doubt}" for doubt in selected["doubts"]]
        strategy.print("\n".join([NOTE.format(**selected), *warnings, f"kept: {rows}"]))
    if args.safeinstr_dataset:
        safe = flags.read_rows(args, strategy, tokenizer, args.safeinstr_dataset)
        strategy.print(f"mixed in: {safe}")
        rows = concatenate(rows, safe)
    if not args.eval_dataset:
        return rows, None, selected
    held_out = flags.read_rows(args, strategy, tokenizer, args.eval_dataset).without(rows)
    strategy.print(f"evaluation rows: {held_out}")
    return rows, held_out, selected


def select(args, rows):
    """The rows the selector keeps, and the facts of how they were found."""
    published = {}
    if args.selector_path.endswith(".pt"):  # bare logits: their rows are found by replay
        published = {
            "rows": load_rows(args.dataset, probs=args.dataset_probs, **flags.source_flags(args)),
            "tokenizer": get_tokenizer(args.selector_tokenizer or args.pretrain),
            "max_len": args.selector_max_len or args.max_len,
            "input_template": args.input_template,
        }
    selection = load_selection(args.selector_path, **published)
    topp = share_kept(selection, args.topp, args.max_canary_kept, args.confidence)
    selected = select_rows(rows.ids, rows.occurrences, selection, topp, args.unscored)
    facts = {
        "selector": args.selector_path,
        "sha256": sha256_of_file(args.selector_path),
        "method": selection.meta["method"],
        "doubts": doubts(selection.meta) + template_doubts(args, selection.meta),
        "topp": topp,
        "kept": len(selected.indices),
        "rows": len(rows),
        "unscored": selected.unscored,
        "missing": selected.missing,
        "dataset": rows.fingerprint,
        "dataset scored": selection.meta["dataset"]["fingerprint"],
    }
    return rows.select(selected.indices), facts


def template_doubts(args, meta: dict) -> list[str]:
    """What is wrong where rows were scored under another template than they are trained under."""
    then = meta["arguments"].get("apply_chat_template", args.apply_chat_template)
    if then == args.apply_chat_template:
        return []
    scored, now = ("with" if said else "without" for said in (then, args.apply_chat_template))
    return [f"the rows were scored {scored} --apply_chat_template, and are trained on {now} it"]


def describe(args, rows, selected) -> None:
    """Writes what the run was started with, and the model card."""
    if selected:
        selected = selected | {"selector": Path(args.selector_path).name}
    record.write_run(vars(args), args.save_path, selected)
    trained = {"dataset": record.shared(args.dataset), "fingerprint": rows.fingerprint}
    trained |= {"rows": len(rows), "tokens": int(rows.lengths.sum())}
    trained |= {"cut to max_len": rows.truncated}
    facts = {"Rows": trained, "Metrics at the end": last_metrics(args.save_path)}
    if selected:
        facts = {"Selection": selected, **facts}
    which = "the rows that a selector keeps" if selected else "every row of its dataset"
    write_card(args.save_path, f"Fine-tuned on {which}.", facts, record.run_config(vars(args)))


def main() -> None:
    """Runs the script on the command line's flags."""
    train(flags.sft_parser().parse_args())


if __name__ == "__main__":
    entry.run(main)
