"""TRL's SFTTrainer on the same rows, step by step in turn with ours, inside its own loop.

TRL runs without DeepSpeed: in one process on one device that is its fastest way.
"""

import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import product

import datasets
import numpy as np
import torch
from step_measure import timed
from step_report import Bench, costs, describe, ratio
from step_world import Work, World, new_model
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

TRIAL_STEPS = 3
# Padding-free is TRL's own way without padding; without flash attention it runs on a mask.
SETTINGS = {
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "padded": {},
    "padding-free": {"padding_free": True},
}


class Watch(TrainerCallback):
    """Times TRL's steps from end to end, with one step of `other` between two of them.

    Attributes:
        times: (wall seconds, CPU seconds) of each step but the first.
        tokens: tokens of those steps, padding excluded.
    """

    def __init__(self, other: Callable[[int], None] | None, until: float):
        self.other = other
        self.until = until
        self.times: list[tuple[float, float]] = []
        self.tokens: list[int] = []
        self.trainer: SFTTrainer | None = None
        self._seen = 0

    def on_step_end(self, args, state, control, **kwargs):
        """Closes TRL's step, lets the other take one, and starts the clock again."""
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        now, cpu = time.perf_counter(), time.process_time()
        seen = int(self.trainer._total_train_tokens)
        if state.global_step > 1:
            self.times.append((now - self._wall, cpu - self._cpu))
            self.tokens.append(seen - self._seen)
        self._seen = seen
        if self.other:
            self.other(state.global_step - 1)
        control.should_training_stop |= len(self.times) > 1 and time.monotonic() > self.until
        self._wall, self._cpu = time.perf_counter(), time.process_time()


class Peer:
    """TRL on the rows of a bench. One model serves every setting: its weights change no speed.

    Attributes:
        settings: the fastest name of `SETTINGS` and micro-batch size, by seconds a token: CPU
            seconds on a CPU, where other processes may run.

    Args:
        until: no further setting is tried after this moment of `time.monotonic`.
    """

    def __init__(self, bench: Bench, work: Work, until: float):
        self.bench, self.work = bench, work
        self.model = new_model(bench.world, work, "sdpa", torch.device(bench.device))
        cost, clock = {}, 0 if bench.device == "cuda" else 1
        micros = sorted({min(8, work.batch), min(32, work.batch), work.batch})
        for micro, name in product(micros, SETTINGS):
            if cost and time.monotonic() > until:
                print(f"trl {name}, micro-batch {micro}: no time to try it")
                continue
            watch = self._run(name, micro, TRIAL_STEPS, Watch(None, until))
            cost[name, micro] = sum(taken[clock] for taken in watch.times) / sum(watch.tokens)
            print(f"trl {name}, micro-batch {micro}: {1e6 * cost[name, micro]:.0f} us a token")
        self.settings = min(cost, key=cost.get)

    def against(self, ours: Callable, until: float) -> list[dict]:
        """TRL's row, and our ratio to it from steps taken in turn inside TRL's loop."""
        bench, work, taken = self.bench, self.work, []

        def one(step: int) -> None:
            taken.append(timed(lambda: ours(work, step), bench.device))

        watch = self._run(*self.settings, bench.warm_up + bench.steps, Watch(one, until))
        skip = bench.warm_up - 1  # TRL's first step is not timed
        pairs = zip(watch.times[skip:], watch.tokens[skip:], strict=True)
        theirs = [(wall / tokens, cpu / tokens) for (wall, cpu), tokens in pairs]
        mine = describe("ours", costs(bench, work, taken[bench.warm_up :]), bench, work)
        trl = describe("trl", theirs, bench, work)
        return [trl, ratio(mine, trl) | {"settings": list(self.settings)}]

    def _run(self, name: str, micro: int, steps: int, watch: Watch) -> Watch:
        """Trains up to `steps` steps with TRL."""
        work = self.work
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=work.batch // micro,
                max_steps=steps,
                learning_rate=work.learning_rate,
                lr_scheduler_type="constant",
                adam_beta2=0.95,
                gradient_checkpointing=work.gradient_checkpointing,
                gradient_checkpointing_kwargs={"use_reentrant": False},
                bf16=work.bf16,
                use_cpu=self.bench.device == "cpu",
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                dataset_kwargs={"skip_prepare_dataset": True},
                max_length=None,  # the rows are cut already
                **SETTINGS[name],
            )
            watch.trainer = SFTTrainer(
                self.model,
                config,
                train_dataset=_tokens_and_labels(self.bench.world, work, steps),
                processing_class=self.bench.world.tokenizer,
                callbacks=[watch],
            )
            watch.trainer.train()
        return watch


def _tokens_and_labels(world: World, work: Work, steps: int) -> datasets.Dataset:
    """The user rows of the coming steps, tokenised already, as TRL wants them."""
    chosen = np.concatenate([world.visited(work, step)[1] for step in range(steps)])
    rows = [world.rows.rows[int(row)] for row in chosen]
    input_ids = [row["input_ids"] for row in rows]
    labels = [np.where(row["supervised"], row["input_ids"], -100).tolist() for row in rows]
    return datasets.Dataset.from_dict({"input_ids": input_ids, "labels": labels})
