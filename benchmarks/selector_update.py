"""Time of the selector's part of a step, by number of rows: it should not grow with N.

    python benchmarks/selector_update.py --out benchmarks/results/selector_update.json

A step reads the weights of a batch and updates its logits. The sizes take turns, batch by batch;
every batch is a fresh random draw of rows, and 64 MiB are rewritten before it, as a model's step
would, so that no size profits from a cache it would not find warm. Also timed, once an epoch: fixing
the normaliser, which is O(N). The last line is JSON.
"""

import argparse
import json
import os
import resource
import sys
import time
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
    times = {n: [] for n in args.rows}
    generator, elsewhere = torch.Generator().manual_seed(0), torch.zeros(2**24)
    for step in range(args.steps + args.steps // 10):
        losses = torch.rand(args.batch, generator=generator)
        for n, selector in selectors.items():
            rows = torch.randint(n, (args.batch,), generator=generator)
            elsewhere += 1
            taken = seconds(
                lambda s=selector, r=rows, x=losses: (s.weights(r), s.update(r, x, 0.1))
            )
            if step >= args.steps // 10:
                times[n].append(taken * 1e6)
    results = [
        {
            "n": n,
            "step_us": round(median, 1),
            "spread": round(spread, 1),
            "epoch_s": round(epoch[n], 4),
        }
        for n in args.rows
        for median, spread in [median_and_spread(times[n])]
    ]
    for row in results:
        print(
            f"N {row['n']:>11,}  {row['step_us']:>7} us a step (+- {row['spread']}), "
            f"once an epoch {row['epoch_s']} s"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    record = {"command": " ".join(sys.argv), "commit": commit(), "versions": versions()}
    record |= {"load": load_average(), "batch": args.batch, "steps": args.steps}
    record |= {"peak_rss_gib": round(peak, 2), "results": results}
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


def seconds(work) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
