"""Starts the project's own scripts through the `deepspeed` launcher, timed and recorded."""

import json
import os
import platform
import resource
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

from seal.errors import InputError
from seal.files import atomic_path
from seal.provenance import commit

ROOT = Path(__file__).resolve().parents[1]
RANKS = 2


class Launcher:
    """Runs the project's scripts on `RANKS` ranks and keeps a record of each step.

    Args:
        out: directory of the run; logs and records go to `<out>/steps`.
    """

    def __init__(self, out: Path):
        self.folder = out / "steps"
        self.records: list[dict] = []

    def run(self, step: str, script: str, *flags: object) -> dict:
        """Runs examples/`script`, unless this step was done with the same flags.

        Returns:
            step, command, seconds (wall), cpu_seconds (all processes), load (1 minute, before and
            after), commit.

        Raises:
            InputError: the script failed, with the end of its log.
        """
        shown = (
            f"deepspeed --quiet --num_gpus {RANKS} examples/{script} {shlex.join(map(str, flags))}"
        )
        path = self.folder / f"{step}.json"
        if path.exists() and (record := json.loads(path.read_text()))["command"] == shown:
            say(f"{step}: done before")
        else:
            say(f"{step}")
            record = {"step": step, "command": shown, **self._timed(step, script, flags)}
            write_json(path, record)
        self.records.append(record)
        return record

    def _timed(self, step: str, script: str, flags: tuple) -> dict:
        log = self.folder / f"{step}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [Path(sys.executable).with_name("deepspeed"), "--quiet", "--num_gpus", RANKS]
        words += ["--master_port", free_port(), ROOT / "examples" / script, *flags]
        load, cpu, start = os.getloadavg()[0], children_seconds(), time.perf_counter()
        with open(log, "w") as file:
            done = subprocess.run(
                [str(word) for word in words], env=environment(), stdout=file, stderr=file
            )
        if done.returncode:
            raise InputError(f"{step} failed ({done.returncode}); {log} ends:\n{tail(log)}")
        return {
            "seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(children_seconds() - cpu, 1),
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
            "commit": commit(),
        }


def say(line: str) -> None:
    """A progress line, on stderr: stdout ends with the JSON."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def tail(log: Path) -> str:
    """The last 25 lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-25:])


def children_seconds() -> float:
    """CPU seconds of all processes started from here that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def environment() -> dict[str, str]:
    """This environment, for ranks on the CPU that share its cores, without a network."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // RANKS)))
    own = {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
    return os.environ | own | {"PYTHONPATH": os.pathsep.join(paths)}


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file whole."""
    with atomic_path(path) as tmp:
        tmp.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def machine() -> dict:
    """Where this runs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count()}
