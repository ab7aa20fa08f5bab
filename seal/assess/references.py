"""How likely a model finds reference answers."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seal.assess.engine import context_length
from seal.assess.generation import Template, batches_of
from seal.assess.rendering import encode_pairs


@torch.inference_mode()
def reference_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    prompts: Sequence[str],
    references: Sequence[str],
    budget: int = 16384,
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of each reference and its end token after its prompt.

    Args:
        budget: Padded tokens a batch.

    Returns:
        float64 [N] nats summed over the reference (NaN where the pair is longer than the context),
        and int64 [N] tokens of the reference, end token included.
    """
    pairs = encode_pairs(prompts, references, tokenizer, template)
    nats, tokens = np.full(len(pairs), np.nan), np.array([len(ids) - start for ids, start in pairs])
    context = context_length(model.config)
    lengths = [len(ids) for ids, _ in pairs]
    fitting = [i for i in range(len(pairs)) if context is None or lengths[i] <= context]
    fitting.sort(key=lambda i: -lengths[i])
    for rows in batches_of(fitting, lengths, 0, budget):
        width = lengths[rows[0]]
        ids = torch.tensor([pairs[i][0] + [0] * (width - lengths[i]) for i in rows])  # [B, width]
        mask = torch.tensor([[1] * lengths[i] + [0] * (width - lengths[i]) for i in rows])
        ids, mask = ids.to(model.device), mask.to(model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, i in enumerate(rows):
            start, end = pairs[i][1], lengths[i]
            chosen = logits[row, start - 1 : end - 1].float()
            nats[i] = torch.nn.functional.cross_entropy(
                chosen, ids[row, start:end], reduction="sum"
            ).item()
    return nats, tokens
