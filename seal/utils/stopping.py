"""When a run is asked to stop: by a signal, or by the end of the launcher that watches over it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is SLURM's usual warning
STOPPING = b"\nasked to stop: the run saves after this step, then ends\n"
# Words of a launcher's command line; neither package is imported here.
LAUNCHERS = {"deepspeed", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run"}


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Inside, `SIGNALS` no longer end this process; yields what tells whether to stop.

    The end of a launcher counts as well: DeepSpeed's, killed, leaves its ranks running.
    """
    received: list[int] = []

    def receive(number: int, _) -> None:
        if not received and os.environ.get("RANK", "0") == "0":
            os.write(2, STOPPING)  # `print` may be at work: a handler cannot wait for it
        received.append(number)

    above = launchers()
    parents = _parents(len(above))
    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield lambda: bool(received) or _parents(len(above)) != parents
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launchers() -> list[psutil.Process]:
    """The launchers above this process, nearest first: torchrun, or the two of DeepSpeed."""
    return list(takewhile(_launches, psutil.Process().parents()))


def _parents(n: int) -> list[int]:
    """Process ids of the n nearest ancestors; where one ends, init or a subreaper takes its place.

    It is asked at every step: command lines, as in `launchers`, would take ten times as long.
    """
    found = [os.getppid()][:n]
    while len(found) < n and found[-1]:
        found.append(_parent(found[-1]))
    return found


def _parent(pid: int) -> int:
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return 0


def launching_words() -> list[str]:
    """The command line that started this script or module, up to its name and with it.

    It is the launcher's, where there is one, else Python's.
    """
    above, spec = launchers(), sys.modules["__main__"].__spec__
    words = above[-1].cmdline() if above else sys.orig_argv
    name = spec.name if spec else sys.argv[0]
    return [*takewhile(lambda word: word != name, words), name]


def _launches(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()[:4]  # python -u -m deepspeed.launcher.launch
    except psutil.Error:
        return False
    return any(Path(word).name in LAUNCHERS for word in words)
