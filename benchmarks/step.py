"""Speed of a training step: the published schedule, ours, and for SFT TRL's, in one process.

    python benchmarks/step.py --quick
    python benchmarks/step.py --phase gamma --lora_rank 16 --out benchmarks/results/step_x.json
    python benchmarks/step.py --work sft

`published` is what the public code does a step, restated in published_step.py. Every schedule runs
the same model, rows, batch, LoRA and ZeRO stage, step by step in turn. Phase gamma0 is the first
epoch of the published setting (the row loss has weight zero), gamma the second (0.03). For SFT,
TRL's SFTTrainer runs too where it is installed (`pip install trl==1.16.0`), with the fastest of its
settings on these rows. `--schedule ours-gap` compares our two estimators, `penalty` and
`penalty_gap`; `ours-compiled` and `ours-liger` (CUDA, `pip install liger-kernel`) compare ours with
compiled norms and feed-forward blocks, or with Liger's.

Prints a card; the last line is JSON: one object a schedule, then the ratio of rows a second, ours
to published, and ours to TRL where it ran (`"to"` says which).

- step_s is the median over steps of seconds a token, times the mean tokens of a step, so that
  steps with long rows count as what they are; spread is half the distance of its quartiles.
- tokens_per_s counts supervised tokens. peak_gib: on CUDA all that is allocated; on a CPU what a
  step adds to the process at rest.
- utilisation is the arithmetic the phase needs (step_flops.py) over a measured peak of the
  matrix product.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import numpy as np
import torch
from ours_step import OurCompiledStep, OurGapStep, OurLigerStep, OurStep
from published_step import PublishedStep
from step_flops import needed_flops
from step_measure import interleaved, load_average, matmul_peak, median_and_spread, peak_gib, timed
from step_world import SHAPES, Work, World, build_world

from seal.provenance import commit, versions
from seal.utils import entry
from seal.utils.strategy import DeepspeedStrategy, Precision, Zero

SCHEDULES = {
    "published": PublishedStep,
    "ours": OurStep,
    "gap": OurGapStep,
    "compiled": OurCompiledStep,
    "liger": OurLigerStep,
}
PAIRS = {
    "both": ("published", "ours"),
    "ours-gap": ("gap", "ours"),
    "ours-compiled": ("compiled", "ours"),
    "ours-liger": ("liger", "ours"),
}


def main() -> None:
    """Measures what the flags name."""
    args = parse()
    load = load_average()
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            kind=args.work,
            model=args.model,
            epoch=int(args.phase == "gamma"),
            batch=args.train_batch_size,
            micro=args.micro_train_batch_size,
            max_len=args.max_len,
            lora_rank=args.lora_rank,
            zero_stage=args.zero_stage,
            bf16=args.bf16,
            gradient_checkpointing=args.gradient_checkpointing,
        )
        world = build_world(Path(folder), args.max_rows, work, args.full_rows)
        results = compare(world, work, args)
    card(results, work, args)
    if args.out:
        record = {"command": " ".join(sys.argv), "commit": commit(), "versions": versions()}
        record |= {"threads": torch.get_num_threads(), "load": [load, load_average()]}
        args.out.write_text(json.dumps(record | {"results": results}, indent=1) + "\n")
    print(json.dumps(results))


def compare(world: World, work: Work, args: argparse.Namespace) -> list[dict]:
    """One object a schedule, then the ratios."""
    peer = args.work == "sft" and args.schedule == "both" and trl_is_here()
    if peer:  # before a process group exists, or it would train distributed
        from trl_step import best_settings

        settings = best_settings(world, work)
    names = PAIRS.get(args.schedule, (args.schedule,))
    steps = {name: prepare(name, world, work) for name in names}
    times = interleaved(steps, args.steps, args.warm_up, args.device)
    rows = {
        name: describe(name, costs(world, work, times[name], args.warm_up), world, work, args)
        | {"peak_gib": round(peak_gib(steps[name], 0, args.device), 3)}
        for name in names
    }
    results = list(rows.values())
    if args.schedule in PAIRS:
        results.append(ratio(rows["ours"], rows[names[0]]) | {"to": names[0]})
    if peer:
        ours, trl = against_trl(world, work, args, steps["ours"], settings)
        results += [trl, ratio(ours, trl) | {"to": "trl", "settings": list(settings)}]
    return results


def against_trl(
    world: World, work: Work, args: argparse.Namespace, ours: Callable, settings: tuple[str, int]
) -> tuple[dict, dict]:
    """Our row and TRL's, taken in turn inside TRL's loop."""
    from trl_step import run

    taken = []
    total = args.warm_up + args.steps
    watch = run(
        world, work, *settings, total, lambda step: taken.append(timed(lambda: ours(step), "cpu"))
    )
    ours_costs = costs(world, work, taken[args.warm_up :], args.warm_up)
    skip = args.warm_up - 1  # TRL's first step is not timed
    pairs = zip(watch.times[skip:], watch.tokens[skip:], strict=True)
    trl_costs = [(wall / tokens, cpu / tokens) for (wall, cpu), tokens in pairs]
    return (
        describe("ours", ours_costs, world, work, args),
        describe("trl", trl_costs, world, work, args),
    )


def costs(
    world: World, work: Work, times: list[tuple[float, float]], first: int
) -> list[tuple[float, float]]:
    """(wall, CPU) seconds a token of each step, steps numbered from `first`."""
    return [
        (wall / tokens, cpu / tokens)
        for step, (wall, cpu) in enumerate(times, first)
        for tokens in [world.rows.lengths[np.concatenate(world.visited(work, step))].sum()]
    ]


def describe(
    name: str, costs: list[tuple[float, float]], world: World, work: Work, args: argparse.Namespace
) -> dict:
    """The JSON object of a schedule."""
    steps = range(args.warm_up, args.warm_up + args.steps)
    visited = [np.concatenate(world.visited(work, step)) for step in steps]
    tokens = np.mean([world.rows.lengths[rows].sum() for rows in visited])
    supervised = np.mean([world.rows.supervised[rows].sum() for rows in visited])
    flops = np.mean([needed_flops(world, work, step) for step in steps])
    per_token, spread = median_and_spread([wall for wall, _ in costs])
    cpu, _ = median_and_spread([cpu for _, cpu in costs])
    seconds = per_token * tokens
    return {
        "work": work.kind,
        "phase": args.phase,
        "schedule": name,
        "device": args.device,
        "model": f"{work.model}{'-lora' if work.lora_rank else ''}",
        "rows_per_s": round(len(visited[0]) / seconds, 2),
        "tokens_per_s": round(supervised / seconds, 1),
        "step_s": round(seconds, 4),
        "spread": round(spread * tokens, 4),
        "peak_gib": None,
        "utilisation": round(flops / seconds / args.peak, 3),
        "cpu_s": round(cpu * tokens, 4),
    }


def ratio(ours: dict, other: dict) -> dict:
    """Rows a second of ours to the other's, by wall clock and by CPU seconds."""
    return {
        "ratio": round(ours["rows_per_s"] / other["rows_per_s"], 2),
        "cpu_ratio": round(other["cpu_s"] / ours["cpu_s"], 2),
    }


def prepare(name: str, world: World, work: Work) -> Callable[[int], None]:
    """A schedule with its own model and engine, from the same starting weights."""
    strategy = DeepspeedStrategy(Zero(work.zero_stage), Precision(work.bf16), seed=work.seed)
    strategy.setup_distributed()
    return SCHEDULES[name](strategy, world, work)


def trl_is_here() -> bool:
    """Whether the peer can run; says how to get it where not."""
    found = importlib.util.find_spec("trl") is not None
    if not found:
        print("trl is not installed, its column is left out: pip install trl==1.16.0")
    return found


def card(results: list[dict], work: Work, args: argparse.Namespace) -> None:
    """What a person reads."""
    print(
        f"\n{work.kind}, gamma {work.gamma:g}, {args.device}, batch {work.batch}, micro-batch "
        f"{work.micro}, LoRA rank {work.lora_rank}, ZeRO {work.zero_stage}, {args.steps} steps, "
        f"load {load_average()}"
    )
    columns = ("rows_per_s", "tokens_per_s", "step_s", "spread", "cpu_s", "peak_gib", "utilisation")
    print(f"{'schedule':<12}" + "".join(f"{name:>13}" for name in columns))
    for found in results:
        if "schedule" in found:
            print(f"{found['schedule']:<12}" + "".join(f"{found[name]!s:>13}" for name in columns))
        else:
            print(f"ours / {found.get('to', 'published')}: {found['ratio']} x")


def parse() -> argparse.Namespace:
    """The flags; --quick makes a run of a minute or two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--schedule", choices=[*SCHEDULES, *PAIRS], default="both", help="both: published, ours")
    add("--work", choices=["selector", "sft"], default="selector")
    add("--phase", choices=["gamma0", "gamma"], default="gamma0")
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("--quick", action="store_true", help="batches of 8 rows, fewer rows")
    add("--steps", type=int, default=24, help="steps measured (default 24)")
    add("--warm_up", type=int, default=3, help="steps before them (default 3)")
    add("--train_batch_size", type=int, default=64, help="rows a step of each level (default 64)")
    add("--micro_train_batch_size", type=int, default=8, help="rows a micro-batch (default 8)")
    add("--max_len", type=int, default=2048, help="tokens a row, at most (default 2048)")
    add("--max_rows", type=int, default=16_000, help="rows read of each set (default 16000)")
    add("--lora_rank", type=int, default=0, help="0 trains every weight (default)")
    add("--zero_stage", type=int, default=2, help="(default 2)")
    add("--bf16", action="store_true")
    add("--gradient_checkpointing", action="store_true")
    add("--model", choices=SHAPES, default="llama-7M", help="shape, with random weights")
    add("--full_rows", action="store_true", help="every row has max_len tokens")
    add("--out", type=Path, help="JSON file: the results with command, commit and versions")
    args = parser.parse_args()
    if args.quick:
        args.train_batch_size, args.max_rows = 8, 2000
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    args.peak = matmul_peak(dtype, args.device)
    return args


if __name__ == "__main__":
    entry.run(main)
