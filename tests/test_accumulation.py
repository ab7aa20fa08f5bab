"""Law of bf16: gradients of many micro-batches add up in float32 under every ZeRO stage."""

import numpy as np
import pytest
import torch
from laws_driver import make_dataset
from tiny import random_rows, tiny_model

from seal.models.actor import Actor
from seal.models.attention import VARLEN
from seal.trainer.step import RowModel
from seal.utils import engine_state
from seal.utils.strategy import DeepspeedStrategy, Precision, Zero

ROWS = random_rows([24] * 96, seed=4)
SHARE = 1.0 / 96
# Measured: 6e-3 to 8e-3 where bf16 sums, 4e-5 to 3e-4 where float32 does.
LIMIT = 1e-3


def bf16_actor() -> Actor:
    return Actor(tiny_model("llama", attn_implementation=VARLEN)).bfloat16()


def float32_sum(dataset) -> dict[str, torch.Tensor]:
    """The bf16 gradients of each row's own pass, added in float32."""
    actor, total = bf16_actor(), {}
    for row in range(len(ROWS)):
        actor.zero_grad()
        actor(dataset.batch([row]), torch.full((1,), SHARE))[1].backward()
        for name, p in actor.named_parameters():
            total[name] = total.get(name, 0) + p.grad.float()
    return total


@pytest.mark.parametrize("stage", range(4))
def test_gradients_add_up_in_float32(stage):
    strategy = DeepspeedStrategy(Zero(stage), Precision(bf16=True), max_norm=0.0)
    strategy.setup_distributed()
    actor, dataset = bf16_actor(), make_dataset(ROWS)
    engine = strategy.prepare(actor, strategy.create_optimizer(actor, 1e-3, 0.0))
    rows = RowModel(engine, strategy, dataset, capacity=24)
    rows.backward(np.arange(len(ROWS)), torch.full((len(ROWS),), SHARE))
    strategy.step(engine)
    # After Adam's first step the first moment is a tenth of the gradient.
    found = {
        name: tensors["exp_avg"] / 0.1
        for name, _, tensors in engine_state._pieces(strategy, engine)
    }
    engine.destroy()
    expected = {name: total.view(-1) for name, total in float32_sum(dataset).items()}
    assert found.keys() == expected.keys()
    off = sum(float((found[n] - expected[n]).square().sum()) for n in found) ** 0.5
    assert off < LIMIT * sum(float(g.square().sum()) for g in expected.values()) ** 0.5, off
