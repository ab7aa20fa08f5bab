"""Time of the selector's part of a step, by number of rows: it should not grow with N.

    python benchmarks/selector_update.py --out benchmarks/results/selector_update.json

A step reads the weights of a batch and updates its logits. The sizes take turns, batch by batch;
every batch is a fresh random draw of rows. `step_us` is taken after 64 MiB were rewritten, as a
model's step would, so no size profits from a cache that a run would not find warm; `warm_us` right
after it. Also timed, once an epoch: fixing the normaliser, which is O(N). The last line is JSON.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from step_measure import load_average, median_and_spread

from seal.models.selector import Selector
from seal.provenance import commit, versions

SIZES = (10_000, 1_000_000, 100_000_000)


def main() -> None:
    """Measures the sizes and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="numbers of rows")
    parser.add_argument("--batch", type=int, default=64, help="rows a step (default 64)")
    parser.add_argument("--steps", type=int, default=2000, help="steps a size (default 2000)")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    selectors = {n: Selector(n) for n in args.rows}
    epoch = {n: seconds(selector.begin_epoch) for n, selector in selectors.items()}
    cold, warm = ({n: [] for n in args.rows} for _ in range(2))
    generator, elsewhere = torch.Generator().manual_seed(0), torch.zeros(2**24)
    for step in range(args.steps + args.steps // 10):
        for n, selector in selectors.items():
            elsewhere += 1
            for times in (cold, warm):
                losses = torch.rand(args.batch, generator=generator)
                rows = torch.randint(n, (args.batch,), generator=generator)
                start = time.perf_counter()
                selector.weights(rows)
                selector.update(rows, losses, 0.1)
                if step >= args.steps // 10:
                    times[n].append((time.perf_counter() - start) * 1e6)
    results = [describe(n, cold[n], warm[n], epoch[n]) for n in args.rows]
    for row in results:
        print(row)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    record = {"command": " ".join(sys.argv), "commit": commit(), "versions": versions()}
    record |= {"load": load_average(), "batch": args.batch, "steps": args.steps}
    record |= {"peak_rss_gib": round(peak, 2), "results": results}
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


def describe(n: int, cold: list[float], warm: list[float], epoch: float) -> dict:
    """The JSON object of a size."""
    median, spread = median_and_spread(cold)
    return {
        "n": n,
        "step_us": round(median, 1),
        "spread": round(spread, 1),
        "warm_us": round(median_and_spread(warm)[0], 1),
        "epoch_s": round(epoch, 4),
    }


def seconds(work: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
