"""The end of a distributed process: its status and its last lines, and no interpreter teardown."""

import pytest
from launch import deepspeed, python

pytestmark = pytest.mark.slow
SCRIPT = """
import atexit, sys
from seal.errors import InputError
from seal.utils import entry

class Witness:
    def __del__(self):
        print("torn down", flush=True)

witness = Witness()
atexit.register(print, "hook ran")

def main():
    if "join" in sys.argv:
        from seal.utils.strategy import DeepspeedStrategy
        DeepspeedStrategy().setup_distributed()
    print("last line")
    if "bad" in sys.argv:
        raise InputError("this input is bad")

entry.run(main)
"""


@pytest.mark.parametrize("launcher", [deepspeed, python])
@pytest.mark.parametrize("words, status", [(["join"], 0), (["join", "bad"], 2), ([], 0)])
def test_no_teardown_after_distributed_work(tmp_path, launcher, words, status):
    """Threads of a process group outlive it; one that frees a tensor in teardown aborts."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = launcher(script, *words)
    assert done.status == status, done.output
    assert "last line" in done.output and "hook ran" in done.output
    assert ("torn down" in done.output) == ("join" not in words)


@pytest.mark.parametrize("ranks, status", [(1, 0), (2, 2)])
def test_ranks_without_a_place_to_meet(tmp_path, ranks, status):
    """accelerate leaves the ranks of a run within one process to the processes that it starts."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = python(script, "join", env={"RANK": "0", "WORLD_SIZE": str(ranks)})
    assert done.status == status, done.output
    refused = "error: rank 0 of 2, and LOCAL_RANK is not set; start with deepspeed or torchrun"
    assert [line.startswith(refused) for line in done.errors] == [True] * (ranks - 1)
