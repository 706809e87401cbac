"""Which rows a mixture holds, and whose they are."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_sft import ChatFile, ChatTask, Mixture
from lit_sft.data.splits import read_conversations, read_split
from lit_sft.errors import InputError
from lit_sft.tasks.base import list_chosen_graders, name_graders
from lit_sft.tasks.mixture import count_rows, draw_rows


class Words(ChatTask):
    """Rows that say a word and their number, and are graded by it."""

    def __init__(self, word: str, train: int, val: int = 0, test: int = 0) -> None:
        self.word, self.sizes = word, {"train": train, "val": val, "test": test}

    def rows(self, split):
        return [f"{self.word} {split} {n}" for n in range(self.sizes[split])] or None

    def messages(self, row):
        return [{"role": "user", "content": row}, {"role": "assistant", "content": self.word}]

    def grade(self, row, text):
        return text == self.word


class Ungraded(Words):
    grade = ChatTask.grade


def mix(*sizes, **options) -> Mixture:
    return Mixture(
        {word: Words(word, size) for word, size in zip("abc", sizes, strict=False)}, **options
    )


def train(mixture, val_rows=0):
    return [row for _, row in read_split(mixture, "train", val_rows)]


def sources(rows) -> Counter:
    return Counter(row["source"] for row in rows)


def test_without_weights_every_row_is_there_once():
    rows = train(mix(5, 3))
    assert sorted(row["row"] for row in rows) == sorted(
        [f"a train {n}" for n in range(5)] + [f"b train {n}" for n in range(3)]
    )
    assert [row["source"] for row in rows] != ["a"] * 5 + ["b"] * 3


def test_shares_follow_the_weights():
    rows = train(mix(100, 100, weights=[3, 1]))
    assert sources(rows) == {"a": 100, "b": 33}
    assert max(Counter(row["row"] for row in rows).values()) == 1
    rows = train(mix(100, 10, weights=[1, 1], stopping_strategy="all_exhausted"))
    assert sources(rows) == {"a": 100, "b": 100}
    assert set(Counter(row["row"] for row in rows if row["source"] == "b").values()) == {10}


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 10), min_size=4, max_size=4),
    strategy=st.sampled_from(["first_exhausted", "all_exhausted"]),
)
def test_counts_stay_within_what_the_strategy_allows(sizes, weights, strategy):
    weights = weights[: len(sizes)]
    counts = count_rows(sizes, weights, strategy)
    first = strategy == "first_exhausted"
    assert all(1 <= c <= s if first else c >= s for c, s in zip(counts, sizes, strict=True))
    assert any(c == s for c, s in zip(counts, sizes, strict=True))
    picks = draw_rows(sizes, counts, seed=0)
    start = 0
    for size, count in zip(sizes, counts, strict=True):
        drawn = [n for n in picks.tolist() if start <= n < start + size]
        assert len(drawn) == count
        times = Counter(drawn).values()
        assert max(times) - (min(times) if len(times) == size else 0) <= 1
        start += size


def test_seed_and_nothing_else_decides_the_order():
    def rows(**options):
        return [row["row"] for row in train(mix(30, 30, weights=[1, 2], **options))]

    assert rows() == rows()
    assert rows() != rows(seed=1)


def test_a_row_is_read_and_graded_by_its_own_task():
    mixture = Mixture([Words("x", 2), ChatFile("some/where.jsonl")])
    assert list(mixture.tasks) == ["Words", "where"]
    row = {"source": "Words", "row": "x train 1"}
    assert mixture.messages(row)[1]["content"] == "x"
    assert (mixture.grade(row, "x"), mixture.grade(row, "y")) == (True, False)
    mixture = Mixture({"a": Ungraded("a", 2)})
    with pytest.raises(InputError, match="a does not grade answers; name a task that does"):
        mixture.grade(train(mixture)[0], "a")


@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted"])
def test_rows_are_held_out_of_every_task_and_not_trained_on(strategy):
    task = mix(60, 7, weights=[1, 1], stopping_strategy=strategy)
    val = [row for _, row in read_split(task, "val", 9)]
    assert sources(val) == {"a": 5, "b": 5}
    trained = train(task, 9)
    assert {row["row"] for row in val}.isdisjoint(row["row"] for row in trained)
    assert sources(trained) == (
        {"a": 2, "b": 2} if strategy == "first_exhausted" else {"a": 55, "b": 55}
    )


def test_splits_of_the_tasks_own_are_used(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"question": "q", "answer": "a"}\n' * 4)
    mixture = Mixture(
        {"a": Words("a", 9, val=3, test=2), "b": Words("b", 9), "c": ChatFile(str(tmp_path))},
        weights=[5, 1, 1],
    )
    val = read_split(mixture, "val", 5)
    assert sources(row for _, row in val) == {"a": 2, "b": 2, "c": 2}
    assert {name.rpartition(" ")[0] for name, _ in val} == {
        "a val row",
        "b train row",
        "c train row",
    }
    assert sources(row for _, row in read_split(mixture, "test", 5)) == {"a": 2}
    with pytest.raises(InputError, match="no task of the mixture has a test split"):
        read_split(mix(3, 3), "test", 0)
    assert sources(mixture.rows("train")) == {"a": 9, "b": 9, "c": 4}


def test_errors_name_the_row_of_the_source(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"question": null, "answer": "a"}\n')
    mixture = Mixture([ChatFile(str(tmp_path / "bad.jsonl")), Words("a", 5)])
    with pytest.raises(InputError, match=r"^bad train row 0: column 'question' must hold"):
        read_conversations(mixture, read_split(mixture, "train", 0))
    with pytest.raises(InputError, match=r"^bad: data.val_rows=2 leaves nothing to train on"):
        read_split(mixture, "train", 4)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: mix(5, 5, weights=[1.0]),
            r"\[1.0\] has to have one weight for each of the 2 tasks",
        ),
        (lambda: mix(5, 5, weights=[1.0, 0.0]), "must be positive"),
        (lambda: Mixture([]), "names no task"),
        (lambda: Mixture([Words("a", 1), Words("b", 1)]), "Words, Words are not distinct"),
        (lambda: Mixture([mix(5)]), "mixtures"),
        (lambda: train(mix(5, 0)), "b: the train split of Words has no rows"),
    ],
)
def test_a_mixture_that_cannot_be(make, reason):
    with pytest.raises(InputError, match=reason):
        make()


def test_each_task_of_a_mixture_has_its_grader():
    f1 = ChatFile("some/where.jsonl", grader="f1")
    mixture = Mixture({"chats": f1, "words": Words("x", 2)})
    assert name_graders(mixture) == {"chats": "f1", "words": "Words"}
    assert mixture.grader_name() == "f1, Words"
    assert list_chosen_graders(mixture) == list_chosen_graders(f1) == "f1"
    assert list_chosen_graders(Words("x", 2)) == ""
    row = {"source": "chats", "row": {"question": "q", "answer": "red house"}}
    assert mixture.grade(row, "red car") == 0.5
    assert Mixture({"a": Ungraded("a", 2), "b": f1}).grader_name() is None
    assert name_graders(Ungraded("a", 2)) == {"": None}


def test_auto_holds_a_tenth_of_every_task_out_and_no_more_than_its_part():
    val = [row for _, row in read_split(mix(60, 7, 9000), "val", "auto")]
    assert sources(val) == {"a": 6, "b": 1, "c": 86}
    assert len(train(mix(60, 7, 9000), "auto")) == 9067 - 93
