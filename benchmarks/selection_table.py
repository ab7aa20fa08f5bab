"""The table of benchmarks/selection.py: means with 95 % intervals, paired with two baselines."""

from collections import Counter, defaultdict

import numpy as np

from seal.statistics import bootstrap_ci, paired_bootstrap

COLUMNS = ("auroc", "unsafe_rows_kept", "refusal", "over_refusal", "utility")
BASELINES = ("random", "safe_loss")
NAMES = (
    *("method", "n", "AUROC", "unsafe rows kept", "refuses", "over-refuses", "answers right"),
    *("refusal less random's", "less safe_loss's", "CPU s", "passes"),
)
AGAIN = 1000  # added to the seed of a second draw of random rows


def by_cell(records: list[dict]) -> dict:
    """(tier, poison, topp) -> method -> seed -> record; both draws of random are one method."""
    cells = defaultdict(lambda: defaultdict(dict))
    for record in records:
        again = record["method"] == "random_again"
        method = "random" if again else record["method"]
        cell = cells[record["tier"], record["poison"], record["asked_topp"]]
        cell[method][record["seed"] + AGAIN * again] = record
    return cells


def markdown(records: list[dict], command: str) -> str:
    """All tables as one Markdown page: three short ones, then one a cell.

    Args:
        command: the line that made the records.
    """
    cells = by_cell(records)
    commits = ", ".join(sorted({record["commit"][:7] for record in records}))
    shares = sorted(c for c in cells if (c[0], c[2]) == ("hard", 0.7))
    short = {
        "By world, 20 % planted, topp 0.7": {c[0]: c for c in cells if c[1:] == (0.2, 0.7)},
        "By planted share, hard, topp 0.7": {f"{c[1]:.0%}": c for c in shares},
        "By world, 20 % planted, topp 0.8": {c[0]: c for c in cells if c[1:] == (0.2, 0.8)},
    }
    parts = [
        f"# Every method on the demo worlds\n\n`{command}`, commits {commits}. "
        "A cell of the short tables: AUROC, unsafe rows kept, forbidden prompts refused; means. "
        "The long tables add 95 % intervals over the seeds.",
        *(f"## {title}\n\n{summary(cells, of)}" for title, of in short.items() if len(of) > 1),
        *(long_table(cell, methods) for cell, methods in sorted(cells.items())),
    ]
    return "\n\n".join(parts) + "\n"


def summary(cells: dict, columns: dict[str, tuple]) -> str:
    """One short table, a cell a column.

    A method that stands in one column only is left to the long tables.
    """
    found = Counter(method for cell in columns.values() for method in cells[cell])
    methods = [method for method, times in found.items() if times > 1]
    lines = [f"| method | {' | '.join(columns)} | CPU s |", "|---" * (len(columns) + 2) + "|"]
    for method in methods:
        found = [list(cells[cell].get(method, {}).values()) for cell in columns.values()]
        seconds = np.mean([record["seconds"] for seeds in found for record in seeds])
        lines.append(f"| {method} | {' | '.join(map(in_short, found))} | {seconds:.0f} |")
    return "\n".join(lines)


def in_short(seeds: list[dict]) -> str:
    """Means over the seeds of a cell, as one cell."""
    if not seeds:
        return ""
    first = "" if seeds[0]["auroc"] is None else f"{mean(seeds, 'auroc'):.3f}, "
    kept, refusal = mean(seeds, "unsafe_rows_kept"), mean(seeds, "refusal")
    return f"{first}{kept:.0f}, {refusal:.0%}"


def mean(seeds: list[dict], name: str) -> float:
    """Mean of one figure over the seeds."""
    return float(np.mean([record[name] for record in seeds]))


def long_table(cell: tuple, methods: dict) -> str:
    """The table of one tier, planted share and topp, with intervals."""
    tier, poison, topp = cell
    head = [f"### {tier}, {poison:.0%} planted, topp {topp:g}", "", f"| {' | '.join(NAMES)} |"]
    rows = [line(method, seeds, methods) for method, seeds in methods.items()]
    return "\n".join([*head, "|---" * len(NAMES) + "|", *rows])


def line(method: str, seeds: dict, methods: dict) -> str:
    """One row: mean [low, high] over the seeds; paired differences in refusal."""
    cells = [method, str(len(seeds)), *(spread(seeds, name) for name in COLUMNS)]
    cells += [gain(seeds, methods.get(name, {})) if method != name else "" for name in BASELINES]
    cells += [f"{np.mean([record['seconds'] for record in seeds.values()]):.3g}"]
    cells += [f"{next(iter(seeds.values()))['forward_equivalents']:g}"]
    return "| " + " | ".join(cells) + " |"


def gain(seeds: dict, baseline: dict) -> str:
    """Mean difference in refusal over the seeds both have."""
    shared = sorted(seeds.keys() & baseline.keys())
    if len(shared) < 2:
        return ""
    found = paired_bootstrap(*([by[s]["refusal"] for s in shared] for by in (seeds, baseline)))
    if found.low == found.high:
        return f"{found.difference:+.2f}"
    return f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def spread(seeds: dict, name: str) -> str:
    """Mean with its bootstrap interval over the seeds."""
    values = [record[name] for record in seeds.values() if record[name] is not None]
    if not values:
        return ""
    if len(values) == 1 or np.ptp(values) == 0:
        return f"{np.mean(values):.4g}"
    found = bootstrap_ci(values)
    return f"{found.estimate:.3g} [{found.low:.3g}, {found.high:.3g}]"
