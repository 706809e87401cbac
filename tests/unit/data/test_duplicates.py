"""Which rows of train ask what another row asks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_sft import ChatTask
from lit_sft.data.duplicates import (
    MOST_COMPARED,
    count_in_test,
    drop_repeats,
    find_repeats,
    format_repeats,
    normalize_question,
)
from lit_sft.data.options import DataOptions


def chat(name: str, question: str, answer: str = "a"):
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return name, messages


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How many?", "how  many"),
        ("How many?", "\nHOW\tMANY ?!"),
        ("“Straße”, she said.", '"STRASSE" she said'),
        ("a twenty-five-year-old", "a twenty five year old"),
        ("ﬁve apples", "five apples"),
        ("cafe\u0301", "café"),
        ("It costs 1,000.", "it costs 1,000"),
        ("snake_case", "snake case"),
    ],
)
def test_the_same_question_in_another_spelling(one, other):
    assert normalize_question(one) == normalize_question(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3 - 4?", "What is 3 + 4?"),
        ("What is 3-4?", "What is 3 4?"),
        ("What is 8 / 2?", "What is 8 * 2?"),
        ("What is 1.5?", "What is 15?"),
        ("What is 1.5?", "What is 1 5?"),
        ("At 10:30", "At 10 30"),
        ("What is -3?", "What is 3?"),
        ("It is 5% off", "It is 5 off"),
        ("It is $5", "It is €5"),
        ("👍", "👎"),
        ("?", "!"),
        ("5 apples", "6 apples"),
    ],
)
def test_another_question(one, other):
    assert normalize_question(one) != normalize_question(other)


@given(st.text())
def test_case_and_outer_space_never_matter(text):
    normal = normalize_question(text)
    assert normalize_question(f"  {text}\n") == normal
    assert normalize_question(text.casefold()) == normal


def test_repeats_are_found_in_every_split_and_dropped_once():
    train = [
        chat("t0", "One?"),
        chat("t1", "one", "another answer"),
        chat("t2", "Two?"),
        chat("t3", "One?"),
        chat("t4", "Three?"),
    ]
    held_out = {"val": [chat("v0", "Two?"), chat("v1", "four")], "test": [chat("x0", "ONE")]}
    repeats = find_repeats(train, held_out)
    found = {split: [(x.row, x.original, x.is_exact) for x in repeats[split]] for split in repeats}
    assert found == {
        "train": [("t1", "t0", False), ("t3", "t0", True)],
        "val": [("t2", "v0", True)],
        "test": [("t0", "x0", False), ("t1", "x0", False), ("t3", "x0", False)],
    }
    assert [name for name, _ in drop_repeats(train, repeats)] == ["t4"]
    assert format_repeats(repeats, removed=False).startswith(
        "duplicates of train's questions: 2 earlier in train, 1 in val, 3 in test; "
    )
    assert format_repeats(find_repeats(train[:1], {}), removed=False) == ""


def test_a_row_that_was_drawn_twice_is_no_duplicate():
    drawn = [chat("a row 0", "1 + 1?"), chat("a row 0", "1 + 1?"), chat("a row 1", "1 + 1?")]
    assert [repeat.row for repeat in find_repeats(drawn, {})["train"]] == ["a row 1"]


def test_all_that_the_users_say_is_the_question():
    def two_turns(name, second):
        return name, [*chat("", "Hello")[1], *chat("", second)[1]]

    train = [two_turns("t0", "What is 1?"), two_turns("t1", "What is 2?"), chat("t2", "Hello")]
    assert find_repeats(train, {}) == {"train": []}


def test_rows_that_cannot_be_read_repeat_nothing():
    broken = [("t0", None), ("t1", None), ("t2", [{"role": "user", "content": 3}])]
    assert find_repeats(broken, {"val": broken}) == {"train": [], "val": []}


class Asked(ChatTask):
    """A split of numbers to add one to."""

    def __init__(self, **splits):
        self.splits = splits

    def rows(self, split):
        return self.splits.get(split)

    def messages(self, row):
        return chat("", f"{row} + 1?")[1]


@pytest.mark.parametrize(
    ("splits", "options", "count"),
    [
        ({"train": [1, 2, 2, 3], "test": [2, 3, 4]}, {}, 3),
        ({"train": [1, 2, 2, 3], "test": [2, 3, 4]}, {"dedup": True}, 0),
        ({"train": [1], "test": [2]}, {}, 0),
        ({"train": [1]}, {}, None),
        ({"test": [1]}, {}, None),
        ({"train": range(MOST_COMPARED + 1), "test": [1]}, {}, None),
    ],
)
def test_rows_of_train_in_test_are_counted_where_that_is_no_work(splits, options, count):
    assert count_in_test(DataOptions(Asked(**splits), val_rows=0, **options)) == count
