"""`seal score-new`: a head learns what a selector ranks by, and says how well."""

import numpy as np
import pytest
from test_command import refused, seal_json
from tiny_world import make_model, make_rows, write_rows

from seal.datasets import load_rows
from seal.selection.artefact import read_selection, selection_meta, write_selection
from seal.statistics import auroc

WORDS = {True: "lock gate key vault", False: "bread salt milk corn"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Rows about two things; the selector ranks one of them above the other."""
    folder = tmp_path_factory.mktemp("score-new")
    make_model(folder / "model")
    for name, n, seed in (("user", 160, 1), ("new", 60, 2)):
        kinds = np.random.default_rng(seed).random(n) < 0.5
        rows = make_rows(n, seed=seed)
        for row, kind in zip(rows, kinds, strict=True):
            row["response"] = f"{WORDS[bool(kind)]} {row['response']}"
        write_rows(folder / f"{name}.jsonl", rows)
        np.save(folder / f"{name}.npy", kinds)
    rows = load_rows(str(folder / "user.jsonl"))
    noise = np.random.default_rng(3).normal(0, 0.1, len(rows))
    columns = {name: rows[name][:] for name in ("id", "occurrence", "row")}
    columns |= {"score": np.load(folder / "user.npy") + noise}
    meta = selection_meta(
        method="excess_loss",
        arguments={"max_len": 64, "pretrain": "not followed"},
        fingerprint="feed",
        raw=len(rows),
        model="not followed",
        max_len=64,
        seed=0,
    )
    write_selection(folder / "selector.parquet", columns, meta)
    return folder


def words(world, **extra):
    flags = {
        "pretrain": world / "model",
        "dataset": world / "user.jsonl",
        "new_dataset": world / "new.jsonl",
        "out": world / "predicted.parquet",
    }
    return [w for name, value in (flags | extra).items() for w in (f"--{name}", value)]


def test_new_rows_rank_as_the_selector_would_rank_them(world):
    found = seal_json("score-new", world / "selector.parquet", *words(world))
    predicted = read_selection(world / "predicted.parquet")
    kinds = np.load(world / "new.npy")[predicted.row]
    assert found["spearman"] > 0.6 and found["n"] == 160
    assert auroc(predicted.score, kinds) > 0.95
    assert predicted.meta["method"] == "predicted"
    assert predicted.meta["predicted"]["spearman"] == found["spearman"]
    assert predicted.visits.max() == 0

    head = (world / "selector.head.npz").read_bytes()
    again = words(world, out=world / "again.parquet")
    assert seal_json("score-new", world / "selector.parquet", *again)["spearman"] > 0.6
    assert (world / "selector.head.npz").read_bytes() == head  # used, not fitted again
    np.testing.assert_array_equal(read_selection(world / "again.parquet").score, predicted.score)


def test_an_unrelated_score_is_said_to_be_unpredictable(world):
    selection = read_selection(world / "selector.parquet")
    columns = {name: selection.column(name) for name in ("id", "occurrence", "row")}
    columns["score"] = np.random.default_rng(5).random(len(selection))
    meta = {**selection.meta}
    for written in ("format", "versions", "commit"):
        meta.pop(written, None)
    write_selection(world / "noise.parquet", columns, meta)
    found = seal_json("score-new", world / "noise.parquet", *words(world))
    assert abs(found["spearman"]) < 0.3


def test_what_cannot_be_predicted_from_is_refused(world):
    seal_json("score-new", world / "selector.parquet", *words(world))
    assert "predicted scores" in refused("score-new", world / "predicted.parquet", *words(world))
    other = words(world, dataset=world / "new.jsonl")
    (world / "selector.head.npz").unlink()
    assert "none of the 60" in refused("score-new", world / "selector.parquet", *other)
    assert not (world / "selector.head.npz").exists()
    few = world / "few.jsonl"
    few.write_text("".join((world / "user.jsonl").read_text().splitlines(True)[:20]))
    short = words(world, dataset=few)
    assert "at least 50" in refused("score-new", world / "selector.parquet", *short)
    (world / "selector.head.npz").write_bytes(b"PK\x03\x04")
    assert "remove it" in refused("score-new", world / "selector.parquet", *words(world))
    (world / "selector.head.npz").unlink()
