"""The sections of the report: each function turns arrays into what the template prints."""

import json
from collections.abc import Sequence

import numpy as np

from seal.report import figures
from seal.report.figures import number, percent
from seal.report.rows import MAX_GROUPS, Groups, Origin, Scored, row_text, tenths
from seal.report.runs import Series, thin
from seal.statistics import auroc, effective_rows, spearman

_BINS = 48


def kept_summary(scored: Scored, topp: float) -> dict:
    """Counts and the cut: how many rows are kept and how sharply the threshold parts them."""
    kept = int(scored.kept.sum())
    total = len(scored.kept)
    best_dropped = scored.score[~scored.kept].max() if kept < total else None
    tied = int((scored.score == scored.threshold).sum())
    return {
        "kept": kept,
        "dropped": total - kept,
        "total": total,
        "topp": topp,
        "share": kept / total,
        "threshold": scored.threshold,
        "gap": None if best_dropped is None else scored.threshold - float(best_dropped),
        "tied": tied if best_dropped == scored.threshold else 0,
        "unvisited": int((scored.selection.visits == 0).sum()),
        "weights": _weights(scored),
    }


def _weights(scored: Scored) -> dict | None:
    """Spread of the weights, None when they are all one."""
    weight = scored.selection.weight.astype(np.float64)
    if np.ptp(weight) < 1e-6:
        return None
    return {
        "effective": effective_rows(weight),
        "low": float(weight.min()),
        "high": float(weight.max()),
    }


def histogram(scored: Scored) -> dict:
    """The score histogram. Far-off scores are counted in the first and last bin, and said."""
    score = scored.score
    low, high = float(score.min()), float(score.max())
    inner_low, inner_high = np.quantile(score, [0.005, 0.995], method="inverted_cdf")
    outside = 0
    if high - low > 3 * (inner_high - inner_low) > 0:
        low, high = (
            float(min(inner_low, scored.threshold)),
            float(max(inner_high, scored.threshold)),
        )
        outside = int(((score < low) | (score > high)).sum())
    if high <= low:
        margin = 0.5 * (abs(low) or 1.0)
        low, high = low - margin, high + margin
    inside = np.clip(score, low, high)
    edges = np.linspace(low, high, _BINS + 1)
    kept, _ = np.histogram(inside[scored.kept], edges)
    dropped, _ = np.histogram(inside[~scored.kept], edges)
    return {
        "figure": figures.score_histogram(edges, kept, dropped, scored.threshold),
        "outside": outside,
    }


def group_table(scored: Scored, name: str, groups: Groups) -> dict:
    """One line a group: rows, kept, dropped, shares, median score; names least kept first.

    Groups past the `MAX_GROUPS` largest are summed up in one line.
    """
    present = groups.code >= 0
    code, kept = groups.code[present], scored.kept[present]
    score = scored.score[present]
    size = len(groups.names)
    rows, stay = np.bincount(code, minlength=size), np.bincount(code[kept], minlength=size)
    order = range(size) if groups.ordered else np.argsort(-rows, kind="stable").tolist()
    largest = [g for g in order if rows[g]]
    shown, rest = largest[:MAX_GROUPS], largest[MAX_GROUPS:]
    lines = [
        _group_line(groups.names[g], rows[g], stay[g], rows, stay, np.median(score[code == g]))
        for g in shown
    ]
    if not groups.ordered:
        lines.sort(key=lambda line: (line["share"], -line["rows"]))
    if rest:
        title = f"{len(rest):,} other values"
        median = np.median(score[np.isin(code, rest)])
        lines.append(_group_line(title, rows[rest].sum(), stay[rest].sum(), rows, stay, median))
    return {
        "name": name,
        "lines": lines,
        "ordered": groups.ordered,
        "absent": int((~present).sum()),
    }


def _group_line(title, rows, kept, all_rows, all_kept, median) -> dict:
    """Numbers of one group; `all_rows` and `all_kept` are int [G] over every group."""
    total, total_kept = int(all_rows.sum()), int(all_kept.sum())
    dropped, total_dropped = int(rows - kept), total - total_kept
    share = int(kept) / int(rows)
    return {
        "name": title,
        "rows": int(rows),
        "kept": int(kept),
        "dropped": dropped,
        "share": share,
        "of_all": int(rows) / total,
        "of_dropped": dropped / total_dropped if total_dropped else 0.0,
        "median": float(median),
        "bar": figures.share_bar(share, total_kept / total),
    }


def length_bias(scored: Scored, length: np.ndarray) -> dict | None:
    """Does the cut prefer short or long answers: medians, odds, rank correlation, by tenth.

    Args:
        scored: the rows.
        length: float [N], characters of the answer, NaN where unknown.
    """
    known = np.isfinite(length)
    length, kept, score = length[known], scored.kept[known], scored.score[known]
    if not kept.any() or kept.all():
        return None
    groups = tenths(length)
    size = len(groups.names)
    rows = np.bincount(groups.code, minlength=size)
    shares = np.bincount(groups.code[kept], minlength=size) / rows
    longer = auroc(length, ~kept)
    return {
        "kept": float(np.median(length[kept])),
        "dropped": float(np.median(length[~kept])),
        "longer": longer,
        "verdict": _length_verdict(longer),
        "spearman": spearman(length, score),
        "figure": figures.share_columns(
            groups.names, shares, float(kept.mean()), "answer length (characters)"
        ),
    }


def _length_verdict(longer: float) -> str:
    if abs(longer - 0.5) < 0.05:
        return "Length says little about what was dropped."
    what = "longer" if longer > 0.5 else "shorter"
    how = "clearly" if abs(longer - 0.5) >= 0.15 else "somewhat"
    return f"Dropped answers are {how} {what} than kept ones."


def row_lists(
    scored: Scored,
    origin: Origin | None,
    length: np.ndarray | None,
    groups: Sequence[tuple[str, Groups]],
    shown: int,
    redact_text: bool,
) -> list[dict]:
    """The rows most and least in agreement with the safe set, and those next to the cut."""
    order, total, kept = scored.order, len(scored.order), int(scored.kept.sum())
    near = max(1, shown // 2)
    spans = [
        ("bottom", "Least in agreement with the safe set", range(total - 1, -1, -1)[:shown]),
        ("top", "Most in agreement with the safe set", range(total)[:shown]),
    ]
    if kept < total:
        cut = range(max(0, kept - near), min(total, kept + near))
        spans.append(("cut", "On either side of the cut", cut))

    def row(rank: int) -> dict:
        line = int(order[rank])
        text = [] if origin is None or redact_text else row_text(origin, line)
        labels = [(name, g.names[g.code[line]]) for name, g in groups if g.code[line] >= 0]
        return {
            "rank": rank + 1,
            "kept": bool(scored.kept[line]),
            "score": number(float(scored.score[line]), 4),
            "loss": _measured(scored.loss[line]),
            "length": None if length is None else _measured(length[line]),
            "row": int(scored.selection.row[line]),
            "id": bytes(scored.selection.id[line]).hex(),
            "labels": labels,
            "turns": text,
        }

    return [
        {"key": k, "title": title, "rows": [row(r) for r in ranks]} for k, title, ranks in spans
    ]


def _measured(value: float) -> str | None:
    return number(float(value), 4) if np.isfinite(value) else None


def curves(series: Sequence[Series]) -> list[dict]:
    """One small chart a logged key."""
    drawn = []
    for one in series:
        if not len(one.value):
            drawn.append({"name": one.name, "figure": None, "broken": one.broken, "last": None})
            continue
        line = thin(one)
        band = line.low, line.high
        figure = figures.curve(
            line.step, line.mean, one.name, "optimizer step", band=band, whole=True
        )
        drawn.append(
            {"name": one.name, "figure": figure, "broken": one.broken, "last": one.value[-1]}
        )
    return drawn


def is_ranking(name: str) -> bool:
    """A logged key about the ranking itself: churn, agreement of ranks, effective sample size."""
    words = name.lower().replace("/", "_").split("_")
    return bool({"churn", "ess", "spearman", "overlap"} & set(words))


def calibration(meta: dict, at_cut: dict, calibrated: dict | str | None) -> dict | None:
    """The canary calibration of the artefact, as texts and a chart.

    Args:
        meta: of the artefact.
        at_cut: `seal.selection.calibration.recall_at` this report's cut.
        calibrated: the canaries' own cut with its share and limits, or why there is none.
    """
    if not meta.get("calibration"):
        return None
    found = meta["calibration"] | {k: v for k, v in at_cut.items() if k != "threshold"}
    out = {"n": found.get("n"), "calibrated": calibrated, "measures": [], "figure": None}
    for key, title in (("auroc", "AUROC"), ("recall", "dropped at this report's cut")):
        if found.get(key) is not None:
            low, high = found.get(f"{key}_interval") or (None, None)
            measured = {"title": title, "value": found[key], "low": low, "high": high}
            out["measures"].append(measured)
    low, high = found.get("auroc_interval") or (1.0, 1.0)
    out["chance"] = low <= 0.5
    out["reversed"] = high < 0.5
    if found.get("curve"):
        kept, recall = np.asarray(found["curve"], np.float64).T
        order = np.argsort(kept)
        out["figure"] = figures.curve(
            100 * kept[order],
            recall[order],
            "canaries dropped",
            "rows kept, %",
            bounds=(0.0, 1.0),
            height=180,
        )
    return out


def provenance(meta: dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """The artefact's metadata as titled lists of names and texts, the nested ones apart."""
    shown_elsewhere = {"command", "calibration", "evidence", "seconds", "head"}
    flat = [
        (key, _plain(value))
        for key, value in meta.items()
        if key not in shown_elsewhere and not isinstance(value, dict)
    ]
    nested = [
        (key, [(k, _plain(v)) for k, v in value.items()])
        for key, value in meta.items()
        if key not in shown_elsewhere and isinstance(value, dict) and value
    ]
    return [("Run", flat), *((title.capitalize(), facts) for title, facts in nested)]


def _plain(value) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def verdict(page: dict) -> list[str]:
    """Plain sentences for the top of the page; each is a count or a measured share."""
    kept = page["kept"]
    said = [
        f"Rows were ranked by {page['method']} and the best "
        f"{percent(kept['topp'])} kept; {kept['dropped']:,} rows are dropped."
    ]
    names = [table for table in page["tables"] if not table["ordered"] and len(table["lines"]) > 1]
    if names:
        lines = names[0]["lines"]
        counts = [f"{x['kept']:,} of {x['rows']:,} “{x['name']}” rows" for x in lines[:3]]
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        said.append(f"By {names[0]['name']}, kept: {', '.join(counts)}{more}.")
    several = len(page["evaluations"]) > 1
    for evaluation in page["evaluations"]:
        if evaluation["said"]:
            said.append(evaluation["said"] + (f" ({evaluation['file']})" if several else ""))
    return said
