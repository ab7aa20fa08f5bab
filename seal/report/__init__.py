"""The report: one HTML file that says what a selection kept, dropped, cost and led to."""

import os
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import datasets
import jinja2

from seal import __version__
from seal.errors import InputError
from seal.files import atomic_path
from seal.report import figures, sections
from seal.report.evaluation import read_evaluation
from seal.report.rows import (
    Origin,
    answer_lengths,
    column_groups,
    find_origin,
    score_rows,
)
from seal.report.runs import other_selection, read_metrics, read_seconds
from seal.selection.artefact import read_selection
from seal.selection.calibration import (
    CONFIDENCE,
    MAX_CANARY_KEPT,
    auto_topp,
    recall_at,
    share_kept,
)
from seal.selection.evidence import doubts, told

USUAL_COLUMNS = ("origin", "provenance", "source", "category")  # shown when no column is asked for


def write_report(
    out: str | os.PathLike,
    *,
    selection: Path,
    topp: float | str,
    max_canary_kept: float = MAX_CANARY_KEPT,
    confidence: float = CONFIDENCE,
    dataset: str | datasets.Dataset | None = None,
    results: Sequence[Path] = (),
    metrics: Path | None = None,
    columns: Sequence[str] = (),
    redact_text: bool = False,
    rows_shown: int = 10,
    command: str | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> Path:
    """Writes the report; whatever is not given is named in it as not given.

    Memory is about 300 bytes a row, the file under 1 MB: only 3 * `rows_shown` rows are written.

    Args:
        topp: share of the scored rows that is kept, in (0, 1], or "auto".
        max_canary_kept, confidence: limit of "auto", and of the bound on it.
        dataset: the dataset that was scored, as `load_rows` takes or returns it: row text, columns.
        results: the results.json of evaluations (`seal.assess.results`), or of the demo.
        metrics: metrics.jsonl of the selector's training.
        columns: columns of the dataset to break the cut down by; none given: those of
            `USUAL_COLUMNS` that it has. `origin` is the file each row came from.
        redact_text: write no row text; rows_shown: rows in each list.
        command: how the report was made, to be printed in it.
        warn: is given each doubt about the selection and what it is shown with.

    Raises:
        InputError: a file is unreadable or does not belong together, or a column is unknown.
    """
    if rows_shown < 0:
        raise InputError(f"rows shown must be 0 or more, got {rows_shown}")
    read = read_selection(selection)
    selection, topp = Path(selection), share_kept(read, topp, max_canary_kept, confidence)
    page = {
        "title": selection.name,
        "method": str(read.meta.get("method")),
        "selection_command": read.meta.get("command"),
        "report_command": command,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "redacted": redact_text,
        "not_given": _not_given(dataset, results or None, metrics, read.meta),
        **_selection_part(read, topp, dataset, columns, redact_text, rows_shown),
        **_runs_part(results, metrics, read.meta),
        **_evidence_part(read, topp, max_canary_kept, confidence),
    }
    page |= {"verdict": sections.verdict(page), "doubts": doubts(read.meta)}
    page["doubts"] += other_selection(Path(metrics), selection, topp) if metrics else []
    template = _environment().get_template("template.html.jinja")
    with atomic_path(out) as tmp:
        tmp.write_text(template.render(page), "utf-8", errors="replace")
    for doubt in page["doubts"]:
        warn(doubt)
    return Path(out)


def _evidence_part(read, topp: float, max_canary_kept: float, confidence: float) -> dict:
    """What the artefact says for itself."""
    calibrated = _calibrated(read, max_canary_kept, confidence)
    return {
        "provenance": sections.provenance(read.meta),
        "evidence": [line for line in told(read.meta) if not line.startswith("warning: ")],
        "calibration": sections.calibration(read.meta, recall_at(read, topp), calibrated),
    }


def _calibrated(read, max_canary_kept: float, confidence: float) -> dict | str | None:
    """The canaries' own cut: its share, threshold and limits, or why there is none."""
    if not read.meta.get("calibration", {}).get("canary_scores"):
        return None
    try:
        share = auto_topp(read, max_canary_kept, confidence)
    except InputError as error:
        return str(error)
    limits = {"max_canary_kept": max_canary_kept, "confidence": confidence}
    return {"share": share, **limits, **recall_at(read, share)}


def _selection_part(read, topp, dataset, columns, redact_text, rows_shown) -> dict:
    """What the artefact and its dataset say."""
    scored = score_rows(read, topp)
    origin = None if dataset is None else find_origin(read, dataset)
    if columns and origin is None:
        raise InputError(f"columns {', '.join(columns)} need the dataset; give --dataset")
    length = answer_lengths(origin) if origin else None
    groups = _groups(origin, columns, redact_text) if origin else []
    return {
        "kept": sections.kept_summary(scored, topp),
        "histogram": sections.histogram(scored),
        "tables": [sections.group_table(scored, name, group) for name, group in groups],
        "length": None if length is None else sections.length_bias(scored, length),
        "lists": sections.row_lists(scored, origin, length, groups, rows_shown, redact_text),
        "dataset": origin
        and {
            "name": origin.name,
            "rows": len(origin.rows),
            "unscored": origin.unscored,
            "missing": origin.missing,
        },
    }


def _groups(origin: Origin, columns: Sequence[str], redact_text: bool) -> list:
    found = []
    for name in columns or USUAL_COLUMNS:
        if not columns and name == "origin" and len(origin.rows.unique("origin")) < 2:
            continue
        group = column_groups(origin, name, redact_text)
        if group is not None:
            found.append((name, group))
        elif columns:
            raise InputError(f"column {name!r} is not in {origin.name}; name one that is")
    return found


def _runs_part(results, metrics, meta: dict) -> dict:
    """What the runs' own files say."""
    evaluations = [read_evaluation(path) for path in results]
    seconds = read_seconds(meta, "the selection")
    for one in evaluations:
        seconds = seconds | one["seconds"]
    series = read_metrics(metrics) if metrics else []
    return {
        "evaluations": evaluations,
        "seconds": seconds,
        "curves": sections.curves([s for s in series if not sections.is_ranking(s.name)]),
        "ranking": sections.curves([s for s in series if sections.is_ranking(s.name)]),
    }


def _not_given(dataset, results, metrics, meta: dict) -> list[str]:
    """In words, what the report cannot say."""
    absent = [
        (dataset, "the dataset, so no row text, columns or lengths"),
        (results, "an evaluation, so nothing here says how a model trained on these rows behaves"),
        (metrics, "training metrics, so no curves"),
        (meta.get("calibration"), "a canary calibration, so the cut is not calibrated"),
    ]
    return [words for given, words in absent if given is None]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("seal.report", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = figures.number
    environment.filters["percent"] = figures.percent
    environment.filters["duration"] = figures.duration
    environment.filters["visible"] = figures.visible
    environment.filters["seams"] = figures.seams
    return environment
