"""What the times of a step say: seconds a step, rows and tokens a second, utilisation, ratios."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from step_flops import needed_flops
from step_measure import load_average, median_and_spread
from step_world import Work, World


@dataclass(frozen=True)
class Bench:
    """What every schedule is measured on.

    Attributes:
        device: "cpu" or "cuda".
        peak: operations a second of a large matrix product there.
        steps: optimizer steps measured, at most; warm_up: steps before them.
    """

    world: World
    device: str
    peak: float
    steps: int
    warm_up: int


def costs(bench: Bench, work: Work, times: list[tuple]) -> list[tuple[float, float]]:
    """(wall, CPU) seconds a token of each step after the warm-up."""
    found = []
    for step, (wall, cpu) in enumerate(times, bench.warm_up):
        visited = np.concatenate(bench.world.visited(work, step))
        tokens = bench.world.rows.lengths[visited].sum()
        found.append((wall / tokens, cpu / tokens))
    return found


def describe(name: str, costs: list[tuple[float, float]], bench: Bench, work: Work) -> dict:
    """The JSON object of a schedule."""
    world, steps = bench.world, range(bench.warm_up, bench.warm_up + len(costs))
    visited = [np.concatenate(world.visited(work, step)) for step in steps]
    tokens = np.mean([world.rows.lengths[rows].sum() for rows in visited])
    supervised = np.mean([world.rows.supervised[rows].sum() for rows in visited])
    flops = np.mean([needed_flops(world, work, step) for step in steps])
    per_token, spread = median_and_spread([wall for wall, _ in costs])
    cpu, _ = median_and_spread([cpu for _, cpu in costs])
    seconds = per_token * tokens
    return {
        "work": work.kind,
        "phase": "gamma" if work.gamma else "gamma0",
        "micro": work.micro,
        "schedule": name,
        "device": bench.device,
        "model": f"{Path(work.model).name}{'-lora' if work.lora_rank else ''}",
        "n": len(costs),
        "rows_per_s": round(len(visited[0]) / seconds, 2),
        "tokens_per_s": round(supervised / seconds, 1),
        "step_s": round(seconds, 4),
        "spread": round(spread * tokens, 4),
        "peak_gib": None,
        "held_gib": None,
        "utilisation": round(flops / seconds / bench.peak, 3),
        "cpu_s": round(cpu * tokens, 4),
    }


def ratio(ours: dict, other: dict) -> dict:
    """Rows a second of ours to the other's, by wall clock and by CPU seconds."""
    return {
        "ratio": round(ours["rows_per_s"] / other["rows_per_s"], 2),
        "cpu_ratio": round(other["cpu_s"] / ours["cpu_s"], 2),
        "to": other["schedule"],
        "phase": ours["phase"],
        "micro": ours["micro"],
    }


def card(results: list[dict], work: Work, bench: Bench) -> str:
    """What a person reads."""
    lines = [
        f"\n{work.kind}, gamma {work.gamma:g}, {bench.device}, batch {work.batch}, micro-batch "
        f"{work.micro}, LoRA rank {work.lora_rank}, ZeRO {work.zero_stage}, load {load_average()}"
    ]
    columns = ("n", "rows_per_s", "tokens_per_s", "step_s", "spread", "cpu_s", "peak_gib")
    columns += ("held_gib", "utilisation")
    lines.append(f"{'schedule':<12}" + "".join(f"{name:>13}" for name in columns))
    for found in results:
        if "schedule" in found:
            numbers = "".join(f"{found[name]!s:>13}" for name in columns)
            lines.append(f"{found['schedule']:<12}{numbers}")
        else:
            lines.append(f"ours / {found['to']}: {found['ratio']} x")
    return "\n".join(lines)
