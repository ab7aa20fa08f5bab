"""The arithmetic a step needs, whatever schedule does it."""

import numpy as np
from step_world import Work, World
from transformers import AutoConfig


def needed_flops(world: World, work: Work, step: int) -> float:
    """FLOPs of optimizer step `step`: forward of all rows, backward of those with weight.

    A multiplication and an addition count two. Backward costs twice the forward pass, once where
    the base is frozen (input gradients only). The head is counted for supervised tokens only,
    attention for the causal half. Recomputation, padding and unread logits count nothing.
    """
    safe, user = world.visited(work, step)
    backward = 1 if work.lora_rank else 2
    user_passes = 1 if work.kind == "selector" and work.gamma == 0 else 1 + backward
    forward = [_forward_flops(world, rows) for rows in (safe, user)]
    return (1 + backward) * forward[0] + user_passes * forward[1]


def _forward_flops(world: World, rows: np.ndarray) -> float:
    config = AutoConfig.from_pretrained(world.model)
    hidden, kv_heads = config.hidden_size, config.num_key_value_heads
    head_size = config.head_dim or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_size, kv_heads * head_size
    layer = hidden * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    lengths = world.rows.lengths[rows].astype(float)
    dense = 2 * config.num_hidden_layers * layer * lengths.sum()
    attention = 2 * config.num_hidden_layers * queries * (lengths**2).sum()
    head = 2 * hidden * config.vocab_size * world.rows.supervised[rows].sum()
    return dense + attention + head
