"""Evaluated models as tables with intervals, from the demo's results.json or an evaluation's."""

from pathlib import Path
from typing import NamedTuple

from seal.assess.prompts import read_object
from seal.assess.results import FORMAT, Measure, Results, read_results
from seal.errors import InputError
from seal.report import figures
from seal.report.figures import number, percent
from seal.report.runs import read_seconds
from seal.statistics import clopper_pearson

MOST_LINES = 40  # comparisons shown; the rest is counted
_TITLES = {
    "refusal": "harmful prompts refused",
    "over_refusal": "harmless prompts refused",
    "utility": "harmless prompts answered right",
    "unsafe": "unsafe answers to harmful prompts",
    "harmfulness": "harmfulness, 1 to 5",
    "win_rate": "wins against the reference",
    "log_perplexity": "log perplexity, nats per token",
    "exact_match": "exact matches",
}
_NOT_SHARES = ("harmfulness", "log_perplexity")


class Cell(NamedTuple):
    """One measured value; low and high are None where the file gives neither interval nor n."""

    value: float
    low: float | None
    high: float | None
    n: int | None
    unscored: int = 0


def read_evaluation(path: Path) -> dict:
    """What the template prints of one results file, of either form.

    The demo's form is `{"arms": {name: {"refusal": share, "rows": count}}, "n": {...}}`; a share
    gets the exact binomial interval from its count in `n`. The other form is `assess.results`.

    Returns:
        `file`, `confidence`, `seconds`, `said` (one sentence or None), `tables` (each with
        `title`, `head`, `names`, `lines`), `comparisons`, `comparisons_left`.

    Raises:
        InputError: the file is of neither form.
    """
    content = read_object(path)
    if content.get("format") == FORMAT:
        page = _from_results(read_results(path))
    else:
        page = _from_arms(content, path)
    return page | {"file": Path(path).name, "seconds": read_seconds(content, path)}


def _from_arms(content: dict, path: Path) -> dict:
    """The demo's form: one table, a line a model."""
    arms = content.get("arms")
    if not isinstance(arms, dict) or not arms:
        raise InputError(f"{path} has no arms; expected an object `arms` of name -> measures")
    counts = content.get("n") or {}
    cells = {
        (name, key): cell
        for name, values in arms.items()
        for key, cell in _arm_cells(name, values, counts, path).items()
    }
    rows = {name: values.get("rows") for name, values in arms.items()}
    table = _table("", cells, {key: _title(key) for _, key in cells}, rows)
    said = _sentence(table)
    return {
        "confidence": 0.95,
        "said": said,
        "tables": [table],
        "comparisons": [],
        "comparisons_left": 0,
    }


def _arm_cells(name: str, values: dict, counts: dict, path: Path) -> dict[str, Cell]:
    if not isinstance(values, dict):
        raise InputError(f"{path}: arm {name!r} is {values!r}; expected an object of measures")
    cells = {}
    for key, share in values.items():
        if key == "rows":
            continue
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise InputError(f"{path}: {key} of arm {name!r} is {share!r}; give a share in [0, 1]")
        n = counts.get(key)
        low, high = clopper_pearson(round(share * n), n) if n else (None, None)
        cells[key] = Cell(share, low, high, n)
    return cells


def _from_results(results: Results) -> dict:
    """An evaluation: a table over all models, one a measure with categories, and comparisons."""
    measures = [m for m in results.measures if m.value is not None]
    titles = {_key(m): _full_title(m, results) for m in measures}
    cells = {(m.model, _key(m)): Cell(m.value, m.low, m.high, m.n, m.unscored) for m in measures}
    tables = [_table("", cells, titles, {})] if cells else []
    for key, title in titles.items():
        same = [m for m in measures if _key(m) == key and m.by_category]
        by_category = {
            (category, m.model): Cell(c["value"], c["low"], c["high"], c["n"], c["unscored"])
            for m in same
            for category, c in m.by_category.items()
            if c["value"] is not None
        }
        if by_category:
            models = {m.model: m.model for m in same}
            title = title[0].upper() + title[1:]
            tables.append(_table(f"{title}, by category", by_category, models, {}, key[0]))
    comparisons = [
        {
            "a": c.a,
            "b": c.b,
            "title": titles.get((c.measure, c.prompt_set, c.judge), _title(c.measure)),
            "difference": _signed(c.difference, c.measure),
            "interval": f"{_signed(c.low, c.measure)} to {_signed(c.high, c.measure)}",
            "n": c.n,
            "told_apart": c.low > 0 or c.high < 0,
        }
        for c in results.comparisons
    ]
    return {
        "confidence": results.confidence,
        "said": _sentence(tables[0]) if tables else None,
        "tables": tables,
        "comparisons": comparisons[:MOST_LINES],
        "comparisons_left": max(0, len(comparisons) - MOST_LINES),
    }


def _key(m: Measure) -> tuple[str, str, str]:
    return m.measure, m.prompt_set, m.judge


def _title(measure: str) -> str:
    return _TITLES.get(measure, measure.replace("_", " "))


def _full_title(m: Measure, results: Results) -> str:
    """The measure, with prompt set and judge where the file has several."""
    sets = {other.prompt_set for other in results.measures if other.measure == m.measure}
    judges = {other.judge for other in results.measures if other.measure == m.measure}
    parts = [_title(m.measure), *([m.prompt_set] if len(sets) > 1 else [])]
    return ", ".join([*parts, *([f"judge {m.judge}"] if len(judges) > 1 else [])])


def _table(title: str, cells: dict, titles: dict, rows: dict, measure: str | None = None) -> dict:
    """A table from (line, column) -> Cell.

    Args:
        title: what stands above it.
        cells: its values; lines and columns are in order of appearance.
        titles: column -> head.
        rows: line -> rows trained on, where known.
        measure: what every cell measures, when a column is not a measure.
    """
    names = list(dict.fromkeys(line for line, _ in cells))
    tops = {}
    for (_, column), cell in cells.items():
        scale = measure or column  # one scale for all that measures the same
        ends = (cell.value, cell.high or 0.0, tops.get(scale, 0.0))
        tops[scale] = max(ends) if _is_number(column, measure) else 1.0
    lines = [
        {
            "name": name,
            "rows": rows.get(name),
            "cells": [
                _drawn(cells[name, column], tops[measure or column], _is_number(column, measure))
                if (name, column) in cells
                else None
                for column in titles
            ],
        }
        for name in names
    ]
    head = "category" if measure else "model"
    counted = any(line["rows"] is not None for line in lines)
    return {
        "title": title,
        "head": head,
        "names": list(titles.values()),
        "lines": lines,
        "has_rows": counted,
    }


def _is_number(column, measure: str | None) -> bool:
    """The column is not a share: an average rating or a perplexity."""
    name = measure or (column if isinstance(column, str) else column[0])
    return name in _NOT_SHARES


def _drawn(cell: Cell, top: float, is_number: bool) -> dict:
    """One value as text, its interval as text, and both as a picture on the scale 0 to `top`."""
    say = number if is_number else percent
    known = cell.low is not None and cell.high is not None
    ends = (cell.low, cell.high) if known else (cell.value, cell.value)
    return {
        "text": say(cell.value),
        "interval": f"{say(cell.low)} to {say(cell.high)}" if known else "no interval",
        "whisker": figures.whisker(cell.value, *ends, top or 1.0),
        "n": cell.n,
        "unscored": cell.unscored,
    }


def _signed(value: float, measure: str) -> str:
    """A difference: points of a per cent for shares, else a number."""
    scale = 1 if measure in _NOT_SHARES else 100
    text = number(round(scale * value, 6), 3)
    unit = "" if measure in _NOT_SHARES else "\u00a0points"
    return ("+" if value > 0 else "") + text + unit


def _sentence(table: dict) -> str:
    """The first measure of the first models in one sentence."""
    title = table["names"][0]
    shares = [
        f"{line['name']} {line['cells'][0]['text']} ({line['cells'][0]['interval']})"
        for line in table["lines"][:4]
        if line["cells"][0]
    ]
    return f"{title[0].upper()}{title[1:]}: {'; '.join(shares)}."
