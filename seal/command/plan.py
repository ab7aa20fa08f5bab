"""`seal plan`: time, memory and disk of a training run before it starts.

It stands before the command: the name of a script, then its flags.
"""

import argparse
import math
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from seal.errors import InputError

_GB = 1e9
_SAMPLE = 1000  # rows of each dataset that are tokenised
_SELECTOR_BYTES = 45  # a row of a selector file
EXAMPLE = """\
seal plan --ranks 8 train_sft_selector.py --pretrain MODEL --dataset safe.jsonl \\
      --new_dataset user.jsonl --zero_stage 3 --bf16"""


class Sizes(NamedTuple):
    """Of a model: parameters, those that train, layers, hidden size."""

    parameters: int
    trainable: int
    layers: int
    hidden: int


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

    from seal.command.speed import Speed, device, measured_speed
    from seal.command.workload import SCRIPTS
    from seal.models.actor import ModelSettings
    from seal.utils import cli

    script = SCRIPTS.get(Path(args.script).name)
    if script is None:
        raise InputError(f"script {args.script}: known are {', '.join(SCRIPTS)}")
    flags = script.parser().parse_args(args.flags)
    ranks = args.ranks or max(1, torch.cuda.device_count())
    cli.check_batch(flags, ranks)
    settings = cli.settings(ModelSettings, flags)
    size = sizes(settings)
    samples = {name: sample(flags, name) for name in script.datasets if vars(flags)[name]}
    rows = {name: counts for name, (counts, _) in samples.items()}
    if args.tokens_per_s:  # a forward pass is a third of a step, half where the base is frozen
        frozen = size.trainable < size.parameters
        learn = 1 / args.tokens_per_s
        speed = Speed(learn, learn / (2 if frozen else 3), 0.0, 0.0, 0.0)
    else:
        typical = samples["new_dataset" if "new_dataset" in samples else "dataset"][1]
        tokens = micro_batch_tokens(flags, typical.lengths.mean(), ranks)
        speed = measured_speed(settings, size.layers, typical, tokens, args.measure)
    phases = script.phases(flags, rows)
    seconds = {
        phase.name: (phase.learned * speed.learn + phase.read * speed.read) / ranks
        + phase.steps * speed.step / (ranks if flags.zero_stage else 1)
        for phase in phases
    }
    gap = "selector_estimator" in flags and flags.selector_estimator == "penalty_gap"
    memory = memory_of_rank(flags, size, speed, ranks, gap)
    disk = disk_of_run(flags, size, rows, gap)
    free = free_memory(device()) / (1 if device().type == "cuda" else ranks)
    result = {
        "ok": memory["total"] <= free and disk["total"] <= shutil.disk_usage(".").free,
        "script": Path(args.script).name,
        "ranks": ranks,
        "device": device().type,
        "model": size._asdict(),
        "rows": {name: counts._asdict() for name, counts in rows.items()},
        "speed": speed._asdict() | {"measured": not args.tokens_per_s},
        "phases": [phase._asdict() | {"seconds": seconds[phase.name]} for phase in phases],
        "seconds": sum(seconds.values()),
        "memory_bytes": memory | {"free": free},
        "disk_bytes": disk | {"free": shutil.disk_usage(".").free},
    }
    return result, _render(result)


def sizes(settings) -> Sizes:
    """The model's sizes, from its configuration alone; nothing is loaded."""
    import torch

    from seal.models.actor import untrained_actor

    with torch.device("meta"):
        actor = untrained_actor(settings)
    parameters = list(actor.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    config = actor.model.config
    counts = (sum(p.numel() for p in some) for some in (parameters, trainable))
    return Sizes(*counts, layers=config.num_hidden_layers, hidden=config.hidden_size)


def sample(flags: argparse.Namespace, name: str) -> tuple:
    """(`Rows` of the dataset that a flag names, estimated from a sample; the sample, tokenised)."""
    import datasets
    import numpy as np

    from seal.command.workload import Rows
    from seal.datasets import load_rows, tokenize_rows
    from seal.utils import cli
    from seal.utils.tokenizer import get_tokenizer

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
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


def memory_of_rank(flags, size: Sizes, speed, ranks: int, gap: bool) -> dict[str, float]:
    """Bytes that one rank holds at its peak, by what they are for.

    DeepSpeed keeps a float32 copy of what trains and Adam's two moments, shared out from ZeRO 1
    on, gradients from 2, weights at 3.
    """
    share = [1 if flags.zero_stage < stage else 1 / ranks for stage in (1, 2, 3)]
    width = 2 if flags.bf16 else 4
    frozen = size.parameters - size.trainable
    base = frozen * (0.55 if flags.load_in_4bit else width)  # nf4 with its scales
    twice = 2 if gap else 1  # the tracker: a second adapter, or a second model
    copies = 1 if flags.zero_stage == 0 and not flags.bf16 else 2  # plain float32 needs no copy
    tokens = flags.micro_train_batch_size * flags.max_len
    kept = speed.kept
    if flags.gradient_checkpointing:  # each layer's input, and one layer at a time in full
        layers = size.layers * speed.kept_by_layer
        kept = kept - layers + speed.kept_by_layer + size.layers * size.hidden * width
    on_device = not flags.adam_offload
    parts = {
        "weights": (base + twice * size.trainable * width) * share[2],
        "gradients": twice * size.trainable * width * share[1],
        "optimizer": twice * size.trainable * 4 * (1 + copies) * share[0] * on_device,
        "activations": tokens * kept,
        "process": resident_bytes(),
    }
    return parts | {"total": sum(parts.values())}


def disk_of_run(flags, size: Sizes, rows: dict, gap: bool) -> dict[str, float]:
    """Bytes that the run writes, by what they are for."""
    width = 2 if flags.bf16 else 4
    names = vars(flags)
    trained = size.trainable * width
    parts = {"tokens": sum(5 * r.count * r.mean_tokens for r in rows.values())}  # int32 and mask
    if "selector_name" in names:
        files = 1 + names.get("max_epochs", 0)  # scoring writes one, training one an epoch more
        parts["selector"] = files * _SELECTOR_BYTES * rows["new_dataset"].count
    if names.get("save_path"):
        parts["model"] = trained
    if names.get("save_steps", -1) > 0:
        state = trained + 12 * size.trainable
        parts["checkpoints"] = flags.max_ckpt_num * state * (2 if gap else 1)
    return parts | {"total": sum(parts.values())}


def resident_bytes() -> float:
    """What this process holds now: torch, transformers and the rows, as every rank will."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096.0


def free_memory(device) -> float:
    """Bytes free on the GPU, or of the machine."""
    import torch

    if device.type == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if "MemAvailable" in line)


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
