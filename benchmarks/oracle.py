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
from seal.models.actor import Actor
from seal.models.attention import VARLEN
from seal.models.selector import Selector
from seal.provenance import commit, versions
from seal.statistics import auroc
from seal.trainer.evaluation import row_means
from seal.trainer.order import EpochBatches
from seal.trainer.passes import tune
from seal.trainer.scorers import random_scores
from seal.trainer.selector_trainer import SelectorPlan, SelectorTrainer
from seal.trainer.sft_trainer import SFTPlan
from seal.trainer.step import RowModel
from seal.utils.logger import NoLogger
from seal.utils.strategy import DeepspeedStrategy, Zero

BATCH = 16  # rows a step
KEPT = 0.5  # share of the rows in a subset
SHIPPED, HALF = (0.9, 0.1), (0.5, 0.0)  # weight of the safe loss, and its fall an epoch
SELECTOR_RATE = 1e-4  # so small that the weights stay at one, where the oracle differentiates
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


class Estimators:
    """Scores of the user's rows, higher = keep, each from the package's own trainers.

    Args:
        strategy: of one process, without clipping.
        setting: what every model is trained with.
        seed: of the order of rows, which the oracle's run shares.
    """

    def __init__(self, strategy: DeepspeedStrategy, world: World, setting: Setting, seed: int):
        self.strategy, self.world, self.setting, self.seed = strategy, world, setting, seed
        self.n_safe, self.n_rows = len(world.safe), len(world.rows)
        self.both = concatenate(world.safe, world.rows)
        self.user = self.n_safe + np.arange(self.n_rows)  # row numbers in `both`

    def engine(self, rate: float, start: dict | None = None) -> RowModel:
        """A fresh engine over the safe rows and the user's, from the aligned model or `start`."""
        model = LlamaForCausalLM._from_config(self.world.model.config, attn_implementation=VARLEN)
        model.load_state_dict(start or self.world.model.state_dict())
        actor = Actor(model)
        optimizer = (
            self.strategy.create_optimizer(actor, rate, 0.0)
            if self.setting.adam
            else torch.optim.SGD(actor.parameters(), lr=rate)
        )
        engine = self.strategy.prepare(actor, optimizer)
        return RowModel(engine, self.strategy, self.both, capacity=4096)

    def tuned(self, rows: np.ndarray, epochs: int) -> RowModel:
        """Plain SFT on some rows of `both`."""
        losses = self.engine(self.setting.rate)
        chosen = RowModel(losses.engine, self.strategy, self.both.select(rows), capacity=4096)
        tune(chosen, SFTPlan(epochs, BATCH, self.seed))
        return losses

    def losses(self, model: RowModel) -> np.ndarray:
        """Mean nats a token of each of the user's rows."""
        return row_means(model, self.user)

    def weights(self, model: RowModel) -> dict[str, torch.Tensor]:
        """A copy of a model's weights."""
        return {n: p.clone() for n, p in model.engine.module.model.state_dict().items()}

    def all(self) -> dict[str, np.ndarray]:
        """Every score, by the name it has in the table."""
        setting = self.setting
        steps = setting.epochs * len(EpochBatches(self.n_rows, BATCH, 0, 0))
        safe_epochs = round(steps / len(EpochBatches(self.n_safe, BATCH, 0, 0)))
        rows = self.tuned(self.user, setting.epochs)
        drifted = self.weights(rows)
        safe_loss = self.losses(self.tuned(np.arange(self.n_safe), safe_epochs))
        start = self.engine(setting.rate)
        scores = {
            "random": random_scores(self.n_rows, self.seed),
            "perplexity": -self.losses(start),
            "safe_loss": -safe_loss,
            "excess_loss": self.losses(rows) - safe_loss,
            "influence, aligned": self.influence(self.weights(start)),
            "influence, drifted": self.influence(drifted),
            "penalty": self.penalty(SHIPPED, tracked=False)["logit"],
        }
        shipped = self.penalty(SHIPPED)
        matched = self.penalty(HALF, matched=True)
        scores["penalty_gap, shipped: logit"] = shipped["logit"]
        scores["penalty_gap, shipped: contrast"] = shipped["contrast"]
        scores["penalty_gap, gamma 0.5: contrast"] = self.penalty(HALF)["contrast"]
        scores["penalty_gap, matched: logit"] = matched["logit"]
        scores["penalty_gap, matched: contrast"] = matched["contrast"]
        late = self.penalty(HALF, matched=True, start=drifted, epochs=1)
        scores["penalty_gap, matched, drifted: contrast"] = late["contrast"]
        return scores

    def influence(self, start: dict) -> np.ndarray:
        """Change of each row's loss along one optimizer step on the safe loss (central)."""
        ends = []
        for direction in (1, -1):
            model = self.engine(1e-4 if self.setting.adam else 1e-3, start)
            share = direction / self.n_safe / self.world.safe.supervised
            model.backward(np.arange(self.n_safe), torch.from_numpy(share).float())
            self.strategy.step(model.engine)
            ends.append(self.losses(model))
        return ends[1] - ends[0]

    def penalty(
        self,
        upper: tuple[float, float],
        tracked: bool = True,
        matched: bool = False,
        start: dict | None = None,
        epochs: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Trained logits and, with a tracker, the contrast of the final models.

        Args:
            upper: weight of the safe loss in the first epoch, and what it loses after each.
            tracked: Algorithm 1, else Algorithm 2.
            matched: the model's rate is divided by gamma, so that it takes the tracker's steps on
                the rows, and steps on the safe loss besides. Adam does that by itself: its step
                does not depend on the scale of the gradient.
            start: weights of both models; None for the aligned model's.
        """
        rate = self.setting.rate
        scaled = rate / (1 - upper[0]) if matched and not self.setting.adam else rate
        model = self.engine(scaled, start)
        tracker = self.engine(rate, start) if tracked else None
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
    tuned = estimators.weights(estimators.tuned(estimators.user, setting.epochs))
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
