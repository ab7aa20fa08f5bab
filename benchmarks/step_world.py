"""The model, the rows and the engine that every schedule of step.py shares."""

import contextlib
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from seal.datasets import SFTDataset, concatenate, load_rows, tokenize_rows
from seal.trainer.order import EpochBatches, cycled_batch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
VOCABULARY = 8192
TEMPLATE = "Human: {}\nAssistant: "
# Characters of prompt and response of mix.jsonl.gz: quantiles 0, 5, 25, 50, 75, 95, 99, 100 %.
QUANTILES = ([0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1], [10, 88, 162, 316, 513, 812, 1062, 1632])
# Shapes, all with random weights; of llama-7M's parameters 4.2 M are embedding and head.
SHAPES = {
    "llama-tiny": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
    ),
    "llama-7M": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2048,
    ),
    "llama3-8B": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_theta=500000.0,
    ),
    "phi3-mini": Phi3Config(max_position_embeddings=4096),
}
LORA_TARGETS = {"phi3-mini": ["qkv_proj"]}
LONG = 400  # times a response is repeated where every row is to reach max_len


@dataclass(frozen=True)
class Work:
    """What is timed.

    Attributes:
        kind: "selector" (both levels and the selector) or "sft".
        epoch: 0-based; with the published upper-level weights gamma is 0 in epoch 0, 0.03 in 1.
        batch: rows an optimizer step, of each level.
        micro: rows a published micro-batch; ours holds micro * max_len tokens.
        lora_rank: 0 trains every weight.
        model: one of `SHAPES`, or a directory with weights.
    """

    kind: str = "selector"
    model: str = "llama-7M"
    epoch: int = 0
    batch: int = 64
    micro: int = 8
    max_len: int = 2048
    lora_rank: int = 0
    zero_stage: int = 2
    bf16: bool = False
    gradient_checkpointing: bool = False
    learning_rate: float = 1e-5
    seed: int = 42

    @property
    def gamma(self) -> float:
        """Weight of the fine-tuning loss."""
        return 0.03 * self.epoch


class World(NamedTuple):
    """A model's configuration and tokenizer, and the rows as text and as tokens.

    Attributes:
        model: directory of the configuration, and of the weights where `trained`.
        texts: (prompt, response) of each row of `rows`.
        rows: the safe rows, then the user rows.
        n_safe: how many of them are safe rows.
    """

    model: str
    trained: bool
    tokenizer: PreTrainedTokenizerBase
    texts: list[tuple[str, str]]
    rows: SFTDataset
    n_safe: int

    def batch(self, work: Work, step: int) -> np.ndarray:
        """Numbers of the user rows that optimizer step `step` (from 0) visits."""
        n_user = len(self.rows) - self.n_safe
        per_epoch = max(1, n_user // work.batch)
        epoch, number = divmod(step, per_epoch)
        return EpochBatches(n_user, work.batch, work.seed, epoch)[number]

    def visited(self, work: Work, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of the safe rows and of the user rows of a step."""
        user = self.n_safe + self.batch(work, step)
        if work.kind == "sft":
            return user[:0], user
        return cycled_batch(self.n_safe, work.batch, work.seed, step), user


def build_world(folder: Path, max_rows: int, work: Work, full_rows: bool = False) -> World:
    """Tokenises the rows, for a random model with a tokenizer trained on them.

    Args:
        max_rows: rows read of each set.
        full_rows: every row has max_len tokens, instead of the lengths of the real ones.
    """
    sources = [_source(folder, name, max_rows, full_rows) for name in ("safe", "mix")]
    trained = work.model not in SHAPES
    model = work.model if trained else str(folder / "model")
    if not trained:
        texts = (
            text for path in sources for pair in islice(pairs(path), max_rows) for text in pair
        )
        tokenizer, config = train_tokenizer(texts), SHAPES[work.model]
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        config.save_pretrained(model)
        tokenizer.save_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenised, texts = [], []
    for path in sources:
        loaded = load_rows(str(path), max_samples=max_rows)
        tokens = tokenize_rows(loaded, tokenizer, max_len=work.max_len, input_template=TEMPLATE)
        found = list(islice(pairs(path), max_rows))
        texts += [found[row] for row in tokens.row_numbers]
        tokenised.append(tokens)
    rows = concatenate(*tokenised)
    return World(model, trained, tokenizer, texts, rows, len(tokenised[0]))


def new_model(world: World, work: Work, attention: str, device: torch.device) -> torch.nn.Module:
    """The model of every schedule, the same weights at each call, with LoRA where asked for.

    Random weights are drawn on the device: on a CPU those of an 8B model would take minutes.
    """
    torch.manual_seed(work.seed)
    settings = {
        "dtype": torch.bfloat16 if work.bf16 else torch.float32,
        "attn_implementation": attention,
    }
    if world.trained:
        model = AutoModelForCausalLM.from_pretrained(world.model, **settings)
    else:  # under ZeRO-3 each rank's share is placed by DeepSpeed
        with contextlib.nullcontext() if work.zero_stage == 3 else device:
            config = AutoConfig.from_pretrained(world.model)
            model = AutoModelForCausalLM.from_config(config, **settings)
    if work.lora_rank:
        targets = LORA_TARGETS.get(work.model, ["q_proj", "v_proj"])
        model = get_peft_model(model, LoraConfig(r=work.lora_rank, target_modules=targets))
    return model


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    while core.get_vocab_size() < VOCABULARY:  # few words in the synthetic rows
        core.add_tokens([f"<unused{core.get_vocab_size()}>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def pairs(path: Path) -> Iterator[tuple[str, str]]:
    """(prompt, response) of each row of a .jsonl.gz file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            yield row["prompt"], row["response"]


def _source(folder: Path, name: str, max_rows: int, full_rows: bool) -> Path:
    """The real rows, or where they are absent synthetic ones of the same lengths."""
    real = SHARED / f"{name}.jsonl.gz"
    path = real if real.exists() else synthetic_rows(folder, name)
    if not full_rows:
        return path
    full = folder / f"full-{name}.jsonl.gz"
    with gzip.open(full, "wt", encoding="utf-8") as out:
        for prompt, response in islice(pairs(path), max_rows):
            print(json.dumps({"prompt": prompt, "response": f"{response} " * LONG}), file=out)
    return full


def synthetic_rows(folder: Path, name: str) -> Path:
    """A .jsonl.gz file of 10,000 rows with invented words and the lengths of the real ones."""
    path, generator = folder / f"{name}.jsonl.gz", random.Random(name)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(9000)]
    with gzip.open(path, "wt", encoding="utf-8") as out:
        for _ in range(10_000):
            characters = int(np.interp(generator.random(), *QUANTILES))
            text = " ".join(generator.choices(words, k=max(4, characters // 6)))
            row = {"prompt": text[: characters // 3], "response": text[characters // 3 :]}
            print(json.dumps(row), file=out)
    return path
