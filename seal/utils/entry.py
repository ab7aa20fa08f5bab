"""How an entry script ends: one line and status 2 for bad input, no hang, no abort at teardown."""

import atexit
import contextlib
import importlib
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator

from seal.errors import Finished, InputError, NonFiniteLoss, Stopped
from seal.files import no_room
from seal.progress import Progress, say
from seal.utils.stopping import launching_words

RANK_0_SECONDS = 30  # ranks may start that far apart on a busy machine


def fail(message: str) -> None:
    """Prints `error: message` once and leaves with status 2 on every rank.

    The launcher ends every rank as soon as one leaves, so the others wait until rank 0 has said it;
    only where it does not fail in `RANK_0_SECONDS` does another rank speak.
    """
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(RANK_0_SECONDS)
        message = f"rank {rank}: {message}"
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)


def run(main: Callable[[], None]) -> None:
    """Runs an entry script to the end of its process: bad input gives one line and status 2.

    A run that was asked to stop ends with the command that goes on with it, and status 0; Ctrl-C
    where nothing but finished parts is kept gives the command at once, and status 130.
    """
    launcher = launching_words()
    signal.signal(signal.SIGINT, lambda *_: _interrupted(launcher))
    try:
        report(main)
        status = 0
    except SystemExit as left:
        status = left.code or 0
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(128 + signal.SIGINT)  # not through a process group whose work is broken off
    finish(status)


def run_module(name: str) -> None:
    """Runs a module's `main`; its imports, which take seconds, are part of the run."""

    def main() -> None:
        say("loading the libraries")
        importlib.import_module(name).main()

    run(main)


def _interrupted(launcher: list[str]) -> None:
    """Says it before anything is taken down: a launcher ends its ranks a moment later."""
    say(f"stopped; go on with: {_command(launcher)}")
    raise KeyboardInterrupt


def _command(launcher: list[str]) -> str:
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    return shlex.join([*launcher, *words])


def report(main: Callable[[], None]) -> None:
    """Runs `main`; what stopped it becomes a line for the user.

    Raises:
        SystemExit: 2 for bad input or no room to write.
        Exception: any failure that is not the user's.
    """
    launcher = launching_words()  # asked now: the launcher may be gone when they are needed
    try:
        with _shown_log(), Progress("working"):
            main()
    except (InputError, NonFiniteLoss) as error:
        fail(str(error))
    except Finished as finished:
        say(str(finished))
    except Stopped as stopped:
        further = "" if "--load_checkpoint" in sys.argv else " --load_checkpoint"
        say(f"{stopped}; go on with: {_command(launcher)}{further}")
    except Exception as error:
        if told := no_room(error):
            fail(str(told))
        from seal.utils.strategy import lost_ranks

        lost = lost_ranks(error)
        if not lost:
            raise
        give_up(lost, error)


@contextlib.contextmanager
def _shown_log() -> Iterator[None]:
    """Inside, what the package logs (rows left out, columns not read) is printed on rank 0."""
    log, handler = logging.getLogger("seal"), logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = True


def give_up(lost: list[int], failure: Exception) -> None:
    """Ends a rank that has lost others: the first of those left says which; status 1."""
    rank = int(os.environ.get("RANK", "0"))
    if rank == min(set(range(len(lost) + 1)) - set(lost)):
        who, reason = ", ".join(map(str, lost)), " ".join(str(failure).split())
        print(f"error: no answer from rank {who}, gone or hanging: {reason}", file=sys.stderr)
    sys.stderr.flush()
    time.sleep(1 if rank == 0 else 0)  # it holds the store that the others still ask
    os._exit(1)  # the process group is beyond an orderly end


def finish(status: int) -> None:
    """Ends the process; after distributed work, without the interpreter's teardown.

    DeepSpeed keeps references to a destroyed process group (ZeRO-3: one on every parameter), so the
    group's worker threads live on. One that frees a tensor while the interpreter goes down aborts
    the process, after its work is done (pytorch/pytorch pull request 179291).
    """
    strategy = sys.modules.get("seal.utils.strategy")  # not imported: no group was joined
    if strategy is None or not strategy.leave():
        sys.exit(status)
    atexit._run_exitfuncs()  # wandb's and TensorBoard's last lines
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
