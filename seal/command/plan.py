"""`seal plan`: time, memory and disk of a training run before it starts.

It stands before the command: the name of a script, then its flags.
"""

import argparse
import math
import shutil
from pathlib import Path

from seal.command.dataset import hide_bars
from seal.errors import InputError

_GB = 1e9
_SAMPLE = 1000  # rows of each dataset that are tokenised
EXAMPLE = """\
seal plan --ranks 8 train_sft_selector.py --pretrain MODEL --dataset safe.jsonl \\
      --new_dataset user.jsonl --zero_stage 3 --bf16"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="time, memory and disk of a training run before it starts",
    )
    parser.add_argument("--ranks", type=int, help="processes (default: one, or one a GPU)")
    parser.add_argument(
        "--tokens_per_s",
        type=float,
        help="tokens a rank trains on in a second, from a run of yours; nothing is measured then",
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure again what was measured here before"
    )
    parser.add_argument("script", help="train_sft_selector.py, train_sft.py or score_dataset.py")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="its flags, --config too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    import torch

    from seal.command.footprint import disk_of_run, free_memory, memory_of_rank, sizes
    from seal.command.speed import device, given_speed, measured_speed
    from seal.command.workload import SCRIPTS, seconds_of
    from seal.models.actor import ModelSettings
    from seal.utils import cli

    script = SCRIPTS.get(Path(args.script).name)
    if script is None:
        raise InputError(f"script {args.script}: known are {', '.join(SCRIPTS)}")
    flags = script.parser().parse_args(args.flags)
    ranks = max(1, torch.cuda.device_count()) if args.ranks is None else args.ranks
    if ranks < 1 or (args.tokens_per_s is not None and not args.tokens_per_s > 0):
        raise InputError(
            f"--ranks and --tokens_per_s must be positive, got {ranks} and {args.tokens_per_s}"
        )
    cli.check_batch(flags, ranks)
    settings = cli.settings(ModelSettings, flags)
    size = sizes(settings)
    samples = {name: sample(flags, name) for name in script.datasets if vars(flags)[name]}
    rows = {name: counts for name, (counts, _) in samples.items()}
    if args.tokens_per_s is not None:
        speed = given_speed(args.tokens_per_s, frozen=size.trainable < size.parameters)
    else:
        typical = samples["new_dataset" if "new_dataset" in samples else "dataset"][1]
        tokens = micro_batch_tokens(flags, typical.lengths.mean(), ranks)
        speed = measured_speed(settings, size.layers, typical, tokens, args.measure)
    sharing = ranks if flags.zero_stage else 1
    phases = [
        phase._asdict() | {"seconds": seconds_of(phase, speed, ranks, sharing)}
        for phase in script.phases(flags, rows)
    ]
    memory, disk = memory_of_rank(flags, size, speed, ranks), disk_of_run(flags, size, rows)
    memory["free"] = free_memory(device()) / (1 if device().type == "cuda" else ranks)
    disk["free"] = float(shutil.disk_usage(".").free)
    result = {
        "ok": all(parts["total"] <= parts["free"] for parts in (memory, disk)),
        "script": Path(args.script).name,
        "ranks": ranks,
        "device": device().type,
        "model": size._asdict(),
        "rows": {name: counts._asdict() for name, counts in rows.items()},
        "speed": speed._asdict() | {"measured": args.tokens_per_s is None},
        "phases": phases,
        "seconds": sum(phase["seconds"] for phase in phases),
        "memory_bytes": memory,
        "disk_bytes": disk,
    }
    return result, _render(result)


def sample(flags: argparse.Namespace, name: str) -> tuple:
    """(`Rows` of the dataset that a flag names, estimated from a sample; the sample, tokenised)."""
    import numpy as np

    from seal.command.workload import Rows
    from seal.datasets import load_rows, tokenize_rows
    from seal.utils import cli
    from seal.utils.tokenizer import get_tokenizer

    hide_bars()
    probs = flags.dataset_probs if name == "dataset" else "1.0"
    rows = load_rows(vars(flags)[name], probs=probs, **cli.source_flags(flags))
    chosen = np.random.default_rng(0).permutation(len(rows))[:_SAMPLE]
    tokenizer = get_tokenizer(flags.pretrain, **cli.tokenizer_flags(flags))
    tokenised = tokenize_rows(rows.select(chosen), tokenizer, **cli.text_flags(flags))
    if len(tokenised) == 0:
        raise InputError(f"--{name} {vars(flags)[name]}: none of {len(chosen)} rows can be used")
    count = round(len(rows) * len(tokenised) / len(chosen))
    return Rows(count, float(tokenised.lengths.mean())), tokenised


def micro_batch_tokens(flags: argparse.Namespace, mean_tokens: float, ranks: int) -> float:
    """Tokens of a micro-batch when a step's rows are spread evenly, as training does."""
    levels = 2 if "selector_estimator" in flags else 1
    step = levels * flags.train_batch_size * mean_tokens
    capacity = flags.micro_train_batch_size * flags.max_len * ranks
    return step / math.ceil(step / capacity) / ranks


def _render(result: dict) -> str:
    size, speed = result["model"], result["speed"]
    learn, source = 1 / speed["learn"], "measured here" if speed["measured"] else "as given"
    table = {
        "run": f"{result['script']} on {result['ranks']} x {result['device']}",
        "model": f"{_count(size['parameters'])} parameters, {_count(size['trainable'])} train, "
        f"{size['layers']} layers",
    }
    for name, rows in result["rows"].items():
        table[f"--{name}"] = f"{rows['count']} rows of {rows['mean_tokens']:.0f} tokens"
    table["speed"] = f"{learn:,.0f} tokens/s trained a rank, {source}"
    for phase in result["phases"]:
        tokens = _count(phase["learned"] + phase["read"])
        table[phase["name"]] = f"{_time(phase['seconds'])}, {tokens} tokens"
    table["time"] = _time(result["seconds"])
    table["memory"] = f"{_parts(result['memory_bytes'])} for a rank"
    table["disk"] = _parts(result["disk_bytes"])
    table["not in it"] = "start-up, evaluation, communication between ranks"
    lines = [f"{name:<14}{value}" for name, value in table.items()]
    if not result["ok"]:
        lines.append(
            "It does not fit: a larger --zero_stage, --gradient_checkpointing, LoRA or a smaller "
            "--micro_train_batch_size need less memory, fewer checkpoints less disk."
        )
    return "\n".join(lines)


def _parts(parts: dict[str, float]) -> str:
    shown = {name: _bytes(value) for name, value in parts.items()}
    total, free = shown.pop("total"), shown.pop("free")
    return f"{total} ({', '.join(f'{n} {v}' for n, v in shown.items())}) of {free} free"


def _bytes(number: float) -> str:
    return f"{number / _GB:,.1f} GB" if number >= _GB else f"{number / 1e6:,.1f} MB"


def _count(number: float) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number:.0f}"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes > 99 else f"{minutes} min"
