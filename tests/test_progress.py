"""Work that takes long says how far it is: lines in a log, a bar on a terminal, on rank 0."""

import os
import pty
import re
import subprocess
import sys
import termios

SCRIPT = """
import sys, time
from seal import progress
progress.SECONDS = 0.4
with progress.Progress("loading"):
    time.sleep(1)
with progress.Progress("scoring", 1000, "rows", done=100) as work:
    for _ in range(9):
        time.sleep(0.15)
        work.update(100, loss=1.25)
progress.say("scored")
"""


def output(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def test_a_log_is_never_silent_for_long():
    lines = output().splitlines()
    assert sum(line.startswith("loading: ") for line in lines) in (2, 3)
    rows = [line for line in lines if line.startswith("scoring: ")]
    assert len(rows) in (2, 3, 4)
    form = r"scoring: \d+ of 1,000 rows \(\d+ %\), \d\S* rows/s, 00:0\d left, loss 1.25"
    assert re.fullmatch(form, rows[0])
    assert lines[-1] == "scored"


def test_a_script_speaks_while_its_libraries_load(tmp_path):
    slow = "import time\ntime.sleep(1)\ndef main():\n    print('ran')\n"
    (tmp_path / "slow.py").write_text(slow)
    script = "from seal import progress\nfrom seal.utils import entry\nprogress.SECONDS = 0.4\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}entry.run_module('slow')"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    first, *between, last = done.stdout.splitlines()
    assert (first, last) == ("loading the libraries", "ran")
    assert between and all(line.startswith("working: ") for line in between)


def errors_of(body: str) -> list[str]:
    """Lines on standard error of work done in a process of its own."""
    script = SCRIPT.split("with")[0] + body
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_many_short_pieces_of_work_are_not_silent_together():
    lines = errors_of(
        "for part in range(8):\n"
        "    with progress.Progress(f'part {part}'):\n"
        "        time.sleep(0.3)\n"
    )
    assert 3 <= sum(line.startswith("part ") for line in lines) <= 6, lines


def test_a_moment_of_work_after_a_long_rest_says_nothing():
    lines = errors_of(
        "with progress.Progress('first'):\n    time.sleep(0.05)\n"
        "for _ in range(20):\n    time.sleep(0.11)\n"
        "    with progress.Progress('short'):\n        time.sleep(0.02)\n"
    )
    assert not lines


def test_other_ranks_say_nothing():
    assert output(RANK="1") == ""


def test_a_terminal_has_a_bar():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    assert b"scoring:  50%" in shown or b"scoring:  60%" in shown
    assert b"loss=1.25" in shown and b" of 1,000" not in shown and b"scored" in shown
