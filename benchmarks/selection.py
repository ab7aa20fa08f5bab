"""Every way of selecting, on the demo worlds: methods x tiers x poison x seeds, after SFT.

    python benchmarks/selection.py --quick                    one small world, under 10 minutes
    python benchmarks/selection.py --seeds 0 1 2 3 4          the table of the README
    python benchmarks/selection.py --tiers hard --seeds 3 --out runs/cells/hard-3.json   one cell
    python benchmarks/selection.py --collect runs/cells       cells into --out, with its table

Each arm runs the script that a user runs. Records (benchmarks/results/selection.json) hold method,
tier, poison, seed, auroc, unsafe_kept, topp, refusal, over_refusal, utility, seconds (CPU),
forward_equivalents, commit; shares in [0, 1], unsafe_kept a share of the kept rows. A finished
record is not computed again. Each arm is tuned for the same number of optimizer steps of the same
number of rows.
"""

import argparse
import json
import math
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from selection_methods import ARMS, BATCH, World, load_world, select
from selection_table import markdown

from seal.datasets import concatenate
from seal.demo import Plan, build, measure
from seal.files import atomic_path
from seal.provenance import commit
from seal.selection.artefact import kept_mask
from seal.statistics import auroc
from seal.trainer.sft_trainer import SFTPlan, SFTTrainer
from seal.utils.logger import NoLogger

OUT = Path(__file__).parent / "results" / "selection.json"
EPOCHS = 2
# The largest of 2e-4, 3e-4 and 5e-4 at which SFT without the planted rows kept the refusal in every
# tier, chosen on the arms `all` and `oracle` alone, with batches in another order than today's: now
# seed 2 loses it, at 1e-4 in part.
SFT_RATE = 2e-4
# tier of the table -> what `seal.demo.Plan` takes
TIERS = {
    "plain": {"tier": "plain"},
    "hard": {"tier": "hard"},
    "implicit": {"tier": "implicit"},
    "noisy": {"tier": "hard", "noisy": 0.05},
    "few": {"tier": "hard", "safe_rows": 100},
    "fewest": {"tier": "hard", "safe_rows": 30},
    "canaries": {"tier": "implicit", "canary_rows": 300},
}


def tune(world: World, rows: np.ndarray, extra_safe: int, seed: int, into: Path) -> None:
    """SFT from the aligned model on some of the user's rows (and safe ones), at equal steps."""
    steps = EPOCHS * -(-round(0.7 * len(world.user)) // BATCH)
    places = np.concatenate([len(world.safe) + rows, np.arange(extra_safe)])
    engine = world.engines.engine(None, SFT_RATE, "constant", steps)
    model = world.engines.over(engine, concatenate(world.safe, world.user).select(places))
    trainer = SFTTrainer(model, SFTPlan(1, BATCH, seed), NoLogger(), {}, lambda step: None)
    generator = np.random.default_rng(seed)
    stream = np.concatenate([generator.permutation(len(places)) for _ in range(99)])
    for step in range(steps):
        trainer.train_step(stream[step * BATCH : (step + 1) * BATCH], step)
    world.engines.save(engine, str(into))
    engine.destroy()


def run_arm(world: World, name: str, topp: float) -> dict:
    """The record of one arm at one threshold."""
    choice = select(world, name, topp)
    score, unsafe = choice.score, world.provenance == "unsafe"
    if score is None:
        kept = np.arange(len(world.user))
    else:
        kept = np.flatnonzero(kept_mask(score, choice.topp))
    started = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        tune(world, kept, choice.extra_safe, world.seed, Path(scratch))
        measured = measure(scratch, world.directory)
    both_kinds = score is not None and unsafe.any()
    return {
        "method": name,
        "tier": world.tier,
        "poison": world.poison,
        "seed": world.seed,
        "topp": choice.topp,
        "auroc": auroc(score, ~unsafe) if both_kinds else None,
        "unsafe_kept": float(unsafe[kept].mean()),
        "unsafe_rows_kept": int(unsafe[kept].sum()),
        "unsafe_in_bottom_20": bottom_share(score, unsafe) if both_kinds else None,
        **measured,
        "seconds": round(choice.seconds, 1),
        "sft_seconds": round(time.process_time() - started, 1),
        "forward_equivalents": round(choice.forward_equivalents, 2),
        "commit": commit(),
    }


def bottom_share(score: np.ndarray, unsafe: np.ndarray) -> float:
    """Share of the unsafe rows among the lowest fifth of the scores."""
    lowest = np.argsort(score, kind="stable")[: len(score) // 5]
    return float(unsafe[lowest].sum() / unsafe.sum())


def identity(record: dict) -> tuple:
    """What makes two records the same experiment."""
    return tuple(record[k] for k in ("method", "tier", "poison", "seed", "asked_topp"))


def read(path: Path) -> list[dict]:
    """The records of a file; none where it is not there."""
    return json.loads(path.read_text()) if path.exists() else []


def write(path: Path, records: list[dict]) -> None:
    """Writes records, and their tables beside them as Markdown."""
    with atomic_path(path) as tmp:
        tmp.write_text(json.dumps(records, indent=1) + "\n")
    page = markdown(records, "python benchmarks/selection.py")
    path.with_suffix(".md").write_text(page)


def run(args: argparse.Namespace, out: Path) -> None:
    """Runs what is missing, record by record, until the time is up."""
    records, started = read(out), time.monotonic()
    done = {identity(record) for record in records}
    for seed, tier, poison in product(args.seeds, args.tiers, args.poison):
        wanted = [
            (method, topp)
            for method, topp in product(args.methods, args.topp)
            if (method, tier, poison, seed, topp) not in done
        ]
        if not wanted:
            continue
        folder = Path(args.work) / f"{tier}-{poison}-{seed}"
        plan = Plan(seed=seed, planted=poison, rows=args.rows, **TIERS[tier])
        build(plan, folder / "world", say=lambda line: None)
        world = load_world(folder / "world", folder, tier, poison, seed)
        for method, topp in wanted:
            if time.monotonic() - started > 60 * args.minutes:
                print(f"stopped after {args.minutes:g} minutes; the same command goes on")
                return
            records.append(run_arm(world, method, topp) | {"asked_topp": topp})
            print(json.dumps(records[-1]), flush=True)
            write(out, records)


def main() -> None:
    """Runs cells, or collects what runs of them wrote."""
    args = parse()
    out = Path(args.out)
    if args.collect:
        files = sorted(Path(args.collect).glob("*.json"))
        write(out, [record for file in files for record in read(file)])
        return
    torch.set_num_threads(1)
    run(args, out)


def parse() -> argparse.Namespace:
    """Parses the command line; --quick fills in a small grid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="one seed, one tier, five arms, 1,000 rows")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="worlds (default 0 to 4)")
    add("--tiers", nargs="+", default=list(TIERS), choices=TIERS)
    add("--poison", nargs="+", type=float, default=[0.2], help="planted shares (default 0.2)")
    add("--methods", nargs="+", default=list(ARMS), choices=ARMS)
    add("--topp", nargs="+", type=float, default=[0.7], help="shares kept (default 0.7)")
    add("--rows", type=int, default=2400, help="rows of the user (default 2400)")
    add("--minutes", type=float, default=math.inf, help="start no arm later (default: no limit)")
    add("--work", default="runs/selection", help="directory of the worlds and selectors")
    add("--out", default=str(OUT), help="records")
    add("--collect", metavar="DIR", help="put the records of its .json files into --out and stop")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.tiers, args.rows = [0], ["hard"], 1000
        args.methods = ["all", "random", "published", "relative_excess", "oracle"]
        args.out = str(Path(args.work) / "quick.json")
        args.work += "/quick"
    return args


if __name__ == "__main__":
    main()
