"""Grades in words, and back."""

import pytest

from lit_sft.evaluation.verdicts import name_verdict, parse_verdict


@pytest.mark.parametrize("grade", [True, False, None, 0.0, 0.625, 1.0])
def test_a_verdict_tells_the_grade_again(grade):
    told = parse_verdict(name_verdict(grade))
    assert (told, type(told)) == (grade, type(grade))


@pytest.mark.parametrize("verdict", ["", "f1 ", "f1 nan", "f1 2", "f1 x", "Right", "</script>"])
def test_what_is_no_verdict_is_wrong(verdict):
    assert parse_verdict(verdict) is False
