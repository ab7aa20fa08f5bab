"""Starts scripts the way a user does: under the `deepspeed` launcher, or with plain Python."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SELECTOR = ROOT / "examples/train_sft_selector.py"
SFT = ROOT / "examples/train_sft.py"
SECONDS = 300  # a launch takes about 12 s on a quiet machine
RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Done(NamedTuple):
    """A finished run: exit status (negative: killed by that signal), stdout and stderr in order."""

    status: int
    output: str

    @property
    def errors(self) -> list[str]:
        """The lines that tell a user what was wrong."""
        return [line for line in self.output.splitlines() if line.startswith("error:")]


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment for a run on the CPU, offline, outside any process group."""
    env = {name: value for name, value in os.environ.items() if name not in RENDEZVOUS}
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [env.get("PYTHONPATH")])]
    return env | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        **extra,
    }


def launched(script: Path, *args: object, ranks: int = 2) -> list:
    """The command that runs a script on `ranks` ranks of this machine."""
    launcher = Path(sys.executable).with_name("deepspeed")
    return [launcher, "--num_gpus", ranks, "--master_port", free_port(), script, *args]


def deepspeed(script: Path, *args: object, ranks: int = 2, **options) -> Done:
    """Runs a script on `ranks` ranks of this machine."""
    return run(launched(script, *args, ranks=ranks), **options)


def python(script: Path, *args: object, **options) -> Done:
    """Runs a script alone, without a launcher."""
    return run([sys.executable, script, *args], **options)


def start(words: list, cwd: Path | None = None, env: dict | None = None) -> subprocess.Popen:
    """Starts a command as the leader of a process group of its own."""
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd,
        env=environment(**(env or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen) -> str:
    """kill -9 to every process of the group; returns what it had printed."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def kill_once(pattern: str, words: list, cwd: Path, seconds: float = SECONDS, **options) -> None:
    """Starts a command in `cwd` and kills it -9 as soon as something there fits the pattern.

    Raises:
        AssertionError: it ended by itself, or took longer than `seconds`.
    """
    process, limit = start(words, cwd=cwd, **options), time.monotonic() + seconds
    while not any(cwd.glob(pattern)) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    ended, exists = process.poll(), any(cwd.glob(pattern))
    output = process.communicate()[0] if ended is not None else kill(process)
    assert exists and ended is None, output[-3000:]


def run(words: list, seconds: float = SECONDS, **options) -> Done:
    """Runs a command to its end; past `seconds` its whole process group is killed.

    Raises:
        AssertionError: it ran into the limit: something hangs.
    """
    process = start(words, **options)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        output = kill(process)
        raise AssertionError(f"no end after {seconds} s: {words}\n{output[-3000:]}") from None
    return Done(process.returncode, output)
