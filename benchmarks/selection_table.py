"""The table of benchmarks/selection.py: means with 95 % intervals, paired against random."""

from collections import defaultdict

import numpy as np

from seal.assess.statistics import bootstrap_ci, paired_bootstrap

COLUMNS = ("auroc", "unsafe_rows_kept", "refusal", "over_refusal", "utility", "seconds")
NAMES = "method|n|AUROC|unsafe rows kept|refusal|vs random|over-refusal|utility|s".split("|")
HEAD = "| " + " | ".join(NAMES) + " |"


def print_table(records: list[dict]) -> None:
    """Prints one Markdown table for each tier, poison share and topp."""
    cells = defaultdict(list)
    for record in records:
        key = (record["tier"], record["poison"], record["asked_topp"])
        cells[key].append(record)
    for (tier, poison, topp), found in sorted(cells.items()):
        print(f"\n### {tier}, {poison:.0%} planted, topp {topp:g}\n\n{HEAD}")
        print("|---" * len(NAMES) + "|")
        by_method = defaultdict(dict)
        for record in found:
            by_method[record["method"]][record["seed"]] = record
        for method, seeds in by_method.items():
            print(line(method, seeds, by_method.get("random", {})))


def line(method: str, seeds: dict, random: dict) -> str:
    """One row: mean [low, high] over the seeds; the paired difference in refusal."""
    first, kept, refusal, over, utility, seconds = (spread(seeds, name) for name in COLUMNS)
    shared = sorted(seeds.keys() & random.keys())
    versus = "-"
    if len(shared) > 1 and method != "random":
        pairs = ([by[s]["refusal"] for s in shared] for by in (seeds, random))
        gain = paired_bootstrap(*pairs)
        versus = f"{gain.difference:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
    cells = (method, len(seeds), first, kept, refusal, versus, over, utility, seconds)
    return "| " + " | ".join(map(str, cells)) + " |"


def spread(seeds: dict, name: str) -> str:
    """Mean with its bootstrap interval over the seeds."""
    values = [record[name] for record in seeds.values() if record[name] is not None]
    if not values:
        return "-"
    if len(values) == 1 or np.ptp(values) == 0:
        return f"{np.mean(values):.3g}"
    found = bootstrap_ci(values)
    return f"{found.estimate:.3g} [{found.low:.3g}, {found.high:.3g}]"
