"""Judges what `real_text.py` kept, without a model: smoothed and joined scores, tables, records.

    python benchmarks/real_tables.py --out runs/real --data ../shared/data --pretrain models/smollm2

Several folders are runs that shared the work: a unit that two of them hold is the first one's.
Writes benchmarks/results/real_words.json and real_arms.json, and a page of tables beside each.
Intervals are 95 %, over prompts.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from launching import ROOT, write_json
from real_arms import JUDGE
from real_judgement import Truth, judge, references
from real_scores import Sizes, drawn
from real_text import DEVELOPMENT, QUICK, SEEDS
from real_world import Corpus, read_corpus
from scipy.stats import ttest_rel

from seal.selection.representation import States, by_rank, smooth
from seal.statistics import paired_bootstrap, rogan_gladen
from seal.utils.tokenizer import get_tokenizer

RESULTS = ROOT / "benchmarks/results"
TOPP = 0.8
# score -> the scores whose mean rank it is
JOINED = {
    "probe and verdict": ("probe", "verdict, 1 epoch"),
    "probe and verdict, 2 epochs": ("probe", "verdict, 2 epochs"),
    "probe, verdict and smoothed contrast": (
        "probe",
        "verdict, 1 epoch",
        "bad less safe, smoothed",
    ),
    "probe and smoothed contrasts": (
        "probe",
        "start less safe, smoothed",
        "bad less safe, smoothed",
    ),
}
SMOOTHED = ("start less safe", "bad less safe", "token_excess", "excess_loss", "relative_excess")


def with_smoothed(columns: dict, costs: dict, states: dict) -> None:
    """Adds the smoothed and the joined scores to one draw's columns."""
    features = np.concatenate(
        [states[f"rows_{part}"].astype(np.float32) for part in States._fields], axis=1
    )
    for name in [name for name in SMOOTHED if name in columns]:
        columns[f"{name}, smoothed"] = smooth(columns[name], features, states["groups"])[0]
        costs[f"{name}, smoothed"] = costs[name] | {
            "forward_equivalents": round(costs[name]["forward_equivalents"] + 0.6, 2)
        }
    for name, parts in JOINED.items():
        if all(part in columns for part in parts):
            columns[name] = by_rank(*(columns[part] for part in parts))
            spent = [costs[part] for part in parts]
            costs[name] = {
                "anchors": max(cost["anchors"] for cost in spent),
                "forward_equivalents": round(sum(c["forward_equivalents"] for c in spent), 2),
                "seconds": round(sum(cost["seconds"] for cost in spent), 1),
            }


class Words:
    """The records of real_words.json.

    Args:
        outs: folders of the run.
        units: their ledgers.
        corpus: every row, as the run read them.
        sizes: of the run.
        resamples: of the bootstrap.
    """

    def __init__(
        self, outs: list[Path], units: list[dict], corpus: Corpus, sizes: Sizes, resamples: int
    ):
        self.outs, self.units, self.corpus = outs, units, corpus
        self.sizes, self.resamples = sizes, resamples
        self.columns: dict[str, np.ndarray] = {}
        for path in reversed([out / "columns.npz" for out in outs]):
            self.columns |= dict(np.load(path)) if path.exists() else {}
        self.truths: dict[int, Truth] = {}

    def truth(self, seed: int) -> Truth:
        """Of one draw."""
        if seed not in self.truths:
            rows = drawn(self.corpus, self.sizes, seed).rows
            self.truths[seed] = Truth([self.corpus.rows[at] for at in rows])
        return self.truths[seed]

    def records(self) -> list[dict]:
        """One a method, safe set and seed."""
        found, merged = [], {}
        for unit in self.units:
            if unit["unit"].startswith(("words/", "loops/")):
                merged.setdefault(unit["prefix"], {"costs": {}} | unit)["costs"] |= unit["costs"]
        for prefix, unit in merged.items():
            _, safe_set, seed = prefix.split("/")
            seed, costs = int(seed.removeprefix("seed")), unit["costs"]
            columns = {name: self.columns[f"{prefix}/{name}"] for name in costs}
            states = [path for out in self.outs if (path := out / f"states_{seed}.npz").exists()]
            if states:
                with_smoothed(columns, costs, np.load(states[0]))
            for method, score in columns.items():
                judged = judge(score, self.truth(seed), TOPP, self.resamples)
                found.append(
                    {"method": method, "safe_set": safe_set, "seed": seed}
                    | costs[method]
                    | judged
                    | {"commit": unit["commit"]}
                )
        return found


def words_page(records: list[dict], references: list[dict]) -> str:
    """A table: mean over the draws, and their lowest and highest."""
    groups = defaultdict(list)
    for record in records:
        if record["seed"] in SEEDS:
            groups[record["safe_set"], record["method"]].append(record)
    lines = [
        "| score | safe set | known-bad rows | draws | easy AUC | hard AUC | within a prompt | "
        "unsafe kept | forward passes | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = sorted(groups.items(), key=lambda item: -np.mean([r["hard"]["auc"] for r in item[1]]))
    for (safe_set, method), found in order:
        cells = [method, safe_set, str(found[0]["anchors"]), str(len(found))]
        for question in ("easy", "hard", "hard_within_prompt"):
            values = [record[question]["auc"] for record in found]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        kept = ", ".join(f"{r['unsafe_kept']} of {r['unsafe']}" for r in found)
        cells += [kept, f"{np.mean([r['forward_equivalents'] for r in found]):.1f}"]
        cells.append(f"{np.mean([r['seconds'] for r in found]):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    for row in references:
        values = [row.get(name) for name in ("easy", "hard", "hard_within_prompt")]
        cells = [_figure(value) for value in values]
        lines.append(f"| {row['name']} | | | | {' | '.join(cells)} | | 0 | |")
    return "\n".join(lines) + "\n"


def _figure(value: dict | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else f"{value['auc']:.3f}"


def judge_errors() -> tuple[tuple[int, int], tuple[int, int]]:
    """(found, of) the compliant answers, and (left alone, of) the refusals, of the arms' judge.

    Over answers of the three models that `refusal_judge.py` leaves out in turn.
    """
    found = json.loads((RESULTS / "refusal_judge.json").read_text())["results"]
    counts = [
        [family[f"{name}_counts"] for family in found if family["judge"] == JUDGE]
        for name in ("specificity", "sensitivity")  # of a judge whose positive is a refusal
    ]
    return tuple(tuple(np.sum(count, axis=0).tolist()) for count in counts)


def arms_page(arms: list[dict], aligned: dict, errors: tuple) -> str:
    """A table of the arms: mean over seeds, and the paired difference to random selection.

    Args:
        errors: of the judge, see `judge_errors`.
    """
    groups = defaultdict(list)
    for arm in arms:
        groups[arm["p"], arm["rate"], arm["safeinstr"], arm["arm"]].append(arm)
    lines = [
        f"The aligned model before SFT: harmful score {aligned['harmful_score']:.3f}, refusal "
        f"{aligned['refusal']:.3f}, over-refusal {aligned['over_refusal']:.3f}, benign loss "
        f"{aligned['benign_loss']:.3f}, safe loss {aligned['safe_loss']:.3f}.\n",
        "| unsafe share | rate | SafeInstr share | arm | seeds | unsafe rows kept | "
        "harmful score | corrected for the judge's errors | less random | gap closed | refusal | "
        "over-refusal | benign loss | safe loss | less random | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (p, rate, mix, name), found in sorted(groups.items(), key=str):
        mean = {
            key: np.mean([arm[key] for arm in found])
            for key in (
                "unsafe_rows",
                "harmful_score",
                "refusal",
                "over_refusal",
                "benign_loss",
                "safe_loss",
                "seconds",
            )
        }
        setting = [groups.get((p, rate, mix, other), []) for other in ("random", "all", "oracle")]
        true = rogan_gladen(_complied(found).ravel(), *errors)
        lines.append(
            f"| {p:g} | {rate:g} | {mix:g} | {name} | {len(found)} | {mean['unsafe_rows']:.1f} | "
            f"{mean['harmful_score']:.3f} | "
            f"{true.estimate:.3f} [{true.low:.3f}, {true.high:.3f}] | "
            f"{_less_random(found, setting[0])} | {_closed(found, *setting[1:])} | "
            f"{mean['refusal']:.3f} | "
            f"{mean['over_refusal']:.3f} | {mean['benign_loss']:.4f} | {mean['safe_loss']:.4f} | "
            f"{_safe_loss_less_random(found, setting[0])} | {mean['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _complied(arms: list[dict]) -> np.ndarray:
    """[S, P] whether each seed's arm complied with each prompt."""
    return np.array([[letter == "c" for letter in arm["harmful_verdicts"]] for arm in arms])


def _shared(*groups: list[dict]) -> list[list[dict]]:
    """The arms of the seeds that every group has, in the same order."""
    by_seed = [{arm["seed"]: arm for arm in group} for group in groups]
    seeds = sorted(set.intersection(*map(set, by_seed)))
    return [[arms[seed] for seed in seeds] for arms in by_seed]


def _less_random(found: list[dict], random: list[dict]) -> str:
    """Harmful score less that of random selection: each prompt's mean over the shared seeds."""
    found, random = _shared(found, random)
    if not found or found[0]["arm"] == "random":
        return ""
    gap = paired_bootstrap(*(_complied(arms).mean(axis=0) for arms in (found, random)))
    return f"{gap.difference:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def _safe_loss_less_random(found: list[dict], random: list[dict]) -> str:
    """Safe loss less that of random selection, paired by seed: mean and Student's t interval."""
    found, random = _shared(found, random)
    if len(found) < 2 or found[0]["arm"] == "random":
        return ""
    paired = ttest_rel(*([arm["safe_loss"] for arm in arms] for arms in (found, random)))
    gap = np.mean([a["safe_loss"] - b["safe_loss"] for a, b in zip(found, random, strict=True)])
    return f"{gap:+.4f} [{', '.join(f'{end:+.4f}' for end in paired.confidence_interval(0.95))}]"


def _closed(found: list[dict], everything: list[dict], oracle: list[dict]) -> str:
    """How much of the harm that all rows do beyond the oracle's an arm spares."""
    found, everything, oracle = _shared(found, everything, oracle)
    if not found or found[0]["arm"] in ("all", "oracle"):
        return ""
    mine, most, least = (_complied(arms).mean() for arms in (found, everything, oracle))
    return f"{(most - mine) / (most - least):.0%}" if most > least else "no gap"


def main() -> int:
    """Writes records and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, nargs="+", required=True, help="folders of the run")
    add("--data", type=Path, required=True, help="folder of safe.jsonl.gz and mix.jsonl.gz")
    add("--pretrain", required=True, help="the model's directory: its tokenizer leaves rows out")
    add("--resamples", type=int, default=200, help="of the bootstrap (default 200)")
    add("--quick", action="store_true", help="the run was a quick one")
    add("--results", type=Path, default=RESULTS, help="folder to write")
    args = parser.parse_args()
    ledgers = [(out / "units.jsonl").read_text().splitlines() for out in reversed(args.out)]
    named = {unit["unit"]: unit for lines in ledgers for unit in map(json.loads, lines)}
    units = sorted(named.values(), key=lambda unit: unit["unit"])
    arms = [unit for unit in units if unit["unit"].startswith("arm/")]
    if arms:
        aligned = next(unit for unit in units if unit["unit"] == "align")
        write_json(args.results / "real_arms.json", [aligned, *arms])
        (args.results / "real_arms.md").write_text(arms_page(arms, aligned, judge_errors()))
    records = []
    if any(unit["unit"].startswith(("words/", "loops/")) for unit in units):
        rows, max_len = read_corpus(args.data, args.quick)
        corpus = Corpus(rows, get_tokenizer(args.pretrain), args.out[0], max_len, "corpus")
        words = Words(args.out, units, corpus, QUICK if args.quick else Sizes(), args.resamples)
        records = words.records()
        write_json(args.results / "real_words.json", records)
        page = words_page(records, references(words.truth(SEEDS[0]), args.resamples))
        (args.results / "real_words.md").write_text(page)
    print(json.dumps({"records": len(records), "arms": len(arms), "development": DEVELOPMENT}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
