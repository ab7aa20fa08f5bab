"""What the studies on real words share: drawn rows, one warm model, greedy answers, a ledger."""

import gzip
import json
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from seal.assess.engine import HFEngine, answer_texts
from seal.assess.generation import Sampling, Template
from seal.assess.rendering import encode_prompts
from seal.datasets import SFTDataset, load_rows, row_id, tokenize_rows
from seal.errors import InputError
from seal.files import atomic_path
from seal.models.actor import MAIN, ModelSettings, load_actor
from seal.provenance import commit
from seal.trainer.passes import Engines
from seal.trainer.step import RowModel
from seal.utils import engine_state
from seal.utils.schedule import WARMUP_RATIO, schedule_factor
from seal.utils.strategy import DeepspeedStrategy, Precision, Zero
from seal.utils.tokenizer import get_tokenizer

MAX_LEN = 256


def read_lines(path: Path) -> list[dict]:
    """The rows of a .jsonl.gz file.

    Raises:
        InputError: it is not there.
    """
    if not path.exists():
        raise InputError(f"{path} is not there; --data must hold the research data")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_corpus(data: Path, quick: bool) -> tuple[list[dict], int]:
    """The rows of both files with the file's name in "file", and the tokens a row may have."""
    rows = [row | {"file": "mix"} for row in read_lines(data / "mix.jsonl.gz")]
    rows += [row | {"file": "safe"} for row in read_lines(data / "safe.jsonl.gz")]
    if not quick:
        return rows, MAX_LEN
    some = [row for at, row in enumerate(rows) if row["source"] == "pku" or at % 40 == 0]
    return [row for at, row in enumerate(some) if row["source"] != "pku" or at % 20 < 2], 64


def write_lines(path: Path, rows: list[dict]) -> None:
    """Writes rows as JSON lines."""
    with atomic_path(path) as tmp, open(tmp, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def draw(rows: list[dict], count: int, seed: int) -> list[dict]:
    """`count` rows in which each source and provenance keeps its share; PKU by whole prompts.

    Whole prompts, so that a prompt's safe and unsafe responses are drawn together.
    """
    rng = random.Random(seed)
    shares = Counter(row["source"] for row in rows)
    drawn: list[dict] = []
    for place, (source, size) in enumerate(reversed(shares.most_common()), 1):
        # the largest source comes last and fills up, a prompt of several rows may exceed its share
        wanted = count if place == len(shares) else len(drawn) + round(count * size / len(rows))
        by_prompt: dict[str, list[dict]] = {}
        for row in rows:
            if row["source"] == source:
                by_prompt.setdefault(row["prompt"], []).append(row)
        for group in rng.sample(list(by_prompt.values()), len(by_prompt)):
            if len(drawn) >= wanted:
                break
            drawn += group
    drawn = drawn[:count]
    return rng.sample(drawn, len(drawn))


def identity(row: dict) -> str:
    """The name the package gives to a row of prompt and response."""
    turns = [("user", row["prompt"]), ("assistant", row["response"])]
    return row_id([{"role": role, "content": content} for role, content in turns])


class Corpus:
    """Every row of the research data that a study touches, tokenised once.

    Args:
        rows: of prompt, response and ground truth, which the tokens hold nothing of.
        tokenizer: the model's.
        folder: for the file that the package's own readers read.

    Attributes:
        rows: those that were kept, in the order of `tokens`.
    """

    def __init__(
        self,
        rows: list[dict],
        tokenizer,
        folder: Path,
        max_len: int,
        name: str,
        num_proc: int | None = None,
    ):
        path = folder / f"{name}.jsonl"
        keys = ("messages",) if "messages" in rows[0] else ("prompt", "response")
        write_lines(path, [{key: row[key] for key in keys} for row in rows])
        self.tokens: SFTDataset = tokenize_rows(
            load_rows(str(path)),
            tokenizer,
            max_len=max_len,
            apply_chat_template=True,
            supervise="last",
            num_proc=num_proc,
        )
        self.rows = [rows[at] for at in self.tokens.row_numbers]

    def find(self, wanted: Callable[[dict], bool]) -> np.ndarray:
        """Places of the rows that a condition holds for."""
        return np.array([at for at, row in enumerate(self.rows) if wanted(row)], dtype=np.int64)


class WarmEngines(Engines):
    """Engines that are one engine, put back to the start: loading a model costs more than tuning.

    The model holds a second adapter, for the lower level's tracker.
    """

    def __init__(self, strategy, settings: ModelSettings, tokenizer, capacity: int):
        super().__init__(strategy, settings, tokenizer, capacity)
        actor = load_actor(settings)
        actor.add_tracker()
        self.layers = actor.n_layers
        optimizer = strategy.create_optimizer(actor, 1e-3, 0.0)
        self._factor = schedule_factor("constant", 1)
        self._engine = strategy.prepare(actor, optimizer, lambda step: self._factor(step))
        self._kept = {None: self._weights()}

    def engine(
        self,
        start: str | None,
        rate: float,
        scheduler: str,
        steps: int,
        warmup_ratio: float = WARMUP_RATIO,
    ):
        """The engine at the start, or at what was saved under a name."""
        self.strategy.seed_everything()
        engine = self._engine
        engine_state.start_over(self.strategy, engine, self._kept[start], rate)
        self._factor = schedule_factor(scheduler, steps, warmup_ratio)
        schedule = engine.lr_scheduler
        schedule.base_lrs = [rate] * len(schedule.base_lrs)
        schedule.last_epoch = 0
        for group, lr in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
            group["lr"] = lr * self._factor(0)
        return engine

    def over(self, engine, rows: SFTDataset, adapter: str = MAIN) -> RowModel:
        """The engine over some rows."""
        return RowModel(engine, self.strategy, rows, self.capacity, adapter=adapter)

    def release(self, engine) -> None:
        """Keeps the engine."""

    def save(self, engine, directory: str) -> None:
        """Keeps the weights in memory, under the directory's name."""
        self._kept[directory] = self._weights()

    def end(self) -> None:
        """Frees the engine."""
        self._engine.destroy()

    def _weights(self) -> dict[str, torch.Tensor]:
        trained = engine_state.trainable(self._engine)
        return {name: p.detach().float().clone() for name, p in trained.items()}


class World:
    """The model, what runs it, and the corpus.

    Args:
        pretrain: directory of the model.
        data: folder of the research data.
        work: folder for what need not be kept.
        bf16: arithmetic; on a GPU always wise.
        capacity: tokens a micro-batch holds.
    """

    def __init__(self, pretrain: str, data: Path, work: Path, bf16: bool, capacity: int):
        self.data, self.work, self.bf16, self.capacity = data, work, bf16, capacity
        self.strategy = DeepspeedStrategy(Zero(stage=2), Precision(bf16), seed=0)
        self.tokenizer = get_tokenizer(pretrain)
        self.pretrain = pretrain
        self.engines: WarmEngines | None = None

    def start_from(self, pretrain: str) -> None:
        """Makes a model the one that everything is tuned from."""
        if self.engines:
            self.engines.end()
        else:  # only now: reading rows forks processes, which a GPU in use does not like
            self.strategy.setup_distributed()
        settings = ModelSettings(pretrain=pretrain, bf16=self.bf16, lora_rank=16)
        self.engines = WarmEngines(self.strategy, settings, self.tokenizer, self.capacity)
        self.layers = self.engines.layers

    def corpus(
        self, rows: list[dict], name: str, max_len: int = MAX_LEN, num_proc: int | None = None
    ) -> Corpus:
        """Rows tokenised for this model; with one process where a GPU is in use already."""
        return Corpus(rows, self.tokenizer, self.work, max_len, name, num_proc)


class Generator:
    """Greedy answers of a model with an adapter merged in; only verdicts leave it.

    Args:
        pretrain: directory of the base the adapter was trained on.
        prompts: to answer, all at once.
    """

    def __init__(self, world: World, pretrain: str, prompts: Sequence[str], new_tokens: int):
        dtype = torch.bfloat16 if world.bf16 else torch.float32
        model = AutoModelForCausalLM.from_pretrained(pretrain, dtype=dtype)
        self.model = model.to(world.strategy.device).eval()
        self.base = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.engine = HFEngine(self.model, world.tokenizer, Sampling(max_new_tokens=new_tokens))
        self.ids = encode_prompts(prompts, world.tokenizer, Template(chat=True))
        self.capacity = world.capacity

    @torch.no_grad()
    def merge(self, actor) -> None:
        """Takes over the base with the actor's adapter."""
        for name, layer in actor.model.named_modules():
            if isinstance(layer, BaseTunerLayer):
                name = f"{name.removeprefix('base_model.model.')}.weight"
                change = layer.get_delta_weight(MAIN)
                weight = self.model.get_parameter(name)
                weight.copy_((self.base[name].float() + change.float()).to(weight.dtype))

    def labels(self, judges: dict[str, Callable[[list[str]], list[str]]]) -> dict[str, np.ndarray]:
        """Each judge's label of each prompt's answer, [P]."""
        answers = answer_texts(self.engine, self.ids, 2 * self.capacity)
        return {name: np.array(judge(answers)) for name, judge in judges.items()}


class Ledger:
    """Finished units of a study: one JSON line each; a unit that is in it is not run again.

    Args:
        path: of the .jsonl file.
        seconds: after which no unit is begun.

    Attributes:
        failed: names of units that raised.
    """

    def __init__(self, path: Path, seconds: float):
        self.path, self.end = path, time.monotonic() + seconds
        self.failed: list[str] = []
        lines = path.read_text().splitlines() if path.exists() else []
        self.found = {record["unit"]: record for record in map(json.loads, lines)}

    def unit(self, name: str, work: Callable[[], dict]) -> dict | None:
        """The record of a unit: read, or made by `work`; None where time is up."""
        if name in self.found:
            return self.found[name]
        if time.monotonic() > self.end:
            print(f"{name}: no time left", flush=True)
            return None
        started = time.perf_counter()
        try:
            record = {"unit": name, **work()}
        except Exception:  # the units after it need not fail too; the status says that one did
            traceback.print_exc()
            self.failed.append(name)
            return None
        record["unit_seconds"] = round(time.perf_counter() - started, 1)
        record["commit"] = commit()
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{name}: {record['unit_seconds']} s", flush=True)
        self.found[name] = record
        return record
