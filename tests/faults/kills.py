"""kill -9 at a chosen moment, of a chosen process of a run; then the end of all the others."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from jobs import Job
from launch import kill, launched, start
from warm import WarmRun

END_SECONDS = 120  # from the kill to the end of every process
START_SECONDS = 300
POLL = 0.0005
TARGETS = ("rank 0", "rank 1", "launcher", "everything")


def moments(job: Job, rng: random.Random) -> dict[str, Callable[[Path], bool]]:
    """Name -> whether the moment to kill has come, in a run's folder."""

    def logged(lines: int) -> Callable[[Path], bool]:
        log = job.log
        return lambda at: (at / log).exists() and (at / log).read_text().count("\n") >= lines

    def exists(pattern: str) -> Callable[[Path], bool]:
        return lambda at: any(at.glob(pattern))

    if job.name == "scoring":
        passes = exists(rng.choice(["ckpt/scores_parts/safe_*.npy", "ckpt/scores_parts/fold0*"]))
        return {
            "between passes": passes,
            "writing a part": exists("ckpt/scores_parts/.*.tmp"),
            "writing the artefact": exists("ckpt/.scores.parquet.*.tmp"),
        }
    found = {
        "a step": logged(rng.randrange(1, 12)),
        "writing a checkpoint": exists(f"snapshots/*/.step_{2 * rng.randrange(1, 6)}.partial"),
        "after a checkpoint": exists(f"snapshots/*/step_{2 * rng.randrange(1, 6)}"),
        "writing the model": exists("tuned/.saving-*"),
    }
    if job.name == "selector":
        epoch = rng.randrange(1, 5)
        found["epoch edge"] = exists(f"ckpt/*_ep{epoch}.parquet")
        found["writing the artefact"] = exists(f"ckpt/.*_ep{epoch}.parquet.*.tmp")
    else:
        found["epoch edge"] = logged(3 * rng.randrange(1, 4))
    return found


class RealRun:
    """A run under the real launcher; the same face as `warm.WarmRun`."""

    def __init__(self, script: Path, words: list[str], folder: Path):
        self._process, self._script = start(launched(script, *words), cwd=folder), script
        self.output = ""

    @property
    def pids(self) -> list[int]:
        """The launcher that started the ranks, then the ranks that are there."""
        found = {}
        for child in psutil.Process(self._process.pid).children(recursive=True):
            words = child.cmdline()
            if words[2:3] == [str(self._script)]:
                found[words[3]] = child
        ranks = [found[name] for name in sorted(found)]
        return [ranks[0].ppid(), *(rank.pid for rank in ranks)]

    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def wait(self, seconds: float) -> bool:
        """Waits until nobody holds its output any more; whether that came in time."""
        try:
            self.output, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """kill -9 to all of it."""
        self.output = kill(self._process)


def strike(job: Job, root: Path, folder: Path, moment: Callable, target: str) -> str | None:
    """Starts a run, kills `target` when the moment has come, and waits for the end of the rest.

    Returns:
        "hang", "missed" where it ended before the moment, or None.
    """
    folder.mkdir(parents=True)
    started = RealRun if target == "launcher" else WarmRun
    run, limit = started(job.script, job.words(root), folder), time.monotonic() + START_SECONDS
    while not moment(folder):
        if run.ended() or time.monotonic() > limit:
            run.kill()
            return "missed"
        time.sleep(POLL)
    try:
        victims = {"launcher": slice(0, 1), "rank 0": slice(1, 2), "rank 1": slice(2, 3)}
        for pid in run.pids[victims.get(target, slice(None))]:
            os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, psutil.NoSuchProcess, IndexError):
        pass  # it has just ended by itself
    if not run.wait(END_SECONDS):
        run.kill()
        return "hang"
    return None
