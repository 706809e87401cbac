import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_sft.errors import InputError
from lit_sft.tasks.gsm8k import (
    GSM8K,
    extract_flexible,
    extract_reference,
    extract_strict,
    grade_final_answer,
)

# What a model wrote, its strict answer, its flexible answer. Written by hand.
OUTPUTS = [
    # the plain form
    ("#### 18", "18", "18"),
    ("9 * 2 = <<9*2=18>>18\n#### 18", "18", "18"),
    ("#### 0", "0", "0"),
    ("#### 5", "5", "5"),
    ("#### 007", "007", "007"),
    ("The answer:\n\n\n#### 42\n", "42", "42"),
    ("x\r\n#### 42\r\n", "42", "42"),
    ("#### 18<|eot_id|>", "18", "18"),
    ("reasoning #### 12 and on", "12", "12"),
    ("##### 12", "12", "12"),
    # commas, dollars and full stops
    ("#### 1,000", "1000", "1000"),
    ("#### 1,234,567", "1234567", "1234567"),
    ("#### 10,00", "1000", "1000"),
    ("#### 18,", "18", "18"),
    ("#### ,18", "18", "18"),
    ("#### 18.", "18", "18"),
    ("#### 18.,", "18", "18"),
    ("#### 18..", "18.", "18."),
    ("#### 1,000.", "1000", "1000"),
    ("#### $18", None, "18"),
    ("#### -$18", None, "-18"),
    ("#### 18$", "18", "18"),
    ("#### $1,000.50", None, "1000.50"),
    ("It costs $1,000.", None, "1000"),
    ("It costs $5", None, "5"),
    ("You pay 3$.", None, "3"),
    # decimals and signs
    ("#### 18.0", "18.0", "18.0"),
    ("#### 0.5", "0.5", "0.5"),
    ("#### .5", ".5", ".5"),
    ("#### 3.14.15", "3.14.15", "3.14.15"),
    ("#### -3", "-3", "-3"),
    ("#### -3.5", "-3.5", "-3.5"),
    ("#### +3", None, "3"),
    ("#### --3", None, "-3"),
    ("#### - 3", None, "3"),
    ("#### \u22123", None, "3"),
    ("#### 10-3", "10", "-3"),
    ("#### 1e3", "1", "3"),
    ("#### 3/4", "3", "4"),
    ("#### 3 1/2", "3", "2"),
    ("#### 10:30", "10", "30"),
    # units and words
    ("#### 18 apples", "18", "18"),
    ("#### 18%", "18", "18"),
    ("#### 18km", "18", "18"),
    ("#### 5 m2", "5", "2"),
    ("#### \u20ac20", None, "20"),
    ("#### **18**", None, "18"),
    ("#### \\boxed{18}", None, "18"),
    ("#### x = 18", None, "18"),
    ("#### eighteen", None, None),
    # several marks: the first that a number follows decides
    ("#### 18\n#### 20", "18", "20"),
    ("#### ?\n#### 20", "20", "20"),
    ("#### 18 #### 18", "18", "18"),
    ("#### 1\n#### 2\n#### 3", "1", "3"),
    ("#### #### 7", "7", "7"),
    # the mark is exactly `#### `
    ("####18", None, "18"),
    ("####  18", None, "18"),
    ("####\n18", None, "18"),
    ("####\t18", None, "18"),
    ("####\u00a018", None, "18"),
    ("### 18", None, "18"),
    ("# # # # 18", None, "18"),
    ("\uff03\uff03\uff03\uff03 18", None, "18"),
    # trailing text decides the flexible answer alone
    ("#### 18 for 3 days", "18", "3"),
    ("#### 18\nQuestion: what is 2+2", "18", "2"),
    ("#### 18\nThat is 1,5.", "18", "15"),
    ("#### 18 ...", "18", None),
    ("it is 18 ...", None, None),
    ("#### 18.\n\nDone.", "18", "18"),
    # no mark
    ("The answer is 18.", None, "18"),
    ("first 3, then 4", None, "4"),
    ("between 3 and 10 dollars", None, "10"),
    ("between 3-10 dollars", None, "-10"),
    ("9*2=<<9*2=18>>18", None, "18"),
    ("no idea", None, None),
    # nothing, and nothing but punctuation
    ("", None, None),
    ("\n\n", None, None),
    ("####", None, None),
    ("#### ", None, None),
    ("#### ...", None, None),
    ("#### ,", None, None),
    ("#### .", None, None),
    ("$$", None, None),
    ("-", None, None),
    # digits of other scripts are no digits; neither are superscripts
    ("#### \u0661\u0668", None, None),
    ("#### \uff11\uff18", None, None),
    ("#### 1\u0668", "1", "1"),
    ("#### \u0967", None, None),
    ("5 m\u00b2", None, "5"),
    ("#### \u2167", None, None),
    ("\u0000#### 18\u0000", "18", "18"),
    ("\ud800#### 18", "18", "18"),
]


def test_the_table_is_long_enough():
    assert len({text for text, _, _ in OUTPUTS}) == len(OUTPUTS) >= 60


@pytest.mark.parametrize(("text", "strict", "flexible"), OUTPUTS)
def test_answers_are_extracted_as_the_table_says(text, strict, flexible):
    assert extract_strict(text) == strict
    assert extract_flexible(text) == flexible


@pytest.mark.parametrize(
    ("reference", "text", "verdict"),
    [
        ("#### 18", "#### 18", True),
        ("18", "#### 18", True),
        ("a #### 3 then\n#### 1,800", "#### 1800.", True),
        ("#### $18", "#### 18", True),
        ("#### 18", "#### 19", False),
        ("#### 18", "#### 18.0", False),  # strings are compared, as the harness does
        ("#### 18", "#### 018", False),
        ("#### 18", "#### -18", False),
        ("#### 18", "the answer is 18", None),
        ("#### 18", "", None),
    ],
)
def test_grades_by_the_strict_answer(reference, text, verdict):
    assert grade_final_answer(reference, text) is verdict
    assert GSM8K().grade({"question": "?", "answer": reference}, text) is verdict


@pytest.mark.parametrize("reference", ["", "no number", "#### ", "#### 18 apples", "#### ..."])
def test_a_reference_without_a_number_is_an_error_that_shows_it(reference):
    with pytest.raises(InputError, match="expected a reference that ends in `#### `"):
        extract_reference(reference)


@given(st.text(st.characters(codec=None)) | st.text("#### -$0123456789.,\n"))
def test_no_text_breaks_the_extraction(text):
    for answer in (extract_strict(text), extract_flexible(text)):
        assert answer is None or set(answer) <= set("-0123456789.")
        assert answer is None or set(answer) & set("0123456789")
    assert grade_final_answer("#### 1", text) in (True, False, None)


@given(st.text("ab #\n0123456789"), st.integers(-(10**9), 10**9))
def test_a_number_after_the_only_mark_is_found_wherever_it_stands(before, number):
    before = before.replace("#### ", "")
    assert extract_strict(f"{before}\n#### {number:,}") == str(number)


def test_every_real_reference_grades_right_against_itself(shared: Path):
    task = GSM8K(str(shared / "gsm8k"))
    rows = [*task.rows("train"), *task.rows("test")]
    assert len(rows) == 8792
    for row in rows:
        assert task.grade(row, row["answer"]) is True
        assert extract_flexible(row["answer"]) == extract_reference(row["answer"])


def test_a_long_text_is_searched_in_linear_time():
    assert extract_flexible("-$" * 500_000 + " 7") == "7"
    assert extract_strict("#### -" * 200_000 + "7") == "-7"


def test_tasks_and_grading_need_no_tensors():
    code = "import sys, lit_sft.tasks.gsm8k; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
