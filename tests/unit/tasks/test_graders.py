"""Graders by name: what each takes for the same answer, and what it cannot compare."""

import string
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_sft.errors import InputError
from lit_sft.tasks.graders import (
    SEARCH_SECONDS,
    choose_grader,
    compile_pattern,
    grade_f1,
    grade_pattern,
    spell_grader,
)


@pytest.mark.parametrize(
    ("grader", "reference", "text", "expected"),
    [
        ("exact", "Paris", " Paris\n", True),
        ("exact", "Paris", "paris", False),
        ("exact", "Paris", " \n", None),
        ("exact", "Paris", "<think>Rome? Paris!</think>\n\nParis", True),
        ("exact", "Paris", "It opens here.</think>Paris", True),
        ("exact", "Paris", "<think>Paris, or", None),
        ("number", "18", "It is $18.00.", True),
        ("number", "1,234.5", "so 1234.50 in all", True),
        ("number", "#### 72", "48 + 24 = 72\n#### 72\n\nQuestion 5", True),
        ("number", r"\boxed{-3}", "-3", True),
        ("number", "1/2", "0.5", True),
        ("number", "1/2", "3/2", False),
        ("number", "3,5", "4,5", False),
        ("number", "3,5", "3.5", True),
        ("number", "1e3", "1000", True),
        ("number", "5", "10-5", True),
        ("number", "5", "-5", False),
        ("number", "-5", "\u22125", True),
        ("number", "2", "CO2", None),
        ("number", "5", "none at all", None),
        ("number", "5", "1/0", None),
        ("number", "5", "9" * 5000, None),
        ("choice", "B", "(b)", True),
        ("choice", "B) Paris", "The answer is B, since option A is too small.", True),
        ("choice", "B", "**B**", True),
        ("choice", "B", r"\boxed{\text{B}}", True),
        ("choice", "B", "B. Paris", True),
        ("choice", "A", "A", True),
        ("choice", "A", "A long story about Paris", None),
        ("choice", "C", "I think C fits.", True),
        ("choice", "B", "Answer: C", False),
        ("choice", "B", "either C or B", None),
        ("json", '{"a": 1, "b": [true]}', 'Sure:\n```json\n{"b": [true], "a": 1.0}\n```', True),
        ("json", '{"a": 1}', '{"a": 1, "b": 2}', False),
        ("json", '{"a": 1}', '{"a": true}', False),
        ("json", '{"a": 1}', "see [1] {a: 1}", None),
        ("json", "[1]", 'as in {"x": 2}: [1]', True),
        ("json", "3", "3.0", True),
        ("json", '{"a": 1}', '{"a": NaN}', None),
        ("json", '{"a": 1}', '{"a":' * 100_000, None),
        ("contains", "the Eiffel Tower", "It is The  Eiffel\nTower.", True),
        ("contains", "5", "15", False),
        ("contains", "C++", "I like C++!", True),
        ("contains", "Paris", "", None),
        ("f1", "the red house", "A red HOUSE!", 1.0),
        ("f1", "red house", "red car", 0.5),
        ("f1", "red house", "", 0.0),
        ("f1", "北京市", "北京", 0.8),
        ("regex: #### (.*)", "x\n#### 7 ", "y #### 7\n#### 8", True),
        ("regex:[0-9]+", "7", "about 7 or 8", True),
        ("regex: (?i)answer: (\\w+)", "Answer: yes", "ANSWER: no", False),
        ("regex: #### (.*)", "#### 7", "7", None),
    ],
)
def test_what_counts_as_the_same(grader, reference, text, expected):
    found = choose_grader(grader)(reference, text)
    assert found == (expected if expected is None else pytest.approx(expected))
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("grader", "reference", "says"),
    [
        ("exact", " ", "has no text"),
        ("number", "none", "has no number"),
        ("choice", "either C or B", "has no letter of a choice"),
        ("json", "{a: 1}", "is not JSON"),
        ("contains", "", "has no text"),
        ("f1", "the ...", "has no word"),
        ("regex: #### (.*)", "7", "has no match of '#### (.*)'"),
    ],
)
def test_a_reference_that_cannot_be_compared_is_an_error(grader, reference, says):
    with pytest.raises(InputError) as caught:
        choose_grader(grader)(reference, "7")
    assert says in str(caught.value)
    assert "choose another task.grader" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("numbr", "Did you mean 'number'?"),
        ("regex", "there is no pattern"),
        ("regex: (", "is no regular expression"),
        ("regex: (a|aa)+$", "takes more than 1 s on 200 characters"),
        ("regex: a{99999999}", "repeats something 99,999,999 times at the least; 1,000 may be"),
        ("regex: (ab|abab)+$", "takes more than 1 s on 200 characters"),
    ],
)
def test_a_grader_that_cannot_be_used_is_an_error(name, says):
    with pytest.raises(InputError, match=r"task\.grader") as caught:
        choose_grader(name)
    assert says in str(caught.value)


def test_a_search_that_never_ends_is_no_answer_and_told_of():
    pattern = compile_pattern(r"^(?:[xw][yv]|[xu][yt])+$")  # no probe is made of x and y
    long = "xy" * 200 + "!"
    began = time.perf_counter()
    with pytest.warns(UserWarning, match="which count as none; write it without a repetition"):
        assert grade_pattern(pattern, "xy", long) is None
    with pytest.raises(InputError, match="takes more than 1 s on the reference 'xyxy"):
        grade_pattern(pattern, long, "xy")
    assert time.perf_counter() - began < 20 * SEARCH_SECONDS
    assert grade_pattern(pattern, "xy", "xy") is True


def test_a_mapping_of_yaml_is_a_name():
    assert spell_grader({"regex": "#### (.*)"}) == "regex: #### (.*)"
    assert spell_grader("number") == "number"


def squad_f1(reference: str, text: str) -> float:
    """As the script that came with SQuAD 1.1 has it, but for its `re`."""

    def normalise(words: str) -> list[str]:
        kept = "".join(x for x in words.lower() if x not in set(string.punctuation))
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    ours, theirs = normalise(text), normalise(reference)
    same = sum((Counter(ours) & Counter(theirs)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


WORDS = st.lists(st.sampled_from(["the", "a", "Red", "red!", "house,", "42", "x-y", "An"]))


@given(WORDS, WORDS)
def test_f1_is_that_of_squad(one, other):
    reference, text = " ".join([*one, "end"]), " ".join(other)
    assert grade_f1(reference, text) == pytest.approx(squad_f1(reference, text))


@given(st.text(), st.sampled_from(["exact", "number", "choice", "json", "contains", "f1"]))
def test_any_text_has_a_grade(text, grader):
    reference = {"json": '{"a": 1}', "choice": "B"}.get(grader, "5 words")
    grade = choose_grader(grader)(reference, text)
    assert grade is None or 0 <= grade <= 1


@given(st.fractions(max_denominator=1000), st.text("abc =:", max_size=9))
def test_a_number_is_found_where_it_stands(value, before):
    grade = choose_grader("number")
    assert grade(f"{value}", f"{before} {value}") is True
    assert grade(f"{value}", f"{before} {value + 1}") is False
