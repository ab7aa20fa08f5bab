"""Laws of the oracle: its derivative is the derivative, its run is the package's run."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from launch import ROOT
from laws_driver import make_dataset
from scipy.stats import spearmanr
from tiny import random_rows, row_alone, tiny_model

sys.path.append(str(ROOT / "benchmarks"))
from unrolled import (
    Oracle,
    ShortRun,
    linear_datamodelling_score,
    subset_weights,
)

from seal.errors import InputError
from seal.models.attention import VARLEN
from seal.trainer.order import EpochBatches

N = 12
LENGTHS = [5, 9, 7, 4, 11, 6, 8, 5, 9, 10, 6, 7]
ROWS = random_rows(LENGTHS)
SAFE = random_rows([9, 6, 8], seed=1)


def epochs(count: int, batch: int = 5) -> list[np.ndarray]:
    return [rows for epoch in range(count) for rows in EpochBatches(N, batch, 0, epoch)]


def make_oracle(architecture="gpt_neox", rows=ROWS, **run) -> Oracle:
    model = tiny_model(architecture, attn_implementation=VARLEN)
    run = {"schedule": epochs(2), "learning_rate": 0.1} | run
    return Oracle(model, make_dataset(rows), make_dataset(SAFE), ShortRun(**run))


def finite_differences(oracle: Oracle, size: float) -> np.ndarray:
    shifts = np.concatenate([np.eye(N), -np.eye(N)]) * size
    up, down = np.split(oracle.safe_losses(1 + shifts), 2)
    return (down - up) / (2 * size)


# Llama's norms compute in float32 even in a float64 model, so its differences carry more noise.
@pytest.mark.parametrize(
    "architecture, run, size, tolerance",
    [
        ("gpt_neox", dict(), 1e-4, 1e-7),
        ("llama", dict(), 3e-2, 3e-3),
        ("gpt_neox", dict(learning_rate=3e-3, adam=True, epsilon=1e-3), 3e-5, 1e-6),
    ],
    ids=["sgd", "sgd-llama", "adam"],
)
def test_scores_are_the_derivative(architecture, run, size, tolerance):
    oracle = make_oracle(architecture, **run)
    scores = oracle.scores()
    assert np.abs(scores).max() > 1e-4
    differences = finite_differences(oracle, size)
    np.testing.assert_allclose(scores, differences, rtol=0, atol=tolerance * np.abs(scores).max())


def test_one_step_in_closed_form():
    """-dL_safe(theta - rate * mean_i w_i g_i) / dw_i = rate / N * <grad L_safe there, g_i>."""
    rate = 0.1
    found = make_oracle(schedule=[np.arange(N)], learning_rate=rate).scores()
    model = tiny_model("gpt_neox").double()
    parameters = list(model.parameters())

    def gradient(rows):
        losses = [row_alone(model, *row).double() / (len(row[0]) - row[1]) for row in rows]
        grads = torch.autograd.grad(sum(losses) / len(rows), parameters)
        return torch.cat([grad.flatten() for grad in grads])

    by_row = torch.stack([gradient([row]) for row in ROWS])
    start = torch.nn.utils.parameters_to_vector(parameters).detach()
    torch.nn.utils.vector_to_parameters(start - rate * by_row.mean(0), parameters)
    expected = rate / N * by_row @ gradient(SAFE)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("adam", [False, True])
def test_the_run_is_torchs_own(adam):
    oracle = make_oracle(learning_rate=1e-2, adam=adam, epsilon=1e-3)
    model = tiny_model("gpt_neox").double()
    optimizer = (
        torch.optim.AdamW(model.parameters(), 1e-2, (0.9, 0.95), eps=1e-3, weight_decay=0.0)
        if adam
        else torch.optim.SGD(model.parameters(), lr=1e-2)
    )
    for batch in epochs(2):
        losses = [row_alone(model, *ROWS[at]) / (len(ROWS[at][0]) - ROWS[at][1]) for at in batch]
        optimizer.zero_grad()
        (sum(losses) / len(batch)).backward()
        optimizer.step()
    for name, weight in oracle.trained().items():
        expected = model.get_parameter(name).detach()  # row_alone takes its losses in float32
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-7)


def test_a_row_that_is_never_visited_scores_zero():
    scores = make_oracle(schedule=[np.arange(N - 1)] * 3).scores()
    assert scores[-1] == 0.0
    assert (scores[:-1] != 0).all()


def test_copies_of_a_row_score_alike_and_order_is_felt():
    twins = [ROWS[0], *ROWS[:-1]]
    together = make_oracle(rows=twins, schedule=[np.arange(N)] * 4).scores()
    assert together[0] == pytest.approx(together[1], rel=1e-9)
    halves = [np.array([0, *range(2, 7)]), np.array([1, *range(7, N)])]
    apart = make_oracle(rows=twins, schedule=halves).scores()
    assert abs(apart[0] - apart[1]) > 1e-3 * abs(apart[0])


def test_signs_in_the_limit_of_small_steps():
    """A copy of the only safe row helps; the same prompt with other answers ranks below it."""
    tokens, start = SAFE[0]
    generator = torch.Generator().manual_seed(2)
    others = []
    for _ in range(N - 1):
        answer = torch.randint(3, 97, (len(tokens) - start,), generator=generator)
        others.append((torch.cat([tokens[:start], answer]), start))
    model = tiny_model("gpt_neox", attn_implementation=VARLEN)
    rows, safe = make_dataset([SAFE[0], *others]), make_dataset(SAFE[:1])
    oracle = Oracle(model, rows, safe, ShortRun([np.arange(N)] * 3, 1e-2))
    scores = oracle.scores()
    assert scores[0] > 0
    assert scores[0] > scores[1:].max()


def test_many_at_once_equal_one_by_one():
    oracle = make_oracle(adam=True, learning_rate=1e-3)
    weights = subset_weights(N, 5, 0.5, seed=0)
    together = oracle.safe_losses(weights)
    alone = [oracle.safe_losses(one[None])[0] for one in weights]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_left_out_is_a_retraining_without_the_row():
    oracle = make_oracle(schedule=[np.arange(N)] * 3)
    rest = make_oracle(schedule=[np.delete(np.arange(N), 4)] * 3, learning_rate=0.1 * (N - 1) / N)
    rise = rest.safe_losses(np.ones((1, N))) - oracle.safe_losses(np.ones((1, N)))
    assert oracle.left_out()[4] == pytest.approx(rise[0], rel=1e-6)


def test_the_oracle_foretells_retraining():
    """A run gentle enough to be nearly linear: the sum of scores orders the subsets' outcomes."""
    oracle = make_oracle(learning_rate=0.005)
    scores, weights = oracle.scores(), subset_weights(N, 40, 0.5, seed=0)
    outcomes = oracle.safe_losses(weights)
    assert linear_datamodelling_score(scores, weights, outcomes) > 0.98
    assert spearmanr(scores, oracle.left_out()).statistic > 0.98
    shuffled = np.random.default_rng(0).permutation(scores)
    assert linear_datamodelling_score(shuffled, weights, outcomes) < 0.7


def test_frozen_weights_stay():
    model = tiny_model("llama", attn_implementation=VARLEN)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name or "v_proj" in name)
    oracle = Oracle(model, make_dataset(ROWS), make_dataset(SAFE), ShortRun(epochs(1), 0.1))
    assert len(oracle.trained()) == 4
    assert np.abs(oracle.scores()).max() > 0


@pytest.mark.parametrize("kept", [0.25, 0.5, 0.75])
def test_subsets_keep_their_share_at_mean_weight_one(kept):
    weights = subset_weights(N, 40, kept, seed=3)
    assert ((weights > 0).sum(1) == kept * N).all()
    np.testing.assert_allclose(weights.mean(1), 1.0)
    assert len(np.unique(weights, axis=0)) > 30
    np.testing.assert_array_equal(weights, subset_weights(N, 40, kept, seed=3))


def test_a_linear_world_scores_one():
    effects = np.random.default_rng(0).normal(size=N)
    weights = subset_weights(N, 50, 0.5, seed=0)
    assert linear_datamodelling_score(effects, weights, 3 - weights @ effects) == pytest.approx(1)
    assert linear_datamodelling_score(-effects, weights, 3 - weights @ effects) == pytest.approx(-1)


def test_a_schedule_of_rows_that_are_not_there_is_refused():
    with pytest.raises(InputError, match="row 12 of 12"):
        make_oracle(schedule=[np.array([3, 12])])


@pytest.fixture(scope="module")
def benchmark():
    command = ["benchmarks/oracle.py", "--seeds", "1", "--settings", "gentle", "--subsets", "24"]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = json.loads(done.stdout.splitlines()[-1])["records"]
    return {record["estimator"]: record for record in records}


@pytest.mark.slow
def test_the_trainers_take_the_oracles_steps(benchmark):
    assert benchmark["unrolled"]["tuned_error"] < 1e-5


@pytest.mark.slow
def test_estimators_against_the_oracle(benchmark):
    """Measured on seeds 0 to 4, see benchmarks/results/oracle.json."""
    spearman = {name: record["spearman_unrolled"] for name, record in benchmark.items()}
    assert benchmark["unrolled"]["spearman_left_out"] > 0.98
    assert benchmark["unrolled"]["lds"] > 0.9
    assert spearman["penalty_gap, matched: contrast"] > 0.9
    assert spearman["penalty_gap, matched: contrast"] > spearman["excess_loss"] + 0.1
    assert spearman["penalty_gap, matched: contrast"] > spearman["penalty"] + 0.2
