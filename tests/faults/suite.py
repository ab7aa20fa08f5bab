"""Breaks runs, resumes them and compares; the last line is JSON of what was counted.

    bash tests/faults/run.sh [--full] [--seed N] [--only NAME] [--done FILE]

With --done, each kill is noted in FILE when it is over, and a later go counts it without a rerun.

kills           runs that were killed -9 at a random moment and then resumed
lossless        of those, how many ended bit for bit as the unbroken run, no row skipped or repeated
faults          of others.py that lost nothing
hangs           runs of which a process was left after the time limit
bad_inputs      cases of tests/test_bad_input.py; tracebacks: those that ended in anything else than
                one line
partial_outputs files under a final name that do not read, and what bad input has left behind
fuzzed, crashes mutated files, and those that ended in anything but a result or a named error
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# Processes that are killed leave semaphores behind; Python's tracker would say so after the JSON.
os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import bad_input_driver
import fuzz
import jobs
import kills
import others
import test_bad_input as bad
from launch import deepspeed, kill_once

FULL = {"selector": 80, "sft": 80, "scoring": 40}
SHORT = {"selector": 1}
ATTEMPTS = 3  # to meet a moment that lasts a millisecond


class Suite:
    """Counts of one run of the suite, and its folder."""

    def __init__(self, root: Path, seed: int, done: Path | None):
        self.root, self.seed, self.done = root, seed, done
        self.counts, self.failures = Counter(), []
        lines = done.read_text().splitlines() if done and done.exists() else []
        self.before = {fate["what"]: fate for fate in map(json.loads, lines)}
        jobs.make_world(root)

    def straight(self, job: jobs.Job) -> Path:
        """The folder of the unbroken run of a job, made at the first call."""
        folder = self.root / f"straight-{job.name}"
        if not folder.exists():
            done = jobs.finish(job, self.root, folder)
            assert done.status == 0, done.output[-3000:]
        return folder

    def fail(self, what: str, why: str) -> None:
        """Notes and prints a failure."""
        self.failures.append(f"{what}: {why}")
        print(f"FAILED {what}: {why}", flush=True)

    def finishes(self, what: str, job: jobs.Job, folder: Path) -> bool:
        """Whether a broken run, started again, ends as the unbroken one did."""
        done = jobs.finish(job, self.root, folder)
        if done.status:
            self.fail(what, f"status {done.status} on resume: {done.output[-1500:]}")
            return False
        lost = jobs.losses(job, self.straight(job), folder)
        if lost:
            self.fail(what, "; ".join(lost))
        return not lost

    def kill(self, job: jobs.Job, number: int) -> None:
        """One kill at a moment of this number's kind, and the resume."""
        moments = kills.moments(job, random.Random(f"{self.seed} {job.name} {number}"))
        name = list(moments)[number % len(moments)]
        target = kills.TARGETS[number // len(moments) % len(kills.TARGETS)]
        what, began = f"{job.name} {number}: {name}, {target}, seed {self.seed}", time.monotonic()
        if fate := self.before.get(what):
            self.counts.update(fate["counts"])
            self.failures += fate["failures"]
            return
        counts, failures = self.counts.copy(), len(self.failures)
        for attempt in range(ATTEMPTS):
            folder = self.root / f"{job.name}-{number}-{attempt}"
            ended = kills.strike(job, self.root, folder, moments[name], target)
            if ended != "missed":
                break
        if ended:
            self.counts["hangs"] += ended == "hang"
            self.fail(what, ended)
        else:
            self.counts["kills"] += 1
            self.broken(folder)
            self.counts["lossless"] += self.finishes(what, job, folder)
        print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)
        fate = {"what": what, "counts": self.counts - counts, "failures": self.failures[failures:]}
        if self.done:
            with self.done.open("a") as file:
                file.write(json.dumps(fate) + "\n")

    def broken(self, folder: Path) -> None:
        """Counts what an interrupted run has left under a final name."""
        for problem in jobs.partial_outputs(folder):
            self.counts["partial_outputs"] += 1
            self.fail(str(folder), problem)

    def fault(self, job: jobs.Job, fault) -> None:
        """A fault beside kills, on a run killed after its second checkpoint, and the resume."""
        what, folder = f"{job.name}: {fault.__name__}", self.root / f"{job.name}-{fault.__name__}"
        folder.mkdir()
        kill_once("snapshots/*/step_4", job.command(self.root), cwd=folder)
        wrong = fault(job, self.root, folder)
        if wrong:
            self.counts["hangs"] += wrong == "hang"
            self.fail(what, wrong)
        self.broken(folder)
        if self.finishes(what, job, folder) and not wrong:
            self.counts["faults"] += 1
            print(f"{what}: ok", flush=True)

    def bad_input(self, names: list[str]) -> None:
        """Cases of tests/test_bad_input.py, one after another in one process group."""
        world, out = self.root / "bad", self.root / "outcomes"
        for folder in (world, out):
            folder.mkdir()
        bad.make_world(world)
        cases = [
            {"name": name, "script": case[0], "words": bad.words_of(*case[:2], world)}
            for name, case in bad.CASES.items()
            if name in names
        ]
        (out / "cases.json").write_text(json.dumps(cases))
        driver = Path(bad_input_driver.__file__)
        deepspeed(driver, out / "cases.json", out, ranks=bad.RANKS, seconds=900)
        for name in names:
            self.counts["bad_inputs"] += 1
            found = [json.loads((out / f"{name}.{k}.json").read_text()) for k in range(bad.RANKS)]
            if any(rank["type"] != "InputError" for rank in found):
                self.counts["tracebacks"] += 1
                self.fail(name, str(found))
            if any(rank["written"] for rank in found):
                self.counts["partial_outputs"] += 1
                self.fail(name, f"left {found[0]['written']}")

    def fuzz(self, rounds: int, seed: int) -> None:
        """Mutated artefacts and data files."""
        fuzzed, crashes = fuzz.fuzz(rounds, seed)
        self.counts.update(fuzzed=fuzzed, crashes=crashes)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Breaks runs and counts what was lost.")
    parser.add_argument("--full", action="store_true", help="everything; else a few of each")
    parser.add_argument("--seed", type=int, default=0, help="of moments and mutations (default 0)")
    parser.add_argument("--done", type=Path, help="file of the kills that are over")
    parser.add_argument(
        "--only", help="kills of one job, faults, the name of one, bad_input or fuzz; all else"
    )
    return parser.parse_args()


def main() -> int:
    """Runs the suite; returns the exit status."""
    args = parse()
    plan = FULL if args.full else SHORT
    names = ("kills", "lossless", "faults", "hangs", "bad_inputs", "tracebacks", "partial_outputs")
    with tempfile.TemporaryDirectory(prefix="seal-faults-") as scratch:
        suite = Suite(Path(scratch), args.seed, args.done)
        if args.only in (None, "fuzz"):
            suite.fuzz(10_000 if args.full else 100, args.seed)
        if args.only in (None, "bad_input"):
            suite.bad_input(list(bad.CASES)[: None if args.full else 5])
        for name, count in plan.items():
            for number in range(count if args.only in (None, name) else 0):
                suite.kill(jobs.JOBS[name], number)
        for fault in others.FAULTS:
            if args.only in ("faults", fault.__name__) or (args.full and args.only is None):
                suite.fault(jobs.JOBS["sft"], fault)
    print(json.dumps({name: suite.counts[name] for name in (*names, "fuzzed", "crashes")}))
    return 1 if suite.failures or suite.counts["crashes"] else 0


if __name__ == "__main__":
    sys.exit(main())
