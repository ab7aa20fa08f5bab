"""How far a command is: a bar on a terminal, and in a log no silence longer than 10 seconds."""

import functools
import os
import sys
import threading
import time
from datetime import timedelta

from tqdm import tqdm

SECONDS = 10.0  # the longest silence
_open: list["Progress"] = []  # the work going on, outermost first; the last one speaks
_spoken = time.monotonic()


def say(*message: object) -> None:
    """Prints a line on rank 0, above the bars where there are any."""
    global _spoken
    if _is_first():
        with tqdm.external_write_mode(sys.stdout):
            print(*message, flush=True)
        _spoken = time.monotonic()


class Progress:
    """A piece of work, as a context; a terminal shows a bar, a log a line every `SECONDS`.

    Only rank 0 shows anything. Work inside other work speaks in its place.

    Args:
        what: of the work, "scoring".
        total: units of it; None where they cannot be counted.
        unit: what is counted, in the plural.
        done: units that an earlier run has finished.

    Examples:
        >>> with Progress("scoring", 1000, "rows") as work:
        ...     work.update(64, loss=1.3)
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "rows", done: int = 0):
        self.what, self.total, self.unit = what, total, unit
        self.first = self.done = done
        self.figures: dict[str, float] = {}
        self._bar: tqdm | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        if _is_first():
            if sys.stderr.isatty():
                counted = {} if self.total else {"bar_format": "{desc}: {elapsed}"}
                settings = {"total": self.total, "initial": self.first, "unit": f" {self.unit}"}
                self._bar = tqdm(desc=self.what, leave=False, **settings, **counted)
            _open.append(self)
            _start_watch()
        return self

    def __exit__(self, *_) -> None:
        if self in _open:
            _open.remove(self)
        if self._bar is not None:
            self._bar.close()

    def update(self, units: int = 1, **figures: float) -> None:
        """Counts finished units, from any thread; `figures` (a loss) are shown beside them."""
        with self._lock:
            self.done += units
            self.figures |= figures
            if self._bar is not None:
                self._bar.set_postfix(self.figures, refresh=False)
                self._bar.update(units)

    @property
    def rate(self) -> float:
        """Units a second, of this run."""
        return (self.done - self.first) / max(time.monotonic() - self._started, 1e-9)

    @property
    def left(self) -> str:
        """Time to the end at this rate, as 1:02:03."""
        seconds = (self.total - self.done) / self.rate if self.rate else 0.0
        return str(timedelta(seconds=round(seconds))).removeprefix("0:")

    def __str__(self) -> str:
        if not self.total:
            return f"{self.what}: {round(time.monotonic() - self._started)} s"
        parts = [f"{self.done:,} of {self.total:,} {self.unit} ({self.done / self.total:.0%})"]
        if self.done > self.first:
            parts += [f"{self.rate:.3g} {self.unit}/s", f"{self.left} left"]
        parts += [f"{name} {value:.4g}" for name, value in self.figures.items()]
        return f"{self.what}: {', '.join(parts)}".replace("%", " %")


@functools.cache
def _start_watch() -> None:
    """One watch for all work: two would say the same twice."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    """Speaks when nothing has been said for too long, of work that has gone on for a while."""
    global _spoken
    while True:
        pause = min(1.0, SECONDS / 4)
        time.sleep(pause)
        now, going = time.monotonic(), _open[:]
        if not going:
            continue
        if going[-1]._bar is not None:
            going[-1]._bar.refresh()
        elif now - _spoken >= SECONDS and now - going[0]._started >= pause:
            print(going[-1], file=sys.stderr, flush=True)
            _spoken = now


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"
