"""`seal compare`: do two selectors agree, and on which rows do they not."""

import argparse

import numpy as np

from seal.command.dataset import aligned
from seal.errors import InputError
from seal.ids import id_text
from seal.selection.artefact import Selection, read_selection
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
    kept_a, kept_b = a.kept(topp)[in_a], b.kept(topp)[in_b]
    both, either = int(np.sum(kept_a & kept_b)), int(np.sum(kept_a | kept_b))

    def changed(rows: np.ndarray) -> dict:
        first = id_text(b.id[in_b[rows][:_FIRST]]).to_pylist()
        return {"count": int(rows.sum()), "first_ids": first}

    return {
        "topp": topp,
        "rows": {"a": len(a), "b": len(b), "common": len(in_b)},
        "spearman": spearman(a.score[in_a], b.score[in_b]),
        "kept": {"a": int(kept_a.sum()), "b": int(kept_b.sum()), "both": both},
        "overlap": both / either if either else None,
        "only_a": changed(kept_a & ~kept_b),
        "only_b": changed(kept_b & ~kept_a),
    }


def _render(result: dict) -> str:
    rows, kept = result["rows"], result["kept"]
    table = {
        "rows": f"a {rows['a']}, b {rows['b']}, common {rows['common']}",
        "spearman": _number(result["spearman"]),
        "kept": f"at topp {result['topp']:g}, of the common rows: a {kept['a']}, b {kept['b']}, "
        f"both {kept['both']}; overlap {_number(result['overlap'])} (both / either)",
    }
    for name in "ab":
        changed = result[f"only_{name}"]
        table[f"kept by {name} only"] = " ".join([str(changed["count"]), *changed["first_ids"]])
    return aligned(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
