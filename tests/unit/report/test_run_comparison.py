"""Runs beside each other: McNemar's test on the rows that both have answered."""

from run_folders import answer, make_run

from lit_sft.report.read_run import read_run
from lit_sft.report.run_comparison import compare_runs


def run_of(root, verdicts, first=0):
    given = [answer(20, first + i, verdict) for i, verdict in enumerate(verdicts)]
    return read_run(make_run(root, answers=given))


def test_the_rows_that_both_have_answered_decide(tmp_path):
    one, two = (
        run_of(tmp_path / "a", "w" * 8 + "rrr"),
        run_of(tmp_path / "b", "r" * 8 + "w"),
    )
    (duel,) = compare_runs([one, two])
    assert duel.change == (8, 1, 9)
    assert duel.change.p == 2 * (1 + 9) / 2**9
    assert "won 8, lost 1, alike 0 of 9 rows; McNemar's exact p = 0.0391" in duel.describe()


def test_runs_of_other_rows_cannot_be_compared(tmp_path):
    (duel,) = compare_runs([run_of(tmp_path / "a", "rw"), run_of(tmp_path / "b", "rw", first=9)])
    assert duel.change.rows == 0
    assert "no row in common" in duel.describe()
