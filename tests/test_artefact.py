"""Laws of the selection artefact: round trip, joins, ties, and what a strict reader refuses."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seal.errors import InputError
from seal.ids import RowIndex, id_bytes, id_text
from seal.selection import artefact
from seal.selection.artefact import (
    Selection,
    kept_mask,
    make_selection,
    read_selection,
    select_rows,
    selection_meta,
    write_selection,
)
from seal.selection.format import FORMAT, SCHEMA


def make_ids(n: int, seed: int = 0) -> list[str]:
    return [np.random.default_rng((seed, i)).bytes(16).hex() for i in range(n)]


def make_columns(n: int = 20, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "id": make_ids(n, seed),
        "occurrence": np.zeros(n, np.int32),
        "row": np.arange(n) * 2,
        "score": rng.standard_normal(n),
        "logit": rng.standard_normal(n),
        "weight": rng.random(n) + 0.1,
        "visits": rng.integers(0, 5, n),
        "loss": rng.random(n),
    }


def make_meta(n: int = 20, method: str = "penalty_gap", **skipped: int) -> dict:
    return selection_meta(
        method=method,
        arguments={"lr": 5e-3, "name": "ü"},
        fingerprint="f" * 16,
        raw=n + sum(skipped.values()),
        skipped=skipped,
        model="tiny",
        tokenizer="tiny",
        max_len=64,
        seed=1,
    )


def test_of_a_local_model_the_name_is_kept_and_of_another_what_was_given(tmp_path):
    (tmp_path / "mine").mkdir()
    for name, kept in ((str(tmp_path / "mine/"), "mine"), ("org/name", "org/name"), (None, None)):
        meta = selection_meta(method="dsir", fingerprint="f", raw=1, model=name, tokenizer=name)
        assert meta["model"] == meta["tokenizer"] == kept


def test_round_trip(tmp_path):
    columns, path = make_columns(), tmp_path / "new" / "selector.parquet"
    write_selection(path, columns, make_meta(too_long=3))
    selection = read_selection(path)
    weight = columns.pop("weight")
    np.testing.assert_allclose(selection.weight, weight / weight.mean(), rtol=1e-6)
    for field in (SCHEMA.field(name) for name in columns):
        found = selection.column(field.name)
        expected = np.asarray(columns[field.name])
        if field.name == "id":
            expected = id_bytes(expected)
        else:
            assert found.dtype == field.type.to_pandas_dtype()
            expected = expected.astype(found.dtype)
        np.testing.assert_array_equal(found, expected)
    assert selection.meta["dataset"] == {
        "fingerprint": "f" * 16,
        "raw": 23,
        "skipped": {"too_long": 3},
        "scored": 20,
    }
    assert selection.meta["format"] == FORMAT
    assert selection.meta["arguments"]["name"] == "ü"
    assert {"torch", "numpy", "seal"} <= set(selection.meta["versions"])
    assert [p.name for p in path.parent.iterdir()] == ["selector.parquet"]


def test_write_twice_gives_the_same_bytes_in_any_line_order(tmp_path):
    columns = make_columns()
    write_selection(tmp_path / "a", columns, make_meta())
    order = np.random.default_rng(0).permutation(20)
    shuffled = {name: np.asarray(column)[order] for name, column in columns.items()}
    write_selection(tmp_path / "b", shuffled, make_meta())
    a, b = read_selection(tmp_path / "a"), read_selection(tmp_path / "b")
    assert a.table.drop_columns("weight").equals(b.table.drop_columns("weight"))
    np.testing.assert_allclose(a.weight, b.weight, rtol=1e-6)


def test_columns_that_a_method_lacks_have_defaults():
    columns = {name: make_columns()[name] for name in ("id", "occurrence", "row", "score")}
    selection = make_selection(columns, make_meta(method="random"))
    assert np.isnan(selection.logit).all() and np.isnan(selection.loss).all()
    assert (selection.weight == 1).all() and (selection.visits == 0).all()


@pytest.mark.parametrize("kind", [list, np.array, lambda x: np.array(x, "S32"), pa.array])
def test_ids_come_in_any_container(kind):
    ids = make_ids(50)
    assert id_text(id_bytes(kind(ids))).to_pylist() == ids
    selection = make_selection({**make_columns(50), "id": kind(ids)}, make_meta(50))
    assert id_text(selection.id).to_pylist() == ids


def test_ids_convert_over_slices_and_chunks():
    ids = make_ids(30)
    chunked = pa.chunked_array([pa.array(ids[:7]), pa.array([], pa.string()), pa.array(ids)[7:]])
    np.testing.assert_array_equal(id_bytes(chunked), id_bytes(ids))
    np.testing.assert_array_equal(id_bytes(chunked[5:20]), id_bytes(ids[5:20]))


# --- top-p ---


@pytest.mark.parametrize("n, topp, kept", [(10, 0.8, 8), (10, 1, 10), (5, 0.5, 2), (7, 0.5, 4)])
def test_topp_keeps_round_of_the_share(n, topp, kept):
    score = np.random.default_rng(0).standard_normal(n)
    mask = kept_mask(score, topp)
    assert mask.sum() == kept
    assert set(np.flatnonzero(mask)) == set(np.argsort(-score)[:kept])


@settings(deadline=None)
@given(st.data())
def test_the_cut_is_that_of_a_stable_sort_however_it_is_read(data):
    width = data.draw(st.sampled_from([32, 64]))
    numbers = st.floats(-2, 2, width=32) | st.sampled_from([-0.0, 0.0, 1e-40, -1e-40, 1.0, -1.0])
    score = np.array(data.draw(st.lists(numbers, min_size=1, max_size=60)), f"f{width // 8}")
    topp = data.draw(st.integers(1, len(score))) / len(score)
    expected = np.zeros(len(score), bool)
    expected[np.argsort(-score, kind="stable")[: round(topp * len(score))]] = True
    np.testing.assert_array_equal(kept_mask(score, topp), expected)
    parts = np.array_split(score, data.draw(st.integers(1, 5)))
    np.testing.assert_array_equal(artefact._kept(lambda: parts, len(score), topp), expected)


def test_ties_are_kept_by_row():
    score = np.array([1, 2, 1, 1, 3, 1], np.float32)
    assert kept_mask(score, 4 / 6).tolist() == [True, True, True, False, True, False]
    assert kept_mask(np.zeros(10), 0.3).tolist() == [True] * 3 + [False] * 7


@pytest.mark.parametrize("topp", [80, 0, -0.1, float("nan"), float("inf")])
def test_topp_out_of_range_is_refused(topp):
    with pytest.raises(InputError, match=r"topp must be in \(0, 1\], got .*; 0.8 keeps 80 %"):
        kept_mask(np.zeros(10), topp)


def test_topp_that_keeps_nothing_is_refused():
    with pytest.raises(InputError, match=r"topp 0\.01 keeps none of 10 scored rows"):
        kept_mask(np.zeros(10), 0.01)


# --- joins ---


def repeated_rows(seed: int = 0) -> tuple[Selection, np.ndarray, np.ndarray]:
    """A selection of 60 rows of which 20 ids occur three times, and its ids and occurrences."""
    ids, occurrence = np.repeat(make_ids(20), 3), np.tile(np.arange(3), 20)
    columns = make_columns(60, seed) | {"id": ids, "occurrence": occurrence}
    return make_selection(columns, make_meta(60)), ids, occurrence


def chosen(ids, occurrence, selected) -> set:
    return {(str(ids[i]), int(occurrence[i])) for i in selected.indices}


def test_join_is_invariant_under_shuffle_and_new_rows():
    selection, ids, occurrence = repeated_rows()
    straight = select_rows(ids, occurrence, selection, 0.7)
    assert straight.indices.tolist() == np.flatnonzero(kept_mask(selection.score, 0.7)).tolist()
    assert straight[1:] == (60, 0, 0)
    order = np.random.default_rng(1).permutation(60)
    ids2 = np.concatenate([make_ids(9, seed=5), ids[order]])
    occurrence2 = np.concatenate([np.zeros(9, int), occurrence[order]])
    for unscored, extra in (("drop", set()), ("keep", {(i, 0) for i in make_ids(9, seed=5)})):
        selected = select_rows(ids2, occurrence2, selection, 0.7, unscored)
        assert (np.diff(selected.indices) > 0).all()
        assert selected[1:] == (60, 9, 0)
        expected = chosen(ids, occurrence, straight) | extra
        assert chosen(ids2, occurrence2, selected) == expected


def test_more_copies_of_a_row_are_unscored_and_fewer_are_missing():
    selection, ids, occurrence = repeated_rows()
    selected = select_rows([*ids, ids[0]], [*occurrence, 3], selection, 0.7, "drop")
    assert (selected.scored, selected.unscored, selected.missing) == (60, 1, 0)
    selected = select_rows(ids[:10], occurrence[:10], selection, 0.7)
    assert (selected.scored, selected.unscored, selected.missing) == (10, 0, 50)
    expected = np.flatnonzero(kept_mask(selection.score, 0.7)[:10])  # decided on all 60 rows
    assert selected.indices.tolist() == expected.tolist()


def test_topp_one_keeps_every_scored_row():
    selection, ids, occurrence = repeated_rows()
    assert select_rows(ids, occurrence, selection, 1).indices.tolist() == list(range(60))


def test_unscored_rows_are_counted_and_the_first_is_named():
    selection, ids, occurrence = repeated_rows()
    new = make_ids(2, seed=9)
    with pytest.raises(InputError, match=f"2 of 62 .* first is row 60 .id {new[0]}.*--unscored"):
        select_rows([*ids, *new], [*occurrence, 0, 0], selection, 0.7)


def test_a_selector_for_another_dataset_is_refused_with_both_counts():
    selection, _, _ = repeated_rows()
    with pytest.raises(InputError, match=r"none of the 4 .* selector's 60 rows.*another dataset"):
        select_rows(make_ids(4, seed=3), np.zeros(4, int), selection, 0.7, "keep")


@settings(deadline=None)
@given(st.data())
def test_index_finds_what_a_dictionary_finds(data):
    few = ["0" * 32, "0" * 31 + "1", "1" + "0" * 31, "f" * 32, "0" * 30 + "0a", "ab" * 16]
    rows = st.lists(st.tuples(st.sampled_from(few), st.integers(0, 5)), max_size=40)
    lines, asked = data.draw(rows), data.draw(rows)
    index = RowIndex.of([name for name, _ in lines], np.array([n for _, n in lines], np.int32))
    first = {key: line for line, key in reversed(list(enumerate(lines)))}
    assert index.copies().tolist() == [lines[:at].count(key) for at, key in enumerate(lines)]
    found = index.find([name for name, _ in asked], np.array([n for _, n in asked], np.int32))
    assert found.tolist() == [first.get(key, -1) for key in asked]


# --- what is refused ---


def write_raw(path, columns=None, meta=None, schema=SCHEMA):
    """Writes a file past the checks of `write_selection`."""
    good = make_selection(make_columns(), make_meta())
    table = good.table
    for name, values in (columns or {}).items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, values)
    seal = good.meta if meta is None else meta
    table = table.replace_schema_metadata({"seal": seal if type(seal) is str else json.dumps(seal)})
    pq.write_table(table, path)
    return table


def refused(path, match):
    with pytest.raises(InputError, match=match) as caught:
        read_selection(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


BAD_COLUMNS = {
    "NaN score": ("score", pa.array([float("nan")] * 20, pa.float32()), "'score' has 20 NaN"),
    "infinite loss": ("loss", pa.array([float("inf")] * 20, pa.float32()), "'loss' has 20 NaN"),
    "null score": ("score", pa.nulls(20, pa.float32()), "'score' has 20 nulls"),
    "wide score": ("score", pa.array([0.0] * 20), "'score' is double, must be float"),
    "text row": ("row", pa.array(["1"] * 20), "'row' is string, must be int64"),
    "negative row": ("row", pa.array(range(-1, 19), pa.int64()), "'row' has -1"),
    "repeated row": ("row", pa.array([3] * 20, pa.int64()), "'row' must ascend; line 1 has 3"),
    "negative visit": ("visits", pa.array([-2] * 20, pa.int32()), "'visits' has -2"),
    "short id": ("id", pa.array(["ab"] * 20), "line 0 has id 'ab'; an id is 32"),
    "no hex": ("id", pa.array([*make_ids(19), "G" * 32]), "line 19 has id 'GGG"),
    "repeated id": ("id", pa.array(["0" * 32] * 20), "line 1 repeats id 0+ with occurrence 0"),
    "weights": ("weight", pa.array([2.0] * 20, pa.float32()), "mean 2, must have mean 1"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_bad_columns_are_refused(tmp_path, case):
    name, values, match = BAD_COLUMNS[case]
    write_raw(tmp_path / "x.parquet", {name: values})
    refused(tmp_path / "x.parquet", match)


BAD_META = {
    "not JSON": ("{", "not JSON"),
    "a list": ("[1]", "format version is None, this code reads 1"),
    "a later format": (json.dumps({"format": 2}), "format version is 2, this code reads 1"),
    "no method": (json.dumps({"format": 1}), "metadata lacks 'method'"),
    "deep": ("[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("case", BAD_META)
def test_bad_metadata_is_refused(tmp_path, case):
    text, match = BAD_META[case]
    write_raw(tmp_path / "x.parquet", meta=text)
    refused(tmp_path / "x.parquet", match)


BAD_COUNTS = {
    "raw rows .21. must be scored .20. plus skipped": {"raw": 21},
    "counts 19 scored rows, the file has 20": {"scored": 19},
    "'raw' = '20', of the wrong type": {"raw": "20"},
    "'x' = -1|raw rows": {"skipped": {"x": -1}, "raw": 19},
}


@pytest.mark.parametrize("match", BAD_COUNTS)
def test_counts_must_add_up(tmp_path, match):
    meta = make_selection(make_columns(), make_meta()).meta
    write_raw(tmp_path / "x.parquet", meta=meta | {"dataset": meta["dataset"] | BAD_COUNTS[match]})
    refused(tmp_path / "x.parquet", match)


def test_files_that_are_no_selection_are_refused(tmp_path):
    refused(tmp_path / "absent.parquet", "no such file")
    refused(tmp_path, "is a folder; give a .parquet file")
    (tmp_path / "text.parquet").write_text("hello\nworld")
    refused(tmp_path / "text.parquet", "not a readable Parquet file")
    table = write_raw(tmp_path / "x.parquet")
    pq.write_table(table.drop_columns("score"), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", "'score' is missing")
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", "no metadata under the key 'seal'")
    pq.write_table(table.slice(0, 0), tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", "0 scored rows")


def test_writer_refuses_what_the_reader_would(tmp_path):
    path, columns = tmp_path / "x.parquet", make_columns()
    bad = {
        "'score' has 20 NaN": {"score": np.full(20, np.nan)},
        "columns differ in length": {"score": np.zeros(3)},
        "unknown columns": {"prompt": ["x"] * 20},
        "'occurrence' must be int32": {"occurrence": np.full(20, 2**40)},
        "'weight' has 20 NaN": {"weight": np.full(20, np.nan)},
        "weights have mean 0": {"weight": np.zeros(20)},
    }
    for match, change in bad.items():
        with pytest.raises(InputError, match=match):
            write_selection(path, {**columns, **change}, make_meta())
    with pytest.raises(InputError, match="unknown method 'magic'"):
        write_selection(path, columns, make_meta(method="magic"))
    with pytest.raises(InputError, match="'score' is missing"):
        write_selection(path, {"id": columns["id"], "occurrence": [0] * 20, "row": range(20)}, {})
    assert not path.exists()
