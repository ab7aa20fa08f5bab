"""A batch of conversations to tokens: the pure function behind `tokenize_rows`."""

import json
from bisect import bisect_left, bisect_right
from itertools import chain
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from seal.datasets.cache import fingerprint
from seal.datasets.prompts import Messages, whole
from seal.datasets.rendering import (
    REFUSED,
    REWRITTEN,
    Rendered,
    Unfit,
    check_template,
    complete,
    render_chat,
    render_template,
)
from seal.errors import InputError

ODD = (REFUSED, REWRITTEN)  # reasons to skip a row that are a fault of the row
VERSION = 3  # of what is written to the cache

FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "supervised": datasets.List(datasets.Value("bool")),
        "skip": datasets.Value("string"),  # null for a row that stays
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

    input_ids: list[int]
    learned: list[tuple[int, int]]  # ranges of tokens; one may reach beyond the last
    skip: str | None
    truncated: bool


def tokenize(
    batch: pa.Table, _: list[int], tokenizer: PreTrainedTokenizerBase, plan: Plan
) -> pa.Table:
    """Columns messages and, where they are there, extra and skip to FEATURES, row by row."""
    nothing = [None] * len(batch)
    given = (
        batch[name].to_pylist() if name in batch.column_names else nothing
        for name in ("messages", "extra", "skip")
    )
    texts = [_text(*row, tokenizer, plan) for row in zip(*given, strict=True)]
    ends = ([], []) if plan.apply_chat_template else _ends(tokenizer)
    backend = tokenizer.backend_tokenizer  # the lists that `tokenizer` makes of it take their time
    backend.no_truncation()
    backend.no_padding()
    encodings = backend.encode_batch([text.text for text, _ in texts], add_special_tokens=False)
    rows = [
        _row(encoding, text, skip, plan, ends)
        for encoding, (text, skip) in zip(encodings, texts, strict=True)
    ]
    columns = {
        **_token_columns(rows),
        "skip": pa.array([row.skip for row in rows], pa.string()),
        "truncated": pa.array([row.truncated for row in rows], pa.bool_()),
    }
    return pa.table(columns, schema=FEATURES.arrow_schema)


def _text(
    messages: Messages,
    extra: str | None,
    skip: str | None,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
) -> tuple[Rendered, str | None]:
    """The text with its supervised spans, or no text and the reason to skip the row."""
    try:
        if skip is None:
            return _rendered(messages, extra, tokenizer, plan), None
    except Unfit as unfit:
        skip = str(unfit)
    return Rendered("", []), skip


def _rendered(
    messages: Messages, extra: str | None, tokenizer: PreTrainedTokenizerBase, plan: Plan
) -> Rendered:
    if messages and messages[0]["role"] == "text":
        if not plan.pretrain_mode:
            raise Unfit("plain text without --pretrain_mode")
        return Rendered(messages[0]["content"], [(0, len(messages[0]["content"]))])
    messages, tools = whole(messages, extra)
    answered = complete(messages)
    if not any(m["role"] == "user" and m["content"].strip() for m in answered or messages):
        raise Unfit("empty prompt")
    if not answered:
        raise Unfit("empty response")
    if plan.apply_chat_template:
        rendered = render_chat(answered, tokenizer, tools)
    else:
        rendered = render_template(answered, plan.input_template, tools)
    if plan.pretrain_mode:
        if any("weight" in message for message in answered):
            raise Unfit("weight not rendered: pretrain_mode learns every token")
        return Rendered(rendered.text, [(0, len(rendered.text))])
    last = plan.supervise == "last"
    return Rendered(rendered.text, rendered.spans[-1:] if last else rendered.spans)


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The begin token, if the tokenizer adds it by itself, and the end token, if there is one."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    adds_begin = begin is not None and tokenizer("")["input_ids"][:1] == [begin]
    return [begin] if adds_begin else [], [] if end is None else [end]


def _row(
    encoding: Encoding,
    rendered: Rendered,
    skip: str | None,
    plan: Plan,
    ends: tuple[list[int], list[int]],
) -> _Row:
    nothing = _Row([], [], skip, False)
    if skip:
        return nothing
    begin, end = ends
    tokens = begin + encoding.ids + end
    end_of_text = len(rendered.text), len(encoding)
    learned = [_touched(encoding, span, end_of_text, len(begin)) for span in rendered.spans]
    learned = [(start, stop) for start, stop in learned if start < stop]
    if not learned or len(tokens) < 2:
        return nothing._replace(skip="no response token")
    if plan.pretrain_mode:
        learned = [(0, len(tokens))]
    elif end:
        learned.append((len(tokens) - 1, len(tokens)))
    elif learned[-1][1] < 2:  # nothing stands before the only token to learn
        return nothing._replace(skip="no response token")
    if learned[0][0] >= plan.max_len - 2:
        return nothing._replace(skip="prompt too long")
    return _Row(tokens[: plan.max_len], learned, None, len(tokens) > plan.max_len)


def _touched(
    encoding: Encoding, span: tuple[int, int], end_of_text: tuple[int, int], shift: int
) -> tuple[int, int]:
    """The range of tokens that hold a character of a span, moved by `shift`.

    A token across a seam (byte-level BPE joins the space that ends a template to the first word of
    the answer) belongs to the answer. Byte-level tokenizers cut the spaces off their offsets, which
    leaves nothing of a token of spaces: it is taken to start where the one before it stops.
    """

    def start(token: int) -> int:
        first, last = encoding.token_to_chars(token)
        return min(first, stop(token - 1)) if first == last and token else first

    def stop(token: int) -> int:
        return encoding.token_to_chars(token)[1]

    tokens = range(len(encoding))
    first = encoding.char_to_token(span[0])  # asked first: a search takes a call a step
    first = bisect_right(tokens, span[0], key=stop) if first is None else first
    whole = span[1] == end_of_text[0]
    last = end_of_text[1] if whole else bisect_left(tokens, span[1], key=start)
    return first + shift, last + shift


def _token_columns(rows: list[_Row]) -> dict[str, pa.ListArray]:
    """The rows' tokens, and which of them are learned, end to end."""
    offsets = np.cumsum([0, *(len(row.input_ids) for row in rows)])
    learned = np.zeros(offsets[-1], dtype=bool)
    for row, first, last in zip(rows, offsets, offsets[1:], strict=False):
        for start, stop in row.learned:
            learned[first:last][start:stop] = True
    ids = np.fromiter(chain.from_iterable(row.input_ids for row in rows), np.int32, offsets[-1])
    return {
        name: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
        for name, values in (("input_ids", ids), ("supervised", learned))
    }
