"""Train a data selector by bilevel optimisation.

    deepspeed train_sft_selector.py --pretrain MODEL --dataset safe.jsonl --new_dataset user.jsonl

Writes `<selector_save_dir>/<selector_name>_<activation>.parquet` (and `_ep<k>` after each epoch).
"""

from contextlib import closing
from pathlib import Path

import numpy as np

from seal.cli import dry_run, flags
from seal.datasets import concatenate
from seal.datasets.rendering import turn_end
from seal.errors import InputError
from seal.models.actor import MAIN, TRACKER, ModelSettings, load_actor
from seal.models.selector import Selector
from seal.provenance import sha256_of_file
from seal.selection.artefact import write_selection
from seal.selection.calibration import calibrate
from seal.selection.evidence import told
from seal.selection.representation import Head, layers_to_try, middle, standardised
from seal.trainer.evaluation import Moved, half_means, half_sums, pooled_states
from seal.trainer.scorers import relative_contrast, reliability_of_rows
from seal.trainer.selector_trainer import SelectorPlan, SelectorTrainer
from seal.trainer.step import RowModel
from seal.utils import entry, record
from seal.utils.card import write_card
from seal.utils.logger import last_metrics
from seal.utils.schedule import schedule_factor
from seal.utils.tokenizer import get_tokenizer

MANY_VISITS = 24  # of each safe row; the demo's loop went wrong from 72 on (docs/footguns.md)


def train(args) -> None:
    """Runs the whole first stage."""
    if args.layer is not None and args.selector_head == "free":
        raise InputError("--layer is that of --selector_head linear; free logits have none")
    strategy = flags.get_strategy(args)
    base = Path(args.selector_save_dir) / f"{args.selector_name}_{args.selector_activation}"
    flags.refuse_existing(args, strategy, Path(f"{base}.parquet"))
    tokenizer = get_tokenizer(args.pretrain, args.trust_remote_code)
    safe, user, pool, evaluations = read_data(args, strategy, tokenizer)
    steps_per_epoch = -(-len(pool) // args.train_batch_size)
    steps = args.max_epochs * steps_per_epoch
    selector_factor = schedule_factor(args.selector_lr_scheduler, steps, args.lr_warmup_ratio)
    model, tracker = prepare_models(args, strategy, concatenate(safe, pool), steps)
    moved = Moved(model, safe, user, args.seed, swapped=True)  # a resumed run looks at the same
    states, depth, head_of = start_states(args, model, len(safe))
    selector = Selector(len(pool), args.selector_activation, args.selector_optim, states)
    plan = flags.settings(SelectorPlan, args, **flags.cadence(args, steps_per_epoch))
    meta = flags.artefact_meta(args, user, args.selector_estimator, args.pretrain)
    contrasted = bool(tracker) and states is None  # a head's score is its logit
    looked = depth + 2 * contrasted + moved.rows / len(user)
    meta["forward_equivalents"] = plan.forward_equivalents(bool(tracker)) + looked

    def save(path: str, score=None, worth=None) -> dict:
        score = selector.logits.double().numpy() if score is None else score
        columns = selector_columns(user, selector, score)
        taken = steps_per_epoch * int(selector.visits.max())
        said = {"reliability": worth, "steps": {"loop": taken}, "moved": {"loop": moved.losses()}}
        extra = {"evidence": said, "head": head_of(selector)}
        if len(pool) > len(user):
            extra |= {"calibration": calibrate(score[: len(user)], score[len(user) :])}
        strategy.on_rank_0(lambda: write_selection(path, columns, meta | extra))
        return meta | extra

    engines = list(dict.fromkeys([model.engine, *([tracker.engine] if tracker else [])]))
    outputs = filter(None, [base, args.save_path])
    begun = flags.begin(args, engines, strategy, model.dataset.ids, steps, *outputs)
    checkpoints, first_step, state, logger = begun
    if state:
        selector.load_state_dict(state)
    trainer = SelectorTrainer(
        model=model,
        n_safe=len(safe),
        selector=selector,
        selector_rate=lambda step: args.selector_learning_rate * selector_factor(step),
        plan=plan,
        logger=logger,
        evaluations=evaluations,
        save_epoch=lambda epoch: save(f"{base}_ep{epoch}.parquet"),
        save_checkpoint=lambda step: checkpoints.save(step, selector.state_dict()),
        tracker=tracker,
    )
    if args.dry_run:
        return dry_run.train(args, trainer, engines, bool(args.save_path), len(user))
    with closing(logger), strategy.stoppable():
        trainer.fit(first_step)
        scored = final_score(model, tracker, len(safe)) if contrasted else ()
        meta = save(f"{base}.parquet", *scored)
    strategy.print("\n".join([f"selector: {base}.parquet, {len(user)} rows scored", *told(meta)]))
    strategy.on_rank_0(lambda: record.write_run(vars(args), base))
    if args.save_path:
        save_model(args, model, tokenizer, base, safe, user)


def read_data(args, strategy, tokenizer):
    """The safe rows, the user's, these with the canaries, and the evaluation rows by name."""
    safe, user, canaries = flags.read_rows_to_score(args, strategy, tokenizer)
    evaluations = {}
    if args.eval_dataset:
        held_out = flags.read_rows(args, strategy, tokenizer, args.eval_dataset).without(safe, user)
        strategy.print(f"evaluation rows: {held_out}")
        evaluations["eval"] = held_out
    pool = concatenate(user, canaries) if canaries else user
    visits = args.max_epochs * len(pool) / len(safe)
    if visits > MANY_VISITS:
        strategy.print(
            f"note: training visits each safe row {visits:.0f} times and may learn them by heart: "
            "lower --max_epochs, add safe rows, or use score_dataset.py --method relative_excess"
        )
    return safe, user, pool, evaluations


def start_states(args, model, n_safe: int):
    """What a linear head sees: standardised states of the user's rows under the start, [N, F].

    Returns:
        The states, the share of a forward pass that they cost, and what gives the artefact the
        head of a selector over them; for free logits None, 0 and a function to None.
    """
    if args.selector_head == "free":
        return None, 0.0, lambda selector: None
    n_layers = model.engine.module.n_layers
    layer = middle(layers_to_try(n_layers, args.layer))
    rows = np.arange(n_safe, len(model.dataset))
    pooled = pooled_states(model, rows, [layer]).reshape(len(rows), -1)
    states, *scale = standardised(pooled)

    def head(selector) -> dict:
        return Head.on_standardised(selector.slope.numpy(), 0.0, *scale).to_meta(layer)

    return states, layer / n_layers, head


def prepare_models(args, strategy, rows, steps):
    """The model over all rows, and the lower level's tracker (None for Algorithm 2).

    Where adapters train the tracker is a second one on the same engine, else a second engine.
    """
    gap = args.selector_estimator == "penalty_gap"
    factor = schedule_factor(args.lr_scheduler, steps, args.lr_warmup_ratio)

    def prepared():
        with strategy.loading():
            actor = load_actor(flags.settings(ModelSettings, args))
        actor.require_apart(args.save_path)
        if gap and actor.has_adapter:
            actor.add_tracker()
        tracked = actor.parameters_of(TRACKER)
        optimizer = strategy.create_optimizer(actor, args.learning_rate, args.l2, tracked)
        return strategy.prepare(actor, optimizer, factor)

    def over_rows(engine, adapter):
        capacity = args.micro_train_batch_size * args.max_len
        return RowModel(engine, strategy, rows, capacity, args.aux_loss_coef, adapter)

    engine = prepared()
    if not gap:
        return over_rows(engine, MAIN), None
    shared = engine.module.has_adapter
    return over_rows(engine, MAIN), over_rows(engine if shared else prepared(), TRACKER)


def final_score(model, tracker, n_safe):
    """One contrast pass with the final models: float64 [user rows], and its reliability.

    The trained logit carries the noise of early visits, when both models were still alike.
    """
    rows = np.arange(n_safe, len(model.dataset))
    sums = half_sums(tracker, rows, "tracker"), half_sums(model, rows, "model")
    tokens = model.dataset.supervised[rows]
    score, *halves = (
        relative_contrast(*(half_means(part, tokens, half) for part in sums))
        for half in (None, 0, 1)
    )
    return score, reliability_of_rows(*halves)


def save_model(args, model, tokenizer, base: Path, safe, user) -> None:
    """Writes the model that was trained along with the selector, and its card."""
    if args.apply_chat_template:
        model.engine.module.end_at(turn_end(tokenizer))
    model.strategy.save_model(model.engine, tokenizer, args.save_path)
    path = Path(f"{base}.parquet")
    data = {"safe rows": len(safe), "safe": safe.fingerprint, "user rows": len(user)}

    def describe() -> None:
        record.write_run(vars(args), args.save_path)
        facts = {
            "Selector": {"selector": path.name, "sha256": sha256_of_file(path)},
            "Rows": data | {"user": user.fingerprint},
            "Metrics at the end": last_metrics(base),
        }
        summary = "Trained along with a selector: on safe rows, and on others by their weight."
        write_card(args.save_path, summary, facts, record.run_config(vars(args)))

    model.strategy.on_rank_0(describe)


def selector_columns(user, selector, score) -> dict:
    """The artefact's columns; the canaries, which come last, are left out."""
    scored = {
        "score": score,
        "logit": selector.logits,
        "weight": selector.final_weights(),
        "visits": selector.visits,
        "loss": selector.mean_losses(),
    }
    names = {"id": user.ids, "occurrence": user.occurrences, "row": user.row_numbers}
    return names | {name: column[: len(user)] for name, column in scored.items()}


def main() -> None:
    """Runs the script on the command line's flags."""
    train(flags.selector_parser().parse_args())


if __name__ == "__main__":
    entry.run(main)
