"""TRL's SFTTrainer on the same rows, step by step in turn with ours, inside its own loop.

TRL runs without DeepSpeed: in one process on a CPU that is its fastest way.
"""

import tempfile
import time
import warnings
from collections.abc import Callable

import datasets
import numpy as np
from peft import LoraConfig
from step_world import Work, World
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

TRIAL_STEPS = 4
# Padding-free is TRL's own way without padding; without flash attention it runs on a mask.
SETTINGS = {
    "padded": {},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "padding-free": {"padding_free": True},
}


class Watch(TrainerCallback):
    """Times TRL's steps from end to end, with one step of `other` between two of them.

    Attributes:
        times: (wall seconds, CPU seconds) of each step but the first.
        tokens: tokens of those steps, padding excluded.
    """

    def __init__(self, other: Callable[[int], None] | None):
        self.other = other
        self.times: list[tuple[float, float]] = []
        self.tokens: list[int] = []
        self.trainer: SFTTrainer | None = None
        self._seen = 0

    def on_step_end(self, args, state, control, **kwargs):
        """Closes TRL's step, lets the other take one, and starts the clock again."""
        now, cpu = time.perf_counter(), time.process_time()
        seen = int(self.trainer._total_train_tokens)
        if state.global_step > 1:
            self.times.append((now - self._wall, cpu - self._cpu))
            self.tokens.append(seen - self._seen)
        self._seen = seen
        if self.other:
            self.other(state.global_step - 1)
        self._wall, self._cpu = time.perf_counter(), time.process_time()


def best_settings(world: World, work: Work) -> tuple[str, int]:
    """The fastest of TRL's settings and micro-batch sizes, by CPU seconds a token."""
    cost = {}
    for name in SETTINGS:
        for micro in sorted({min(8, work.batch), min(32, work.batch), work.batch}):
            watch = run(world, work, name, micro, TRIAL_STEPS, None)
            cost[name, micro] = sum(cpu for _, cpu in watch.times) / sum(watch.tokens)
            print(
                f"trl {name}, micro-batch {micro}: {1e6 * cost[name, micro]:.0f} us of CPU a token"
            )
    return min(cost, key=cost.get)


def run(
    world: World, work: Work, name: str, micro: int, steps: int, other: Callable | None
) -> Watch:
    """Trains `steps` steps with TRL, `other` in between."""
    watch = Watch(other)
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
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,  # the rows are cut already
            **SETTINGS[name],
        )
        targets = ["q_proj", "v_proj"]
        watch.trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(world.model),
            config,
            train_dataset=_tokens_and_labels(world, work, steps),
            processing_class=world.tokenizer,
            peft_config=LoraConfig(r=work.lora_rank, target_modules=targets)
            if work.lora_rank
            else None,
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
