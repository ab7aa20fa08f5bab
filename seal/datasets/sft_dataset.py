"""Rows to tokens: tokenised once, supervised by character spans, batched without padding."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import PreTrainedTokenizerBase

from seal.datasets import PUBLISHED_TEMPLATE
from seal.datasets.cache import cached_map, fingerprint, mapped_table
from seal.datasets.prompts import OPTIONAL
from seal.datasets.skips import MANY, count_skips, listed
from seal.datasets.tokens import (
    FEATURES,
    ODD,
    VERSION,
    Plan,
    check,
    tokenize,
    tokenizer_hash,
)
from seal.errors import InputError
from seal.ids import id_bytes, id_text

logger = logging.getLogger(__name__)


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
        """This batch with its tensors on `device`; to a GPU without waiting for it."""
        cuda = torch.device(device).type == "cuda"
        moved = {
            name: (value.pin_memory() if cuda else value).to(device, non_blocking=True)
            for name, value in self._asdict().items()
            if name != "max_seqlen"
        }
        return self._replace(**moved)

    def counts(self) -> torch.Tensor:
        """Supervised tokens of each row, int64 [R]."""
        counts = self.segments.new_zeros(len(self.rows))
        return counts.index_add_(0, self.segments, torch.ones_like(self.segments))


@dataclass(eq=False)
class SFTDataset(torch.utils.data.Dataset):
    """N tokenised rows, mapped from disk; made by `tokenize_rows`.

    Ranks of one machine share what is known of the rows, unless some are selected.

    Attributes:
        tokenised: `input_ids` and `supervised` of these rows and others.
        known: Gives a column of `_index` for these rows.
        skipped: Why rows were left out: reason -> count; only reasons that occurred.
        truncated: How many rows were cut to max_len.
        raw: How many rows were read: the ones here and the skipped ones.
        fingerprint: 32 hex digits of the rows, the tokenizer and all arguments.
        places: int64 [N], where the rows stand in `tokenised`.
        ids: V16 [N], the rows' names: the 16 bytes of `row_id`'s digits.
        occurrences: int32 [N], which copy of its id each row is.
        row_numbers: int64 [N], the rows' positions in the dataset they were read from.
        lengths: int64 [N], tokens a row.
        supervised: int64 [N], tokens a row is trained to predict (its first token never is).
    """

    tokenised: datasets.Dataset
    known: Callable[[str], np.ndarray]
    skipped: dict[str, int]
    truncated: int
    raw: int
    fingerprint: str

    def __post_init__(self) -> None:
        self.tokenised = self.tokenised.with_format("arrow")

    places = cached_property(lambda self: self.known("place"))
    ids = cached_property(lambda self: self.known("id"))
    occurrences = cached_property(lambda self: self.known("occurrence"))
    row_numbers = cached_property(lambda self: self.known("row"))
    lengths = cached_property(lambda self: self.known("length"))
    supervised = cached_property(lambda self: self.known("supervised"))

    @cached_property
    def highest_token(self) -> int:
        """The highest token id of the table that the rows stand in."""
        tokens = self.tokenised.select_columns(["input_ids"])[:]["input_ids"]
        return max(pc.max(chunk.flatten()).as_py() or 0 for chunk in tokens.chunks)

    @cached_property
    def rows(self) -> datasets.Dataset:
        """The rows as a dataset: `input_ids`, `supervised`, `id`, `occurrence`, `row`."""
        rows = self.tokenised.select_columns(["input_ids", "supervised"]).with_format(None)
        rows = rows.select(self.places).add_column("id", id_text(self.ids).to_pylist())
        return rows.add_column("occurrence", self.occurrences).add_column("row", self.row_numbers)

    def __len__(self) -> int:
        return len(self.places)

    def __str__(self) -> str:
        return (
            f"{len(self)} of {self.raw} read ({listed(self.skipped) or 'none'} skipped, "
            f"{self.truncated} cut), {int(self.lengths.sum())} tokens"
        )

    def __getitem__(self, index: int) -> Batch:
        return self.batch([index])

    def select(self, indices: Sequence[int] | np.ndarray) -> "SFTDataset":
        """The rows at `indices`, in that order; counts of what was read and skipped stay."""
        indices = np.asarray(indices, dtype=np.int64)
        name = fingerprint("select", self.fingerprint, hashlib.sha256(indices).hexdigest())
        return replace(self, known=lambda column: self.known(column)[indices], fingerprint=name)

    def sample(self, count: int, seed: int) -> "SFTDataset":
        """`count` rows drawn without replacement, in their order; all of them when fewer."""
        if count >= len(self):
            return self
        drawn = np.random.default_rng(seed).choice(len(self), count, replace=False)
        return self.select(np.sort(drawn))

    def responses_only(self) -> "SFTDataset":
        """The rows without what comes before the token ahead of the first supervised one.

        The same tokens stay supervised, so a loss here compares with the loss on whole rows.
        """
        name = fingerprint("bare", self.fingerprint)
        return self._with_tokens(self.rows.map(_drop_prompt, new_fingerprint=name), name)

    def swapped(self) -> "SFTDataset":
        """Each row's response behind the prompt of the row after it; for a few rows, in memory.

        A row is cut to the longer of the two that it is made from, so its prompt alone fits.
        """
        rows, made = list(self.rows), []
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
            start, at = (one["supervised"].index(True, 1) for one in (row, other))
            limit = max(len(row["input_ids"]), len(other["input_ids"]))
            columns = ("input_ids", "supervised")
            made.append({name: (other[name][:at] + row[name][start:])[:limit] for name in columns})
        name = fingerprint("swapped", self.fingerprint)
        return self._with_tokens(datasets.Dataset.from_list(made), name)

    def _with_tokens(self, tokenised: datasets.Dataset, name: str) -> "SFTDataset":
        """These rows with other tokens, row for row."""
        new = {"place": np.arange(len(self))}
        new["length"], new["supervised"] = _counts(tokenised)
        return replace(
            self,
            tokenised=tokenised,
            known=lambda column: new[column] if column in new else self.known(column),
            fingerprint=name,
        )

    def without(self, *others: "SFTDataset") -> "SFTDataset":
        """The rows whose id stands in none of `others`; the rest is counted as skipped.

        Raises:
            InputError: no row is left.
        """
        seen = np.isin(self.ids, np.concatenate([other.ids for other in others]))
        if seen.all():
            raise InputError(f"all {len(self)} evaluation rows are also trained on; give others")
        trained_on = {"also trained on": int(seen.sum())} if seen.any() else {}
        kept = self.select(np.flatnonzero(~seen))
        return replace(kept, skipped=self.skipped | trained_on)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The rows at `indices` as one stream; see `Batch`."""
        rows = np.array(indices, dtype=np.int64)  # [R]
        table = self.tokenised[self.places[rows]]
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


def _counts(tokenised: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """int64 [rows], twice: tokens of each row, and those it is trained to predict."""
    rows = tokenised.select_columns(["input_ids", "supervised"]).with_format("arrow")[:]
    lengths, learned = [], []
    for tokens, flags in zip(rows["input_ids"].chunks, rows["supervised"].chunks, strict=True):
        lengths.append(pc.list_value_length(tokens).to_numpy().astype(np.int64))
        ends = np.cumsum(lengths[-1])
        starts = ends - lengths[-1]
        counted = flags.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        counted[starts[lengths[-1] > 0]] = 0  # nothing stands before a first token
        up_to = np.concatenate(([0], np.cumsum(counted)))
        learned.append(up_to[ends] - up_to[starts])
    return np.concatenate(lengths), np.concatenate(learned)


def _drop_prompt(row: dict) -> dict:
    start = max(0, row["supervised"].index(True, 1) - 1)
    return {name: row[name][start:] for name in ("input_ids", "supervised")}


def concatenate(first: SFTDataset, second: SFTDataset) -> SFTDataset:
    """The rows of `first`, then those of `second`; counts are added, no token is copied."""

    def known(name: str) -> np.ndarray:
        tail = second.known(name)
        tail = len(first.tokenised) + tail if name == "place" else tail
        return np.concatenate([first.known(name), tail])

    reasons = sorted(first.skipped.keys() | second.skipped.keys())
    return SFTDataset(
        datasets.concatenate_datasets([first.tokenised, second.tokenised]),
        known,
        skipped={r: first.skipped.get(r, 0) + second.skipped.get(r, 0) for r in reasons},
        truncated=first.truncated + second.truncated,
        raw=first.raw + second.raw,
        fingerprint=fingerprint("concatenate", first.fingerprint, second.fingerprint),
    )


def _flatten(column: pa.ChunkedArray) -> np.ndarray:
    """The values of all rows in one writable array."""
    values = pa.concat_arrays(column.chunks).flatten()
    return values.to_numpy(zero_copy_only=False).copy()


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
    """Tokenises `rows` once, cached on disk, and marks the tokens to learn.

    A token is supervised when it holds a character of a supervised span: of an assistant turn
    and, with a chat template, of the marker that closes the turn. With `input_template` the
    end-of-sequence token is added and supervised after the last turn, and the begin-of-sequence
    token is put first if the tokenizer does so by itself. A row cut to max_len gets no
    end-of-sequence token.

    Args:
        tokenizer: A fast tokenizer (its character offsets are needed).
        max_len: Tokens a row, at most; what is longer is cut and counted.
        input_template: Put around each user turn; None for none.
        apply_chat_template: Use the tokenizer's chat template instead.
        pretrain_mode: Supervise every token, and use no input_template.
        supervise: "all" assistant turns, or the "last".
        num_proc: Processes; None chooses by the number of rows.

    Raises:
        InputError: The tokenizer or a template cannot be used, or every row is skipped.
    """
    template = "{}" if pretrain_mode or input_template is None else input_template
    plan = Plan(max_len, template, apply_chat_template, pretrain_mode, supervise)
    check(plan, tokenizer)
    name = fingerprint("tokens", VERSION, rows._fingerprint, tokenizer_hash(tokenizer), plan)
    columns = [name for name in ("messages", *OPTIONAL) if name in rows.column_names]
    tokenised = cached_map(
        rows.select_columns(columns).with_format("arrow"),
        tokenize,
        fn_kwargs={"tokenizer": tokenizer, "plan": plan},
        new_fingerprint=name,
        features=FEATURES,
        num_proc=num_proc,
        desc="Tokenising",
        batch_size=2_000,  # a tokenizer takes a tenth longer over batches of 1,000
    )
    tokenised = tokenised.with_format("arrow")
    index = mapped_table(f"{name}-index", lambda: _index(rows, tokenised))
    counts = json.loads(index.schema.metadata[b"seal"])
    skipped, reasons = counts["skipped"], listed(counts["skipped"])
    if len(index) == 0:
        raise InputError(
            f"all {len(rows)} rows are skipped ({reasons}) at max_len {max_len}; "
            "check which columns hold prompt and response, and raise max_len"
        )
    if sum(skipped.values()) > MANY * len(rows):
        logger.warning("%s: of %d rows %d stay", reasons, len(rows), len(index))
    return SFTDataset(
        tokenised, mapped_columns(index).get, raw=len(rows), fingerprint=name, **counts
    )


def mapped_columns(index: pa.Table) -> dict[str, np.ndarray]:
    """The columns of `_index` as numpy arrays on its own memory."""
    columns = {name: index[name].to_numpy() for name in index.column_names if name != "id"}
    return columns | {"id": np.frombuffer(index["id"].chunk(0).buffers()[1], "V16", len(index))}


def _index(rows: datasets.Dataset, tokenised: datasets.Dataset) -> pa.Table:
    """What is known of each row that is not skipped, a chunk a column, and the counts."""
    told = tokenised.select_columns(["skip", "truncated"])[:]
    skipped = count_skips(told["skip"], ODD)
    places = np.flatnonzero(told["skip"].is_null())
    names = rows.select_columns(["id", "occurrence", "row"]).with_format("arrow")[:]
    ids = pa.py_buffer(id_bytes(names["id"])[places])
    lengths, supervised = _counts(tokenised)
    columns = {
        "place": places,
        "id": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(places), [None, ids]),
        "occurrence": names["occurrence"].to_numpy()[places],
        "row": names["row"].to_numpy()[places],
        "length": lengths[places],
        "supervised": supervised[places],
    }
    counts = {"skipped": skipped, "truncated": pc.sum(told["truncated"]).as_py()}
    return pa.table(columns).replace_schema_metadata({"seal": json.dumps(counts)})
