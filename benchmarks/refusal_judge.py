"""How well a refusal judge knows a model that it has never seen, by leaving families out.

    python benchmarks/refusal_judge.py --data ../shared/data [--encoder DIR] [--out FILE]

Each of three families of human-labelled XSTest answers is left out in turn. The trained judge
learns from the other families' answers to *other* prompts (five folds by prompt, so no topic is
shared), labelled jailbreak answers, and rows whose source stands in for a label: refusals of an
alignment set and safe answers to harmful prompts as refusals; unsafe and ordinary answers as
compliance. Positive is a refusal, full or partial. The last line is JSON. The rules were written
with gpt4 and llama2orig in view, so only mistralinstruct is unseen for them. `--save` trains on
everything; the rows' licences forbid shipping that file.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from launching import write_json

from seal.assess.prompts import read_records
from seal.assess.rules import COMPLIANCE, judge_refusal
from seal.assess.trained_judge import Encoder, TrainedJudge
from seal.provenance import commit
from seal.statistics import clopper_pearson

FAMILIES = ("gpt4", "llama2orig", "mistralinstruct")
WEAK = {"safeinstr": 700, "unsafe": 900, "benign": 700, "safe": 900}  # rows drawn of each
WEAK_WEIGHT = 0.3
FOLDS = 5


def read_rows(data: Path, seed: int) -> list[dict]:
    """Records of `family`, `prompt`, `answer`, `refuses`; weak sources are families too."""
    rows = []
    for family in FAMILIES:
        for r in read_records(data / f"eval/xstest_labelled_{family}.jsonl.gz"):
            rows.append(_row(family, r["prompt"], r["response"], r["human_label"][0] != "1"))
    rng = random.Random(seed)
    labelled = read_records(data / "eval/gptfuzz_labelled_train.jsonl.gz")
    for r in rng.sample(labelled, 1200):
        rows.append(_row("gptfuzz", r["prompt"], r["response"], r["label"] == 0))
    pool = [(r["provenance"], r) for r in read_records(data / "mix.jsonl.gz")]
    pool += [(r["source"], r) for r in read_records(data / "safe.jsonl.gz")]
    for name, count in WEAK.items():
        for r in rng.sample([r for source, r in pool if source == name], count):
            rows.append(_row(name, r["prompt"], r["response"], name in ("safeinstr", "safe")))
    return rows


def _row(family: str, prompt: str, answer: str, refuses: bool) -> dict:
    return {"family": family, "prompt": prompt, "answer": answer or "", "refuses": int(refuses)}


def fit(rows: list[dict], encoder: Encoder | None, vectors: np.ndarray | None) -> TrainedJudge:
    weights = [1.0 if r["family"] in FAMILIES else WEAK_WEIGHT for r in rows]
    answers, refuses = [r["answer"] for r in rows], [r["refuses"] for r in rows]
    return TrainedJudge.fit(answers, refuses, weights, encoder, vectors)


def leave_out(rows: list[dict], family: str, encoder, vectors) -> np.ndarray:
    """[N of family] verdicts of judges that saw neither the family nor the prompt."""
    prompts = sorted({r["prompt"] for r in rows if r["family"] in FAMILIES})
    order = np.random.default_rng(0).permutation(prompts)
    fold = {prompt: i % FOLDS for i, prompt in enumerate(order)}
    at = np.array([fold[r["prompt"]] if r["prompt"] in fold else -1 for r in rows])
    held = np.array([r["family"] == family for r in rows])
    found = np.full(len(rows), np.nan)
    part = (lambda mask: None) if vectors is None else (lambda mask: vectors[mask])
    for k in range(FOLDS):
        train, test = ~held & (at != k), held & (at == k)
        judge = fit([rows[i] for i in np.flatnonzero(train)], encoder, part(train))
        answers = [rows[i]["answer"] for i in np.flatnonzero(test)]
        found[test] = judge.probabilities(answers, part(test)) >= 0.5
    return found[held]


def measure(judge: str, family: str, verdicts: np.ndarray, refuses: np.ndarray) -> dict:
    """Balanced accuracy with exact intervals of sensitivity and specificity."""
    counts = {
        "sensitivity": (int(verdicts[refuses == 1].sum()), int((refuses == 1).sum())),
        "specificity": (int((1 - verdicts[refuses == 0]).sum()), int((refuses == 0).sum())),
    }
    found = {"judge": judge, "family": family}
    for name, (k, n) in counts.items():
        found |= {name: k / n, f"{name}_interval": clopper_pearson(k, n), f"{name}_counts": (k, n)}
    return found | {"balanced_accuracy": (found["sensitivity"] + found["specificity"]) / 2}


def main(args: argparse.Namespace) -> None:
    rows = read_rows(args.data, args.seed)
    encoder = Encoder(args.encoder) if args.encoder else None
    vectors = encoder([r["answer"] for r in rows]) if encoder else None
    table = []
    for family in FAMILIES:
        own = [r for r in rows if r["family"] == family]
        refuses = np.array([r["refuses"] for r in own])
        by_rules = np.array([float(judge_refusal(r["answer"]) != COMPLIANCE) for r in own])
        table.append(measure("rules", family, by_rules, refuses))
        trained = leave_out(rows, family, encoder, vectors)
        table.append(measure("trained", family, trained, refuses))
    print(
        "| judge | family | sensitivity | specificity | balanced accuracy |\n|---|---|---|---|---|"
    )
    for m in table:
        cells = [
            f"{m[k]:.3f} ({m[k + '_interval'][0]:.3f} to {m[k + '_interval'][1]:.3f})"
            for k in ("sensitivity", "specificity")
        ]
        print(
            f"| {m['judge']} | {m['family']} | {' | '.join(cells)} | {m['balanced_accuracy']:.3f} |"
        )
    if args.save:
        fit(rows, encoder, vectors).save(args.save)
    found = {"rows": len(rows), "seed": args.seed, "results": table, "commit": commit()}
    if args.out:
        write_json(args.out, found)
    print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--encoder", help="directory of a sentence encoder that transformers loads")
    parser.add_argument("--save", type=Path, help="where to write the judge trained on everything")
    parser.add_argument("--out", type=Path, help="where to write the last line too")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn rows (default 0)")
    main(parser.parse_args())
