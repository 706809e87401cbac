"""Prompts to predict from: what is wrong in a file of them is told by its own name."""

import json

import pytest

from lit_sft import WordProblems
from lit_sft.data.prompts import find_prompts
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError

GOOD = {"messages": [{"role": "user", "content": "q"}]}
BAD = {
    "a turn of nobody": ({"messages": [{"content": "q"}]}, r"messages\[0\]: there is no role"),
    "no question": (
        {"messages": [{"role": "assistant", "content": "a"}]},
        "the conversation has no user turn",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_of_a_file_is_named_by_the_file(name, tmp_path):
    row, reason = BAD[name]
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in (GOOD, row)))
    tokenizer = load_tokenizer("lit_sft/tiny")
    with pytest.raises(InputError, match=f"^{path} row 1: {reason}"):
        find_prompts(WordProblems(), str(path), tokenizer, 0)
