"""Tiny models on disk with a tokenizer and a chat template, and small datasets of sentences."""

import json
import random
from pathlib import Path

from tiny import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NOUNS = "river lamp stone garden window letter bridge cloud table harbour".split()
VERBS = "finds paints carries counts mends hides lifts opens".split()


def sentence(generator: random.Random) -> str:
    """A sentence of five words."""
    one, two = generator.sample(NOUNS, 2)
    return f"the {one} {generator.choice(VERBS)} the {two}"


def make_tokenizer(vocabulary: int = 320, seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on sentences; another seed or size gives other tokens."""
    generator = random.Random(seed)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([sentence(generator) for _ in range(300)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(directory: Path, architecture: str = "llama", tokenizer=None, **overrides) -> Path:
    """Writes a tiny random model and its tokenizer; returns the directory."""
    tokenizer = tokenizer or make_tokenizer()
    model = tiny_model(architecture, vocab_size=len(tokenizer), **overrides)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_rows(count: int, seed: int = 0) -> list[dict]:
    """Prompt and response of `count` rows, all prompts different, with a label nobody reads."""
    generator = random.Random(seed)
    return [
        {
            "prompt": f"{seed}.{number}: {sentence(generator)}?",
            "response": " and ".join(sentence(generator) for _ in range(generator.randint(1, 3))),
            "provenance": "planted" if number % 5 == 0 else "benign",
        }
        for number in range(count)
    ]


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Writes rows as JSON lines; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
