"""Prompts to token ids: chat template or --input_template, context limit, truncation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seal.assess.generation import Template
from seal.datasets.rendering import check_template, opened_thought
from seal.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompts(
    prompts: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    limit: int | None = None,
    truncate: bool = False,
) -> list[list[int]]:
    """Token ids of each rendered prompt, special tokens included.

    Args:
        limit: Most tokens a rendered prompt may have; None for any number.
        truncate: Cut the beginning of a longer prompt's own text, the template staying whole.

    Raises:
        InputError: no chat template when one is asked for, a template without {}, or prompts longer
            than `limit` (the first and their count are named).
    """
    if template.chat and not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template; leave out "
            "--apply_chat_template and give --input_template"
        )
    if not template.chat:
        check_template(template.text)
        template = _with_a_clean_seam(template, tokenizer)
    encoded = [_encode(prompt, tokenizer, template) for prompt in prompts]
    if limit is None:
        return encoded
    long = [i for i, ids in enumerate(encoded) if len(ids) > limit]
    if long and not truncate:
        raise InputError(
            f"{len(long)} of {len(prompts)} prompts are longer than the {max(limit, 0)} tokens "
            f"that the context leaves, first at row {long[0]} with {len(encoded[long[0]])}; lower "
            "--max_new_tokens or give --truncate_prompt left"
        )
    for i in long:
        encoded[i] = _truncated(prompts[i], tokenizer, template, limit)
    return encoded


def encode_pairs(
    prompts: Sequence[str],
    answers: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
) -> list[tuple[list[int], int]]:
    """Token ids of prompt and answer as one text, end token added, and where the answer starts."""
    pairs = []
    for start, prompt, answer in zip(
        encode_prompts(prompts, tokenizer, template), prompts, answers, strict=True
    ):
        whole = [*_encode(prompt, tokenizer, template, answer), tokenizer.eos_token_id]
        first = next(
            (i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), None
        )
        pairs.append((whole, len(start) if first is None else first))
    return pairs


def _encode(
    prompt: str, tokenizer: "PreTrainedTokenizerBase", template: Template, answer: str = ""
) -> list[int]:
    if not template.chat:
        ids = tokenizer(template.text.format(prompt) + answer).input_ids
        return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids  # some add their end token
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    if answer:  # no thought, so none is opened, as in a finished turn
        text = text.removesuffix(opened_thought(text))
    return tokenizer(text + answer, add_special_tokens=False).input_ids


def _with_a_clean_seam(template: Template, tokenizer: "PreTrainedTokenizerBase") -> Template:
    """Drops trailing blanks that a tokenizer would join to the answer's first word.

    Training tokenises prompt and answer as one text, where "Assistant: Yes" ends in the token
    " Yes"; a prompt that ends in a lone blank is one the model has never seen.
    """
    alone = _encode("", tokenizer, template)
    if _encode("", tokenizer, template, "Yes")[: len(alone)] == alone:
        return template
    return Template(chat=False, text=template.text.rstrip(" "))


def _truncated(
    prompt: str, tokenizer: "PreTrainedTokenizerBase", template: Template, limit: int
) -> list[int]:
    own = tokenizer(prompt, add_special_tokens=False).input_ids
    excess = len(_encode(prompt, tokenizer, template)) - limit
    while excess < len(own):
        ids = _encode(tokenizer.decode(own[excess:]), tokenizer, template)
        if len(ids) <= limit:
            return ids
        excess += len(ids) - limit
    raise InputError(f"the template alone is longer than the {max(limit, 0)} tokens left for it")
