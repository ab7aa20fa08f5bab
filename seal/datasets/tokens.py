"""A batch of conversations to tokens: the pure function behind `tokenize_rows`."""

import json
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from seal.datasets.cache import fingerprint
from seal.datasets.rendering import (
    Rendered,
    check_template,
    complete,
    render_chat,
    render_template,
)
from seal.errors import InputError

SKIPS = ("empty prompt", "empty response", "prompt too long", "no response token")
KEPT = -1  # in column `skip`; otherwise an index into SKIPS
VERSION = 1  # of what is written to the cache

FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "supervised": datasets.List(datasets.Value("bool")),
        "id": datasets.Value("string"),
        "occurrence": datasets.Value("int32"),
        "row": datasets.Value("int64"),
        "skip": datasets.Value("int8"),
        "truncated": datasets.Value("bool"),
    }
)


class Plan(NamedTuple):
    """How rows are tokenised; plain values, so that they travel to other processes and hash."""

    max_len: int
    input_template: str
    apply_chat_template: bool
    pretrain_mode: bool
    supervise: str


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names what a fast tokenizer does to text: its JSON, chat template and special tokens.

    Truncation and padding are left out: they are set by calls, not part of the tokenizer.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend |= {"truncation": None, "padding": None}
    return fingerprint(backend, tokenizer.chat_template, tokenizer.special_tokens_map)


def check(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises InputError unless `tokenizer` can do what `plan` asks."""
    if not tokenizer.is_fast:
        raise InputError(
            f"tokenizer {tokenizer.name_or_path!r} is a slow one, without character offsets; "
            "load or convert it as a fast one"
        )
    if plan.max_len < 4:
        raise InputError(f"max_len must be at least 4 tokens, got {plan.max_len}")
    if plan.supervise not in ("all", "last"):
        raise InputError(f"supervise must be all or last, got {plan.supervise!r}")
    if not plan.apply_chat_template:
        check_template(plan.input_template)
    elif not tokenizer.chat_template:
        raise InputError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template; "
            "leave out apply_chat_template to use input_template"
        )


class _Row(NamedTuple):
    """One tokenised row; no tokens where `skip` is a reason."""

    input_ids: np.ndarray  # int32 [n]
    supervised: np.ndarray  # bool [n]
    skip: int
    truncated: bool


def tokenize(
    batch: pa.Table, _: list[int], tokenizer: PreTrainedTokenizerBase, plan: Plan
) -> pa.Table:
    """Columns messages, id, occurrence, row to those of FEATURES, row by row."""
    texts = [
        _text(messages, row, tokenizer, plan)
        for messages, row in zip(
            batch["messages"].to_pylist(), batch["row"].to_pylist(), strict=True
        )
    ]
    encoded = tokenizer(
        [text.text for text, _ in texts],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ends = ([], []) if plan.apply_chat_template else _ends(tokenizer)
    rows = [
        _row(ids, offsets, text.spans, skip, plan, ends)
        for ids, offsets, (text, skip) in zip(
            encoded["input_ids"], encoded["offset_mapping"], texts, strict=True
        )
    ]
    columns = {
        "input_ids": _lists([row.input_ids for row in rows]),
        "supervised": _lists([row.supervised for row in rows]),
        **{name: batch[name] for name in ("id", "occurrence", "row")},
        "skip": pa.array([row.skip for row in rows], pa.int8()),
        "truncated": pa.array([row.truncated for row in rows], pa.bool_()),
    }
    return pa.table(columns, schema=FEATURES.arrow_schema)


def _text(
    messages: list[dict[str, str]], row: int, tokenizer: PreTrainedTokenizerBase, plan: Plan
) -> tuple[Rendered, int]:
    """The text with its supervised spans, or no text and the reason to skip the row."""
    answered = complete(messages)
    if not any(m["role"] == "user" and m["content"].strip() for m in answered or messages):
        return Rendered("", []), SKIPS.index("empty prompt")
    if not answered:
        return Rendered("", []), SKIPS.index("empty response")
    if not plan.apply_chat_template:
        text, spans = render_template(answered, plan.input_template)
    else:
        try:
            text, spans = render_chat(answered, tokenizer)
        except InputError as error:
            raise InputError(f"row {row} (from 0): {error}") from None
    if plan.pretrain_mode:
        spans = [(0, len(text))]
    return Rendered(text, spans[-1:] if plan.supervise == "last" else spans), KEPT


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The begin token, if the tokenizer adds it by itself, and the end token, if there is one."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    adds_begin = begin is not None and tokenizer("")["input_ids"][:1] == [begin]
    return [begin] if adds_begin else [], [] if end is None else [end]


def _row(
    ids: list[int],
    offsets: list[tuple[int, int]],
    spans: list[tuple[int, int]],
    skip: int,
    plan: Plan,
    ends: tuple[list[int], list[int]],
) -> _Row:
    nothing = _Row(np.empty(0, np.int32), np.empty(0, bool), skip, False)
    if skip != KEPT:
        return nothing
    begin, end = ends
    tokens = np.array(begin + ids + end, dtype=np.int32)
    touched = _touched(offsets, spans)
    learned = np.concatenate((np.zeros(len(begin), bool), touched, np.ones(len(end), bool)))
    learned |= plan.pretrain_mode
    if not touched.any() or not learned[1:].any():
        return nothing._replace(skip=SKIPS.index("no response token"))
    prompt = int(np.argmax(learned))  # tokens before the first that is learned
    if prompt >= plan.max_len - 2:
        return nothing._replace(skip=SKIPS.index("prompt too long"))
    kept = slice(plan.max_len)
    return _Row(tokens[kept], learned[kept], KEPT, len(tokens) > plan.max_len)


def _touched(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> np.ndarray:
    """bool [n]: which tokens hold a character of a span.

    A token across a seam (byte-level BPE joins the space that ends a template to the first word of
    the answer) belongs to the answer. Byte-level tokenizers cut the spaces off their offsets, which
    leaves nothing of a token of spaces: it is taken to start where the one before it stops.
    """
    starts, stops = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    before = np.concatenate(([0], np.maximum.accumulate(stops)[:-1]))[: len(stops)]
    starts = np.where(starts == stops, np.minimum(before, starts), starts)
    touched = np.zeros(len(starts), dtype=bool)
    for start, stop in spans:
        touched |= (starts < stop) & (stops > start)
    return touched


def _lists(arrays: list[np.ndarray]) -> pa.ListArray:
    offsets = np.concatenate(([0], np.cumsum([len(array) for array in arrays])))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(arrays)))
