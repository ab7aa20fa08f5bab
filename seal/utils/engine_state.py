"""Saving and loading: models as Hugging Face expects them, and what an engine has learned.

DeepSpeed's own checkpoints hold each rank's flat pieces and are unpickled when they are read; what
is written from here are whole tensors by name, read on any number of ranks under any ZeRO stage.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from peft import PeftModel

from seal.errors import InputError
from seal.files import atomic_path, load_tensors, save_tensors

if TYPE_CHECKING:
    from seal.utils.strategy import DeepspeedStrategy

# What Adam steps on: the parameters themselves (stage 0, float32), a float32 copy of each (stage 0,
# bf16), flat pieces of all of them beside whole parameters (1 and 2), or beside pieces of them (3).
Layout = Literal["parameters", "copies", "pieces", "partitions"]
MOMENTS = ("exp_avg", "exp_avg_sq")
MAIN = "default"  # peft's name of the adapter that is saved
# Which model a directory holds is decided by the first of these that it has.
DECIDING = ("adapter_config.json", "config.json")
MODEL_FILES = (*DECIDING, "generation_config.json", "adapter_model.*", "model*.safetensors")
MODEL_FILES += (
    "model.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
)


def full_state(strategy: DeepspeedStrategy, engine, trainable_only: bool) -> dict:
    """Weights by name on rank 0's CPU, gathered one by one (empty elsewhere).

    Tied weights appear once, under the first of their names.
    """
    state, seen = {}, set()
    for name, tensor in engine.module.model.state_dict(keep_vars=True).items():
        if id(tensor) in seen or (trainable_only and not tensor.requires_grad):
            continue
        seen.add(id(tensor))
        with strategy.gathered([tensor]):
            if strategy.is_rank_0():
                state[name] = tensor.detach().cpu().clone()
    return state


def save_model(strategy: DeepspeedStrategy, engine, tokenizer, directory: Path) -> None:
    """Writes the model (or its LoRA adapter) and the tokenizer as Hugging Face expects them.

    Every file is written beside and renamed, so an interrupted save leaves the old one whole. An
    adapter that replaces a full model, or the reverse, leaves nothing of it.
    """
    model = engine.module.model
    state = full_state(strategy, engine, trainable_only=isinstance(model, PeftModel))
    strategy.on_rank_0(lambda: _write_model(model, state, tokenizer, directory))


def save_engine(strategy: DeepspeedStrategy, engine, directory: Path, name: str) -> None:
    """Writes weights (what trains), Adam's state and the schedule; call on every rank.

    Each rank writes whole tensors, every so many'th of them: `<name>.<rank>.pt`.
    """
    kept = {}
    for number, (key, tensors) in enumerate(gathered(engine, strategy.layout)):
        if number % strategy.world_size == strategy.rank:
            kept[key] = {part: tensor.cpu() for part, tensor in tensors.items()}
    schedule = engine.lr_scheduler.state_dict() if engine.lr_scheduler else None
    content = {
        "tensors": kept,
        "steps": steps_taken(engine, strategy.layout),
        "rates": rates(engine, strategy.layout),
        "schedule": schedule,
    }
    path = directory / f"{name}.{strategy.rank}.pt"
    strategy.on_all_ranks(lambda: save_tensors(content, path))


def load_engine(strategy: DeepspeedStrategy, engine, directory: Path, name: str) -> None:
    """Restores what `save_engine` wrote on any number of ranks under any ZeRO stage.

    Raises:
        InputError: a file is damaged, or of another model.
    """
    parts = [load_tensors(path) for path in sorted(directory.glob(f"{name}.*.pt"))]
    state = {key: tensors for part in parts for key, tensors in part["tensors"].items()}
    parameters = trainable(engine)
    if state.keys() != parameters.keys():
        raise InputError(f"{directory} is of a model that trains other parameters")
    start_adam(engine, strategy.layout, parts[0]["steps"], parts[0]["rates"])
    if parts[0]["schedule"]:
        engine.lr_scheduler.load_state_dict(parts[0]["schedule"])
    restore(engine, strategy.layout, state, strategy.rank)
    for key, parameter in parameters.items():
        with strategy.writable([parameter]), torch.no_grad():
            if strategy.zero.stage != 3 or strategy.is_rank_0():
                parameter.copy_(state[key]["weight"])


def trainable(engine) -> dict[str, torch.nn.Parameter]:
    """What trains, by name; adapters that are not in use at the moment too."""
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


def gathered(engine, layout: Layout) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Name and {"weight", "exp_avg", "exp_avg_sq"} of each parameter: float32, in its shape.

    Every rank must take every item: pieces are put together by collectives.
    """
    _link(engine, layout)
    for name, parameter in trainable(engine).items():
        moments = {key: _whole(engine, layout, parameter, key) for key in MOMENTS}
        yield name, {"weight": _whole(engine, layout, parameter)} | moments


def restore(engine, layout: Layout, state: dict[str, dict[str, torch.Tensor]], rank: int) -> None:
    """Puts back what `gathered` gave, but for the parameters that the model computes with.

    Args:
        engine: fresh, with the same trainable parameters, after `start_adam`.
        state: as `gathered` gives it, on the CPU.
        rank: of this process.
    """
    _link(engine, layout)
    for name, parameter in trainable(engine).items():
        for part, value in state[name].items():
            key = None if part == "weight" else part
            if layout == "pieces":
                parameter.set_full_hp_param(value.to(parameter.device), key)
            elif layout == "partitions":
                piece = engine.optimizer._get_fp32_opt_state_partition(parameter, False, key)[0]
                mine = value.flatten()[piece.numel() * rank :][: piece.numel()]
                piece.data[: mine.numel()].copy_(mine)  # the last rank's is padded
            else:
                _whole(engine, layout, parameter, key).copy_(value)


def steps_taken(engine, layout: Layout) -> float:
    """Adam's count of steps; the same for all parameters."""
    adam, tensors = _adam(engine, layout)
    return float(adam.state[tensors[0]]["step"])


def rates(engine, layout: Layout) -> list[float]:
    """Learning rate of the coming step, by parameter group."""
    return [float(group["lr"]) for group in _adam(engine, layout)[0].param_groups]


def start_adam(engine, layout: Layout, steps: float, rates: list[float]) -> None:
    """Gives a fresh engine's Adam zero moments after `steps` steps, and rates by group."""
    adam, tensors = _adam(engine, layout)
    for tensor in tensors:
        moments = {key: torch.zeros_like(tensor, requires_grad=False) for key in MOMENTS}
        # torch counts in a tensor, DeepSpeed's Adam for offloading in an int
        torchs = isinstance(adam, torch.optim.AdamW)
        count = torch.tensor(steps, device=tensor.device) if torchs else int(steps)
        adam.state[tensor] = {"step": count, **moments}
    for group, rate in zip(adam.param_groups, rates, strict=True):
        group["lr"] = rate


def _adam(engine, layout: Layout) -> tuple[torch.optim.Optimizer, list[torch.Tensor]]:
    """The optimizer inside DeepSpeed's, and the tensors it steps on."""
    adam = engine.optimizer if layout == "parameters" else engine.optimizer.optimizer
    if layout == "partitions":
        return adam, engine.optimizer.fp32_partitioned_groups_flat
    return adam, [tensor for group in adam.param_groups for tensor in group["params"]]


def _link(engine, layout: Layout) -> None:
    """Ties each parameter to its piece of Adam's state.

    DeepSpeed 0.19.8 does so once, after the first group's first step: the others have none yet.
    """
    if layout == "pieces":
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _whole(engine, layout: Layout, parameter, key: str | None = None) -> torch.Tensor:
    """The float32 weight of a parameter, or one of its moments."""
    if layout == "pieces":
        return parameter.get_full_hp_param(key)
    if layout == "partitions":
        return engine.optimizer.get_full_hp_param(parameter, key)
    tensor = parameter if layout == "parameters" else _copy_of(engine, parameter)
    return tensor.detach() if key is None else _adam(engine, layout)[0].state[tensor][key]


def _copy_of(engine, parameter) -> torch.Tensor:
    groups = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
    pairs = (pair for group in groups for pair in zip(*group, strict=True))
    return next(copy for own, copy in pairs if own is parameter)


def _write_model(model, state: dict, tokenizer, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(".saving-*"):  # of a run that was killed here
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as scratch:
        if isinstance(model, PeftModel):  # without the tracker, which a run needs alone
            model.save_pretrained(scratch, state_dict=state, selected_adapters=[MAIN])
            model.generation_config.save_pretrained(scratch)
        else:
            model.save_pretrained(scratch, state_dict=state)
        tokenizer.save_pretrained(scratch)
        (Path(scratch) / "README.md").unlink(missing_ok=True)  # peft's form, to be filled in
        files = sorted(Path(scratch).iterdir(), key=lambda file: (file.name in DECIDING, file.name))
        for file in files:
            with atomic_path(directory / file.name) as tmp:
                os.replace(file, tmp)
    old = {path for pattern in MODEL_FILES for path in directory.glob(pattern)}
    old -= {directory / file.name for file in files}
    for path in sorted(old, key=lambda path: path.name not in DECIDING):
        path.unlink()
