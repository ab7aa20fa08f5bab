"""Learning-rate schedules, shared by the actor and the selector."""

import math
from collections.abc import Callable

import torch
from transformers import get_scheduler

from seal.errors import InputError

SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
)
WARMUP_SHARE = 0.03  # of all steps, as published


def schedule_factor(name: str, total_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at each optimizer step (0-based).

    Every schedule but "constant" warms up over the first 3 % of the steps.

    Raises:
        InputError: unknown name.
    """
    if name not in SCHEDULES:
        raise InputError(f"learning-rate schedule {name!r}: known are {list(SCHEDULES)}")
    carrier = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(
        name,
        carrier,
        num_warmup_steps=math.ceil(total_steps * WARMUP_SHARE),
        num_training_steps=total_steps,
    )
    return scheduler.lr_lambdas[0]
