"""A run that is asked to stop saves itself, names the command that goes on, and loses nothing."""

import os
import shlex
import signal
import time
from pathlib import Path

import psutil
import pytest
from launch import SFT, launched, python, run, start
from tiny_world import make_model, make_rows, write_rows

pytestmark = pytest.mark.slow
SECONDS = 60  # from the signal to the end of every rank
STEPS = 30
WORDS = (
    "--pretrain {root}/start --dataset {root}/user.jsonl --max_len 96 --train_batch_size 4 "
    "--micro_train_batch_size 2 --learning_rate 1e-3 --max_epochs 10 --save_path tuned "
    "--ckpt_path snapshots"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model, rows, and what a run that nobody stops leaves in straight/tuned."""
    root = tmp_path_factory.mktemp("stopping")
    make_model(root / "start")
    write_rows(root / "user.jsonl", make_rows(12))
    (root / "straight").mkdir()
    done = python(SFT, *words_of(root), cwd=root / "straight")
    assert done.status == 0, done.output[-3000:]
    return root


def words_of(root: Path) -> list[str]:
    return WORDS.format(root=root).split()


def stopped(words: list, cwd: Path, number: int, everybody: bool) -> tuple[int, str]:
    """Starts a run and signals it after a few steps, once or in every process of it.

    Returns:
        (exit status, output), when the last of its processes is gone.
    """
    process, log = start(words, cwd=cwd), cwd / "tuned/metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 2):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    family = [process.pid, *(c.pid for c in psutil.Process(process.pid).children(recursive=True))]
    for pid in family if everybody else family[:1]:
        os.kill(pid, number)
    output, _ = process.communicate(timeout=SECONDS)  # to the end of the last who holds the pipe
    return process.returncode, output


def resumes(output: str, cwd: Path, world: Path) -> None:
    """The command that a stopped run printed leads to the files of the straight run."""
    line = next(line for line in output.splitlines() if line.startswith("stopped after step"))
    done = run(shlex.split(line.split("go on with: ")[1]), cwd=cwd)
    assert done.status == 0 and "resumed from" in done.output, done.output[-3000:]
    steps = [line.split()[1] for line in done.output.splitlines() if line.startswith("step ")]
    assert 0 < len(steps) < STEPS and steps[-1] == str(STEPS)
    mine, theirs = (d / "tuned/model.safetensors" for d in (cwd, world / "straight"))
    assert mine.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_without_loss(world, tmp_path, number):
    words = ["python", SFT, *words_of(world)]
    status, output = stopped(words, tmp_path, number, everybody=False)
    assert status == 0 and "Traceback" not in output, output
    asked, ended = (output.index(word) for word in ("asked to stop: the", "stopped after step"))
    assert asked < ended and output.count("asked to stop") == 1
    assert not list(tmp_path.glob("tuned/*.safetensors"))
    if number == signal.SIGTERM:
        resumes(output, tmp_path, world)


def test_all_ranks_stop_at_one_step_when_their_launcher_ends(world, tmp_path):
    """SIGTERM ends DeepSpeed's outer launcher at once; the ranks notice. Installed, as a module."""
    words = launched("--module", "seal.cli.train_sft", *words_of(world))
    status, output = stopped(words, tmp_path, signal.SIGTERM, False)
    assert status == -signal.SIGTERM and output.count("stopped after step") == 1
    assert " --module seal.cli.train_sft --pretrain " in output.split("go on with: ")[1]
    assert len(list(tmp_path.glob("snapshots/*/step_*"))) == 1


def test_the_warning_of_a_job_limit_reaches_the_ranks(world, tmp_path):
    """As launch.sh starts it: the launcher ignores SIGUSR1, the ranks do not."""
    words = ["bash", "-c", "trap '' USR1; " + shlex.join(map(str, launched(SFT, *words_of(world))))]
    status, output = stopped(words, tmp_path, signal.SIGUSR1, everybody=True)
    assert status == 0 and output.count("stopped after step") == 1, output
