"""Algorithm 1 twice over: two adapters on one engine, and two models with an engine each.

    deepspeed --num_gpus 2 gap_driver.py MODEL OUT

OUT/<stage>-<checkpointing>.npz holds weights and logits of both; they must agree.
"""

import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from laws_driver import (
    MAX_LEN,
    Case,
    Record,
    SGDStrategy,
    case_rows,
    factor,
    keyed,
    make_dataset,
    model_settings,
)

from seal.models.actor import MAIN, TRACKER, load_actor
from seal.models.selector import Selector
from seal.trainer.selector_trainer import SelectorPlan, SelectorTrainer
from seal.trainer.step import RowModel
from seal.utils import engine_state, entry
from seal.utils.strategy import Zero

MAX_NORM = 0.3  # the model's gradients are above and below it, the tracker's are not the same
STAGES, CHECKPOINTING = (0, 2, 3), ("", "plain", "reentrant")


def prepare(case: Case, strategy: SGDStrategy, second_adapter: bool):
    """An engine with one or two adapters, every LoRA weight drawn anew from one seed."""
    strategy.setup_distributed()
    with strategy.loading():
        actor = load_actor(model_settings(case))
    if second_adapter:
        actor.add_tracker()
    generator = torch.Generator().manual_seed(0)
    main = {n: p for n, p in actor.model.named_parameters() if f".{MAIN}." in n}
    named = dict(actor.model.named_parameters())
    for name, parameter in main.items():
        pair = [parameter]
        if second_adapter:
            pair.append(named[name.replace(f".{MAIN}.", f".{TRACKER}.")])
        with strategy.writable(pair):
            values = torch.randn(parameter.shape, generator=generator) * 0.1
            for each in pair:
                each.data.copy_(values)
    groups = strategy.parameter_groups(actor, 0.0, actor.parameters_of(TRACKER))
    return strategy.prepare(actor, torch.optim.SGD(groups, lr=case.rate), factor)


def train(
    case: Case, strategy: SGDStrategy, engines: list, logger: Record
) -> tuple[Selector, dict]:
    """Trains Algorithm 1; returns the selector and what both levels' adapters became."""
    dataset = make_dataset(case_rows(case))
    selector = Selector(case.user)
    levels = [
        RowModel(engine, strategy, dataset, case.micro * MAX_LEN, adapter=adapter)
        for engine, adapter in zip(engines, (MAIN, engines_adapter(engines)), strict=True)
    ]
    SelectorTrainer(
        model=levels[0],
        n_safe=case.safe,
        selector=selector,
        selector_rate=lambda step: case.selector_rate,
        plan=SelectorPlan(case.epochs, case.batch, 5, case.upper, case.decay),
        logger=logger,
        evaluations={},
        save_epoch=lambda epoch: None,
        save_checkpoint=lambda step: None,
        tracker=levels[1],
    ).fit()
    first = engine_state.full_state(strategy, engines[0], trainable_only=True)
    second = engine_state.full_state(strategy, engines[1], trainable_only=True)
    other = engines_adapter(engines)
    weights = {n: t.numpy() for n, t in first.items() if f".{MAIN}." in n}
    weights |= {
        n.replace(f".{other}.", f".{TRACKER}."): t.numpy()
        for n, t in second.items()
        if f".{other}." in n
    }
    return selector, weights


def engines_adapter(engines: list) -> str:
    """The tracker's adapter: the second of a shared engine, the only one of its own."""
    return TRACKER if engines[0] is engines[1] else MAIN


def run_case(case: Case, out: Path) -> None:
    """Trains both forms and writes what they ended with."""
    results = {}
    for form in ("shared", "apart"):
        strategy = SGDStrategy(Zero(case.stage), max_norm=case.max_norm)
        engines = [prepare(case, strategy, form == "shared")]
        engines.append(engines[0] if form == "shared" else prepare(case, strategy, False))
        logger = Record()
        selector, weights = train(case, strategy, engines, logger)
        results |= keyed(f"{form}/weight", weights)
        results[f"{form}/logits"] = selector.logits.numpy()
        results[f"{form}/norms"] = np.array([m["train/grad_norm"] for m in logger.metrics])
        for engine in dict.fromkeys(engines):
            engine.destroy()
    if strategy.is_rank_0():
        np.savez(out / f"{case.name}.npz", **results)


def main() -> None:
    """Runs every stage with every form of checkpointing."""
    model, out = sys.argv[-2:]
    start = Case("", model, lora=True, upper=0.9, decay=0.4, max_norm=MAX_NORM)
    for stage, checkpointing in product(STAGES, CHECKPOINTING):
        name = f"{stage}-{checkpointing or 'none'}"
        case = replace(start, name=name, stage=stage, checkpointing=checkpointing)
        run_case(case, Path(out))


if __name__ == "__main__":
    entry.run(main)
