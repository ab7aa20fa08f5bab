"""Every way of selecting, on the demo worlds: methods x tiers x poison x seeds, after SFT.

    python benchmarks/selection.py --quick                    one small world, under 10 minutes
    python benchmarks/selection.py --seeds 5                  the table of the README
    python benchmarks/selection.py --table benchmarks/results/selection.json

Records (benchmarks/results/selection.json) hold method, tier, poison, seed, auroc, unsafe_kept,
topp, refusal, over_refusal, utility, seconds (CPU), forward_equivalents, commit; shares in [0, 1],
unsafe_kept a share of the kept rows. A finished record is not computed again. Each arm is tuned for
the same number of optimizer steps of the same number of rows.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from selection_methods import ARMS, World, load_world, select
from selection_table import markdown

from seal.demo import Plan, build, measure
from seal.files import atomic_path
from seal.provenance import commit
from seal.selection.artefact import kept_mask
from seal.statistics import auroc
from seal.trainer.sft_trainer import SFTPlan, SFTTrainer
from seal.utils.logger import NoLogger

OUT = Path(__file__).parent / "results" / "selection.json"
EPOCHS, BATCH, CAPACITY = 2, 32, 8 * 128
# The largest of 2e-4, 3e-4 and 5e-4 at which SFT without the planted rows kept the refusal in every
# tier, chosen on the arms `all` and `oracle` alone: what is lost at it is lost to rows.
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
    losses = world.over(world.engine(steps, SFT_RATE), world.both.select(places))
    trainer = SFTTrainer(losses, SFTPlan(1, BATCH, seed), NoLogger(), {}, lambda step: None)
    generator = np.random.default_rng(seed)
    stream = np.concatenate([generator.permutation(len(places)) for _ in range(99)])
    for step in range(steps):
        trainer.train_step(stream[step * BATCH : (step + 1) * BATCH], step)
    world.strategy.save_model(losses.engine, world.tokenizer, str(into))
    losses.engine.destroy()


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


def write_page(records: Path) -> None:
    """Writes the tables of a records file beside it, as Markdown."""
    page = markdown(json.loads(records.read_text()), "python benchmarks/selection.py --seeds 5")
    records.with_suffix(".md").write_text(page)


def main() -> None:
    """Runs what is missing, record by record."""
    args = parse()
    if args.table:
        write_page(Path(args.table))
        return
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    records = json.loads(out.read_text()) if out.exists() else []
    done = {identity(record) for record in records}
    grid = [(t, p, s) for s in range(args.seeds) for t in args.tiers for p in args.poison]
    for tier, poison, seed in grid:
        wanted = [
            (method, topp)
            for method in args.methods
            for topp in args.topp
            if (method, tier, poison, seed, topp) not in done
        ]
        if not wanted:
            continue
        directory = Path(args.work) / f"{tier}-{poison}-{seed}"
        plan = Plan(seed=seed, planted=poison, rows=args.rows, **TIERS[tier])
        build(plan, directory, say=lambda line: None)
        world = load_world(directory, tier, poison, seed, CAPACITY, BATCH)
        for method, topp in wanted:
            records.append(run_arm(world, method, topp) | {"asked_topp": topp})
            print(json.dumps(records[-1]), flush=True)
            with atomic_path(out) as tmp:
                tmp.write_text(json.dumps(records, indent=1) + "\n")
    write_page(out)
    print(json.dumps(records))


def parse() -> argparse.Namespace:
    """Parses the command line; --quick fills in a small grid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="one seed, one tier, five arms, 1,000 rows")
    add("--seeds", type=int, default=5, help="worlds a cell (default 5)")
    add("--tiers", nargs="+", default=list(TIERS), choices=TIERS)
    add("--poison", nargs="+", type=float, default=[0.2], help="planted shares (default 0.2)")
    add("--methods", nargs="+", default=list(ARMS), choices=ARMS)
    add("--topp", nargs="+", type=float, default=[0.7], help="shares kept (default 0.7)")
    add("--rows", type=int, default=2400, help="rows of the user (default 2400)")
    add("--threads", type=int, default=1, help="CPU threads (default 1)")
    add("--work", default="runs/selection", help="directory of the worlds")
    add("--out", default=str(OUT), help="records")
    add("--table", help="write the tables of a records file as Markdown beside it and stop")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.tiers, args.rows = 1, ["hard"], 1000
        args.methods = ["all", "random", "published", "relative_excess", "oracle"]
        args.out = str(Path(args.work) / "quick.json")
        args.work += "/quick"
    return args


if __name__ == "__main__":
    main()
