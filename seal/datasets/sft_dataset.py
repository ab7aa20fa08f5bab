"""Rows to tokens: tokenised once, supervised by character spans, batched without padding."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import PreTrainedTokenizerBase

from seal.datasets.cache import cached_map, fingerprint
from seal.datasets.rendering import (
    Rendered,
    check_template,
    complete,
    render_chat,
    render_template,
)
from seal.errors import InputError

PUBLISHED_TEMPLATE = "Human: {}\nAssistant: "
SKIPS = ("empty prompt", "empty response", "prompt too long", "no response token")
_KEPT = -1  # in column `skip`; otherwise an index into SKIPS
_VERSION = 1  # of what is written to the cache

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


class Batch(NamedTuple):
    """R rows flattened into one stream of T tokens, without padding.

    Attributes:
        input_ids: int64 [1, T].
        position_ids: int64 [1, T], from 0 at the first token of each row.
        cu_seqlens: int32 [R + 1], where each row starts in the stream; the last entry is T.
        max_seqlen: Tokens of the longest row.
        positions: int64 [S], places in the stream whose next token is supervised and in the same
            row. The last token of a row predicts nothing.
        targets: int64 [S], those next tokens.
        segments: int64 [S], which of the R rows each belongs to.
        rows: int64 [R], the rows' indices in the `SFTDataset`, as asked for.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    positions: torch.Tensor
    targets: torch.Tensor
    segments: torch.Tensor
    rows: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """This batch with its tensors on `device`."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in self._asdict().items()
            if name != "max_seqlen"
        }
        return self._replace(**moved)


class SFTDataset(torch.utils.data.Dataset):
    """Tokenised rows, memory-mapped; made by `tokenize_rows`.

    Attributes:
        skipped: Why rows were left out: reason -> count; only reasons that occurred.
        truncated: How many rows were cut to max_len.
        raw: How many rows were read: the ones here and the skipped ones.
        fingerprint: 32 hex digits of the rows, the tokenizer and all arguments.
        lengths: int64 [N], tokens a row.
        ids: str objects [N], the rows' names, see `row_id`.
        occurrences: int32 [N], which copy of its id each row is.
        row_numbers: int64 [N], the rows' positions in the dataset they were read from.
    """

    def __init__(
        self,
        tokenised: datasets.Dataset,
        places: np.ndarray,
        *,
        skipped: dict[str, int],
        truncated: int,
        raw: int,
        fingerprint: str,
    ) -> None:
        """Takes the rows of `tokenised` (columns of FEATURES) at `places`, int64 [N]."""
        self.skipped = skipped
        self.truncated = truncated
        self.raw = raw
        self.fingerprint = fingerprint
        self._tokenised = tokenised.with_format("arrow")
        self._places = places
        lengths = pc.list_value_length(_column(tokenised, "input_ids"))
        self.lengths = lengths.to_numpy()[places].astype(np.int64)
        self.ids = _column(tokenised, "id").to_numpy()[places]
        self.occurrences = _column(tokenised, "occurrence").to_numpy()[places]
        self.row_numbers = _column(tokenised, "row").to_numpy()[places]

    @cached_property
    def rows(self) -> datasets.Dataset:
        """The rows as a dataset: `input_ids`, `supervised`, `id`, `occurrence`, `row`."""
        columns = ["input_ids", "supervised", "id", "occurrence", "row"]
        return self._tokenised.select_columns(columns).with_format(None).select(self._places)

    @cached_property
    def supervised(self) -> np.ndarray:
        """int64 [N]: tokens a row is trained to predict (its first token never is)."""
        flags = _flatten(_column(self.rows, "supervised"))  # [sum of lengths]
        starts = np.cumsum(self.lengths) - self.lengths
        counts = np.add.reduceat(flags.astype(np.int64), starts)
        return counts - flags[starts]

    def __len__(self) -> int:
        return len(self._places)

    def __str__(self) -> str:
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        return (
            f"{len(self)} of {self.raw} read ({left_out or 'none'} skipped, "
            f"{self.truncated} cut), {int(self.lengths.sum())} tokens"
        )

    def __getitem__(self, index: int) -> Batch:
        return self.batch([index])

    def select(self, indices: Sequence[int] | np.ndarray) -> "SFTDataset":
        """The rows at `indices`, in that order; counts of what was read and skipped stay."""
        indices = np.asarray(indices, dtype=np.int64)
        chosen = hashlib.sha256(indices.tobytes()).hexdigest()
        return SFTDataset(
            self._tokenised,
            self._places[indices],
            skipped=self.skipped,
            truncated=self.truncated,
            raw=self.raw,
            fingerprint=fingerprint("select", self.fingerprint, chosen),
        )

    def without(self, *others: "SFTDataset") -> "SFTDataset":
        """The rows whose id stands in none of `others`; the rest is counted as skipped.

        Raises:
            InputError: no row is left.
        """
        seen = np.isin(self.ids, np.concatenate([other.ids for other in others]))
        if seen.all():
            raise InputError(f"all {len(self)} evaluation rows are also trained on; give others")
        kept = self.select(np.flatnonzero(~seen))
        if seen.any():
            kept.skipped = self.skipped | {"also trained on": int(seen.sum())}
        return kept

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The rows at `indices` as one stream; see `Batch`."""
        rows = np.array(indices, dtype=np.int64)  # [R]
        table = self._tokenised[self._places[rows]]
        lengths = self.lengths[rows]  # [R]
        cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))  # [R + 1]
        tokens = _flatten(table["input_ids"]).astype(np.int64)  # [T]
        learned = _flatten(table["supervised"])  # [T]
        learned[cu_seqlens[:-1]] = False  # nothing stands before a row's first token
        positions = np.flatnonzero(learned) - 1  # [S]
        starts = np.repeat(cu_seqlens[:-1], lengths)  # [T]
        return Batch(
            input_ids=torch.from_numpy(tokens)[None],
            position_ids=torch.from_numpy(np.arange(len(tokens)) - starts)[None],
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            max_seqlen=int(lengths.max()),
            positions=torch.from_numpy(positions),
            targets=torch.from_numpy(tokens[positions + 1]),
            segments=torch.from_numpy(np.repeat(np.arange(len(rows)), lengths)[positions]),
            rows=torch.from_numpy(rows),
        )


def _column(rows: datasets.Dataset, name: str) -> pa.ChunkedArray:
    return rows.select_columns([name]).with_format("arrow")[:][name]


def concatenate(first: SFTDataset, second: SFTDataset) -> SFTDataset:
    """The rows of `first`, then those of `second`; counts are added, nothing is copied."""
    reasons = first.skipped.keys() | second.skipped.keys()
    return SFTDataset(
        datasets.concatenate_datasets([first.rows, second.rows]),
        skipped={r: first.skipped.get(r, 0) + second.skipped.get(r, 0) for r in sorted(reasons)},
        truncated=first.truncated + second.truncated,
        raw=first.raw + second.raw,
        fingerprint=fingerprint("concatenate", first.fingerprint, second.fingerprint),
    )


def _flatten(column: pa.ChunkedArray) -> np.ndarray:
    """The values of all rows in one writable array."""
    values = pa.concat_arrays(column.chunks).flatten()
    return values.to_numpy(zero_copy_only=False).copy()


class _Plan(NamedTuple):
    """How rows are tokenised; plain values, so that they travel to other processes and hash."""

    max_len: int
    input_template: str
    apply_chat_template: bool
    pretrain_mode: bool
    supervise: str


def tokenize_rows(
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_len: int,
    input_template: str | None = PUBLISHED_TEMPLATE,
    apply_chat_template: bool = False,
    pretrain_mode: bool = False,
    supervise: str = "all",
    num_proc: int | None = None,
) -> SFTDataset:
    """Tokenises `rows` once and marks the tokens to learn; the result is cached on disk.

    A token is supervised when it holds a character of a supervised span: of an assistant turn
    and, with a chat template, of the marker that closes the turn. With `input_template` the
    end-of-sequence token is added and supervised after the last turn, and the begin-of-sequence
    token is put first if the tokenizer does so by itself. A row cut to max_len gets no
    end-of-sequence token.

    Args:
        rows: As from `load_rows`.
        tokenizer: A fast tokenizer (its character offsets are needed).
        max_len: Tokens a row, at most; what is longer is cut and counted.
        input_template: Put around each user turn; None for none.
        apply_chat_template: Use the tokenizer's chat template instead.
        pretrain_mode: Supervise every token, and use no input_template.
        supervise: "all" assistant turns, or the "last".
        num_proc: Processes; None: 1 below 2,000 rows, else one a core, at most 8.

    Raises:
        InputError: The tokenizer or a template cannot be used, or every row is skipped.
    """
    template = "{}" if pretrain_mode or input_template is None else input_template
    plan = _Plan(max_len, template, apply_chat_template, pretrain_mode, supervise)
    _check(plan, tokenizer)
    name = fingerprint("tokens", _VERSION, rows._fingerprint, tokenizer_hash(tokenizer), plan)
    columns = ["messages", "id", "occurrence", "row"]
    tokenised = cached_map(
        rows.select_columns(columns).with_format("arrow"),
        _tokenize,
        fn_kwargs={"tokenizer": tokenizer, "plan": plan},
        new_fingerprint=name,
        features=FEATURES,
        num_proc=num_proc,
        desc="Tokenising",
    )
    skip = _column(tokenised, "skip").to_numpy()
    kept = np.flatnonzero(skip == _KEPT)
    counts = {reason: int(np.sum(skip == code)) for code, reason in enumerate(SKIPS)}
    skipped = {reason: count for reason, count in counts.items() if count}
    if len(kept) == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise InputError(
            f"all {len(rows)} rows are skipped ({reasons}) at max_len {max_len}; "
            "check which columns hold prompt and response, and raise max_len"
        )
    truncated = int(pc.sum(_column(tokenised, "truncated")).as_py())
    return SFTDataset(
        tokenised,
        kept,
        skipped=skipped,
        truncated=truncated,
        raw=len(rows),
        fingerprint=name,
    )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names what a fast tokenizer does to text: its JSON, chat template and special tokens.

    Truncation and padding are left out: they are set by calls, not part of the tokenizer.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend |= {"truncation": None, "padding": None}
    return fingerprint(backend, tokenizer.chat_template, tokenizer.special_tokens_map)


def _check(plan: _Plan, tokenizer: PreTrainedTokenizerBase) -> None:
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


def _tokenize(
    batch: pa.Table, _: list[int], tokenizer: PreTrainedTokenizerBase, plan: _Plan
) -> pa.Table:
    """`rows` to the columns of FEATURES."""
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
    messages: list[dict[str, str]], row: int, tokenizer: PreTrainedTokenizerBase, plan: _Plan
) -> tuple[Rendered, int]:
    """The text with its supervised spans, or no text and the reason to skip the row."""
    answered = complete(messages)
    if not any(m["role"] == "user" and m["content"].strip() for m in messages):
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
    return Rendered(text, spans[-1:] if plan.supervise == "last" else spans), _KEPT


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
    plan: _Plan,
    ends: tuple[list[int], list[int]],
) -> _Row:
    if skip == _KEPT:
        begin, end = ends
        tokens = np.array(begin + ids + end, dtype=np.int32)
        learned = np.concatenate(
            (np.zeros(len(begin), bool), _touched(offsets, spans), np.ones(len(end), bool))
        )
        learned |= plan.pretrain_mode
        prompt = int(np.argmax(learned)) if learned.any() else len(learned)  # tokens before
        if prompt >= plan.max_len - 2:
            skip = SKIPS.index("prompt too long")
        elif not learned[1 : plan.max_len].any():
            skip = SKIPS.index("no response token")
        else:
            kept = slice(plan.max_len)
            return _Row(tokens[kept], learned[kept], _KEPT, len(tokens) > plan.max_len)
    return _Row(np.empty(0, np.int32), np.empty(0, bool), skip, False)


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
    written = {"system": "", "user": input_template, "assistant": "{}\n"}
    return "".join(written[m["role"]].format(m["content"]) for m in messages)
