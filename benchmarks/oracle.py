"""Every estimator of a row's worth against what the row really does, on a tiny world.

    python benchmarks/oracle.py --seeds 5 --out benchmarks/results/oracle.json

One process, CPU. Each estimator runs in the package's own trainers; the oracle is
`unrolled`. The last line of the output is JSON.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from oracle_world import World
from scipy.stats import spearmanr, t
from transformers import LlamaForCausalLM
from unrolled import (
    Oracle,
    ShortRun,
    linear_datamodelling_score,
    subset_weights,
)

from seal.datasets.sft_dataset import concatenate
from seal.files import atomic_path
from seal.models.actor import Actor, ModelSettings
from seal.models.attention import VARLEN
from seal.models.selector import Selector
from seal.provenance import commit, versions
from seal.statistics import auroc
from seal.trainer.evaluation import row_means
from seal.trainer.order import EpochBatches
from seal.trainer.passes import Engines, Passes, Tuning, tune
from seal.trainer.scorers import score_rows
from seal.trainer.scoring import Parts
from seal.trainer.selector_trainer import SelectorPlan, SelectorTrainer
from seal.trainer.sft_trainer import SFTPlan
from seal.trainer.step import RowModel
from seal.utils.logger import NoLogger
from seal.utils.strategy import DeepspeedStrategy, Zero

BATCH = 16  # rows a step
KEPT = 0.5  # share of the rows in a subset
SHIPPED, HALF = (0.9, 0.1), (0.5, 0.0)  # weight of the safe loss, and its fall an epoch
SELECTOR_RATE = 1e-4  # so small that the weights stay at one, where the oracle differentiates
ONE_PASS = ("random", "perplexity", "safe_loss", "excess_loss")
METRICS = ("spearman_unrolled", "spearman_left_out", "lds", "auroc")


@dataclass(frozen=True)
class Setting:
    """How the model is trained, by the oracle and by every estimator.

    Attributes:
        epochs: over the user's rows.
        rate: constant learning rate.
        adam: Adam, else plain SGD.
    """

    epochs: int
    rate: float
    adam: bool


SETTINGS = {
    "gentle": Setting(epochs=3, rate=0.003, adam=False),
    "short": Setting(epochs=3, rate=0.01, adam=False),
    "long": Setting(epochs=5, rate=0.05, adam=False),
    "adam": Setting(epochs=4, rate=1e-3, adam=True),
}


class SGDStrategy(DeepspeedStrategy):
    """DeepSpeed refuses an optimizer it has not tested unless it is told otherwise."""

    def ds_config(self, micro_batch: int = 1) -> dict:
        """The package's configuration with plain SGD allowed."""
        return super().ds_config(micro_batch) | {"zero_allow_untested_optimizer": True}


class WorldEngines(Engines):
    """Engines of a world's model; saved weights stay in memory, by name, "start" among them.

    Args:
        strategy: of one process, without clipping.
        setting: of the optimizer.
    """

    def __init__(self, strategy: DeepspeedStrategy, world: World, setting: Setting):
        super().__init__(strategy, ModelSettings("in memory"), tokenizer=None, capacity=4096)
        self.model, self.setting = world.model, setting
        self.kept = {"start": world.model.state_dict()}

    def engine(self, start: str | None, rate: float, *_):
        """A fresh engine at saved weights, the aligned model's for None; its rate is constant."""
        model = LlamaForCausalLM._from_config(self.model.config, attn_implementation=VARLEN)
        model.load_state_dict(self.kept[start or "start"])
        actor = Actor(model)
        optimizer = (
            self.strategy.create_optimizer(actor, rate, 0.0)
            if self.setting.adam
            else torch.optim.SGD(actor.parameters(), lr=rate)
        )
        return self.strategy.prepare(actor, optimizer)

    def save(self, engine, directory: str) -> None:
        """Keeps a copy of the weights."""
        state = engine.module.model.state_dict()
        self.kept[directory] = {n: p.clone() for n, p in state.items()}


class Estimators:
    """Scores of the user's rows, higher = keep, each from the package's own passes and trainers.

    Args:
        strategy: of one process, without clipping.
        setting: what every model is trained with.
        seed: of the order of rows, which the oracle's run shares.
    """

    def __init__(self, strategy: DeepspeedStrategy, world: World, setting: Setting, seed: int):
        self.strategy, self.world, self.setting, self.seed = strategy, world, setting, seed
        self.engines = WorldEngines(strategy, world, setting)
        self.n_safe, self.n_rows = len(world.safe), len(world.rows)
        self.both = concatenate(world.safe, world.rows)
        steps = setting.epochs * len(EpochBatches(self.n_rows, BATCH, 0, 0))
        safe_epochs = round(steps / len(EpochBatches(self.n_safe, BATCH, 0, 0)))
        for name, rows, epochs in (
            ("rows", world.rows, setting.epochs),
            ("safe", world.safe, safe_epochs),
        ):
            engine = self.engines.engine(None, setting.rate)
            tune(self.engines.over(engine, rows), SFTPlan(epochs, BATCH, seed))
            self.engines.save(engine, name)

    def model(self, rate: float, start: str | None = None) -> RowModel:
        """A fresh model over the safe rows and the user's."""
        return self.engines.over(self.engines.engine(start, rate), self.both)

    def losses(self, model: RowModel) -> np.ndarray:
        """Mean nats a token of each of the user's rows."""
        return row_means(model.over(self.world.rows), np.arange(self.n_rows))

    def passes(self, rows_model: str) -> Passes:
        """The package's passes, with the model that counts as tuned on the rows."""
        tuning = Tuning(influence_step=1e-4 if self.setting.adam else 1e-3, seed=self.seed)
        ready = {"safe": "safe", "rows": rows_model}
        world, parts = self.world, Parts(self.strategy)
        return Passes(self.engines, world.safe, world.rows, tuning, parts, ready)

    def all(self) -> dict[str, np.ndarray]:
        """Every score, by the name it has in the table."""
        drifted, aligned = self.passes("rows"), self.passes("start")
        asked = {name: (drifted, name) for name in ONE_PASS}
        asked["influence, aligned"] = aligned, "influence"
        asked["influence, drifted"] = drifted, "influence"
        scores = {
            name: score_rows(passes, method).columns["score"]
            for name, (passes, method) in asked.items()
        }
        scores["penalty"] = self.penalty(SHIPPED, tracked=False)["logit"]
        shipped = self.penalty(SHIPPED)
        matched = self.penalty(HALF, matched=True)
        scores["penalty_gap, shipped: logit"] = shipped["logit"]
        scores["penalty_gap, shipped: contrast"] = shipped["contrast"]
        scores["penalty_gap, gamma 0.5: contrast"] = self.penalty(HALF)["contrast"]
        scores["penalty_gap, matched: logit"] = matched["logit"]
        scores["penalty_gap, matched: contrast"] = matched["contrast"]
        late = self.penalty(HALF, matched=True, start="rows", epochs=1)
        scores["penalty_gap, matched, drifted: contrast"] = late["contrast"]
        return scores

    def penalty(
        self,
        upper: tuple[float, float],
        tracked: bool = True,
        matched: bool = False,
        start: str | None = None,
        epochs: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Trained logits and, with a tracker, the contrast of the final models.

        Args:
            upper: weight of the safe loss in the first epoch, and what it loses after each.
            tracked: Algorithm 1, else Algorithm 2.
            matched: the model's rate is divided by gamma, so that it takes the tracker's steps on
                the rows, and steps on the safe loss besides. Adam does that by itself: its step
                does not depend on the scale of the gradient.
            start: name of both models' weights; None for the aligned model's.
        """
        rate = self.setting.rate
        scaled = rate / (1 - upper[0]) if matched and not self.setting.adam else rate
        model = self.model(scaled, start)
        tracker = self.model(rate, start) if tracked else None
        selector = Selector(self.n_rows)
        epochs = epochs or self.setting.epochs
        SelectorTrainer(
            model=model,
            n_safe=self.n_safe,
            selector=selector,
            selector_rate=lambda step: SELECTOR_RATE,
            plan=SelectorPlan(epochs, BATCH, self.seed, *upper),
            logger=NoLogger(),
            evaluations={},
            save_epoch=lambda epoch: None,
            save_checkpoint=lambda step: None,
            tracker=tracker,
        ).fit()
        scores = {"logit": selector.logits.numpy()}
        if tracked:
            scores["contrast"] = self.losses(tracker) - self.losses(model)
        return scores


def measure(strategy: DeepspeedStrategy, name: str, seed: int, n_subsets: int) -> list[dict]:
    """One record for each estimator, and two for the oracle's own forms."""
    world, setting = World(seed), SETTINGS[name]
    n_rows = len(world.rows)
    schedule = [
        rows for epoch in range(setting.epochs) for rows in EpochBatches(n_rows, BATCH, seed, epoch)
    ]
    run = ShortRun(schedule, setting.rate, setting.adam)
    oracle = Oracle(world.model, world.rows, world.safe, run)
    unrolled, left_out = oracle.scores(), oracle.left_out()
    weights = subset_weights(n_rows, n_subsets, KEPT, seed)
    outcomes = oracle.safe_losses(weights)
    estimators = Estimators(strategy, world, setting, seed)
    tuned = estimators.engines.kept["rows"]
    error = max(
        float((tuned[weight].double() - value).abs().max())
        for weight, value in oracle.trained().items()
    )
    shared = {
        "setting": name,
        "seed": seed,
        "safe_loss": float(oracle.safe_losses(np.ones((1, n_rows)))[0]),
        "tuned_error": error,
    }
    scores = {"unrolled": unrolled, "left_out": left_out} | estimators.all()
    return [
        shared
        | {
            "estimator": estimator,
            "spearman_unrolled": float(spearmanr(score, unrolled).statistic),
            "spearman_left_out": float(spearmanr(score, left_out).statistic),
            "lds": linear_datamodelling_score(score, weights, outcomes),
            "auroc": auroc(score, world.kinds != "conflict"),
        }
        for estimator, score in scores.items()
    ]


def summarise(records: list[dict]) -> list[dict]:
    """Mean and 95 % t-interval over seeds of each setting and estimator."""
    rows = []
    for setting, estimator in dict.fromkeys((r["setting"], r["estimator"]) for r in records):
        chosen = [r for r in records if (r["setting"], r["estimator"]) == (setting, estimator)]
        row = {"setting": setting, "estimator": estimator, "n": len(chosen)}
        for metric in METRICS:
            values = np.array([record[metric] for record in chosen])
            half = 0.0
            if len(values) > 1:
                half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
            row[metric] = [round(float(v), 3) for v in (values.mean(), half)]
        rows.append(row)
    return rows


def table(summary: list[dict]) -> str:
    """The summary in Markdown."""
    lines = ["| setting | score | n | " + " | ".join(METRICS) + " |", "|---" * 7 + "|"]
    for row in summary:
        cells = [f"{row[m][0]:.2f} ± {row[m][1]:.2f}" for m in METRICS]
        lines.append(
            f"| {row['setting']} | {row['estimator']} | {row['n']} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures every setting and seed, prints the table, writes the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="worlds, counted from 0")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--subsets", type=int, default=50, help="models retrained on half the rows")
    parser.add_argument("--out", help="JSON file; none is written without it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    strategy = SGDStrategy(Zero(0), max_norm=0.0, seed=0)
    strategy.setup_distributed()
    started, records = time.process_time(), []
    for seed, setting in product(range(args.seeds), args.settings):
        records += measure(strategy, setting, seed, args.subsets)
    summary = summarise(records)
    result = {
        "seconds_cpu": round(time.process_time() - started),
        "subsets": args.subsets,
        "settings": {name: asdict(SETTINGS[name]) for name in args.settings},
        "commit": commit(),
        "versions": versions(),
        "summary": summary,
        "records": records,
    }
    if args.out:
        with atomic_path(args.out) as tmp:
            tmp.write_text(json.dumps(result, indent=1) + "\n")
        Path(args.out).with_suffix(".md").write_text(table(summary) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
