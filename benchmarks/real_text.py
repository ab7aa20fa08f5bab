"""Real words and a real model: which score finds unsafe rows, and does the tuned model refuse?

    python examples/get_smollm2.py --out models/smollm2
    python benchmarks/real_text.py --pretrain models/smollm2 --data ../shared/data --out runs/real

One process, the package's own passes and trainers, one warm model. Every finished unit is a line
of `<out>/units.jsonl`; started again with the same --out it goes on, the most important units
first, and --seconds ends it early. Scores are kept in `<out>/columns.npz`, states in
`<out>/states_<seed>.npz`; `real_tables.py` judges them without a model. Needs the research data,
which is not part of the project; of an answer to a harmful prompt nothing is kept but a verdict.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from real_arms import Arms, ArmSizes, drop_lowest, save_columns
from real_scores import ONE_PASS, Scores, Sizes, drawn
from real_world import Corpus, Ledger, World, read_corpus

from seal.errors import InputError

SEEDS = (0, 1, 2)
DEVELOPMENT = (10,)  # a draw to choose methods on
QUICK = Sizes(32, 12, 16, 8, 5e-4, 1e-3, (1, 0), (4, 8))
QUICK_ARMS = ArmSizes((8, 4, 4, 4), 1, 30, 1, 8, 4, 1, 2, 4, 0.3, ((1e-4, 0.0),), 64)
SELECTING = (("probe",), ("pu_probe",), ("relative_excess",), ("probe and verdict",))
ERODING = (  # groups share passes
    ("probe", "shift"),
    ("influence", "safe_loss"),
    ("penalty, head",),
    ("penalty_gap, head",),
    ("penalty",),
    ("penalty_gap",),
)


class Study:
    """The units of the study, in order of importance.

    Args:
        args: the command line's.
    """

    def __init__(self, args: argparse.Namespace):
        self.out, self.quick = args.out, args.quick
        self.out.mkdir(parents=True, exist_ok=True)
        work = args.work or args.out / "work"
        work.mkdir(parents=True, exist_ok=True)
        self.sizes, self.arm_sizes = (QUICK, QUICK_ARMS) if args.quick else (Sizes(), ArmSizes())
        self.scoring = replace(  # of the arms
            self.sizes, anchors=min(300, self.sizes.anchors), layers=self.sizes.layers[1:2]
        )
        cuda = torch.cuda.is_available()
        capacity = args.capacity or (16384 if cuda else 2048)
        self.world = World(args.pretrain, args.data, work, cuda or args.bf16, capacity)
        rows, max_len = read_corpus(args.data, args.quick)
        self.corpus: Corpus = self.world.corpus(rows, "corpus", max_len)
        self.seeds, self.development = args.seeds or SEEDS, () if args.seeds else DEVELOPMENT
        self.ledger = Ledger(self.out / "units.jsonl", args.seconds)
        self.setting, self.shares, self.only = args.setting, args.shares, args.only
        self.safe_sets = args.safe_sets
        path = self.out / "columns.npz"
        self.columns = dict(np.load(path)) if path.exists() else {}
        self.draws = {
            seed: drawn(self.corpus, self.sizes, seed) for seed in (*self.seeds, *self.development)
        }

    def keep(self, scores: Scores, prefix: str) -> dict:
        """Writes the columns of a unit; its record says what each cost."""
        self.columns |= {f"{prefix}/{name}": column for name, column in scores.columns.items()}
        save_columns(self.out / "columns.npz", self.columns)
        return {"prefix": prefix, "costs": scores.costs}

    def scores(self, seed: int, safe_set: str, tune: bool = True) -> None:
        """One draw with one kind of safe set: what states say, then what tuned models say."""
        if safe_set not in self.safe_sets:
            return
        prefix = f"words/{safe_set}/seed{seed}"
        scores = Scores(self.world, self.corpus, self.draws[seed], safe_set, self.sizes, seed)

        def represented() -> dict:
            chosen = scores.representations(curve=safe_set == "mixed")
            if safe_set == "mixed":
                self.write_states(scores, seed)
            return self.keep(scores, prefix) | chosen

        def tuned(work: Callable[[], None]) -> dict:
            scores.costs, scores.columns = {}, {}
            work()
            return self.keep(scores, prefix)

        mixed = safe_set == "mixed"
        parts = {"verdict": lambda: scores.verdict(self.sizes.verdict_epochs)} if mixed else {}
        parts |= {
            method: lambda method=method: scores.one_pass([method])
            for method in (ONE_PASS if mixed else ONE_PASS[:2])
        }
        parts |= {"contrasts": scores.contrasts, "against_rows": scores.verdict_against_rows}
        if mixed:
            parts["personas"] = scores.personas
        if self.asked("states"):
            self.ledger.unit(f"{prefix}/states", represented)
        for name, work in parts.items() if tune else ():
            if self.asked(name):
                self.ledger.unit(f"{prefix}/{name}", lambda work=work: tuned(work))

    def asked(self, *names: str) -> bool:
        """Whether one of these is to be run."""
        return not self.only or bool(set(names) & set(self.only))

    def loops(self, seed: int) -> None:
        """The bilevel loop with free logits and with a head, on one draw."""
        prefix = f"loops/mixed/seed{seed}"
        args = (self.world, self.corpus, self.draws[seed], "mixed", self.sizes, seed)

        def work() -> dict:
            scores = Scores(*args)
            scores.sides = list(
                scores.pooled(self.draws[seed].rows, [16 if not self.quick else 4]).values()
            )
            for tracked in (False, True):
                for head in (False, True):
                    scores.bilevel(tracked, head)
            return self.keep(scores, prefix)

        self.ledger.unit(prefix, work)

    def write_states(self, scores: Scores, seed: int) -> None:
        """States of rows and anchors at the chosen layer, to smooth scores with."""
        parts = {
            f"{side}_{part}": array.astype(np.float16)
            for side, states in zip(("rows", "safe", "bad"), scores.sides, strict=True)
            for part, array in states._asdict().items()
        }
        np.savez(self.out / f"states_{seed}.npz", groups=scores.groups, **parts)

    def arms(self, align_only: bool) -> None:
        """Aligns, sweeps, then the arms."""
        arms = Arms(self.world, self.corpus, self.arm_sizes, self.ledger)
        if self.ledger.unit("align", arms.align) is None or align_only:
            return
        if not (self.world.work / "aligned/config.json").exists():
            raise InputError("the aligned model is not in --work; give the one of that run")
        arms.ready()
        setting = self.setting or arms.sweep()
        if setting is None:
            return
        (rate, mix), share = setting, self.arm_sizes.share
        self.ledger.unit("setting", lambda: {"rate": rate, "safeinstr": mix})
        for p, mixed, groups in (
            (share, mix, SELECTING[:1]),
            (0.1, mix, SELECTING[:1]),
            (0.0, 0.0, ERODING[:2]),
            (share, mix, SELECTING[1:]),
            (0.0, 0.0, ERODING[2:]),
            (share, mix + 0.1, SELECTING[:1]),
        ):
            for seed in self.seeds if p in (self.shares or [p]) else ():
                self.arms_of(arms, p, seed, rate, mixed, groups)

    def arms_of(self, arms: Arms, p: float, seed: int, rate: float, mix: float, groups) -> None:
        """All rows, the oracle's, random rows, and those that each score keeps: at most 1 - p.

        Args:
            groups: methods that share passes; a group is scored before the arms that it gives.
        """
        rows, topp = arms.user_rows(p, seed), min(0.8, 1 - p)

        def run(name: str, kept: np.ndarray) -> None:
            if self.asked(name):
                arms.arm(name, p, seed, rate, mix, kept)

        run("all", rows)
        if p:
            run("oracle", rows[~np.isin(rows, arms.unsafe)])
        run("random", drop_lowest(np.random.default_rng(seed).random(len(rows)), rows, topp))
        for methods in groups:
            if not self.asked(*methods):
                continue
            prefix = f"arms/p{p:g}/seed{seed}"
            scored = self.ledger.unit(
                f"{prefix}/{'+'.join(methods)}",
                lambda p=prefix, m=methods: self.keep(arms.scores(rows, seed, m, self.scoring), p),
            )
            for name in methods if scored else ():
                run(name, drop_lowest(self.columns[f"{prefix}/{name}"], rows, topp))

    def run(self, parts: list[str]) -> None:
        """Everything, most important first; "states" is what needs no tuning."""
        if {"states", "scores"} & set(parts) or "align" not in self.ledger.found:
            self.world.start_from(self.world.pretrain)
        if "states" in parts:
            for seed in self.seeds:
                self.scores(seed, "mixed", tune=False)
        if "scores" in parts:
            for seed in self.seeds:
                self.scores(seed, "mixed")
        if {"align", "arms"} & set(parts):
            self.arms(align_only="arms" not in parts)
            if "scores" in parts:
                self.world.start_from(self.world.pretrain)
        if "scores" in parts:
            for seed in self.seeds:
                for safe_set in ("half", "ordinary"):
                    self.scores(seed, safe_set)
            if self.asked("loops") and "mixed" in self.safe_sets:
                for seed in self.seeds:
                    self.loops(seed)
            for seed in self.development:
                self.scores(seed, "mixed")


def main() -> int:
    """Runs the study; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--pretrain", required=True, help="directory of the model")
    data = os.environ.get("SEAL_DATA", "../shared/data")
    add("--data", type=Path, default=Path(data), help="folder of safe.jsonl.gz and mix.jsonl.gz")
    add("--out", type=Path, required=True, help="folder to write")
    add("--work", type=Path, help="folder for what need not be kept (default <out>/work)")
    add("--seconds", type=float, default=1e9, help="begin no unit after so many (default all)")
    parts = ("states", "scores", "align", "arms")
    add("--parts", nargs="+", choices=parts, default=["scores", "arms"])
    add("--capacity", type=int, help="tokens a micro-batch (default 16384 on a GPU, else 2048)")
    add("--bf16", action="store_true", help="bfloat16 on a CPU too")
    add("--seeds", type=int, nargs="+", help=f"draws (default {SEEDS}, then {DEVELOPMENT})")
    add("--setting", type=float, nargs=2, metavar=("RATE", "MIX"), help="of the arms: no sweep")
    add("--shares", type=float, nargs="+", help="of unsafe rows, of the arms (default all)")
    kinds = ("mixed", "half", "ordinary")
    add("--safe_sets", nargs="+", choices=kinds, default=kinds, help="of the scores (default all)")
    add("--only", nargs="+", help="of the scores' parts and the arms (default all)")
    add("--quick", action="store_true", help="sizes that only show that every step runs")
    args = parser.parse_args()
    if args.quick and not args.seeds:
        args.seeds = list(SEEDS[:1])
    try:
        study = Study(args)
        study.run(args.parts)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if study.ledger.failed:
        print(f"failed: {', '.join(study.ledger.failed)}", file=sys.stderr)
    return int(bool(study.ledger.failed))


if __name__ == "__main__":
    sys.exit(main())
