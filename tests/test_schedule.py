"""Learning-rate schedules: no step is taken at rate 0, and warm-up is what was asked for."""

import pytest

from seal.errors import InputError
from seal.utils.schedule import SCHEDULES, schedule_factor


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_trains(name, total):
    factor = schedule_factor(name, total)
    factors = [factor(step) for step in range(total)]
    assert min(factors) > 0 and max(factors) <= 1


def test_the_rate_rises_over_the_share_that_was_asked_for():
    rising = schedule_factor("linear", 10, warmup_ratio=0.3)
    assert [rising(step) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [rising(9), schedule_factor("linear", 10, 0.0)(0)] == pytest.approx([1 / 8, 10 / 11])


@pytest.mark.parametrize("share", [-0.1, 1, 3, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InputError, match=r"lr_warmup_ratio must be in \[0, 1\)"):
        schedule_factor("cosine", 10, share)
