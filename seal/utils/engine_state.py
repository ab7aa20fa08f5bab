"""What a DeepSpeed engine has learned, as whole tensors by name: free of ranks and ZeRO stages.

DeepSpeed's own checkpoints hold each rank's flat pieces and are unpickled when they are read; what
is written from here is read as plain tensors, on any number of ranks.
"""

from collections.abc import Iterator
from typing import Literal

import torch

# What Adam steps on: the parameters themselves (stage 0, float32), a float32 copy of each (stage 0,
# bf16), flat pieces of all of them beside whole parameters (1 and 2), or beside pieces of them (3).
Layout = Literal["parameters", "copies", "pieces", "partitions"]
MOMENTS = ("exp_avg", "exp_avg_sq")


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
