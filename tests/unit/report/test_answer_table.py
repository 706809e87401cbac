"""Answers side by side: those that changed sides first, and never more than a page can hold."""

from run_folders import answer, make_run

from lit_sft.report.answer_table import MOST_BYTES, MOST_IN_A_TEXT, make_answers
from lit_sft.report.read_run import read_run
from lit_sft.report.run_comparison import compare_runs
from lit_sft.report.script_json import to_json


def answers_of(tmp_path, *given, name="run"):
    return make_answers([read_run(make_run(tmp_path / name, answers=given))])


def test_lost_and_won_rows_come_first(tmp_path):
    table = answers_of(tmp_path)
    assert table["columns"] == ["step 0", "step 20"]
    assert [(row["row"], row["kind"]) for row in table["rows"]] == [
        (0, "lost"), (1, "won"), (2, "won"), (3, "wrong"),
    ]  # fmt: skip
    assert table["counts"] == {"lost": 1, "won": 2, "wrong": 1, "right": 0}
    verdict, finished, output, cut = table["rows"][0]["given"][1]
    assert (verdict, finished, table["texts"][output], cut) == ("wrong", 1, "the answer 20", 0)


def test_scores_are_won_and_lost_too(tmp_path):
    scores = {0: ("f1 0.5", "f1 0.4"), 1: ("f1 0.500", "f1 1.000"), 2: ("f1 0.5", "f1 0.5")}
    scores[3] = ("f1 1.0", "f1 1.0")
    given = [answer(s, row, x[s > 0]) for row, x in scores.items() for s in (0, 9)]
    kinds = {row["row"]: row["kind"] for row in answers_of(tmp_path, *given)["rows"]}
    assert kinds == {0: "lost", 1: "won", 2: "wrong", 3: "right"}


def test_a_text_stands_once(tmp_path):
    table = answers_of(tmp_path, *(answer(step, 0, "r", "same") for step in range(9)))
    assert table["texts"].count("same") == 1
    assert len({given[2] for given in table["rows"][0]["given"]}) == 1


def test_a_row_that_was_not_always_answered_has_gaps(tmp_path):
    table = answers_of(tmp_path, answer(0, 0, "r"), answer(5, 1, "n"), answer(5, 0, "r"))
    assert [row["given"][0] is None for row in table["rows"]] == [True, False]


def test_a_long_answer_is_cut_and_says_so(tmp_path):
    table = answers_of(tmp_path, answer(0, 0, "r", "x" * 1_000_000))
    ((_, _, output, cut),) = table["rows"][0]["given"]
    assert (len(table["texts"][output]), cut) == (MOST_IN_A_TEXT, 1_000_000)


def test_tokens_with_their_probabilities_are_shown_if_they_are_the_answer(tmp_path):
    tokens = [["a", 0.5], ["b", 1]]
    table = answers_of(
        tmp_path,
        answer(0, 0, "r", "ab", tokens=tokens),
        answer(1, 0, "r", "abc", tokens=tokens),
        answer(2, 0, "r", "ab", tokens=[["ab", 7]]),
        answer(3, 0, "r", "ab", tokens="ab"),
    )
    assert [given[4:] for given in table["rows"][0]["given"]] == [
        [["a", 0.5, "b", 1.0]],
        [],
        [],
        [],
    ]


def test_a_run_without_answers_leaves_those_of_the_others(tmp_path):
    runs = [read_run(make_run(tmp_path / name)) for name in "abc"]
    (runs[0].folder / "logs" / "answers.jsonl").unlink()
    runs[0] = read_run(runs[0].folder)
    answers = make_answers(runs)
    assert answers["columns"] == ["b, step 20", "c, step 20"]
    assert (len(answers["rows"]), answers["silent"]) == (4, ["a"])
    assert [(duel.name, duel.against) for duel in compare_runs(runs)] == [("a", "b"), ("c", "b")]
    assert [duel.change.rows for duel in compare_runs(runs)] == [0, 4]
    assert make_answers(runs[:2])["rows"] == []


def test_verdicts_without_texts_are_kept(tmp_path):
    given = {"step": 4, "row": 0, "verdict": "right", "finished": True}
    table = answers_of(tmp_path, answer(0, 0, "w"), given)
    assert table["rows"][0]["kind"] == "won"
    assert table["rows"][0]["given"][1][2] == -1


def test_every_second_evaluation_is_left_out_where_all_are_too_many(tmp_path):
    many = [
        answer(step, row, "w", f"{step} {row} {'x' * 7000}")
        for step in range(9)
        for row in range(30)
    ]
    table = answers_of(tmp_path, *many)
    assert table["columns"] == [f"step {step}" for step in (0, 2, 4, 6, 8)]
    assert table["left_out"] == "4 evaluations between the first and the last"


def test_a_page_has_room_for_so_much_only(tmp_path):
    many = [
        answer(step, row, "w", f"{step} {row} {'x' * 7000}")
        for step in (0, 1, 2)
        for row in range(70)
    ]
    table = answers_of(tmp_path, *many)
    assert table["columns"] == ["step 0", "step 2"]
    assert table["left_out"] == "1 evaluations between the first and the last"
    more = [
        answer(step, row, "w", f"{step} {row} {'x' * 7000}")
        for step in (0, 1)
        for row in range(200)
    ]
    table = answers_of(tmp_path, *more, name="more")
    assert 50 < len(table["rows"]) < 200
    assert table["left_out"] == f"{200 - len(table['rows'])} rows"
    assert sum(table["counts"].values()) == 200
    assert len(to_json(table["texts"])) <= MOST_BYTES * 1.01
