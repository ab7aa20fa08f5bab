"""What runs logged: metrics.jsonl as series, and seconds by stage."""

import json
import math
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seal.errors import InputError
from seal.provenance import sha256_of_file

POINTS = 150  # points drawn a curve
# when a record was made, the schedule, and the machine's speed: nothing that was learned
_NOT_DRAWN = {"step", "epoch", "seconds", "lr", "tokens_per_second", "tflops", "peak_gib"}
_NOT_DRAWN |= {"utilisation"}


class Series(NamedTuple):
    """One logged key: float64 [P] steps and values, and how many values were not finite."""

    name: str
    step: np.ndarray
    value: np.ndarray
    broken: int


def read_metrics(path: Path) -> list[Series]:
    """Reads metrics.jsonl: one JSON object a line with `step` and any numeric keys.

    A last line cut short by a killed run is left out; any other bad line is an error. The
    clock, the learning rate and the machine's speed are left out.

    Raises:
        InputError: the file is absent, or a line before the last is not a JSON object.
    """
    points: dict[str, tuple[array, array]] = {}
    broken: dict[str, int] = {}
    for record_number, record in enumerate(_records(path)):
        step = record.get("step", record_number)
        if not _is_number(step):
            raise InputError(f"{path}: step is {step!r} in record {record_number}; give a number")
        for key, value in record.items():
            if key.rsplit("/", 1)[-1] in _NOT_DRAWN or not _is_number(value):
                continue
            steps, values = points.setdefault(key, (array("d"), array("d")))
            if math.isfinite(value):
                steps.append(step)
                values.append(value)
            else:
                broken[key] = broken.get(key, 0) + 1
    return [
        Series(key, np.array(steps), np.array(values), broken.get(key, 0))
        for key, (steps, values) in points.items()
    ]


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _records(path: Path):
    try:
        lines = open(path, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    with lines:
        bad = None
        for line_number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if bad is not None:
                raise InputError(f"{path} line {bad} is not a JSON object; mend or remove it")
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield record
            else:
                bad = line_number


class Thinned(NamedTuple):
    """A curve of at most `POINTS` points: mean, lowest and highest value of each stretch."""

    step: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def thin(series: Series) -> Thinned:
    """Averages a series over equal stretches of records, in order of step."""
    order = np.argsort(series.step, kind="stable")
    step, value = series.step[order], series.value[order]
    starts = np.unique(
        np.linspace(0, len(step), min(POINTS, len(step)), endpoint=False).astype(int)
    )
    count = np.diff(np.append(starts, len(step)))
    return Thinned(
        np.add.reduceat(step, starts) / count,
        np.add.reduceat(value, starts) / count,
        np.minimum.reduceat(value, starts),
        np.maximum.reduceat(value, starts),
    )


def other_selection(metrics: Path, selection: Path, topp: float) -> list[str]:
    """That a run was not tuned on this selection, in a sentence; [] where nothing says so.

    `seal_run.json` beside its metrics tells: the selector by its sha256, or of older runs by its
    name, and the share kept.
    """
    try:
        run = json.loads((metrics.parent / "seal_run.json").read_text("utf-8"))
        given, found = run["arguments"], run.get("selection", {})
        path, share = given["selector_path"], found.get("topp", given["topp"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []  # of no fine-tuning run
    if path is None:
        tuned = "every row, without a selector"
    else:
        named = Path(path).name == selection.name
        same = found["sha256"] == sha256_of_file(selection) if "sha256" in found else named
        if same and (isinstance(share, str) or math.isclose(share, topp)):
            return []
        other = " (another file of that name)" if named and not same else ""
        tuned = f"what the selector {Path(path).name}{other} keeps at topp {share}"
    return [
        f"the training curves are of a model tuned on {tuned}; this report is of {selection.name} "
        f"at topp {topp:g}: give the metrics of a run on it"
    ]


def read_seconds(content: dict, path: Path) -> dict[str, float]:
    """Seconds by stage under the key `seconds`, empty where there is none.

    Raises:
        InputError: an entry is not a number of seconds.
    """
    seconds = content.get("seconds") or {}
    if not isinstance(seconds, dict) or not all(
        isinstance(s, int | float) and 0 <= s < math.inf for s in seconds.values()
    ):
        raise InputError(f"{path}: seconds is {seconds!r}; expected stage -> seconds")
    return seconds
