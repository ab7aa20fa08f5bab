"""Two nodes, real ones as far as the network goes, give the scores of one; a lost one resumes."""

import json
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
from launch import environment

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/two_nodes.sh"
SECONDS = 500


def why_not() -> str | None:
    """Why this machine cannot make network namespaces, None if it can."""
    if shutil.which("ip") is None:
        return "needs iproute2 (apt-get install iproute2)"
    name = f"seal-probe-{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"needs the right to make network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


@pytest.mark.slow
def test_two_nodes_give_the_scores_of_one(tmp_path):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    done = subprocess.run(
        ["bash", SCRIPT, tmp_path],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment(HF_DATASETS_CACHE=str(tmp_path / "cache")),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == 60 and found["passes_kept"] == ["fold0"]
    for kind in ("selector", "scores"):
        assert found[kind]["same_order"] and found[kind]["largest_difference"] < 1e-5
