"""The tables of docs/SCALING.md are those of the arithmetic, and that has the sizes that are."""

from pathlib import Path

import pytest
from scaling import BASES, all_reduce_seconds, compute_seconds, even_tokens, list_tables

PAGE = Path(__file__).parents[2] / "docs" / "SCALING.md"


def test_the_page_has_the_tables():
    page = PAGE.read_text()
    for table in list_tables():
        assert "\n".join(table) in page


@pytest.mark.parametrize(
    ("base", "billions", "millions"),
    list(zip(BASES, (3.21, 8.03, 70.6, 406), (18.4, 27.3, 131, 405), strict=True)),
    ids=[base.name for base in BASES],
)
def test_bases_and_adapters_have_their_sizes(base, billions, millions):
    assert base.whole / 1e9 == pytest.approx(billions, rel=0.005)
    assert base.adapter / 1e6 == pytest.approx(millions, rel=0.005)


def test_a_sum_goes_twice_round_the_ring():
    assert all_reduce_seconds(329e9, 2) == pytest.approx(1.0)
    assert all_reduce_seconds(50e9, 64) == pytest.approx(2 * 63 / 64)
    assert all_reduce_seconds(1e9, 1) == 0


def test_an_even_pass_takes_as_long_as_its_gathers():
    tokens = even_tokens(BASES[0], 64)
    rate = 64 / (1 + even_tokens(BASES[3], 64) / 16_384)
    assert compute_seconds(BASES[0], tokens) == pytest.approx(0.0572, rel=0.01)
    assert rate == pytest.approx(57, abs=0.5), "as the page says"
