"""`seal compare`: do two selectors agree, and on which rows do they not."""

import argparse

import numpy as np

from seal.errors import InputError
from seal.ids import id_text
from seal.selection.artefact import Selection, kept_mask, read_selection
from seal.statistics import spearman

_FIRST = 5  # ids listed of the rows that changed sides
EXAMPLE = "seal compare ckpt/mine_softmax.parquet ckpt/contrast.parquet --topp 0.8"


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("compare", help="do two selectors keep the same rows")
    parser.add_argument("a", help="a selector (.parquet)")
    parser.add_argument("b", help="another, of the same rows or some of them")
    parser.add_argument("--topp", type=float, default=0.8, help="share of rows each keeps")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    result = compare(read_selection(args.a), read_selection(args.b), args.topp)
    result = {"a": args.a, "b": args.b, **result}
    return result, _render(result)


def compare(a: Selection, b: Selection, topp: float) -> dict:
    """Compares two selectors on their common rows; each keeps `topp` of its own rows.

    Returns:
        counts of rows (in a, in b, common), `spearman` of the scores over the common rows (None
        when one of them is constant), the kept rows among the common ones, their `overlap`
        (intersection / union), and the ids that only one of the two keeps.

    Raises:
        InputError: no row in common.
    """
    lines = a.index.find(b.id, b.occurrence)  # [rows of b] -> line of a
    in_b = np.flatnonzero(lines >= 0)
    in_a = lines[in_b]
    if len(in_b) == 0:
        raise InputError(f"no row in common: a has {len(a)}, b has {len(b)}")
    kept_a, kept_b = kept_mask(a.score, topp)[in_a], kept_mask(b.score, topp)[in_b]
    both, either = int(np.sum(kept_a & kept_b)), int(np.sum(kept_a | kept_b))
    return {
        "topp": topp,
        "rows": {"a": len(a), "b": len(b), "common": len(in_b)},
        "spearman": spearman(a.score[in_a], b.score[in_b]),
        "kept": {"a": int(kept_a.sum()), "b": int(kept_b.sum()), "both": both},
        "overlap": both / either if either else None,
        "only_a": _changed(b, in_b[kept_a & ~kept_b]),
        "only_b": _changed(b, in_b[kept_b & ~kept_a]),
    }


def _changed(b: Selection, lines: np.ndarray) -> dict:
    return {"count": len(lines), "first_ids": id_text(b.id[lines[:_FIRST]]).to_pylist()}


def _render(result: dict) -> str:
    rows, kept = result["rows"], result["kept"]
    show = {name: "-" if result[name] is None else f"{result[name]:.4f}" for name in _NUMBERS}
    parts = [
        f"rows       a {rows['a']}, b {rows['b']}, common {rows['common']}",
        f"spearman   {show['spearman']}",
        f"kept       at topp {result['topp']:g}, of the common rows: a {kept['a']}, "
        f"b {kept['b']}, both {kept['both']}; overlap {show['overlap']} (both / either)",
    ]
    for name in ("only_a", "only_b"):
        changed = result[name]
        ids = f"; first ids {', '.join(changed['first_ids'])}" if changed["count"] else ""
        parts.append(f"kept by {name[-1]} only: {changed['count']}{ids}")
    return "\n".join(parts)


_NUMBERS = ("spearman", "overlap")
