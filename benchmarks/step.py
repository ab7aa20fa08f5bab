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
compiled norms and feed-forward blocks, or with Liger's; `kernels` is `both` and Liger's.

Prints a card for each phase and micro-batch; the last line is JSON: one object a schedule, then the
ratio of rows a second, ours to the others (`"to"` says which).

- step_s is the median over n steps of seconds a token, times the mean tokens of a step, so that
  steps with long rows count as what they are; spread is half the distance of its quartiles.
- tokens_per_s counts supervised tokens. peak_gib is what a step adds to the process at rest;
  held_gib, on CUDA, what the schedule's model and optimizer hold at rest.
- utilisation is the arithmetic the phase needs (step_flops.py) over a measured peak of the
  matrix product.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch
from ours_step import OurCompiledStep, OurGapStep, OurLigerStep, OurStep
from published_step import PublishedStep
from step_measure import (
    added_gib,
    allocated_gib,
    device_name,
    interleaved,
    load_average,
    matmul_peak,
    profile,
)
from step_report import Bench, card, costs, describe, ratio
from step_world import SHAPES, Work, build_world

from seal.models.attention import without_plans
from seal.provenance import commit, versions
from seal.utils import entry
from seal.utils.record import shared
from seal.utils.strategy import DeepspeedStrategy, Precision, Zero

SCHEDULES = {
    "published": PublishedStep,
    "ours": OurStep,
    "gap": OurGapStep,
    "compiled": OurCompiledStep,
    "liger": OurLigerStep,
}
GROUPS = {
    "both": ("published", "ours"),
    "ours-gap": ("gap", "ours"),
    "ours-compiled": ("compiled", "ours"),
    "ours-liger": ("liger", "ours"),
    "kernels": ("published", "liger", "ours"),
}


def main() -> None:
    """Measures what the flags name, and writes each result as soon as it is there."""
    args = parse()
    without_plans()  # for the published schedule and TRL too: plans are no steady cost
    until, load, results = time.monotonic() + args.seconds, load_average(), []
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            kind=args.work,
            model=args.model,
            batch=args.train_batch_size,
            micro=args.micro_train_batch_size[0],
            max_len=args.max_len,
            lora_rank=args.lora_rank,
            zero_stage=args.zero_stage,
            bf16=args.bf16,
            gradient_checkpointing=args.gradient_checkpointing,
        )
        world = build_world(Path(folder), args.max_rows, work, args.full_rows)
        peak = matmul_peak(torch.bfloat16 if args.bf16 else torch.float32, args.device)
        bench = Bench(world, args.device, peak, args.steps, args.warm_up)
        for part, found in measure(bench, work, args, until):
            results += found
            print(card(found, part, bench), flush=True)
            if args.out:
                words = [str(shared(word)) for word in sys.argv[1:]]
                record = {"command": " ".join(["benchmarks/step.py", *words])}
                record |= {"commit": commit()}
                record |= {"versions": versions(), "machine": device_name(args.device)}
                record |= {"threads": torch.get_num_threads(), "load": [load, load_average()]}
                record |= {"matmul_flops": peak, "results": results}
                args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(results))


def measure(
    bench: Bench, work: Work, args: argparse.Namespace, until: float
) -> Iterator[tuple[Work, list[dict]]]:
    """For each phase and micro-batch an object a schedule, then the ratios."""
    sft = work.kind == "sft" and args.schedule in ("both", "ours")
    peer = trl_peer(bench, work, until) if sft else None
    names = GROUPS.get(args.schedule, [args.schedule])
    sides = {name: Side(name, bench, work) for name in names}
    parts = [
        replace(work, epoch=int(phase == "gamma"), micro=micro)
        for micro, phase in product(args.micro_train_batch_size, args.phase)
    ]
    for number, part in enumerate(parts):
        left = (until - time.monotonic()) / (len(parts) - number + bool(peer))
        found = compare(sides, bench, part, left)
        yield part, found
        if args.profile and number == 0:
            ours = found[list(sides).index("ours")]
            run = functools.partial(sides["ours"], part, 0)
            args.profile.write_text(profile(run, args.device, ours["step_s"]) + "\n")
    if peer:
        yield work, peer.against(sides["ours"], until)


def trl_peer(bench: Bench, work: Work, until: float):
    """TRL with its fastest setting; made before a process group exists: it would train distributed.

    Returns:
        A `trl_step.Peer`; None where TRL is not installed.
    """
    try:
        from trl_step import Peer
    except ModuleNotFoundError:
        print("trl is not installed, its column is left out: pip install trl==1.16.0")
        return None
    return Peer(bench, work, time.monotonic() + (until - time.monotonic()) / 3)


class Side:
    """A schedule with its own model and engine, from the same starting weights.

    Attributes:
        held_gib: memory on the GPU that they take at rest.
    """

    def __init__(self, name: str, bench: Bench, work: Work):
        before = allocated_gib(bench.device)
        strategy = DeepspeedStrategy(Zero(work.zero_stage), Precision(work.bf16), seed=work.seed)
        strategy.setup_distributed()
        self._step = SCHEDULES[name](strategy, bench.world, work)
        self.held_gib = allocated_gib(bench.device) - before

    def __call__(self, work: Work, step: int) -> None:
        """Takes optimizer step `step`."""
        self._step(work, step)


def compare(sides: dict[str, Side], bench: Bench, work: Work, seconds: float) -> list[dict]:
    """One object a schedule, then the ratios of the last, which is ours, to the others."""
    runs = {name: lambda step, side=side: side(work, step) for name, side in sides.items()}
    times = interleaved(runs, bench.steps, bench.warm_up, bench.device, seconds)
    found = []
    for name, run in runs.items():
        row = describe(name, costs(bench, work, times[name]), bench, work)
        added = added_gib(lambda run=run: run(0), bench.device)
        row |= {"peak_gib": round(added, 3), "held_gib": round(sides[name].held_gib, 3)}
        found.append(row)
    return found + [ratio(found[-1], other) for other in found[:-1]]


def parse() -> argparse.Namespace:
    """The flags; --quick makes a run of a minute or two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--schedule", choices=[*SCHEDULES, *GROUPS], default="both", help="both: published, ours")
    add("--work", choices=["selector", "sft"], default="selector")
    add("--phase", choices=["gamma0", "gamma"], nargs="+", default=["gamma0"])
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("--quick", action="store_true", help="batches of 8 rows, fewer rows")
    add("--steps", type=int, default=24, help="steps measured (default 24)")
    add("--warm_up", type=int, default=3, help="steps before them (default 3)")
    add("--seconds", type=float, default=1e9, help="a budget: fewer steps where it runs out")
    add("--train_batch_size", type=int, default=64, help="rows a step of each level (default 64)")
    add(
        "--micro_train_batch_size",
        type=int,
        nargs="+",
        default=[8],
        help="rows a micro-batch (default 8)",
    )
    add("--max_len", type=int, default=2048, help="tokens a row, at most (default 2048)")
    add("--max_rows", type=int, default=16_000, help="rows read of each set (default 16000)")
    add("--lora_rank", type=int, default=0, help="0 trains every weight (default)")
    add("--zero_stage", type=int, default=2, help="(default 2)")
    add("--bf16", action="store_true")
    add("--gradient_checkpointing", action="store_true")
    shapes = ", ".join(SHAPES)
    add("--model", default="llama-7M", help=f"{shapes}: random weights; or a model's directory")
    add("--full_rows", action="store_true", help="every row has max_len tokens")
    add("--profile", type=Path, help="file for the largest operations of one step of ours")
    add("--out", type=Path, help="JSON file: the results with command, commit and versions")
    args = parser.parse_args()
    if args.quick:
        args.train_batch_size, args.max_rows = 8, 2000
    return args


if __name__ == "__main__":
    entry.run(main)
