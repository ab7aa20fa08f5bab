"""Saving and loading: models as Hugging Face expects them, and what an engine has learned.

DeepSpeed's own checkpoints hold each rank's flat pieces and are unpickled when they are read; what
is written from here are plain tensors by name, read on any number of ranks under any ZeRO stage.
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
PARTS = ("weight", *MOMENTS)
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
    """Weights by name on rank 0's CPU, gathered one by one (empty elsewhere)."""
    state = {}
    for name, tensor in named_tensors(engine, trainable_only).items():
        with strategy.gathered([tensor]):
            if strategy.is_rank_0():
                state[name] = tensor.detach().cpu().clone()
    return state


def named_tensors(engine, trainable_only: bool) -> dict[str, torch.Tensor]:
    """The model's tensors by name; tied weights appear once, under the first of their names."""
    found = {}
    for name, tensor in engine.module.model.state_dict(keep_vars=True).items():
        if tensor.requires_grad or not trainable_only:
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def save_model(strategy: DeepspeedStrategy, engine, tokenizer, directory: Path) -> None:
    """Writes the model (or its LoRA adapter) and the tokenizer as Hugging Face expects them.

    Every file is written beside and renamed, so an interrupted save leaves the old one whole. An
    adapter that replaces a full model, or the reverse, leaves nothing of it.
    """
    model = engine.module.model
    state = full_state(strategy, engine, trainable_only=isinstance(model, PeftModel))
    strategy.on_rank_0(lambda: _write_model(model, state, tokenizer, directory))


def save_engine(strategy: DeepspeedStrategy, engine, directory: Path, name: str) -> None:
    """Writes this rank's part of what trains (weights and Adam's moments), and the schedule.

    Call on every rank. Nothing is gathered; what lies on a device comes to the host one storage
    after another, as it is written to `<name>.<rank>.pt`.
    """
    pieces = {}
    for number, (key, start, tensors) in enumerate(_pieces(strategy, engine)):
        if strategy.zero.stage or number % strategy.world_size == strategy.rank:
            pieces[key] = {"start": start} | tensors
    adam, stepped_on = _adam(engine, strategy.layout)
    content = {
        "pieces": pieces,
        "steps": float(adam.state[stepped_on[0]]["step"]),  # the same for all
        "rates": [float(group["lr"]) for group in adam.param_groups],
        "schedule": engine.lr_scheduler.state_dict() if engine.lr_scheduler else {},
    }
    path = directory / f"{name}.{strategy.rank}.pt"
    strategy.on_all_ranks(lambda: save_tensors(content, path))


def load_engine(strategy: DeepspeedStrategy, engine, directory: Path, name: str) -> None:
    """Restores what `save_engine` wrote on any number of ranks under any ZeRO stage.

    The files are mapped into memory: a rank reads the parts that it holds.

    Args:
        engine: fresh, with the same trainable parameters.

    Raises:
        InputError: a file is damaged, or of another model.
    """
    files = [load_tensors(path) for path in sorted(directory.glob(f"{name}.*.pt"))]
    try:
        saved = _assembled([file["pieces"] for file in files])
        split = strategy.layout == "partitions"
        sizes = {key: p.ds_numel if split else p.numel() for key, p in trainable(engine).items()}
        if {key: parts.size for key, parts in saved.items()} != sizes:
            raise ValueError("other parameters, or other sizes")
        _start_adam(engine, strategy.layout, files[0]["steps"], files[0]["rates"])
        if files[0]["schedule"]:
            engine.lr_scheduler.load_state_dict(files[0]["schedule"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{directory} is of a model that trains otherwise ({error})") from error
    _put(strategy, engine, saved)


def start_over(
    strategy: DeepspeedStrategy, engine, weights: dict[str, torch.Tensor], rate: float
) -> None:
    """Gives an engine weights, and its optimizer the state and the rate of a first step.

    Args:
        weights: float32, whole, of everything that trains, by name.
    """
    groups = len(_adam(engine, strategy.layout)[0].param_groups)
    _start_adam(engine, strategy.layout, 0.0, [rate] * groups)
    saved = {}
    for key, weight in weights.items():
        zeros = torch.zeros(weight.numel())
        parts = {"weight": weight.flatten(), **dict.fromkeys(MOMENTS, zeros)}
        saved[key] = _Saved([{"start": 0, **parts}])
    _put(strategy, engine, saved)


def _put(strategy: DeepspeedStrategy, engine, saved: dict[str, _Saved]) -> None:
    """Writes weights and moments into an engine whose optimizer has them."""
    with torch.no_grad():
        for key, start, tensors in _pieces(strategy, engine):
            for part, tensor in tensors.items():
                tensor.copy_(saved[key].range(part, start, start + len(tensor)))
        for key, parameter in trainable(engine).items():  # what the model computes with
            with strategy.writable([parameter]):
                if strategy.zero.stage != 3 or strategy.is_rank_0():
                    weight = saved[key].range("weight", 0, parameter.numel())
                    parameter.copy_(weight.view_as(parameter))


def trainable(engine) -> dict[str, torch.nn.Parameter]:
    """What trains, by name; adapters that are not in use at the moment too."""
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


class _Saved:
    """A parameter in flat form, from pieces of any sizes.

    Raises:
        ValueError: they do not lie end to end, or are no float32 vectors of equal length.
    """

    def __init__(self, pieces: list[dict]):
        self.pieces = sorted(pieces, key=lambda piece: piece["start"])
        self.size = 0
        for piece in self.pieces:
            shapes = {(piece[part].shape, piece[part].dtype) for part in PARTS}
            length = len(piece["weight"])
            if piece["start"] != self.size or shapes != {(torch.Size([length]), torch.float32)}:
                raise ValueError("pieces that do not fit together")
            self.size += length

    def range(self, part: str, start: int, stop: int) -> torch.Tensor:
        """Values [start, stop) of the weight or of a moment."""
        within = [p for p in self.pieces if p["start"] < stop]
        cuts = [p[part][max(0, start - p["start"]) : stop - p["start"]] for p in within]
        return torch.cat(cuts)


def _assembled(files: list[dict]) -> dict[str, _Saved]:
    names = {name for pieces in files for name in pieces}
    return {name: _Saved([pieces[name] for pieces in files if name in pieces]) for name in names}


def _pieces(
    strategy: DeepspeedStrategy, engine
) -> Iterator[tuple[str, int, dict[str, torch.Tensor]]]:
    """What this rank holds of each parameter and of its moments, in place.

    Yields:
        (name, where in the flat parameter the piece starts, part -> float32 [piece]).
    """
    layout, zero = strategy.layout, engine.optimizer
    adam, _ = _adam(engine, layout)
    copies = _copies(engine) if layout == "copies" else {}
    if layout == "pieces":
        # DeepSpeed 0.19.8 ties parameters to Adam's state once, after the first group's first
        # step: the others have none yet.
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
    for name, parameter in trainable(engine).items():
        if layout == "pieces":
            mapping = parameter._hp_mapping
            if mapping is None:
                continue
            start = mapping.lp_fragment_address.start
            tensors = [mapping.get_hp_fragment(key) for key in (None, *MOMENTS)]
        elif layout == "partitions":
            held = zero._get_fp32_opt_state_partition
            tensors = [held(parameter, False, key)[0] for key in (None, *MOMENTS)]
            start = strategy.rank * len(tensors[0])
            tensors = [t[: max(0, parameter.ds_numel - start)] for t in tensors]  # less padding
        else:
            whole, start = copies.get(parameter, parameter), 0
            tensors = [whole.view(-1), *(adam.state[whole][key].view(-1) for key in MOMENTS)]
        yield name, start, dict(zip(PARTS, (t.detach() for t in tensors), strict=True))


def _start_adam(engine, layout: Layout, steps: float, rates: list[float]) -> None:
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


def _copies(engine) -> dict[torch.nn.Parameter, torch.Tensor]:
    """Parameter -> the float32 copy that Adam steps on."""
    groups = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
    return {own: copy for group in groups for own, copy in zip(*group, strict=True)}


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
