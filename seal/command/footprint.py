"""What a training run holds in memory and writes to disk, in bytes."""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch

from seal.command.speed import Speed
from seal.command.workload import Rows
from seal.models.actor import ModelSettings, untrained_actor

_SELECTOR_BYTES = 45  # a row of a selector file


class Sizes(NamedTuple):
    """Of a model: parameters, those that train, layers, hidden size."""

    parameters: int
    trainable: int
    layers: int
    hidden: int


def sizes(settings: ModelSettings) -> Sizes:
    """The model's sizes, from its configuration alone; nothing is loaded."""
    with torch.device("meta"):
        actor = untrained_actor(settings)
    parameters = list(actor.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    config = actor.model.config
    counts = (sum(p.numel() for p in some) for some in (parameters, trainable))
    return Sizes(*counts, layers=config.num_hidden_layers, hidden=config.hidden_size)


def tracks(flags: argparse.Namespace) -> bool:
    """Whether a second adapter, or a second model, follows the lower level."""
    return "selector_estimator" in flags and flags.selector_estimator == "penalty_gap"


def memory_of_rank(
    flags: argparse.Namespace, size: Sizes, speed: Speed, ranks: int
) -> dict[str, float]:
    """Bytes that one rank holds at its peak, by what they are for.

    DeepSpeed keeps a float32 copy of what trains and Adam's two moments, shared out from ZeRO 1
    on, gradients from 2, weights at 3.
    """
    share = [1 if flags.zero_stage < stage else 1 / ranks for stage in (1, 2, 3)]
    width = 2 if flags.bf16 else 4
    frozen = size.parameters - size.trainable
    base = frozen * (0.55 if flags.load_in_4bit else width)  # nf4 with its scales
    twice = 2 if tracks(flags) else 1  # the tracker: a second adapter, or a second model
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


def disk_of_run(flags: argparse.Namespace, size: Sizes, rows: dict[str, Rows]) -> dict[str, float]:
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
        parts["checkpoints"] = flags.max_ckpt_num * state * (2 if tracks(flags) else 1)
    return parts | {"total": sum(parts.values())}


def resident_bytes() -> float:
    """What this process holds now: torch, transformers and the rows, as every rank will."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096.0


def free_memory(device: torch.device) -> float:
    """Bytes free on the GPU, or of the machine."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if "MemAvailable" in line)
