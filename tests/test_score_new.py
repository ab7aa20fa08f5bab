"""`seal score-new`: a head learns what a selector ranks by, and says how well."""

import numpy as np
import pytest
from launch import ROOT, deepspeed
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
    assert str(world) not in str(predicted.meta["arguments"])
    assert predicted.meta["predicted"]["spearman"] == found["spearman"]
    assert predicted.visits.max() == 0

    # the predicted selector carries the head that it was made with
    again = [*words(world)[:2], *words(world)[4:], "--out", world / "again.parquet"]
    assert "--dataset" not in again
    seal_json("score-new", world / "predicted.parquet", *again)
    np.testing.assert_allclose(
        read_selection(world / "again.parquet").score, predicted.score, atol=1e-5
    )


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
    selector = world / "selector.parquet"
    assert "carries no head" in refused("score-new", selector, *words(world)[:2], *words(world)[4:])
    other = words(world, dataset=world / "new.jsonl")
    assert "none of the 60" in refused("score-new", selector, *other)
    few = world / "few.jsonl"
    few.write_text("".join((world / "user.jsonl").read_text().splitlines(True)[:20]))
    assert "at least 50" in refused("score-new", selector, *words(world, dataset=few))


@pytest.mark.slow
def test_a_selector_over_states_carries_its_head(world, tmp_path):
    script = ROOT / "examples/train_sft_selector.py"
    flags = (
        f"--pretrain {world / 'model'} --dataset {world / 'new.jsonl'} --new_dataset "
        f"{world / 'user.jsonl'} --selector_save_dir {tmp_path} --selector_head linear "
        "--max_len 64 --max_epochs 1 --train_batch_size 16 --micro_train_batch_size 8 "
        "--learning_rate 1e-3"
    )
    for extra, says in (("--layer 9", "layers 1 to 2"), ("--selector_optim adam", "mirror")):
        done = deepspeed(script, *flags.split(), *extra.split(), cwd=tmp_path)
        assert done.status != 0 and says in done.output, done.output[-2000:]
    for estimator in ("penalty", "penalty_gap"):
        name = ["--selector_name", estimator, "--selector_estimator", estimator]
        done = deepspeed(script, *flags.split(), *name, cwd=tmp_path)
        assert done.status == 0, done.output[-3000:]
        path = tmp_path / f"{estimator}_softmax.parquet"
        trained, out = read_selection(path), tmp_path / f"{estimator}_again.parquet"
        assert len(set(trained.score)) > 100 and trained.meta["head"]["layer"] == 1
        again = ["--pretrain", world / "model", "--new_dataset", world / "user.jsonl", "--out", out]
        found = seal_json("score-new", path, *again)
        assert found["spearman"] is None
        shift = read_selection(out).score - trained.score  # the softmax leaves a shift open
        np.testing.assert_allclose(shift, shift.mean(), atol=1e-4)
