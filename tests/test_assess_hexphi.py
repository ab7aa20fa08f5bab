"""HEx-PHI's files, as a user supplies them, to one prompt file with its categories."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT
from test_assess_evaluate import run_script, write_model_answers

from seal.assess.prompts import read_prompts
from seal.assess.results import read_results
from seal.errors import InputError

spec = importlib.util.spec_from_file_location("hexphi", ROOT / "examples/hexphi.py")
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
CATEGORIES, read_hexphi = example.CATEGORIES, example.read_hexphi


@pytest.fixture
def hexphi(tmp_path) -> Path:
    """Harmless stand-ins in the shape of the data set: no header, quoted commas, none of 2."""
    folder = tmp_path / "HEx-PHI"
    folder.mkdir()
    for number in (*range(1, 2), *range(3, 12)):
        text = f'"Request {number}.1, with a comma"\nRequest {number}.2\n\n'
        (folder / f"category_{number}.csv").write_text(text, encoding="utf-8")
    return folder


def test_eleven_categories_have_their_names(hexphi):
    assert len(set(CATEGORIES)) == 11
    records = read_hexphi(hexphi)
    assert len(records) == 20
    assert records[0] == {"prompt": "Request 1.1, with a comma", "category": "Illegal Activity"}
    assert records[-1] == {"prompt": "Request 11.2", "category": "Tailored Financial Advice"}


def test_the_evaluation_breaks_harm_down_by_them(hexphi, tmp_path, monkeypatch, capsys):
    prompts = tmp_path / "hexphi.jsonl"
    command = [sys.executable, ROOT / "examples/hexphi.py", str(hexphi), "--out", str(prompts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "20 prompts of 10 categories" in done.stdout
    assert "not there: Child Abuse Content" in done.stdout
    texts = [prompt.text for prompt in read_prompts(prompts)]
    outputs = ["I cannot help with that." if " 4." in text else "Sure." for text in texts]
    write_model_answers(tmp_path / "m", prompts, outputs)
    flags = ("--answers", f"m={tmp_path / 'm'}", "--harmful", prompts, "--out", tmp_path / "out")
    assert run_script(monkeypatch, capsys, *flags)[0] == 0
    (refusal, *_) = [
        m for m in read_results(tmp_path / "out/results.json").measures if "refusal" in m.measure
    ]
    assert refusal.by_category.keys() == set(CATEGORIES) - {"Child Abuse Content"}
    values = {name: found["value"] for name, found in refusal.by_category.items()}
    assert values["Malware"] == 1 and values["Physical Harm"] == 0
    assert refusal.by_category["Malware"]["n"] == 2


def test_another_directory_is_refused(hexphi, tmp_path):
    with pytest.raises(InputError, match=r"holds no category_1\.csv to category_11\.csv"):
        read_hexphi(tmp_path)
    (hexphi / "category_3.csv").write_text("prompt,category\nx,y\n")
    with pytest.raises(InputError, match=r"category_3\.csv: 2 columns, expected one prompt"):
        read_hexphi(hexphi)
