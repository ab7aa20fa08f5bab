"""Laws of the selector: what its rank may depend on, and what it may not."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from seal.errors import InputError
from seal.models.selector import ACTIVATIONS, Selector

N, BATCH, EPOCHS = 2048, 64, 3


def train(selector, losses, rate, seed=0, batch=BATCH):
    """Visits every row once an epoch in random order; returns the step of each row's last visit."""
    generator = np.random.default_rng(seed)
    last_visit = np.zeros(N)
    for epoch in range(EPOCHS):
        selector.begin_epoch()
        for step, rows in enumerate(np.split(generator.permutation(N), N // batch)):
            selector.update(torch.from_numpy(rows), losses[rows], rate)
            last_visit[rows] = epoch * (N // batch) + step
    return last_visit


def fixed_losses(seed=1):
    return torch.from_numpy(np.random.default_rng(seed).gamma(2.0, 1.0, N).astype(np.float32))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mirror_ranks_fixed_losses_whatever_the_order(activation):
    losses, ranks = fixed_losses(), []
    for seed in (0, 1):
        selector = Selector(N, activation)
        last_visit = train(selector, losses, 1e-2, seed)
        assert spearmanr(selector.logits, -losses).statistic > 0.999
        assert abs(spearmanr(selector.logits, last_visit).statistic) < 0.1
        ranks.append(selector.logits.clone())
    torch.testing.assert_close(*ranks)


@pytest.mark.parametrize("gap", [False, True])
def test_the_score_says_nothing_about_the_time_of_a_visit(gap):
    n, generator = 100_000, np.random.default_rng(2)
    losses = torch.from_numpy(generator.gamma(2.0, 1.0, n)).float()
    tracked = torch.from_numpy(generator.gamma(2.0, 1.0, n)).float()
    selector, visited = Selector(n), np.zeros(n)
    for _ in range(EPOCHS):
        selector.begin_epoch()
        for step, rows in enumerate(np.split(generator.permutation(n), 100)):
            at = torch.from_numpy(rows)
            selector.update(at, losses[at], 1e-2, tracked[at] if gap else None)
            visited[rows] = step
    assert abs(spearmanr(selector.logits, visited).statistic) < 0.02


def test_adam_reproduces_the_published_shape():
    """Every unvisited row climbs by the rate each step, so the order of visits becomes rank."""
    losses, rate, batch = fixed_losses(), 5e-3, 4
    selector = Selector(N, optim="adam")
    last_visit = train(selector, losses, rate, batch=batch)
    climb = EPOCHS * N // batch * rate
    lowest, highest = float(selector.logits.min()), float(selector.logits.max())
    assert 0.9 * climb < highest < 1.02 * climb  # the published files: 26.3 = 0.1 + 5,247 * 5e-3
    assert lowest > 0.4 * highest  # the published files: 0.81
    assert spearmanr(selector.logits, -losses).statistic < 0.9
    assert abs(spearmanr(selector.logits, last_visit).statistic) > 0.1


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_gradient_is_autograd_s(activation):
    selector = Selector(16, activation, "adam")
    selector.logits += torch.randn(16, generator=torch.Generator().manual_seed(0))
    rows, losses = torch.tensor([3, 0, 9]), torch.tensor([0.5, 2.0, 1.0])
    logits = selector.logits.clone().double().requires_grad_()
    weights = 16 * logits.softmax(0) if activation == "softmax" else 2 * logits.sigmoid()
    (weights[rows] * losses).mean().backward()
    found = selector._gradient(rows, losses)
    torch.testing.assert_close(found.double(), logits.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(selector.weights(rows).double(), weights[rows].detach())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("optim", ["mirror", "adam"])
def test_weights_start_at_one_and_keep_mean_one(activation, optim):
    selector = Selector(N, activation, optim)
    selector.begin_epoch()
    everyone = torch.arange(N)
    torch.testing.assert_close(selector.weights(everyone), torch.ones(N))
    train(selector, fixed_losses(), 0.1)
    selector.begin_epoch()
    torch.testing.assert_close(selector.final_weights().mean(), torch.tensor(1.0))
    if activation == "softmax":
        torch.testing.assert_close(selector.weights(everyone).mean(), torch.tensor(1.0))
    assert 1 <= selector.effective_rows() < N


def test_visits_and_losses_are_counted():
    selector = Selector(4)
    selector.update(torch.tensor([0, 2]), torch.tensor([1.0, 3.0]), 0.1)
    selector.update(torch.tensor([2]), torch.tensor([5.0]), 0.1)
    assert selector.visits.tolist() == [1, 0, 2, 0]
    assert selector.mean_losses()[[0, 2]].tolist() == [1.0, 4.0]
    assert selector.mean_losses()[[1, 3]].isnan().all()


def test_state_round_trip_continues_exactly():
    losses = fixed_losses()
    for optim in ("mirror", "adam"):
        one, two = Selector(N, optim=optim), Selector(N, optim=optim)
        train(one, losses, 1e-2)
        two.load_state_dict(copy.deepcopy(one.state_dict()))
        train(one, losses, 1e-2, seed=5)
        train(two, losses, 1e-2, seed=5)
        assert torch.equal(one.logits, two.logits)


@pytest.mark.parametrize("bad", [{"activation": "relu"}, {"optim": "sgd"}])
def test_unknown_choices_are_refused(bad):
    with pytest.raises(InputError, match="known are"):
        Selector(4, **bad)


def test_entropy_and_churn_say_how_the_weights_stand():
    selector = Selector(4)
    selector.begin_epoch()
    assert selector.entropy() == pytest.approx(np.log(4)) and selector.churn() == 0
    selector.update(torch.arange(4), torch.tensor([0.0, 0.0, 9.0, 9.0]), 10.0)
    assert selector.entropy() == pytest.approx(np.log(2), abs=1e-6)
    selector.begin_epoch()
    assert selector.churn() == 0
    selector.update(torch.arange(4), torch.tensor([99.0, 0.0, 0.0, 99.0]), 10.0)
    assert selector.churn() > 0


def test_a_head_over_each_row_s_own_state_ranks_as_free_logits_do():
    losses = fixed_losses()
    own = math.sqrt(N) * np.eye(N)
    free, head = Selector(N), Selector(N, states=own)
    for selector in (free, head):
        train(selector, losses, 0.1)
    assert spearmanr(free.logits, head.logits).statistic > 0.99
    torch.testing.assert_close(head.visits, free.visits)


def test_a_head_moves_rows_that_were_never_visited():
    kinds = np.repeat([-1.0, 1.0], N // 2)
    selector = Selector(N, states=kinds[:, None])
    selector.begin_epoch()
    seen = torch.tensor([0, N - 1])
    for _ in range(5):
        selector.update(seen, torch.tensor([2.0, 1.0]), 0.1)
    assert (selector.logits[1 : N // 2] < 0).all() and (selector.logits[N // 2 : -1] > 0).all()
    again = Selector(N, states=kinds[:, None])
    again.load_state_dict(copy.deepcopy(selector.state_dict()))
    assert torch.equal(again.slope, selector.slope)
    with pytest.raises(InputError, match="mirror"):
        Selector(N, optim="adam", states=kinds[:, None])
