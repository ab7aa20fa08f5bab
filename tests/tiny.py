"""Tiny random models of every architecture the tests speak of, and packed streams by hand."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from seal.datasets import Batch

SIZES = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
ARCHITECTURES = {
    "llama": dict(num_key_value_heads=2),
    "mistral": dict(num_key_value_heads=2, sliding_window=8),
    "phi3": dict(num_key_value_heads=2),
    "gpt_neox": dict(),
    "qwen3": dict(num_key_value_heads=2, head_dim=8),
}


def tiny_model(architecture: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """A random model of about 30 thousand parameters."""
    torch.manual_seed(seed)
    settings = SIZES | ARCHITECTURES.get(architecture, {}) | overrides
    attention = settings.pop("attn_implementation", "eager")
    config = AutoConfig.for_model(architecture, **settings)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()


def tiny_lora(attention: str, targets: tuple[str, ...] = ("q_proj", "v_proj")) -> PeftModel:
    """A llama of `tiny_model` with an adapter that is not zero, the same at every call."""
    model = tiny_model("llama", attn_implementation=attention)
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=list(targets))
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def random_rows(lengths: list[int], seed: int = 0, vocabulary: int = 97) -> list[tuple]:
    """(token ids [L], first supervised position) of each row."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        tokens = torch.randint(3, vocabulary, (length,), generator=generator)
        start = int(torch.randint(1, length, (1,), generator=generator))
        rows.append((tokens, start))
    return rows


def pack(rows: list[tuple]) -> Batch:
    """Rows of `random_rows` as one stream."""
    lengths = torch.tensor([len(tokens) for tokens, _ in rows])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    positions, targets, segments = [], [], []
    for number, (tokens, start) in enumerate(rows):
        at = torch.arange(start, len(tokens))
        positions.append(int(cu_seqlens[number]) + at - 1)
        targets.append(tokens[at])
        segments.append(torch.full_like(at, number))
    return Batch(
        input_ids=torch.cat([tokens for tokens, _ in rows])[None],
        position_ids=torch.cat([torch.arange(len(tokens)) for tokens, _ in rows])[None],
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths.max()),
        positions=torch.cat(positions),
        targets=torch.cat(targets),
        segments=torch.cat(segments),
        rows=torch.arange(len(rows)),
    )


def row_alone(model: PreTrainedModel, tokens: torch.Tensor, start: int) -> torch.Tensor:
    """Reference: the row by itself through plain transformers, full logits, summed nats."""
    logits = model(input_ids=tokens[None], use_cache=False).logits[0].float()
    return torch.nn.functional.cross_entropy(
        logits[start - 1 : -1], tokens[start:], reduction="sum"
    )
