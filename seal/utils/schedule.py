"""Learning-rate schedules, shared by the actor and the selector."""

import math
from collections.abc import Callable

import torch
from transformers import get_scheduler

from seal.errors import InputError, known

SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
)
WARMUP_RATIO = 0.03  # of all steps, as published


def schedule_factor(
    name: str, total_steps: int, warmup_ratio: float = WARMUP_RATIO
) -> Callable[[int], float]:
    """The factor on the learning rate at each optimizer step (0-based), above 0 at all of them.

    A schedule runs from 0 before the first step to its end after the last one.

    Args:
        warmup_ratio: share of the steps in which the rate rises, in [0, 1); "constant" has none.

    Raises:
        InputError: unknown name, or a share out of range.
    """
    if not 0 <= warmup_ratio < 1:
        raise InputError(f"--lr_warmup_ratio must be in [0, 1), got {warmup_ratio:g}")
    if name not in SCHEDULES:
        raise InputError(f"learning-rate schedule {name!r}: {known(name, SCHEDULES)}")
    carrier = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(
        name,
        carrier,
        num_warmup_steps=math.ceil(total_steps * warmup_ratio),
        num_training_steps=total_steps + 1,
    )
    at = scheduler.lr_lambdas[0]
    return at if name == "constant" else lambda step: at(step + 1)
