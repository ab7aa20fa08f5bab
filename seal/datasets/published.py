"""Which rows the public SEAL code kept: needed to read the selectors it published."""

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from seal.datasets import PUBLISHED_TEMPLATE


def published_length_filter(
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_len: int,
    input_template: str | None = PUBLISHED_TEMPLATE,
) -> np.ndarray:
    """Replays which rows the public SEAL code kept, and so numbered, when it trained a selector.

    A row is kept if its templated prompt and its response are not empty and the prompt has fewer
    than max_len - 2 tokens, counted with the special tokens that the tokenizer adds by itself.
    System messages are not in the prompt, as there.

    Args:
        input_template: None for the prompt as it is (as that code did for prompt/chosen records).

    Returns:
        bool [len(rows)].

    Source: hanshen95/SEAL, seal/datasets/sft_dataset_indexed.py.
    """
    kept = []
    for batch in rows.select_columns(["messages"]).iter(1_000):
        prompts = [_published_prompt(m[:-1], input_template or "{}") for m in batch["messages"]]
        counts = [len(ids) for ids in tokenizer(prompts, verbose=False)["input_ids"]]
        kept += [
            bool(prompt and messages[-1]["content"]) and count < max_len - 2
            for prompt, messages, count in zip(prompts, batch["messages"], counts, strict=True)
        ]
    return np.array(kept)


def _published_prompt(messages: list[dict[str, str]], input_template: str) -> str:
    written = {"user": input_template, "assistant": "{}\n"}
    return "".join(written.get(m["role"], "").format(m["content"]) for m in messages)
