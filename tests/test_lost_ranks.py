"""A lost rank ends the run on every rank, by name; an output belongs to one run at a time."""

import os
import signal
import time

import psutil
import pytest
from launch import SFT, kill, launched, python, start
from tiny_world import make_model, make_rows, write_rows

pytestmark = pytest.mark.slow
TIMEOUT, SECONDS = 15, 60  # seconds: given to the run, and from then to the last end
WORDS = (
    "--pretrain {root}/start --dataset {root}/user.jsonl --max_len 96 --train_batch_size 4 "
    f"--micro_train_batch_size 2 --max_epochs 2000 --timeout_minutes {TIMEOUT / 60:.3f} "
    "--save_path tuned"
)


@pytest.fixture
def running(tmp_path):
    """(a run of two ranks in its first steps, its folder, the process of each rank)."""
    make_model(tmp_path / "start")
    write_rows(tmp_path / "user.jsonl", make_rows(12))
    process = start(launched(SFT, *WORDS.format(root=tmp_path).split()), cwd=tmp_path)
    log = tmp_path / "tuned/metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 2):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    yield process, tmp_path, ranks_of(process.pid)
    if process.poll() is None:
        kill(process)


def ranks_of(launcher: int) -> list[int]:
    """Process ids of the ranks below a launcher."""
    ranks = {}
    for child in psutil.Process(launcher).children(recursive=True):
        words = child.cmdline()
        if words[2:3] == [str(SFT)]:
            ranks[words[3]] = child.pid
    return [ranks[name] for name in sorted(ranks)]


@pytest.mark.parametrize("rank, number", [(1, signal.SIGSTOP), (1, signal.SIGKILL)])
def test_a_lost_rank_is_named_and_all_end(running, rank, number):
    process, _, ranks = running
    began = time.monotonic()
    os.kill(ranks[rank], number)
    output, _ = process.communicate(timeout=TIMEOUT + SECONDS + 20)
    waited = time.monotonic() - began - (TIMEOUT if number == signal.SIGSTOP else 0)
    assert waited < SECONDS  # the pipe closes when the last process is gone
    assert process.returncode != 0 and "Traceback" not in output, output
    assert f"error: no answer from rank {rank}," in output


def test_a_second_run_on_the_same_output_is_refused(running):
    process, folder, _ = running
    words = WORDS.format(root=folder).split()
    for other in ([], ["--save_path", "elsewhere"]):  # the directory of checkpoints is the same
        done = python(SFT, *words, *other, cwd=folder)
        assert done.status == 2 and len(done.errors) == 1, done.output
        assert "belongs to a run that has not ended" in done.errors[0]
    assert process.poll() is None
    assert not list(folder.glob("tuned/*.json"))
    assert not (folder / "elsewhere").exists()
    kill(process)
    done = python(
        SFT, *words, "--max_epochs", "1", "--overwrite", cwd=folder
    )  # a dead run's lock blocks nobody
    assert done.status == 0, done.output
