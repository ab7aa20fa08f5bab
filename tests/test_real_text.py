"""The real-text check from end to end at its smallest, what it draws and how it judges."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
SCRIPT = ROOT / "benchmarks/real_text.py"

needs_data = pytest.mark.skipif(
    not SHARED.exists(), reason="needs the research data in ../shared/data"
)


@needs_data
@pytest.mark.slow
def test_a_model_from_scratch_is_selected_for_tuned_and_generates(tmp_path):
    words = [sys.executable, SCRIPT, "--data", SHARED, "--out", tmp_path, "--quick"]
    words += ["--methods", "penalty, mirror"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert [step["step"] for step in results["steps"]] == ["base", "penalty__mirror", "sft"]
    assert all(answer["tokens"] for answer in results["sft"]["generated"])
    (score,) = results["scores"]
    for question in ("easy", "hard", "hard_within_prompt"):
        assert 0 <= score[question]["low"] <= score[question]["auc"] <= score[question]["high"] <= 1
    # what training reads holds no ground truth
    rows = [json.loads(line) for line in (tmp_path / "data/rows.jsonl").open()]
    assert len(rows) == results["n"]["rows"] == 200
    assert all(set(row) == {"prompt", "response"} for row in rows)


@needs_data
def test_a_draw_keeps_shares_and_whole_prompts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from real_text_parts import draw, read_lines

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
    from real_text_scores import QUESTIONS, Truth, judge

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
