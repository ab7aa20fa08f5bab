"""benchmarks/gpu.sh from end to end, on a tiny shape and the CPU."""

import json
import subprocess

import pytest
from launch import ROOT, environment

pytestmark = pytest.mark.slow


def test_every_part_leaves_its_result(tmp_path):
    small = {"DEVICE": "cpu", "MODEL": "llama-tiny", "BATCH": "4", "BUDGET": "600"}
    words = ["bash", str(ROOT / "benchmarks/gpu.sh"), str(tmp_path), "selector|sft|head"]
    done = subprocess.run(words, env=environment(**small), capture_output=True, text=True)
    assert "not finished" not in done.stdout, done.stdout
    selector = json.loads((tmp_path / "gpu_selector.json").read_text())
    pairs = [(row["phase"], row["micro"]) for row in selector["results"] if "ratio" in row]
    assert pairs == [("gamma", 8), ("gamma0", 8), ("gamma", 1), ("gamma0", 1)]
    assert selector["commit"] and selector["matmul_flops"] > 0
    sft = json.loads((tmp_path / "gpu_sft.json").read_text())
    assert [row["to"] for row in sft["results"] if "ratio" in row] == ["trl"]
    assert "calls" in (tmp_path / "gpu_profile.txt").read_text()
    assert json.loads((tmp_path / "gpu_head.json").read_text())["results"]


def test_a_part_that_fails_is_named_and_the_next_one_runs(tmp_path):
    small = {"DEVICE": "cpu", "MODEL": str(tmp_path / "absent"), "BUDGET": "600"}
    words = ["bash", str(ROOT / "benchmarks/gpu.sh"), str(tmp_path), "unchecked|head"]
    done = subprocess.run(words, env=environment(**small), capture_output=True, text=True)
    assert "not finished: unchecked (status" in done.stdout
    assert (tmp_path / "gpu_head.json").is_file()
