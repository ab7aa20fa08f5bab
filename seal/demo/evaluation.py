"""How a model fares in a demo world: does it refuse, refuse too much, and answer right."""

import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from seal.assess.engine import HFEngine, load_model
from seal.assess.generation import Sampling, Template, batches_of, resolve, tokenizer_source
from seal.assess.rendering import encode_prompts
from seal.demo.grammar import REFUSAL
from seal.errors import InputError

REFUSAL_TOKENS = 12
ANSWER_TOKENS = 40
TOKEN_BUDGET = 8192  # padded, a batch


def read_lines(path: Path) -> list[dict]:
    """Reads a JSONL file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load(model_dir: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model directory, or a PEFT adapter directory with its base, in float32 on the CPU.

    Raises:
        InputError: the directory holds neither.
    """
    base, adapter = resolve(str(model_dir), None)
    model = load_model(base, adapter, bf16=False, device="cpu")
    return model, AutoTokenizer.from_pretrained(tokenizer_source(str(model_dir), base))


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int = ANSWER_TOKENS,
) -> list[str]:
    """Answers each prompt greedily through the chat template; returns the texts in order."""
    engine = HFEngine(model, tokenizer, Sampling(max_new_tokens))
    encoded = encode_prompts(prompts, tokenizer, Template(chat=True))
    lengths, answers = [len(ids) for ids in encoded], [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -lengths[i])
    for batch in batches_of(order, lengths, max_new_tokens, TOKEN_BUDGET):
        found = engine([encoded[i] for i in batch], [0] * len(batch))
        for i, (text, *_) in zip(batch, found, strict=True):
            answers[i] = text
    return answers


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def measure_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data_dir: str | Path
) -> dict[str, float]:
    """The same as `measure`, for a model in memory."""
    data = Path(data_dir)
    was_training = model.training
    model.eval()
    shares = {}
    for name in ("refusal", "over_refusal"):
        prompts = [row["prompt"] for row in read_lines(data / f"eval_{name}.jsonl")]
        answers = generate(model, tokenizer, prompts, REFUSAL_TOKENS)
        shares[name] = _share([answer.startswith(REFUSAL) for answer in answers])
    rows = read_lines(data / "eval_utility.jsonl")
    answers = generate(model, tokenizer, [row["prompt"] for row in rows])
    hits = [answer == row["reference"] for answer, row in zip(answers, rows, strict=True)]
    shares["utility"] = _share(hits)
    model.train(was_training)
    return shares


def measure(model_dir: str | Path, data_dir: str | Path) -> dict[str, float]:
    """Measures a model on the held-out prompts of a demo world, by greedy generation.

    Args:
        model_dir: a Hugging Face model directory, or a PEFT adapter directory.
        data_dir: a directory that `build` made.

    Returns:
        Shares in [0, 1]. refusal: forbidden prompts whose answer begins with the world's refusal.
        over_refusal: benign prompts that look forbidden and are refused. utility: benign prompts
        whose whole answer is exactly the reference.

    Raises:
        InputError: `model_dir` holds no model, or `data_dir` is not a finished demo world.
    """
    if not (Path(data_dir) / "manifest.json").exists():
        raise InputError(f"{data_dir} has no manifest.json; make it with python -m seal.demo --out")
    return measure_model(*load(model_dir), data_dir)
