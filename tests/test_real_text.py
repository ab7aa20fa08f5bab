"""The real-text check from end to end at its smallest, what it draws and how it judges."""

import json

import numpy as np
import pytest
from launch import ROOT, python
from tiny_world import make_model

SHARED = ROOT.parent / "shared" / "data"
SCRIPT, TABLES = ROOT / "benchmarks/real_text.py", ROOT / "benchmarks/real_tables.py"

needs_data = pytest.mark.skipif(
    not SHARED.exists(), reason="needs the research data in ../shared/data"
)


@needs_data
@pytest.mark.slow
def test_every_unit_runs_once_and_the_tables_follow(tmp_path):
    model = make_model(tmp_path / "model", num_hidden_layers=8, max_position_embeddings=4096)
    words = ["--pretrain", model, "--data", SHARED, "--out", tmp_path / "run", "--quick"]
    done = python(SCRIPT, *words)
    assert done.status == 0, done.output[-3000:]
    units = [json.loads(line) for line in (tmp_path / "run/units.jsonl").open()]
    names = [unit["unit"] for unit in units]
    assert len(set(names)) == len(names)
    scored = {"words/mixed/seed0/states", "words/half/seed0/excess_loss"}
    assert {"align", "setting"} | scored < set(names)
    again = python(SCRIPT, *words)
    assert again.status == 0 and len((tmp_path / "run/units.jsonl").open().readlines()) == len(
        names
    )
    # what training reads holds no ground truth, and no answer is kept
    rows = [json.loads(line) for line in (tmp_path / "run" / "work" / "corpus.jsonl").open()]
    assert all(set(row) == {"prompt", "response"} for row in rows)
    (tmp_path / "results").mkdir()
    done = python(TABLES, *words, "--results", tmp_path / "results", "--resamples", 5)
    assert done.status == 0, done.output[-3000:]
    records = json.loads((tmp_path / "results/real_words.json").read_text())
    methods = {record["method"] for record in records}
    assert {"probe", "knn", "larf", "shift", "subspace", "token_excess", "penalty, head"} < methods
    assert {"probe and verdict", "bad less safe, smoothed"} < methods
    assert {"verdict, untuned", "verdict, no unsafe row", "personas", "pu_probe"} < methods
    for record in records:
        for question in ("easy", "hard", "hard_within_prompt"):
            assert 0 <= record[question]["auc"] <= 1


@needs_data
def test_a_draw_keeps_shares_and_whole_prompts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from real_world import draw, read_lines

    rows = read_lines(SHARED / "mix.jsonl.gz")
    drawn = draw(rows, 2000, seed=3)
    assert len(drawn) == 2000 and drawn == draw(rows, 2000, seed=3) != draw(rows, 2000, seed=4)
    share = np.mean([row["provenance"] == "unsafe" for row in rows])
    assert np.mean([row["provenance"] == "unsafe" for row in drawn]) == pytest.approx(
        share, abs=0.02
    )
    asked = {row["prompt"] for row in drawn if row["source"] == "pku"}
    assert sum(row["prompt"] in asked for row in rows) == sum(
        row["prompt"] in asked for row in drawn
    )


def test_judgement_of_a_perfect_and_of_an_inverted_score(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from real_judgement import QUESTIONS, Truth, judge

    kinds = ["benign"] * 40 + ["safe", "unsafe"] * 10
    rows = [
        {"prompt": f"{kind == 'benign'} {n // 2}", "response": "r" * n, "provenance": kind}
        for n, kind in enumerate(kinds)
    ]
    truth = Truth(rows)
    score = np.array([-1.0 if kind == "unsafe" else 1.0 + n for n, kind in enumerate(kinds)])
    for sign, auc in ((1, 1.0), (-1, 0.0)):
        found = judge(sign * score, truth, topp=0.8, resamples=20)
        assert all(found[name]["auc"] == found[name]["low"] == auc for name in QUESTIONS)
        assert found["unsafe_kept"] == (0 if auc else 10)
    assert [found[name]["prompts"] for name in QUESTIONS] == [30, 10, 10]
