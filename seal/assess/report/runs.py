"""What runs wrote besides the selection: metrics.jsonl and the results of an evaluation."""

import json
import math
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seal.assess.statistics import clopper_pearson
from seal.errors import InputError

POINTS = 150  # points drawn a curve
_CLOCK = {"step", "epoch", "time", "timestamp", "rank"}


class Series(NamedTuple):
    """One logged key: float64 [P] steps and values, and how many values were not finite."""

    name: str
    step: np.ndarray
    value: np.ndarray
    broken: int


def read_json(path: Path) -> dict:
    """One JSON object.

    Raises:
        InputError: the file is absent or is not one JSON object.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def read_metrics(path: Path) -> list[Series]:
    """Reads metrics.jsonl: one JSON object a line with `step` and any numeric keys.

    A last line cut short by a killed run is left out; any other bad line is an error. Keys with
    one constant value (a learning rate that never moves) are kept.

    Raises:
        InputError: the file is absent, or a line before the last is not a JSON object.
    """
    points: dict[str, tuple[array, array]] = {}
    broken: dict[str, int] = {}
    for record_number, record in enumerate(_records(path)):
        step = record.get("step", record_number)
        if isinstance(step, bool) or not isinstance(step, int | float):
            raise InputError(f"{path}: step is {step!r} in record {record_number}; give a number")
        for key, value in record.items():
            if key in _CLOCK or isinstance(value, bool) or not isinstance(value, int | float):
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


class Measured(NamedTuple):
    """A share with its 95 % interval; None where the file gives neither interval nor count."""

    value: float
    low: float | None
    high: float | None
    n: int | None


class Arm(NamedTuple):
    """One model that was evaluated: its name, rows it was trained on, and its measures."""

    name: str
    rows: int | None
    measures: dict[str, Measured]


def read_arms(results: dict, path: Path) -> list[Arm]:
    """The arms of a results.json: `{"arms": {name: {"refusal": ..., "rows": ...}}, "n": {...}}`.

    A measure is a share in [0, 1] or an object with `estimate`, `low`, `high`, `n`. A share
    without interval gets the exact binomial one from its count in `n` (of the arm or the file).

    Raises:
        InputError: there are no arms, or a measure is not of these forms.
    """
    arms = results.get("arms")
    if not isinstance(arms, dict) or not arms:
        raise InputError(f"{path} has no arms; expected an object `arms` of name -> measures")
    return [_arm(name, values, results.get("n"), path) for name, values in arms.items()]


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


def _arm(name: str, values: dict, counts: dict | None, path: Path) -> Arm:
    if not isinstance(values, dict):
        raise InputError(f"{path}: arm {name!r} is {values!r}; expected an object of measures")
    counts = values.get("n") or counts or {}
    measures = {}
    for key, value in values.items():
        if key in ("rows", "n", "seconds") or not isinstance(value, int | float | dict):
            continue
        try:
            measures[key] = _measured(value, counts.get(key))
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(
                f"{path}: {key} of arm {name!r} is {value!r}; expected a share in [0, 1] or an "
                "object with estimate, low, high, n"
            ) from error
    return Arm(name, values.get("rows"), measures)


def _measured(value: float | dict, count: int | None) -> Measured:
    if isinstance(value, dict):
        return Measured(
            float(value["estimate"]), value.get("low"), value.get("high"), value.get("n")
        )
    if not 0 <= value <= 1:
        raise ValueError(value)
    if not count:
        return Measured(float(value), None, None, None)
    low, high = clopper_pearson(round(value * count), count)
    return Measured(float(value), low, high, count)
