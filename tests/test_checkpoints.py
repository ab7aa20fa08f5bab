"""Checkpoints belong to a run: others are left alone, and what was written last is gone on from."""

import pytest

from seal.errors import InputError
from seal.trainer.checkpoint import Checkpoints
from seal.utils.strategy import DeepspeedStrategy, Zero


@pytest.fixture(scope="module")
def strategy():
    strategy = DeepspeedStrategy(Zero(0))
    strategy.setup_distributed()
    return strategy


@pytest.fixture
def run_of(strategy, tmp_path):
    """Makes a run with a seed; all of them share one directory and keep two checkpoints."""

    def make(seed: int = 0, **arguments) -> Checkpoints:
        return Checkpoints(tmp_path, strategy, [], {"seed": seed, **arguments}, max_num=2, max_gb=1)

    return make


def save(run: Checkpoints, *steps: int) -> None:
    for step in steps:
        run.save(step, {"at": step})


def names(run: Checkpoints) -> list[str]:
    return [path.name for path in run.complete()]


def test_two_runs_in_one_directory_leave_each_other_alone(run_of):
    first, second = run_of(0), run_of(1)
    save(first, 8, 10)
    save(second, 2)
    assert names(first) == ["step_8", "step_10"] and names(second) == ["step_2"]
    assert run_of(0).begin("auto") == (10, {"at": 10})
    assert run_of(1).begin("auto") == (2, {"at": 2})


def test_where_only_others_have_checkpoints_they_are_named_with_what_differs(run_of, tmp_path):
    save(run_of(0, rate=0.1), 8)
    with pytest.raises(InputError, match=r"no complete .* this run .*step_8 .*seed 0 -> 1"):
        run_of(1, rate=0.1).begin("auto")
    assert len(list(tmp_path.glob("*/step_8"))) == 1


def test_after_a_rewind_the_abandoned_future_is_not_resumed(run_of):
    run = run_of()
    save(run, 2, 4)
    step_2 = run.complete()[0]
    assert run_of().begin(str(step_2)) == (2, {"at": 2})
    again = run_of()
    assert again.begin("auto") == (2, {"at": 2})  # killed before it wrote anything
    save(again, 3)
    assert names(again) == ["step_2", "step_3"]  # the first that goes is the abandoned one
    assert run_of().begin("auto") == (3, {"at": 3})


def test_a_run_that_starts_over_does_not_go_on_with_the_old_one(run_of):
    save(run_of(), 10, 12)
    over = run_of()
    assert over.begin(None) == (0, {})
    with pytest.raises(InputError, match="no complete checkpoint"):
        run_of().begin("auto")
    save(over, 2)
    assert names(over) == ["step_12", "step_2"]
    assert run_of().begin("auto") == (2, {"at": 2})


def test_what_was_just_written_stays_however_large(strategy, tmp_path):
    run = Checkpoints(tmp_path, strategy, [], {}, max_num=3, max_gb=0)
    save(run, 2, 1)
    assert names(run) == ["step_1"]


def test_the_one_before_takes_the_place_of_one_that_was_removed(run_of):
    run = run_of()
    save(run, 2, 4)
    for path in run.complete()[1].iterdir():
        path.unlink()
    assert run_of().begin("auto") == (2, {"at": 2})
