"""How a model fares in a demo world: does it refuse, refuse too much, and answer right."""

import json
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as TokenizerBase

from seal.demo.grammar import REFUSAL
from seal.errors import InputError

REFUSAL_TOKENS = 12
ANSWER_TOKENS = 40


def read_lines(path: Path) -> list[dict]:
    """Reads a JSONL file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load(model_dir: str | Path) -> tuple[PreTrainedModel, TokenizerBase]:
    """Loads a model directory, or a PEFT adapter directory with its base, in float32 on the CPU.

    Raises:
        InputError: the directory holds neither.
    """
    path = Path(model_dir)
    if (path / "adapter_config.json").exists():
        base = PeftConfig.from_pretrained(path).base_model_name_or_path
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, path).merge_and_unload()
        source = path if (path / "tokenizer_config.json").exists() else base
    elif (path / "config.json").exists():
        model, source = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), path
    else:
        raise InputError(f"{path} has no config.json and no adapter_config.json: not a model")
    return model.eval(), AutoTokenizer.from_pretrained(source)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: TokenizerBase,
    prompts: list[str],
    max_new_tokens: int = ANSWER_TOKENS,
    batch_size: int = 80,
) -> list[str]:
    """Answers each prompt greedily through the chat template; returns the texts in order."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    answers = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batch = tokenizer(
            [texts[i] for i in part],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        new = output[:, batch["input_ids"].shape[1] :]
        for i, text in zip(
            part, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
        ):
            answers[i] = text.strip()
    return answers


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def measure_model(
    model: PreTrainedModel, tokenizer: TokenizerBase, data_dir: str | Path
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
