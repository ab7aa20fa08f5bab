"""Two ranks of a script in a second: forked from a process that has imported everything.

It stands for the launcher as far as ranks can tell: it sets their environment, and when one of them
dies it ends the other. The real one is used where the launcher itself is what is killed.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

from launch import environment, free_port

RANKS = 2
GRACE_SECONDS = 30  # from SIGTERM to SIGKILL, as DeepSpeed's launcher gives it
PRELOADED = [
    "warm",
    "seal.cli.train_sft",
    "seal.cli.train_sft_selector",
    "seal.cli.score_dataset",
    "seal.utils.strategy",
]


class WarmRun:
    """A run that has been started; its ranks are `pids`, its output goes to a file."""

    def __init__(self, script: Path, words: list[str], folder: Path):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.log = folder.with_suffix(".log")
        receiver, sender = context.Pipe(duplex=False)
        self._launcher = context.Process(
            target=_launch, args=(str(script), words, str(folder), str(self.log), sender)
        )
        self._launcher.start()
        self.pids = [self._launcher.pid, *receiver.recv()]

    def ended(self) -> bool:
        """Whether all its processes are gone."""
        return not self._launcher.is_alive()

    def wait(self, seconds: float) -> bool:
        """Waits for its end; whether it came in time."""
        self._launcher.join(seconds)
        return self.ended()

    def kill(self) -> None:
        """kill -9 to all of it."""
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._launcher.join()

    @property
    def status(self) -> int:
        """Exit status, 0 when every rank's is."""
        return self._launcher.exitcode

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")


def _launch(script: str, words: list[str], folder: str, log: str, sender) -> None:
    """In the launcher's process: starts the ranks, waits, ends all when one fails."""
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())))
    os.environ.update(WORLD_SIZE=str(RANKS), LOCAL_SIZE=str(RANKS))
    ranks = [_fork(rank, script, words) for rank in range(RANKS)]
    sender.send(ranks)
    status, limit = 0, None
    while ranks:
        for pid in list(ranks):
            done, code = os.waitpid(pid, os.WNOHANG)
            if done:
                ranks.remove(pid)
                status = status or os.waitstatus_to_exitcode(code)
        if status and ranks:
            limit = limit or time.monotonic() + GRACE_SECONDS
            number = signal.SIGTERM if time.monotonic() < limit else signal.SIGKILL
            for pid in ranks:
                os.kill(pid, number)
        time.sleep(0.1)
    sys.exit(abs(status))


def _fork(rank: int, script: str, words: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    sys.argv = [script, f"--local_rank={rank}", *words]
    status = 1
    try:
        runpy.run_path(script, run_name="__main__")
        status = 0
    except SystemExit as left:
        status = left.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
