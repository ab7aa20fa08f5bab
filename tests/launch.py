"""Starts scripts the way a user does: under the `deepspeed` launcher, or with plain Python."""

import os
import signal
import socket
import subprocess
import sys
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


def deepspeed(script: Path, *args: object, ranks: int = 2, **options) -> Done:
    """Runs a script on `ranks` ranks of this machine."""
    launcher = Path(sys.executable).with_name("deepspeed")
    words = [launcher, "--num_gpus", ranks, "--master_port", free_port(), script, *args]
    return run(words, **options)


def python(script: Path, *args: object, **options) -> Done:
    """Runs a script alone, without a launcher."""
    return run([sys.executable, script, *args], **options)


def run(
    words: list, seconds: float = SECONDS, cwd: Path | None = None, env: dict | None = None
) -> Done:
    """Runs a command to its end; past `seconds` its whole process group is killed.

    Raises:
        AssertionError: it ran into the limit: something hangs.
    """
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd,
        env=environment(**(env or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"no end after {seconds} s: {words}\n{output[-3000:]}") from None
    return Done(process.returncode, output)
