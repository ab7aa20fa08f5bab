"""`seal merge-scores`: parts scored apart are the whole scored at once, or are refused."""

import numpy as np
import pytest
from test_command import refused, seal_json
from tiny_world import make_model, make_rows, write_rows

from seal.cli.flags import score_parser
from seal.cli.score_dataset import score
from seal.datasets import load_rows
from seal.selection.artefact import read_selection, select_rows, selection_meta, write_selection
from seal.selection.calibration import calibrate


def write_part(path, rows, score, *, method="relative_excess", canaries=None, **change) -> str:
    loaded = load_rows(str(write_rows(path.with_suffix(".jsonl"), rows)))
    arguments = {
        "new_dataset": str(path),
        "safe_model": "safe",
        "rows_model": "rows",
        "bf16": False,
    }
    meta = selection_meta(
        method=method,
        arguments=arguments | {"new_dataset": str(path)} | change,
        fingerprint=loaded._fingerprint,
        raw=len(rows) + 2,
        skipped={"too long": 2},
        seed=1,
    )
    meta["evidence"] = {"reliability": float(np.mean(score)), "moved": {}}
    if canaries is not None:
        meta["calibration"] = calibrate(np.asarray(score), np.asarray(canaries))
    columns = {name: loaded[:][name] for name in ("id", "occurrence", "row")}
    write_selection(path, columns | {"score": score, "weight": 1 + np.arange(len(rows))}, meta)
    return str(path)


def test_parts_join_in_order_with_copies_numbered_over_all(tmp_path):
    first, second = make_rows(30, seed=1), make_rows(20, seed=2)
    second[5:8] = [first[3], second[0], first[3]]
    scores = np.random.default_rng(0).random(50)
    a = write_part(tmp_path / "a.parquet", first, scores[:30], canaries=[-1.0, -2.0])
    b = write_part(tmp_path / "b.parquet", second, scores[30:], canaries=[-1.0, -2.0, -3.0])
    found = seal_json("merge-scores", a, b, "--out", tmp_path / "all.parquet")
    assert found["dataset"]["raw"] == 54 and found["dataset"]["skipped"] == {"too long": 4}
    merged = read_selection(tmp_path / "all.parquet")
    np.testing.assert_array_equal(merged.score, scores.astype(np.float32))
    assert merged.row.tolist() == [*range(30), *range(32, 52)]
    together = load_rows(f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl")
    assert merged.occurrence.tolist() == together["occurrence"][:]
    keys = together["id"][:], np.array(together["occurrence"][:])
    selected = select_rows(*keys, merged, 0.5)
    assert (selected.scored, selected.missing, len(selected.indices)) == (50, 0, 25)
    assert merged.weight.mean() == pytest.approx(1) and merged.meta["calibration"]["n"] == 3
    assert "new_dataset" not in merged.meta["arguments"] and merged.meta["seed"] == 1
    assert [part["rows"] for part in merged.meta["parts"]] == [30, 20]
    assert str(tmp_path) not in str(merged.meta)
    assert merged.meta["evidence"]["reliability"] == pytest.approx(scores.mean())


def test_parts_of_another_scale_are_refused(tmp_path):
    def part(name, seed, **change):
        return write_part(tmp_path / name, make_rows(5, seed=seed), np.arange(5.0), **change)

    a, out = part("a.parquet", 1), ("--out", tmp_path / "all.parquet")
    for change, says in (
        ({"method": "excess_loss"}, "method is 'excess_loss', not 'relative_excess'"),
        ({"safe_model": "other"}, "--safe_model is 'other', not 'safe'"),
        ({"bf16": True}, "--bf16 is True, not False"),
    ):
        said = refused("merge-scores", a, part("b.parquet", 2, **change), *out)
        assert f"b.parquet is of another scale than {a}: {says}" in said
    assert "a.parquet and" in refused("merge-scores", a, a, *out)
    lone = part("c.parquet", 3, rows_model=None)
    assert "given the same --rows_model" in refused("merge-scores", lone, a, *out)
    trained = part("d.parquet", 4, method="penalty")
    assert "relative to the rows" in refused("merge-scores", trained, a, *out)
    smoothed = part("e.parquet", 5, smooth=True)
    assert "of --smooth are relative" in refused("merge-scores", smoothed, a, *out)
    assert not (tmp_path / "all.parquet").exists()


@pytest.mark.slow
def test_parts_scored_apart_are_the_whole_scored_at_once(tmp_path):
    model, rows = make_model(tmp_path / "model"), make_rows(40, seed=2)
    rows[35:] = rows[:5]
    safe = write_rows(tmp_path / "safe.jsonl", make_rows(6, seed=1))
    for name, part in (("all", rows), ("one", rows[:25]), ("two", rows[25:])):
        data = write_rows(tmp_path / f"{name}.jsonl", part)
        flags = (
            f"--method ifd --pretrain {model} --dataset {safe} --new_dataset {data} --max_len 96"
        )
        flags += f" --selector_save_dir {tmp_path} --selector_name {name} --max_len 96"
        score(score_parser().parse_args(flags.split()))
    parts = tmp_path / "one.parquet", tmp_path / "two.parquet"
    seal_json("merge-scores", *parts, "--out", tmp_path / "merged.parquet")
    whole, merged = (read_selection(tmp_path / f"{name}.parquet") for name in ("all", "merged"))
    for name in ("id", "occurrence", "row"):
        np.testing.assert_array_equal(whole.column(name), merged.column(name))
    for name in ("score", "loss"):
        np.testing.assert_allclose(whole.column(name), merged.column(name), rtol=1e-5)
