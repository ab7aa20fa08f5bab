"""The scored rows as arrays, joined to the dataset they came from; no row text is held."""

from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seal.datasets import load_rows, read_raw
from seal.datasets.identity import row_keys
from seal.errors import InputError
from seal.ids import RowIndex
from seal.report.figures import number
from seal.selection.artefact import Selection, kept_mask

MAX_GROUPS = 20  # distinct values shown before the rest is summed up or a number is binned
MAX_VALUE = 64  # characters of a column value shown
MAX_TURN = 600  # of a turn
_BLOCK = 20_000  # rows read at a time


class Scored(NamedTuple):
    """One entry a line of the selection, in ascending row.

    Attributes:
        score: float64 [N], higher is kept first.
        loss: float64 [N], mean nats per response token, NaN where not measured.
        kept: bool [N].
        order: int64 [N], lines from best to worst as the cut sees them.
        threshold: the lowest score kept.
        selection: the artefact itself.
    """

    score: np.ndarray
    loss: np.ndarray
    kept: np.ndarray
    order: np.ndarray
    threshold: float
    selection: Selection


def score_rows(selection: Selection, topp: float) -> Scored:
    """Orders the lines of `selection` and cuts them at `topp`."""
    kept = kept_mask(selection.score, topp)
    score, loss = selection.score.astype(np.float64), selection.loss.astype(np.float64)
    order = np.argsort(-score, kind="stable")
    return Scored(score, loss, kept, order, float(score[kept].min()), selection)


class Origin(NamedTuple):
    """The dataset behind a selection.

    Attributes:
        name: its files or names as typed, separated by commas.
        rows: the blended dataset of `load_rows`.
        place: int64 [N], position in `rows` of each line of the selection, -1 where absent.
        unscored: rows of the dataset that the selection has no score for.
    """

    name: str
    rows: datasets.Dataset
    place: np.ndarray
    unscored: int

    @property
    def missing(self) -> int:
        """Lines of the selection that the dataset does not have."""
        return int((self.place < 0).sum())


def find_origin(selection: Selection, dataset: str | datasets.Dataset) -> Origin:
    """Finds each line of `selection` in `dataset`, read if need be, by (id, occurrence).

    Raises:
        InputError: not one scored row is in the dataset.
    """
    rows = load_rows(dataset) if isinstance(dataset, str) else dataset
    name = ",".join(dict.fromkeys(rows.unique("origin")))
    place = RowIndex.of(*row_keys(rows)).find(selection.id, selection.occurrence)
    found = int((place >= 0).sum())
    if not found:
        raise InputError(
            f"none of the {len(place):,} scored rows is in {name} ({len(rows):,} rows); "
            "give the dataset that was scored"
        )
    return Origin(name, rows, place, len(rows) - found)


def answer_lengths(origin: Origin) -> np.ndarray:
    """float64 [N]: characters of the assistant's turns of each line, NaN where absent."""
    lengths = np.empty(len(origin.rows))
    rows = origin.rows.select_columns(["messages"]).with_format("arrow")
    for start in range(0, len(rows), _BLOCK):
        messages = rows[start : start + _BLOCK]["messages"].combine_chunks()
        turns = messages.flatten()
        size = pc.fill_null(pc.utf8_length(turns.field("content")), 0).to_numpy()
        size = np.where(pc.equal(turns.field("role"), "assistant").to_numpy(False), size, 0)
        parent = pc.list_parent_indices(messages).to_numpy()
        count = len(messages)
        lengths[start : start + count] = np.bincount(parent, size, count)
    return _take(lengths, origin.place)


def _take(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    return np.where(place < 0, np.nan, values[np.maximum(place, 0)])


class Groups(NamedTuple):
    """A column as groups.

    Attributes:
        code: int [N], index into `names`, -1 where the row is absent or has no number.
        names: what each group is called.
        ordered: the groups are stretches of a number, in its order.
    """

    code: np.ndarray
    names: list[str]
    ordered: bool = False


def column_groups(origin: Origin, name: str, short_values_only: bool = False) -> Groups | None:
    """The raw column `name` as groups, or None when no dataset of the blend has it.

    Numbers with more than `MAX_GROUPS` values are cut into tenths of equal count.

    Args:
        origin: the dataset behind the selection.
        name: a column of the files as read, or `origin` for the dataset each row came from.
        short_values_only: refuse a column with a value over `MAX_VALUE` characters.

    Raises:
        InputError: the column holds lists or structs, or a long value where it may not.
    """
    values = _raw_column(origin, name)
    if values is None:
        return None
    if pa.types.is_nested(values.type):
        raise InputError(f"column {name!r} holds {values.type}; give a column of single values")
    if short_values_only and pa.types.is_string(values.type):
        longest = pc.max(pc.utf8_length(values)).as_py() or 0
        if longest > MAX_VALUE:
            raise InputError(
                f"column {name!r} has a value of {longest} characters, which is row text; "
                f"without text a column's values may have {MAX_VALUE}"
            )
    coded = values.dictionary_encode().combine_chunks()
    numeric = pa.types.is_floating(values.type) or pa.types.is_integer(values.type)
    if numeric and len(coded.dictionary) > MAX_GROUPS:
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return tenths(_take(numbers, origin.place))
    names = [_short(value, name == "origin") for value in coded.dictionary.to_pylist()]
    code = coded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
    code = np.where(origin.place < 0, -1, code[np.maximum(origin.place, 0)])
    return Groups(code, [*names, "(no value)"])


def _short(value, path: bool = False) -> str:
    """The value's beginning where it is long; of a path the end, which tells files apart."""
    text = "(empty)" if value == "" else str(value)
    if len(text) <= MAX_VALUE:
        return text
    return "…" + text[1 - MAX_VALUE :] if path else text[: MAX_VALUE - 1] + "…"


def _raw_column(origin: Origin, name: str) -> pa.ChunkedArray | None:
    """One value a row of `origin.rows`, null where a blended dataset lacks the column."""
    arrow = origin.rows.select_columns(["origin", "origin_row"]).with_format("arrow")[:]
    source, row = arrow["origin"].combine_chunks(), arrow["origin_row"].to_numpy()
    parts = {n: read_raw(n) for n in pc.unique(source).to_pylist()}
    holders = [n for n, raw in parts.items() if name in raw.column_names]
    if not holders:
        return pa.chunked_array([source]) if name == "origin" else None
    if len(parts) == 1:
        column = parts[holders[0]].select_columns([name]).with_format("arrow")[:][name]
        return column if np.array_equal(row, np.arange(len(column))) else column.take(row)
    columns, offset, start = [], np.zeros(len(row), np.int64), 0
    absent = np.ones(len(row), bool)
    for holder in holders:
        column = parts[holder].select_columns([name]).with_format("arrow")[:][name]
        columns += column.cast(pa.string()).chunks
        mine = pc.equal(source, holder).to_numpy(zero_copy_only=False)
        offset[mine], absent[mine] = start + row[mine], False
        start += len(column)
    return pa.chunked_array(columns).take(pa.array(offset, mask=absent))


def tenths(values: np.ndarray) -> Groups:
    """Groups of equal count by value; equal values never part, so there may be fewer than ten."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Groups(np.full(len(values), -1), [], ordered=True)
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, 11), method="inverted_cdf"))
    inner = edges[1:-1] if len(edges) > 2 else edges[:0]
    code = np.where(np.isfinite(values), np.searchsorted(inner, values, side="left"), -1)
    names = []
    for g in range(len(inner) + 1):
        inside = values[code == g]
        low, high = (number(float(f(inside))) for f in (np.min, np.max))
        names.append(low if low == high else f"{low} to {high}")
    return Groups(code, names, ordered=True)


def row_text(origin: Origin, line: int) -> list[dict]:
    """The turns of one line, each cut to `MAX_TURN`: role, text, characters left out."""
    if origin.place[line] < 0:
        return []
    turns = origin.rows[int(origin.place[line])]["messages"]
    return [
        {
            "role": turn["role"],
            "text": turn["content"][:MAX_TURN].strip(),
            "more": max(0, len(turn["content"]) - MAX_TURN),
        }
        for turn in turns
    ]
