"""Laws of the batch plan: every row once, nothing dropped, ranks balanced."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seal.trainer.order import EpochBatches, cycled_batch, shuffled
from seal.trainer.step import plan_micro_batches


@settings(deadline=None)
@given(n=st.integers(1, 300), batch=st.integers(1, 70), epoch=st.integers(0, 3))
def test_an_epoch_visits_every_row_once(n, batch, epoch):
    batches = EpochBatches(n, batch, seed=7, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert [len(b) for b in list(batches)[:-1]] == [batch] * (len(batches) - 1)
    assert len(batches) == -(-n // batch)


def test_epochs_and_seeds_differ():
    orders = [np.concatenate(EpochBatches(50, 8, s, e)).tolist() for s in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_every_row_stands_at_every_place_equally_often():
    orders = np.stack([shuffled(np.arange(24), 24, 0, epoch) for epoch in range(2400)])
    counts = np.stack([np.bincount(places, minlength=24) for places in orders.T])  # mean 100
    assert abs(counts - 100).max() < 5 * np.sqrt(100)
    fixed = (orders == np.arange(24)).sum(axis=1)
    assert abs(fixed.mean() - 1) < 0.1 and abs(fixed.var() - 1) < 0.2


def test_a_batch_of_a_hundred_million_rows_needs_no_table():
    tracemalloc.start()
    batches = EpochBatches(10**8, 64, seed=7, epoch=1)
    seen = np.concatenate([batches[number] for number in (0, 1, 2, len(batches) - 1)])
    assert tracemalloc.get_traced_memory()[1] < 1e6
    assert len(set(seen)) == 256 and seen.min() >= 0 and seen.max() < 10**8


@settings(deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 50), steps=st.integers(1, 20))
def test_the_safe_rows_cycle_evenly(n, batch, steps):
    stream = np.concatenate([cycled_batch(n, batch, 3, step) for step in range(steps)])
    counts = np.bincount(stream, minlength=n)
    assert counts.max() - counts.min() <= 1


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=60),
    ranks=st.integers(1, 5),
    rows=st.integers(1, 4),
)
def test_plan_holds_every_row_within_capacity(lengths, ranks, rows):
    lengths, capacity = np.array(lengths), 64 * rows
    plan = plan_micro_batches(lengths, ranks, capacity)
    assert len(plan) == ranks and len({len(steps) for steps in plan}) == 1
    placed = [position for steps in plan for step in steps for position in step]
    assert sorted(placed) == list(range(len(lengths)))
    loads = [lengths[step].sum() for steps in plan for step in steps if step]
    assert max(loads) <= capacity


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_carry_equal_tokens(ranks):
    lengths = np.random.default_rng(0).integers(10, 512, 256)
    plan = plan_micro_batches(lengths, ranks, 8 * 512)
    tokens = [sum(lengths[step].sum() for step in steps) for steps in plan]
    assert max(tokens) / min(tokens) < 1.02
