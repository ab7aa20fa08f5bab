"""Trains many small configurations one after another in one process group.

    deepspeed --num_gpus 2 laws_driver.py CASES.json OUT

For each case OUT/<name>.npz holds metrics a step (`metric/...`), the selector (`selector/...`),
where a model is saved the first `states` of two rows after one layer, and weights before
(`initial/...`), after (`final/...`) and after a resumed run (`resumed/...`).
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from tiny import random_rows
from transformers import AutoTokenizer

from seal.datasets import SFTDataset
from seal.ids import id_bytes
from seal.models.actor import ModelSettings, load_actor
from seal.models.selector import Selector
from seal.trainer.checkpoint import Checkpoints
from seal.trainer.selector_trainer import SelectorPlan, SelectorTrainer
from seal.trainer.sft_trainer import SFTPlan, SFTTrainer
from seal.trainer.step import RowModel
from seal.utils import engine_state, entry
from seal.utils.strategy import DeepspeedStrategy, Precision, Zero

MAX_LEN = 24
LORA = {"lora_rank": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}


@dataclass(frozen=True)
class Case:
    """One training run.

    Attributes:
        name: of its result file.
        model: directory of the starting model.
        trainer: "selector" or "sft".
        user: rows trained on (or selected among); safe: rows of the safe set.
        batch: rows a step; micro: rows of MAX_LEN tokens a rank holds at once.
        equal: every row has MAX_LEN tokens (of which a random number is supervised).
        checkpointing: "", "plain" or "reentrant".
        rate: of SGD, or of AdamW with `adamw`.
        resume_at: step after which a second run takes over from a snapshot; 0 for none.
    """

    name: str
    model: str
    trainer: str = "selector"
    stage: int = 0
    user: int = 11
    safe: int = 5
    batch: int = 4
    micro: int = 2
    epochs: int = 2
    equal: bool = False
    bf16: bool = False
    lora: bool = False
    liger: bool = False
    dropout: float = 0.0
    checkpointing: str = ""
    activation: str = "softmax"
    optim: str = "mirror"
    upper: float = 1.0
    decay: float = 0.4
    rate: float = 0.2
    selector_rate: float = 0.1
    max_norm: float = 1.0
    aux_loss_coef: float = 0.0
    adamw: bool = False
    resume_at: int = 0
    save: bool = False

    @property
    def n_safe(self) -> int:
        """Safe rows of this trainer's dataset."""
        return self.safe if self.trainer == "selector" else 0


def factor(step: int) -> float:
    """Learning-rate factor of every case: it falls, so a schedule off by a step shows."""
    return 1.0 - step / 20


def case_rows(case: Case) -> list[tuple]:
    """(token ids, first supervised position) of the safe rows, then the user rows."""
    n_rows = case.n_safe + case.user
    lengths = np.random.default_rng(3).integers(3, MAX_LEN + 1, n_rows).tolist()
    return random_rows([MAX_LEN] * n_rows if case.equal else lengths)


def make_dataset(rows: list[tuple]) -> SFTDataset:
    """A tokenised dataset of rows made by `tiny.random_rows`."""
    columns = {
        "input_ids": [tokens.tolist() for tokens, _ in rows],
        "supervised": [[at >= start for at in range(len(tokens))] for tokens, start in rows],
        "id": [f"{number:032x}" for number in range(len(rows))],
        "occurrence": [0] * len(rows),
        "row": list(range(len(rows))),
    }
    known = {
        "place": np.arange(len(rows)),
        "id": id_bytes(columns["id"]),
        "occurrence": np.zeros(len(rows), np.int32),
        "row": np.arange(len(rows)),
        "length": np.array([len(tokens) for tokens, _ in rows]),
        "supervised": np.array([len(tokens) - max(start, 1) for tokens, start in rows]),
    }
    return SFTDataset(
        datasets.Dataset.from_dict(columns),
        known.__getitem__,
        skipped={},
        truncated=0,
        raw=len(rows),
        fingerprint="0" * 32,
    )


def model_settings(case: Case) -> ModelSettings:
    """What to load."""
    return ModelSettings(
        pretrain=case.model,
        bf16=case.bf16,
        use_liger_kernel=case.liger,
        aux_loss_coef=case.aux_loss_coef,
        lora_dropout=case.dropout,
        gradient_checkpointing=bool(case.checkpointing),
        gradient_checkpointing_use_reentrant=case.checkpointing == "reentrant",
        **(LORA if case.lora else {}),
    )


class SGDStrategy(DeepspeedStrategy):
    """Plain SGD shows an error in a gradient's scale; Adam divides it away."""

    def ds_config(self, micro_batch: int = 1) -> dict:
        """The real configuration, which DeepSpeed would refuse for SGD."""
        return super().ds_config(micro_batch) | {"zero_allow_untested_optimizer": True}


class Record:
    """A logger that keeps what it is given."""

    failure = None

    def __init__(self):
        self.metrics: list[dict] = []

    def log(self, step: int, metrics: dict, show: bool = True) -> None:
        """Keeps the metrics of a training step, but for the clock's."""
        if "train/epoch" in metrics:
            for name in ("tokens_per_second", "tflops", "peak_gib", "utilisation"):
                metrics.pop(f"train/{name}", None)
            self.metrics.append({"step": step, **metrics})


class Run:
    """One engine with its trainer, made as the entry scripts make them."""

    def __init__(self, case: Case, strategy: DeepspeedStrategy, out: Path):
        self.case, self.strategy = case, strategy
        strategy.setup_distributed()
        with strategy.loading():
            actor = load_actor(model_settings(case))
        if case.adamw:
            optimizer = strategy.create_optimizer(actor, case.rate, l2=0.1)
        else:
            trainable = [p for p in actor.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(trainable, lr=case.rate)
        self.engine = strategy.prepare(actor, optimizer, factor)
        self.logger = Record()
        self.selector = Selector(case.user, case.activation, case.optim)
        self.checkpoints = Checkpoints(
            out / f"{case.name}.ckpt", strategy, [self.engine], asdict(case), max_num=1, max_gb=1
        )
        dataset = make_dataset(case_rows(case))
        capacity = case.micro * MAX_LEN
        self.losses = RowModel(self.engine, strategy, dataset, capacity, case.aux_loss_coef)

    def fit(self, first_step: int = 0) -> None:
        """Trains to the end."""
        trainer = self._selector() if self.case.trainer == "selector" else self._sft()
        trainer.fit(first_step)

    def resume(self) -> None:
        """Trains from the newest snapshot to the end."""
        first_step, state = self.checkpoints.begin("auto")
        assert first_step == self.case.resume_at
        if state:
            self.selector.load_state_dict(state)
        self.fit(first_step)

    def weights(self) -> dict[str, np.ndarray]:
        """What trains, by name (rank 0 only)."""
        state = engine_state.full_state(self.strategy, self.engine, trainable_only=self.case.lora)
        return {name: tensor.float().numpy() for name, tensor in state.items()}

    def states(self) -> np.ndarray:
        """States of the first two rows after the first layer, [T, H]."""
        batch = self.losses.dataset.batch([0, 1])
        with torch.no_grad():
            return self.engine(batch, layers=[1])[0].float().numpy()

    def selection(self) -> dict[str, np.ndarray]:
        """The selector's columns."""
        s = self.selector
        columns = {"logits": s.logits, "visits": s.visits, "losses": s.mean_losses()}
        return {name: column.numpy().copy() for name, column in columns.items()}

    def _plan(self) -> dict:
        case = self.case
        sizes = {"max_epochs": case.epochs, "train_batch_size": case.batch, "seed": 5}
        return sizes | {"save_steps": case.resume_at}

    def _selector(self) -> SelectorTrainer:
        case = self.case
        upper = {"upperlevel_weight": case.upper, "upperlevel_weight_decay": case.decay}
        return SelectorTrainer(
            model=self.losses,
            n_safe=case.safe,
            selector=self.selector,
            selector_rate=lambda step: case.selector_rate * factor(step),
            plan=SelectorPlan(**self._plan(), **upper),
            logger=self.logger,
            evaluations={},
            save_epoch=lambda epoch: None,
            save_checkpoint=lambda step: self._save(step, self.selector.state_dict()),
        )

    def _sft(self) -> SFTTrainer:
        return SFTTrainer(
            model=self.losses,
            plan=SFTPlan(**self._plan()),
            logger=self.logger,
            evaluations={},
            save_checkpoint=lambda step: self._save(step, {}),
        )

    def _save(self, step: int, state: dict) -> None:
        if step == self.case.resume_at:
            self.checkpoints.save(step, state)


def keyed(prefix: str, values: dict) -> dict:
    """The same values under `prefix/name`."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def run_case(case: Case, out: Path) -> None:
    """Trains one case and writes its results."""
    strategy = (DeepspeedStrategy if case.adamw else SGDStrategy)(
        Zero(case.stage), Precision(case.bf16), max_norm=case.max_norm
    )
    run = Run(case, strategy, out)
    results = keyed("initial", run.weights())
    if case.save:
        results["states"] = run.states()
    run.fit()
    results |= keyed("final", run.weights()) | keyed("selector", run.selection())
    metrics = {k: np.array([m[k] for m in run.logger.metrics]) for k in run.logger.metrics[0]}
    results |= keyed("metric", metrics)
    if case.save:
        tokenizer = AutoTokenizer.from_pretrained(case.model)
        strategy.save_model(run.engine, tokenizer, str(out / f"{case.name}.model"))
    run.engine.destroy()
    if case.resume_at:
        again = Run(case, strategy, out)
        again.resume()
        results |= keyed("resumed", again.weights())
        results |= keyed("resumed_selector", again.selection())
        again.engine.destroy()
    if strategy.is_rank_0():
        np.savez(out / f"{case.name}.npz", **results)


def main() -> None:
    """Runs the cases of a file."""
    cases, out = (Path(word) for word in sys.argv[-2:])
    for fields in json.loads(cases.read_text()):
        run_case(Case(**fields), out)


if __name__ == "__main__":
    entry.run(main)
