"""What the real-text check is made of: the drawn rows, the untrained model, greedy answers."""

import gzip
import json
import random
from collections import Counter
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)

from seal.datasets import row_id
from seal.demo.model import train_tokenizer
from seal.errors import InputError
from seal.files import atomic_path

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


def write_pairs(path: Path, rows: list[dict]) -> None:
    """Writes prompt and response of `rows`, and nothing else, as JSON lines."""
    with atomic_path(path) as tmp, open(tmp, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({name: row[name] for name in ("prompt", "response")}) + "\n")


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


def new_model(folder: Path, rows: list[dict], shape: tuple[int, int, int], seed: int) -> int:
    """Writes an untrained Llama with a byte-level BPE made of `rows`; returns its parameters.

    Args:
        folder: to write.
        rows: of prompt, response.
        shape: vocabulary, hidden size, layers.
        seed: of the weights.
    """
    vocabulary, hidden, layers = shape
    tokenizer = train_tokenizer(
        [row[name] for row in rows for name in ("prompt", "response")], vocabulary
    )
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=11 * hidden // 4,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=2 * MAX_LEN,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config).float()
    tokenizer.model_max_length = config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


def generate(folder: Path, prompts: list[str]) -> list[dict]:
    """Greedy answers of the model in `folder`: their lengths only, tokens and characters."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    answers = []
    for prompt in prompts:
        encoded = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model.generate(**encoded, do_sample=False, max_new_tokens=64)
        new = output[0, encoded["input_ids"].shape[1] :].tolist()
        text = tokenizer.decode(new, skip_special_tokens=True)
        ended = new[-1] == tokenizer.eos_token_id
        answers.append({"tokens": len(new), "characters": len(text), "ended": ended})
    return answers
