"""The demo's model: a tiny Llama with a BPE of its own, or a chat model with an adapter."""

import math
from collections.abc import Callable
from random import Random

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from seal.progress import Progress

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
IGNORED = -100


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on `texts`: any string can be encoded, digits stay single tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[3:],
        model_max_length=256,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Makes an untrained Llama of two layers and about 0.5 M float32 parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()


def adapted(base: str, seed: int) -> tuple[PeftModel, PreTrainedTokenizerFast]:
    """Loads the chat model in directory `base`, in bfloat16, under a new LoRA adapter."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    return model, AutoTokenizer.from_pretrained(base)


def encode(tokenizer: PreTrainedTokenizerFast, rows: list[dict]) -> list[tuple[list, list]]:
    """Encodes rows of prompt, response; returns (input_ids, labels) a row, the prompt ignored."""
    encoded = []
    for row in rows:
        user = {"role": "user", "content": row["prompt"]}
        text = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        encoded.append((prompt + answer, [IGNORED] * len(prompt) + answer))
    return encoded


def _batches(encoded: list, size: int, rng: Random) -> list[list]:
    """Shuffles and cuts into batches, not bucketed: by length, refusals would sit together."""
    order = rng.sample(encoded, len(encoded))
    return [order[i : i + size] for i in range(0, len(order), size)]


def _collate(batch: list, pad: int) -> dict[str, torch.Tensor]:
    """Pads on the right; returns input_ids, attention_mask, labels, int64 [B, T]."""
    width = max(len(ids) for ids, _ in batch)
    return {
        "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch]),
        "attention_mask": torch.tensor(
            [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch]
        ),
        "labels": torch.tensor([to + [IGNORED] * (width - len(to)) for _, to in batch]),
    }


def _rate(step: int, steps: int) -> float:
    """Linear warm-up over the first 5 %, then a cosine to zero; a factor of the peak rate."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(
    model: LlamaForCausalLM | PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict],
    *,
    epochs: int,
    seed: int,
    lr: float,
    batch_size: int,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place on the responses of `rows` with AdamW, of a PeftModel the adapter.

    Args:
        rows: of prompt, response.
        epochs: passes over the rows.
        seed: of the order.
        lr: peak learning rate.
        batch_size: rows a step.
        say: is given one line an epoch.
    """
    encoded, rng = encode(tokenizer, rows), Random(seed)
    steps = epochs * math.ceil(len(encoded) / batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    with Progress("aligning", steps, "steps") as work:
        for epoch in range(epochs):
            losses = []
            for batch in _batches(encoded, batch_size, rng):
                loss = model(**_collate(batch, tokenizer.pad_token_id), use_cache=False).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
                work.update()
            mean = torch.stack(losses).mean().item()
            say(f"epoch {epoch + 1}/{epochs}: loss {mean:.3f} nats a token")
    model.eval()
