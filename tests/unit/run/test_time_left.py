"""How long a run will take from here."""

import math

import pytest

from lit_sft.run.time_left import Pace, count_evaluations, format_seconds


def test_a_slow_step_is_not_taken_for_all():
    pace = Pace()
    assert pace.seconds_for(10, 1) is None
    for seconds in (60.0, 2.0, 2.0, 2.0):
        pace.add_step(seconds)
    pace.add_evaluation(30.0)
    assert pace.seconds_for(10, 2) == 80


@pytest.mark.parametrize(
    ("step", "total", "every", "expected"),
    [
        (0, 150, 150, (1, 150)),
        (0, 100, 30, (4, 30)),  # 30, 60, 90 and 100
        (30, 100, 30, (3, 30)),
        (95, 100, 30, (1, 5)),
        (0, 100, 50, (2, 50)),
        (7, 100, math.inf, (1, 93)),
        (100, 100, 30, (0, 0)),
    ],
)
def test_evaluations_that_are_left(step, total, every, expected):
    assert count_evaluations(step, total, every) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (192, "3 min 12 s"), (3600 * 30 + 61, "30 h 1 min")],
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text
