"""The learning rate of a step; `tests/parity` compares it with transformers' own."""

import pytest

from lit_sft import Schedule
from lit_sft.errors import InputError


def test_steps_of_warmup_stand_before_a_share():
    assert Schedule(warmup_steps=4).factor(2, 0.1, 100) == 0.5
    assert Schedule().factor(2, 0.1, 100) == 0.2


def test_the_floor_is_reached():
    for kind in ("cosine", "linear", "warmup_stable_decay"):
        schedule = Schedule(kind, min_lr_ratio=0.25)
        factors = [schedule.factor(step, 0.0, 40) for step in range(41)]
        assert factors[0] == 1.0
        assert factors[40] == 0.25
        assert factors == sorted(factors, reverse=True)


def test_stable_is_stable():
    schedule = Schedule("warmup_stable_decay", warmup_steps=2, decay_ratio=0.25)
    factors = [schedule.factor(step, 0.0, 40) for step in range(40)]
    assert factors[2:31] == [1.0] * 29
    assert factors[31] < 1.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "polynomial"}, "schedule.kind must be one of cosine, linear"),
        ({"warmup_steps": -1}, "must not be negative"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio must be in"),
        ({"kind": "constant", "min_lr_ratio": 0.1}, "falls to nothing"),
    ],
    ids=str,
)
def test_what_makes_no_schedule_is_refused(options, says):
    with pytest.raises(InputError, match=says):
        Schedule(**options)
