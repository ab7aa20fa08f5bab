"""Train a data selector by bilevel optimisation.

    deepspeed train_sft_selector.py --pretrain MODEL --dataset safe.jsonl --new_dataset user.jsonl

Writes `<selector_save_dir>/<selector_name>_<activation>.parquet` (and `_ep<k>` after each epoch).
"""

from pathlib import Path

from seal.datasets import concatenate, load_rows, tokenize_rows
from seal.errors import InputError
from seal.models.actor import ModelSettings, load_actor
from seal.models.attention import attention_note
from seal.models.selector import Selector
from seal.selection.artefact import selection_meta, write_selection
from seal.trainer.checkpoint import Checkpoints
from seal.trainer.selector_trainer import SelectorPlan, SelectorTrainer
from seal.trainer.step import RowLosses
from seal.utils import cli
from seal.utils.schedule import schedule_factor
from seal.utils.tokenizer import get_tokenizer


def train(args) -> None:
    """Runs the whole first stage."""
    if not 0 < args.upperlevel_weight <= 1 or args.upperlevel_weight_decay < 0:
        raise InputError(
            f"--upperlevel_weight must be in (0, 1] and its decay not negative, "
            f"got {args.upperlevel_weight} and {args.upperlevel_weight_decay}"
        )
    strategy = cli.get_strategy(args)
    tokenizer = get_tokenizer(args.pretrain, **cli.tokenizer_flags(args))

    def read(names, probs="1.0"):
        rows = load_rows(names, probs=probs, **cli.source_flags(args))
        return tokenize_rows(rows, tokenizer, **cli.text_flags(args))

    safe = strategy.main_first(lambda: read(args.dataset, args.dataset_probs))
    user = strategy.main_first(lambda: read(args.new_dataset))
    strategy.print(f"safe rows: {safe}\nuser rows: {user}")

    selector = Selector(len(user), args.selector_activation, args.selector_optim)
    steps_per_epoch = -(-len(user) // args.train_batch_size)
    steps = args.max_epochs * steps_per_epoch
    factor = schedule_factor(args.lr_scheduler, steps)
    selector_factor = schedule_factor(args.selector_lr_scheduler, steps)

    with strategy.loading():
        actor = load_actor(cli.settings(ModelSettings, args))
    optimizer = strategy.create_optimizer(actor, args.learning_rate, args.l2)
    engine = strategy.prepare(actor, optimizer, factor)
    strategy.print(attention_note(args.flash_attn, args.attn_implementation, args.bf16))

    capacity = args.micro_train_batch_size * args.max_len
    losses = RowLosses(engine, strategy, concatenate(safe, user), capacity, args.aux_loss_coef)
    evaluations = {}
    if args.eval_dataset:
        held_out = strategy.main_first(lambda: read(args.eval_dataset)).without(safe, user)
        evaluations["eval"] = (RowLosses(engine, strategy, held_out, capacity), len(held_out))

    base = Path(args.selector_save_dir) / f"{args.selector_name}_{args.selector_activation}"
    meta = selection_meta(
        method="penalty",
        arguments=cli.run_config(args)["arguments"],
        fingerprint=user.fingerprint,
        raw=user.raw,
        skipped=user.skipped,
        model=args.pretrain,
        tokenizer=args.pretrain,
        max_len=args.max_len,
        seed=args.seed,
    ) | {"command": cli.run_config(args)["command"]}

    def save(path: Path) -> None:
        columns = {
            "id": user.ids,
            "occurrence": user.occurrences,
            "row": user.row_numbers,
            "score": selector.logits,
            "logit": selector.logits,
            "weight": selector.final_weights(),
            "visits": selector.visits,
            "loss": selector.mean_losses(),
        }
        strategy.on_rank_0(lambda: write_selection(path, columns, meta))

    strategy.on_rank_0(lambda: cli.write_config(args, base))
    checkpoints = Checkpoints(
        args.ckpt_path,
        strategy,
        engine,
        cli.run_config(args)["arguments"],
        args.max_ckpt_num,
        args.max_ckpt_mem,
    )
    first_step = 0
    if args.load_checkpoint:
        first_step, state = checkpoints.load(args.load_checkpoint)
        selector.load_state_dict(state)
    logger = cli.get_logger(args, base, strategy.is_rank_0(), steps, first_step)
    trainer = SelectorTrainer(
        losses=losses,
        n_safe=len(safe),
        selector=selector,
        selector_rate=lambda step: args.selector_learning_rate * selector_factor(step),
        plan=cli.settings(SelectorPlan, args, **cli.cadence(args, steps_per_epoch)),
        logger=logger,
        evaluations=evaluations,
        save_epoch=lambda epoch: save(Path(f"{base}_ep{epoch}.parquet")),
        save_checkpoint=lambda step: checkpoints.save(step, selector.state_dict()),
    )
    trainer.fit(first_step)
    logger.close()
    save(Path(f"{base}.parquet"))
    strategy.print(f"selector: {base}.parquet, {len(user)} rows scored")
    if args.save_path:
        strategy.save_model(engine, tokenizer, args.save_path)
        strategy.on_rank_0(lambda: cli.write_config(args, args.save_path))


if __name__ == "__main__":
    cli.run(lambda: train(cli.selector_parser().parse_args()))
