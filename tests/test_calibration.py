"""Canaries: the bound of --topp auto holds, and both scripts that score take them along."""

import json

import datasets
import numpy as np
import pytest
from launch import ROOT, python
from tiny_world import make_model, make_rows, write_rows

import seal
from seal.cli import flags as cli
from seal.command import main
from seal.datasets import load_rows
from seal.errors import InputError
from seal.selection.artefact import (
    make_selection,
    read_selection,
    selection_meta,
    write_selection,
)
from seal.selection.calibration import auto_topp, calibrate, recall_at, share_kept
from seal.selection.evidence import doubts
from seal.statistics import auroc


def selection(score, canary_score=None):
    n = len(score)
    meta = selection_meta(method="excess_loss", fingerprint="0" * 32, raw=n, seed=0)
    if canary_score is not None:
        meta["calibration"] = calibrate(score, canary_score)
    columns = {"id": [f"{i:032x}" for i in range(n)], "occurrence": np.zeros(n, np.int32)}
    return make_selection(columns | {"row": np.arange(n), "score": score}, meta)


def test_the_bound_holds_as_often_as_it_says():
    """Bad rows drawn like the canaries: more than the limit is kept in at most 5 % of worlds."""
    generator, failures, worlds = np.random.default_rng(0), 0, 200
    for _ in range(worlds):
        good, canaries = generator.normal(1.5, 1, 300), generator.normal(0, 1, 80)
        topp = auto_topp(selection(good, canaries), 0.1, 0.95)
        bar = np.sort(good.astype(np.float32))[::-1][round(topp * len(good)) - 1]
        kept_in_truth = 1 - _normal_cdf(float(bar))
        failures += kept_in_truth > 0.1
    assert failures / worlds <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / worlds)
    assert failures > 0  # not so strict that it says nothing


def _normal_cdf(x: float) -> float:
    from scipy.stats import norm

    return float(norm.cdf(x))


def test_separated_canaries_keep_every_good_row():
    found = selection(np.linspace(1, 2, 100), np.linspace(-1, 0, 60))
    assert auto_topp(found, 0.05, 0.95) == 1.0
    assert found.meta["calibration"]["auroc"] == 1.0
    assert recall_at(found, 0.5)["recall"] == 1.0


def test_bad_rows_just_above_the_highest_canary_are_cut_where_the_gap_is_clear():
    generator = np.random.default_rng(3)
    bad, canaries = generator.normal(0, 0.1, 100), generator.normal(0, 0.1, 60)
    found = selection(np.concatenate([bad, generator.normal(5, 1, 400)]), canaries)
    assert (bad > canaries.max()).any()
    assert auto_topp(found, 0.05, 0.95) == 0.8


def test_calibration_counts_what_it_says():
    generator = np.random.default_rng(1)
    score, canaries = generator.normal(1, 1, 500).astype(np.float32), generator.normal(0, 1, 70)
    found = selection(score, canaries)
    labels = np.repeat([1, 0], [500, 70])
    expected = auroc(np.concatenate([score, canaries]), labels)
    calibration = found.meta["calibration"]
    np.testing.assert_allclose(calibration["auroc"], expected)
    low, high = calibration["auroc_interval"]
    assert low < expected < high
    at = recall_at(found, 0.7)
    assert at["recall"] == np.mean(canaries < at["threshold"])
    assert recall_at(selection(score), 0.7) == {}


@pytest.mark.parametrize(
    "canaries, limit, confidence, says",
    [
        (58, 0.05, 0.95, "at least 59"),
        (0, 0.05, 0.95, "needs canaries"),
        (80, 1.5, 0.95, "max_canary_kept"),
        (80, 0.05, 0.0, "confidence"),
    ],
)
def test_claims_that_cannot_be_made_are_refused(canaries, limit, confidence, says):
    found = selection(np.arange(10.0), np.arange(-canaries, 0.0) if canaries else None)
    with pytest.raises(InputError, match=says):
        auto_topp(found, limit, confidence)


def test_auto_refuses_a_score_that_does_not_tell_the_canaries():
    generator = np.random.default_rng(0)
    found = selection(generator.normal(size=200), generator.normal(0.1, 1, 80))
    low, high = found.meta["calibration"]["auroc_interval"]
    assert low < 0.5 < high
    with pytest.raises(InputError, match=r"not tell the canaries .*AUROC 0\.\d+.* reaches 0.5"):
        share_kept(found, "auto")
    assert share_kept(found, "0.8") == share_kept(found, 0.8) == 0.8
    with pytest.raises(InputError, match=r"a share in .0, 1. or auto, got 'most'"):
        share_kept(found, "most")


def test_every_way_to_select_repeats_the_doubts(tmp_path, capsys):
    rows = make_rows(20, seed=5)
    write_rows(tmp_path / "user.jsonl", rows)
    loaded = load_rows(str(tmp_path / "user.jsonl"))
    meta = selection_meta(method="excess_loss", fingerprint="0" * 32, raw=20, seed=0)
    columns = {name: loaded[:][name] for name in ("id", "occurrence", "row")}
    path = tmp_path / "mine.parquet"
    meta["evidence"] = {"reliability": 0.1, "moved": {}}
    write_selection(path, columns | {"score": np.arange(20.0)}, meta)
    with pytest.warns(UserWarning, match="agrees at 0.10 only"):
        seal.select(datasets.Dataset.from_list(rows), path, 0.5)
    flags = [str(path), "--dataset", str(tmp_path / "user.jsonl"), "--topp", "0.5"]
    assert main(["export", *flags, "--out", str(tmp_path / "kept.jsonl")]) == 0
    assert "warning: the score from the even" in capsys.readouterr().out
    assert main(["report", *flags, "--out", str(tmp_path / "report.html")]) == 0
    assert "In doubt:</b> the score from the even" in (tmp_path / "report.html").read_text()


def test_doubts_weigh_what_the_evidence_is_worth():
    noise = {"evidence": {"reliability": 0.3, "moved": {}}}
    assert len(doubts(noise)) == 1
    known = {"auroc": 0.9, "auroc_interval": [0.85, 0.93]}
    assert "tune" not in doubts(noise)[0] and doubts(noise)[0].endswith("noise; use another method")
    (tuned,) = doubts({"evidence": {"reliability": 0.3, "moved": {"safe": {"safe": [0.5, 0.1]}}}})
    assert tuned.endswith("noise; tune longer or at a higher rate, or use another method")
    moved = {"safe": {"safe": [1.2, 0.6]}, "fold0": {"rows": [1.5, 0.9]}}
    steps = {"evidence": {"moved": moved, "steps": {"safe": 9, "fold0": 12}}}
    (few,) = doubts(steps)
    assert "tuned for 9 optimizer steps only, fewer than 10" in few
    assert few.endswith("bring more rows, raise the epochs or lower --train_batch_size")
    assert doubts(steps | {"calibration": known}) == []
    moved["safe"]["safe"] = [0.02, 0.01]  # known before
    assert doubts(steps) == []
    assert doubts(noise | {"calibration": known}) == []
    weak = {"auroc": 0.66, "auroc_interval": [0.59, 0.73]}
    assert len(doubts(noise | {"calibration": weak})) == 1

    def loop(**losses):
        return doubts({"evidence": {"reliability": None, "moved": {"loop": losses}}})

    good = {"safe": [0.5, 0.1], "rows": [0.9, 0.8], "swapped": [2.0, 1.5]}
    assert loop(**good) == []
    (still,) = loop(**good | {"safe": [0.5, 0.49]})
    assert "took their loss from 0.500 to 0.490" in still
    (foreign,) = loop(**good | {"safe": [2.0, 0.1]})  # by heart in the end
    assert "as likely behind each other's prompts" in foreign


def test_every_way_to_select_takes_auto(tmp_path):
    rows = make_rows(80, seed=5)
    write_rows(tmp_path / "user.jsonl", rows)
    loaded = load_rows(str(tmp_path / "user.jsonl"))
    score = np.linspace(-1, 1, 80)
    meta = selection_meta(method="excess_loss", fingerprint="0" * 32, raw=80, seed=0)
    meta["calibration"] = calibrate(score, np.linspace(-2, -0.5, 60))
    columns = {name: loaded[:][name] for name in ("id", "occurrence", "row")}
    path = tmp_path / "mine.parquet"
    share = share_kept(write_selection(path, columns | {"score": score}, meta), "auto")
    assert 0.5 < share < 1
    kept = seal.select(datasets.Dataset.from_list(rows), path, "auto")
    assert len(kept) == round(80 * share)
    flags = [str(path), "--dataset", str(tmp_path / "user.jsonl"), "--topp", "auto"]
    assert main(["export", *flags, "--out", str(tmp_path / "kept.jsonl")]) == 0
    exported = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert exported == kept.to_list()
    assert main(["report", *flags, "--out", str(tmp_path / "report.html")]) == 0
    assert f"{len(kept)} of 80" in (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canaries")
    user = make_rows(24, seed=2)
    write_rows(folder / "safe.jsonl", make_rows(12, seed=1))
    write_rows(folder / "user.jsonl", user)
    write_rows(folder / "canaries.jsonl", make_rows(9, seed=3) + user[:2])
    make_model(folder / "model")
    return folder


def words(world, **extra) -> list[str]:
    flags = {
        "pretrain": world / "model",
        "dataset": world / "safe.jsonl",
        "new_dataset": world / "user.jsonl",
        "canary_dataset": world / "canaries.jsonl",
        "canary_fraction": 0.25,
        "selector_save_dir": world / "ckpt",
        "train_batch_size": 8,
        "micro_train_batch_size": 2,
        "max_len": 96,
    }
    return [str(w) for name, value in (flags | extra).items() for w in (f"--{name}", value)]


@pytest.mark.slow
def test_the_selector_scores_canaries_and_leaves_them_out_of_the_artefact(world):
    done = python(ROOT / "examples/train_sft_selector.py", *words(world, max_epochs=1), cwd=world)
    assert done.status == 0, done.output[-2000:]
    found = read_selection(world / "ckpt/sft_selection_logits_softmax.parquet")
    assert len(found) == 24 and found.meta["calibration"]["n"] == 6
    assert found.visits.tolist() == [1] * 24


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "dsir", "relative_excess"])
def test_scores_take_canaries_along(world, method):
    from seal.cli.score_dataset import score

    score(cli.score_parser().parse_args(words(world, method=method, selector_name=method)))
    found = read_selection(world / f"ckpt/{method}.parquet")
    assert len(found) == 24 and found.meta["calibration"]["n"] == 6


@pytest.mark.slow
def test_a_canary_in_the_safe_set_is_refused(world):
    from seal.cli.score_dataset import score

    flags = words(world, method="random", canary_dataset=world / "safe.jsonl")
    with pytest.raises(InputError, match="also stand in the safe set"):
        score(cli.score_parser().parse_args(flags))
