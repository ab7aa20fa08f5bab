"""Which architectures of transformers are trained and scored right, on tiny random models.

    python benchmarks/architectures.py            # writes docs/architectures.md

Each model is written to disk, loaded and settled as the scripts do it, and given eight rows of
random tokens in one batch. Their losses are compared with those of plain transformers, eager
attention, one row at a time. The last line printed is JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from seal.datasets import Batch
from seal.errors import InputError
from seal.models.actor import ModelSettings, load_actor
from seal.models.probe import settle
from seal.provenance import commit

DOCS = Path(__file__).resolve().parents[1] / "docs/architectures.md"
LIMIT = 1e-5  # nats, of the mean loss of a row
LENGTHS = (5, 23, 2, 40, 17, 9, 31, 12)
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
GROUPED = dict(num_key_value_heads=2)
HEADS = dict(num_key_value_heads=2, head_dim=8)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
PER_LAYER = dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=97)
MAMBA = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_d_conv=4)
LATENT = dict(num_key_value_heads=4, kv_lora_rank=8, q_lora_rank=8, moe_intermediate_size=32)
LATENT |= dict(qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1)
WIDE = dict(num_kv_shared_layers=0, global_head_dim=16)
NO_SENSES = dict(vision_config=None, audio_config=None)
VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
TEXT = SIZES | HEADS | PER_LAYER
# What each needs beside SIZES to be small, and to hold every kind of layer it has.
ARCHITECTURES: dict[str, dict] = {
    "afmoe": HEADS | EXPERTS,
    "apertus": GROUPED,
    "bamba": GROUPED | MAMBA | dict(attn_layer_indices=[1]),
    "bert": {},
    "biogpt": {},
    "bloom": {},
    "codegen": dict(rotary_dim=4, n_ctx=128),
    "cohere": GROUPED,
    "cohere2": GROUPED | dict(sliding_window=8),
    "deepseek_v3": LATENT
    | dict(n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2),
    "exaone4": GROUPED | dict(sliding_window=8),
    "falcon": dict(alibi=False),
    "falcon_h1": GROUPED | MAMBA | dict(mamba_d_ssm=64, lm_head_multiplier=0.5),
    "falcon_mamba": dict(state_size=8),
    "gemma": HEADS,
    "gemma2": HEADS | dict(sliding_window=8, query_pre_attn_scalar=8, final_logit_softcapping=2.0),
    "gemma3": dict(text_config=TEXT | dict(query_pre_attn_scalar=8), vision_config=VISION),
    "gemma3_text": HEADS | dict(sliding_window=8, query_pre_attn_scalar=8),
    "gemma3n_text": HEADS | PER_LAYER | dict(num_kv_shared_layers=0, final_logit_softcapping=2.0),
    "gemma4": dict(text_config=TEXT | WIDE | dict(final_logit_softcapping=2.0), **NO_SENSES),
    "gemma4_text": HEADS | PER_LAYER | WIDE | dict(final_logit_softcapping=2.0),
    "glm": HEADS,
    "glm4": HEADS,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]], window_size=8, num_layers=2),
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": HEADS | dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
    "gptj": dict(rotary_dim=4),
    "granite": GROUPED | dict(logits_scaling=4.0),
    "granitemoe": GROUPED | dict(num_local_experts=4, num_experts_per_tok=2, logits_scaling=4.0),
    "granitemoehybrid": GROUPED | MAMBA | dict(layer_types=["mamba", "attention"]),
    "hyperclovax": GROUPED | dict(logits_scaling=0.5),
    "jamba": GROUPED | dict(attn_layer_period=2, attn_layer_offset=1, num_experts=4),
    "jetmoe": dict(kv_channels=8, num_local_experts=4),
    "lfm2": GROUPED | dict(layer_types=["conv", "full_attention"]),
    "llama": GROUPED,
    "llama4_text": HEADS | dict(num_local_experts=4, intermediate_size_mlp=64),
    "mamba": dict(state_size=8),
    "mamba2": dict(num_heads=4, head_dim=16, state_size=8, n_groups=1),
    "mimo_v2_flash": HEADS | dict(n_routed_experts=4, num_experts_per_tok=2),
    "minimax": GROUPED
    | dict(num_local_experts=4, num_experts_per_tok=2)
    | dict(layer_types=["linear_attention", "full_attention"]),
    "mistral": GROUPED | dict(sliding_window=8),
    "mixtral": GROUPED | dict(num_local_experts=4, num_experts_per_tok=2),
    "mpt": {},
    "nemotron": GROUPED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED | dict(sliding_window=8),
    "olmoe": GROUPED | EXPERTS,
    "opt": dict(ffn_dim=64, word_embed_proj_dim=32),
    "phi": GROUPED,
    "phi3": GROUPED,
    "phimoe": GROUPED | dict(num_local_experts=4),
    "qwen2": GROUPED,
    "qwen2_moe": GROUPED | EXPERTS | dict(shared_expert_intermediate_size=32),
    "qwen3": HEADS,
    "qwen3_moe": HEADS | EXPERTS,
    "qwen3_next": HEADS
    | EXPERTS
    | dict(layer_types=["linear_attention", "full_attention"], shared_expert_intermediate_size=32)
    | dict(linear_num_value_heads=2, linear_num_key_heads=2)
    | dict(linear_key_head_dim=8, linear_value_head_dim=8),
    "recurrent_gemma": dict(lru_width=32, attention_window_size=8, logits_soft_cap=2.0)
    | dict(block_types=["recurrent", "attention"]),
    "rwkv": dict(attention_hidden_size=32),
    "smollm3": GROUPED,
    "stablelm": GROUPED,
    "starcoder2": GROUPED | dict(sliding_window=8),
    "xglm": dict(d_model=32, num_layers=2, attention_heads=4, ffn_dim=64),
    "xlstm": {},
}


ATTENTIONS = (None, "eager", "sdpa")  # our own choice, and two that a user may ask for
HOWS = ("packed", "padded", "refused")
PAGE = """\
# Architectures

A model is tried when it is loaded, before any work: two short rows in one batch must have the
losses and states that each has alone in plain transformers. Rows are packed where that is right.
Otherwise they are padded, which is slower, and the run says so. A model that is wrong either way is
refused in one line.

`python benchmarks/architectures.py` wrote this page: tiny random models, eight rows a batch, a CPU,
float32; torch {torch}, transformers {transformers}, commit {commit:.7}. The columns `eager` and
`sdpa` are the same with `--attn_implementation`; "refused" there means that transformers has no
such attention for it.

Of {architectures} architectures {packed} are packed, {padded} padded, {refused} refused (BERT,
which stands for models that are not causal). A row's mean loss in the batch and alone differ by
{largest_off:.0e} nats a token at most, in {runs} runs.

{table}
"""


class Found(NamedTuple):
    """How an architecture runs: "packed", "padded" or "refused"; nats a token off; what is said."""

    how: str
    off: float | None
    said: str


def make(name: str, folder: Path, **overrides) -> None:
    """Writes a random model of an architecture, with weights that are far from zero."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **(SIZES | ARCHITECTURES[name] | overrides))
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)


def measure(name: str, folder: Path, attention: str | None = None) -> Found:
    """Loads and settles the model of a folder, and compares its row losses with transformers'."""
    lengths = torch.tensor(LENGTHS)
    tokens = torch.randint(3, SIZES["vocab_size"], (int(lengths.sum()),))
    batch = rows_batch(tokens, lengths)
    settings = ModelSettings(pretrain=str(folder), attn_implementation=attention)
    try:
        actor = load_actor(settings)
        said = settle(actor, actor)
        with torch.no_grad():
            found = actor.eval()(batch)[0] / (lengths - 1)
    except InputError as error:
        return Found("refused", None, str(error))
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        alone = torch.stack([row_alone(reference, row) for row in tokens.split(list(LENGTHS))])
    return Found("packed" if actor.packed else "padded", float((found - alone).abs().max()), said)


def row_alone(model, tokens: torch.Tensor) -> torch.Tensor:
    """Mean loss of a row by itself, nats a token."""
    logits = model(input_ids=tokens[None], use_cache=False).logits[0].float()
    return torch.nn.functional.cross_entropy(logits[:-1], tokens[1:])


def rows_batch(tokens: torch.Tensor, lengths: torch.Tensor) -> Batch:
    """Rows end to end, every token but the first of each row supervised."""
    rows = torch.arange(len(lengths)).repeat_interleave(lengths)
    places = torch.cat([torch.arange(length) for length in lengths])
    learned = places > 0
    return Batch(
        input_ids=tokens[None],
        position_ids=places[None],
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=int(lengths.max()),
        positions=learned.nonzero().flatten() - 1,
        targets=tokens[learned],
        segments=rows[learned],
        rows=torch.arange(len(lengths)),
    )


def table(found: dict[str, dict[str, Found]]) -> str:
    """The architectures by how they run, as a Markdown table."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, ways in found.items():
        first, *others = ways.values()
        how = first.how if first.how == "refused" else first.said.split(": rows ", 1)[1]
        alike.setdefault((how, *(other.how for other in others)), []).append(name)
    lines = ["| rows | `eager` | `sdpa` | architectures |", "| --- | --- | --- | --- |"]
    for how, names in sorted(alike.items()):
        lines.append(f"| {' | '.join(how)} | {', '.join(names)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures all, or those that are named; all of them are written to the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures (default all)")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found: dict[str, dict[str, Found]] = {}
    for name in args.names or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            make(name, Path(folder))
            found[name] = {str(way): measure(name, Path(folder), way) for way in ATTENTIONS}
        print(name, *(one.how for one in found[name].values()), found[name]["None"].said)
    every = [one for ways in found.values() for one in ways.values()]
    summary = {
        "architectures": len(found),
        **{how: sum(ways["None"].how == how for ways in found.values()) for how in HOWS},
        "runs": len(every),
        "largest_off": max(one.off for one in every if one.off is not None),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "commit": commit() or "unknown",
    }
    if not args.names:
        rows = table(found)
        DOCS.write_text(PAGE.format(table=rows, **summary, **summary["versions"]))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
