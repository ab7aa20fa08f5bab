"""examples/build_redorca.py on small made-up files in the two public formats."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def orca(number, question=None, system=True):
    turns = [
        {"from": "human", "value": question or f"Question {number}?", "weight": 0.0},
        {"from": "gpt", "value": f"Answer {number}.", "weight": 1.0},
    ]
    start = [{"from": "system", "value": "You are helpful.", "weight": None}] if system else []
    return {"conversations": start + turns}


def attempt(number, rating=3.0):
    text = f"\n\nHuman: Trick {number}\n\nAssistant: Well, {number}\n\nHuman: More\n\nAssistant: No"
    return {"transcript": text, "rating": rating, "num_params": "52B"}


@pytest.fixture
def sources(tmp_path):
    broken = [orca(900, question="  "), {"conversations": [{"from": "gpt", "value": "alone"}]}]
    repeated = [orca(901, question="question  7?"), orca(902, question="Trick 3")]
    rows = [orca(k, system=k % 2 == 0) for k in range(60)] + broken + repeated
    attempts = [attempt(k, rating=k % 5) for k in range(40)]
    return (
        write_jsonl(tmp_path / "orca.jsonl", rows),
        write_jsonl(tmp_path / "red.jsonl", attempts),
    )


def build(sources, out, *flags):
    command = [sys.executable, "examples/build_redorca.py", "--out", str(out)]
    command += ["--slimorca", sources[0], "--redteam", sources[1], *flags]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


SIZES = ("--blue_rows", "20", "--red_rows", "8", "--orca_rows", "25")


def test_builds_the_published_shape_and_repeats_itself(sources, tmp_path):
    done = build(sources, tmp_path / "a", *SIZES)
    assert done.returncode == 0, done.stderr
    blue = read(tmp_path / "a/BlueOrca/train.jsonl")
    red = read(tmp_path / "a/RedOrca/train.jsonl")
    assert len(blue) == 20 and len(red) == 33
    assert [row["provenance"] for row in red] == ["redteam"] * 8 + ["slimorca"] * 25
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in red)
    prompts = [" ".join(row["messages"][0]["content"].lower().split()) for row in blue + red]
    assert len(set(prompts)) == len(prompts)
    manifest = json.loads((tmp_path / "a/redorca.json").read_text())
    assert manifest["prompts_in_common"] == 0
    assert manifest == json.loads(done.stdout)

    assert build(sources, tmp_path / "b", *SIZES).returncode == 0
    again = json.loads((tmp_path / "b/redorca.json").read_text())
    assert again["RedOrca"]["sha256"] == manifest["RedOrca"]["sha256"]
    assert build(sources, tmp_path / "c", *SIZES, "--seed", "7").returncode == 0
    other = json.loads((tmp_path / "c/redorca.json").read_text())
    assert other["RedOrca"]["sha256"] != manifest["RedOrca"]["sha256"]


def test_flags_reach_the_rows(sources, tmp_path):
    sizes = ("--blue_rows", "0", "--red_rows", "24", "--orca_rows", "60")
    done = build(
        sources, tmp_path, *sizes, "--min_rating", "2", "--whole_transcript", "--keep_system"
    )
    assert done.returncode == 0, done.stderr
    red = read(tmp_path / "RedOrca/train.jsonl")
    assert len(red[0]["messages"]) == 4
    assert sum(row["messages"][0]["role"] == "system" for row in red) >= 30
    skipped = json.loads(done.stdout)["skipped"]
    assert skipped["red team: rated too low"] == 16


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--blue_rows", "500"), "SlimOrca has 61 usable rows, 500 are needed"),
        (("--redteam", "/nowhere/red.jsonl"), "cannot read /nowhere/red.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(sources, tmp_path, flags, says):
    done = build(sources, tmp_path / "out", *SIZES, *flags)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") and says in done.stderr
    assert not list((tmp_path / "out").rglob("*.jsonl"))
