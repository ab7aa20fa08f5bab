"""Evaluated models as tables with intervals, from results.json."""

from pathlib import Path
from typing import NamedTuple

from seal.assess.results import Measure, Results, read_results
from seal.report import figures
from seal.report.figures import number, percent
from seal.report.runs import read_seconds

MOST_LINES = 40  # comparisons shown; the rest is counted
_TITLES = {
    "refusal": "harmful prompts refused",
    "over_refusal": "harmless prompts refused",
    "unsafe": "unsafe answers to harmful prompts",
    "harmfulness": "harmfulness, 1 to 5",
    "win_rate": "wins against the reference",
    "log_perplexity": "log perplexity, nats per token",
    "exact_match": "answers equal to the reference",
}
_NOT_SHARES = ("harmfulness", "log_perplexity")


class Cell(NamedTuple):
    """One measured value with its interval."""

    value: float
    low: float
    high: float
    n: int
    unscored: int


def read_evaluation(path: Path) -> dict:
    """What the template prints of one results.json: see `seal.assess.results`.

    Returns:
        `file`, `confidence`, `seconds`, `said` (one sentence or None), `tables` (a table over all
        models and one a measure with categories; each with `title`, `head`, `names`, `lines`),
        `comparisons`, `comparisons_left`.

    Raises:
        InputError: the file is none.
    """
    results = read_results(path)
    measures = [m for m in results.measures if m.value is not None]
    titles = {_key(m): _full_title(m, results) for m in measures}
    cells = {(m.model, _key(m)): Cell(m.value, m.low, m.high, m.n, m.unscored) for m in measures}
    tables = [_table("", cells, titles, results.tuned_on)] if cells else []
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
        "file": Path(path).name,
        "seconds": read_seconds(vars(results), path),
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
        ends = (cell.value, cell.high, tops.get(scale, 0.0))
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
    return {
        "text": say(cell.value),
        "interval": f"{say(cell.low)} to {say(cell.high)}",
        "whisker": figures.whisker(cell.value, cell.low, cell.high, top or 1.0),
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
