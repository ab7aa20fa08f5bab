"""`seal show`: what a selector holds, how far it can be trusted, its best and its worst rows."""

import argparse

import numpy as np

from seal.command.dataset import add_dataset_flags, aligned, read_rows
from seal.selection.artefact import Selection, no_common_row, read_selection
from seal.selection.evidence import told
from seal.statistics import effective_rows, entropy

_QUANTILES = (0, 1, 10, 25, 50, 75, 90, 99, 100)  # per cent
_TEXT = 300  # characters of a message shown
_ARGUMENTS = (  # of the method's line; --json has them all
    "learning_rate",
    "tune_epochs",
    "max_epochs",
    "train_batch_size",
    "lora_rank",
    "selector_learning_rate",
    "safe_model",
    "rows_model",
)
EXAMPLE = "seal show ckpt/mine_softmax.parquet --bottom 5 --dataset user.jsonl"


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("show", help="what a selector holds and is worth, its rows")
    parser.add_argument("file", help="the selector (.parquet)")
    parser.add_argument("--top", type=int, default=0, help="rows of highest score to list")
    parser.add_argument("--bottom", type=int, default=0, help="rows of lowest score to list")
    add_dataset_flags(parser, required=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    selection = read_selection(args.file)
    order = np.argsort(-selection.score, kind="stable")
    lines = {"top": order[: args.top], "bottom": order[len(order) - args.bottom :][::-1]}
    texts, missing = _texts(args, selection, np.concatenate(list(lines.values())))
    result = {"file": args.file, "meta": selection.meta, **summary(selection), "missing": missing}
    for name, chosen in lines.items():
        found = zip(chosen.tolist(), selection.lines(chosen), strict=True)
        result[name] = [{**values, "messages": texts.get(line)} for line, values in found]
    return result, _render(result)


def summary(selection: Selection) -> dict:
    """Distribution of scores and weights; `ess` is the effective number of rows.

    Entropy is in nats; that of equal weights is log N.
    """
    quantiles = np.percentile(selection.score, _QUANTILES)
    return {
        "score_percentiles": dict(zip(map(str, _QUANTILES), quantiles.tolist(), strict=True)),
        "weights": {
            "ess": effective_rows(selection.weight),
            "entropy": entropy(selection.weight),
            "max_entropy": float(np.log(len(selection))),
            "max": float(selection.weight.max()),
        },
        "visits": {
            "max": int(selection.visits.max()),
            "rows_without": int(np.count_nonzero(selection.visits == 0)),
        },
    }


def _texts(
    args: argparse.Namespace, selection: Selection, lines: np.ndarray
) -> tuple[dict, int | None]:
    """(line -> messages, for those of `lines` that the dataset has; all lines that it has not)."""
    if args.dataset is None or len(lines) == 0:
        return {}, None
    from seal.datasets.identity import row_keys

    rows = read_rows(args)
    matched = selection.index.find(*row_keys(rows))
    found = np.count_nonzero(matched >= 0)
    if not found:
        raise no_common_row(len(rows), selection)
    place = {int(matched[i]): int(i) for i in np.flatnonzero(np.isin(matched, lines))}
    return {line: rows[i]["messages"] for line, i in place.items()}, len(selection) - int(found)


def _render(result: dict) -> str:
    meta, weights, visits = result["meta"], result["weights"], result["visits"]
    counts, n = meta["dataset"], meta["dataset"]["scored"]
    skipped = ", ".join(f"{reason} {count}" for reason, count in counts["skipped"].items())
    evidence = meta.get("evidence")
    used = _ARGUMENTS if evidence is None or evidence.get("moved") else ()  # nothing was tuned
    given = {name: meta["arguments"].get(name) for name in used}
    given = [f"{name} {value}" for name, value in given.items() if value not in (None, 0)]
    scores = result["score_percentiles"].items()
    table = {
        "selector": f"{result['file']} (format {meta['format']}, commit {meta['commit']})",
        "method": ", ".join([meta["method"], *given]),
        "model": f"{meta['model']}, max_len {meta['max_len']}, seed {meta['seed']}",
        "rows": f"raw {counts['raw']}, scored {n}, skipped: {skipped or 'none'}",
        "score %": "  ".join(f"{percent:>8}" for percent, _ in scores),
        "": "  ".join(f"{value:>8.4g}" for _, value in scores),
    }
    if weights["max"] > 1:
        table["weights"] = (
            f"effective rows {weights['ess']:.1f} of {n} ({weights['ess'] / n:.1%}), "
            f"entropy {weights['entropy']:.3f} of {weights['max_entropy']:.3f} nats, "
            f"largest {weights['max']:.3g}"
        )
    if visits["max"]:
        table["visits"] = f"at most {visits['max']}; {visits['rows_without']} of {n} rows have none"
    parts = [aligned(table), *told(meta)]
    if result["missing"]:
        parts.append(f"{result['missing']} rows of the selector are not in this dataset")
    for name in ("top", "bottom"):
        parts += [f"\n{name} {len(result[name])}"] * bool(result[name])
        parts += [_render_line(line) for line in result[name]]
    return "\n".join(parts)


def _render_line(line: dict) -> str:
    loss = "" if line["loss"] is None else f"  loss {line['loss']:.4g}"
    head = f"  row {line['row']}  score {line['score']:.5g}  weight {line['weight']:.4g}{loss}"
    parts = [f"{head}  id {line['id']}"]
    for message in line["messages"] or ():
        text = " ".join(message["content"].split())
        text = text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
        parts.append(f"      {message['role']}: {text}")
    return "\n".join(parts)
