"""The fault suite in short; tests/faults/run.sh --full has all of it."""

import json
import sys
from pathlib import Path

import pytest
from launch import run

pytestmark = pytest.mark.slow
SUITE = Path(__file__).parent / "faults/suite.py"


def test_nothing_is_lost_and_nothing_let_in():
    done = run([sys.executable, SUITE])
    assert done.status == 0, done.output[-5000:]
    counts = json.loads(done.output.splitlines()[-1])
    assert counts["kills"] == counts["lossless"] == 1
    assert counts["bad_inputs"] == 5 and counts["fuzzed"] == 200
    zero = ("hangs", "tracebacks", "partial_outputs", "crashes")
    assert [counts[name] for name in zero] == [0] * 4
