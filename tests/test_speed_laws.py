"""Laws of what makes the step fast: skipping, packing and balancing change no loss or gradient."""

import numpy as np
import pytest
import torch
from laws_driver import make_dataset
from tiny import random_rows, row_alone, tiny_lora, tiny_model

from seal.models.actor import Actor
from seal.models.attention import VARLEN
from seal.trainer.step import RowModel, plan_micro_batches
from seal.utils.strategy import DeepspeedStrategy, Zero

MAX_LEN = 24
ROWS = random_rows([24, 3, 17, 9, 24, 5, 12, 8, 21, 2, 14], seed=4)
EVERY = np.arange(len(ROWS))
COEFFICIENTS = torch.linspace(0.2, 1.7, len(ROWS))


@pytest.fixture(scope="module")
def strategy():
    """Rank 0 of 1."""
    found = DeepspeedStrategy(Zero(stage=0), max_norm=0.0)
    found.setup_distributed()
    return found


def new_model(lora: bool, attention: str):
    """The same weights at every call."""
    return tiny_lora(attention) if lora else tiny_model("llama", attn_implementation=attention)


class Packed:
    """A fresh engine over the rows, with `rows_held` rows of MAX_LEN tokens a micro-batch."""

    def __init__(self, strategy, lora, rows_held):
        actor = Actor(new_model(lora, VARLEN))
        trainable = [p for p in actor.parameters() if p.requires_grad]
        self.engine = strategy.prepare(actor, torch.optim.AdamW(trainable))
        capacity = rows_held * MAX_LEN
        self.losses = RowModel(self.engine, strategy, make_dataset(ROWS), capacity)

    def gradients(self):
        named = self.engine.module.model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}


def assert_same(found, expected):
    assert expected and found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("rows_held", [1, 2, 16])
def test_any_packing_equals_one_row_at_a_time(strategy, lora, rows_held):
    reference = new_model(lora, "eager")
    alone = torch.stack([row_alone(reference, *row) for row in ROWS])
    (COEFFICIENTS * alone).sum().backward()
    expected = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}

    packed = Packed(strategy, lora, rows_held)
    steps = plan_micro_batches(packed.losses.dataset.lengths, 1, rows_held * MAX_LEN)[0]
    assert (len(steps) > 1) == (rows_held < 16)
    nll = packed.losses.backward(EVERY, COEFFICIENTS)

    torch.testing.assert_close(nll, alone.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.losses.forward(EVERY), nll, rtol=1e-5, atol=1e-5)
    assert_same(packed.gradients(), expected)


@pytest.mark.parametrize("lora", [False, True])
def test_rows_of_weight_zero_are_skipped_exactly(strategy, lora):
    live = torch.tensor([n % 3 != 0 for n in EVERY])
    skipping, without = (Packed(strategy, lora, rows_held=2) for _ in range(2))
    nll = skipping.losses.backward(EVERY, COEFFICIENTS * live)
    kept = without.losses.backward(EVERY[live.numpy()], COEFFICIENTS[live])

    assert_same(skipping.gradients(), without.gradients())
    torch.testing.assert_close(nll[live], kept, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nll, without.losses.forward(EVERY), rtol=1e-5, atol=1e-5)


def test_all_weights_zero_give_losses_and_no_gradient(strategy):
    packed = Packed(strategy, False, rows_held=2)
    nll = packed.losses.backward(EVERY, torch.zeros(len(ROWS)))
    torch.testing.assert_close(nll, packed.losses.forward(EVERY))
    assert packed.gradients() == {}


@pytest.mark.parametrize("ranks", [2, 3])
def test_balanced_ranks_change_nothing_but_order(strategy, ranks):
    """What the ranks would each add up is what one rank alone adds up."""
    one, spread = (Packed(strategy, False, rows_held=2) for _ in range(2))
    expected = one.losses.backward(EVERY, COEFFICIENTS)
    found = torch.zeros(len(ROWS))
    plan = plan_micro_batches(spread.losses.dataset.lengths, ranks, 2 * MAX_LEN)
    for step in (step for rank in plan for step in rank if step):
        found[step] = spread.losses.backward(EVERY[step], COEFFICIENTS[step])

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same(spread.gradients(), one.gradients())
