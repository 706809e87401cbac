"""All 8,792 real rows: ids and mask against a rendering by hand, and the ledger of train."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from lit_sft.data import chat_template
from lit_sft.data.ledger import make_ledger
from lit_sft.data.row_policy import RowPolicy
from lit_sft.data.splits import read_conversations
from lit_sft.data.token_cache import load_or_encode
from lit_sft.errors import InputError
from lit_sft.tasks.gsm8k import GSM8K
from lit_sft.types import IGNORE_INDEX


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("gsm8k_cache")


@pytest.fixture(scope="module", params=[("train", 7473), ("test", 1319)], ids=["train", "test"])
def encoded_split(request, shared, llama3_tokenizer, cache_dir):
    split, count = request.param
    task = GSM8K(str(shared / "gsm8k"))
    rows = task.rows(split)
    assert len(rows) == count
    conversations = read_conversations(task, [(f"{split} row {i}", r) for i, r in enumerate(rows)])
    encoded, _ = load_or_encode(llama3_tokenizer, conversations, RowPolicy(512), cache_dir)
    return split, rows, conversations, encoded


@pytest.fixture(scope="module")
def reader(shared):
    return AutoTokenizer.from_pretrained(shared / "llama-3.2-3b")


def test_every_row_equals_a_rendering_by_hand_labelled_by_characters(reader, encoded_split):
    _, rows, _, encoded = encoded_split
    prompts = [
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        + row["question"].strip()
        + "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        for row in rows
    ]
    answers = [row["answer"].strip() + "<|eot_id|>" for row in rows]
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    expected = reader(texts, add_special_tokens=False, return_offsets_mapping=True)
    assert len(encoded) == len(rows)
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids, labels = encoded[number]
        assert ids == expected["input_ids"][number]
        assert ids.count(128000) == 1
        starts = [start for start, _ in expected["offset_mapping"][number]]
        first = starts.index(len(prompt))
        assert labels == [IGNORE_INDEX] * first + ids[first:]
        assert reader.decode(ids[first:], clean_up_tokenization_spaces=False) == answer


def test_the_ledger_of_train(encoded_split):
    split, _, _, encoded = encoded_split
    if split == "test":
        assert len(encoded.dropped) == 0
        return
    ledger = make_ledger(split, encoded, batch_size=4)
    assert (ledger.rows, ledger.kept, ledger.dropped) == (7473, 7473, 0)
    assert round(ledger.mean, 1) == 168.6
    assert (ledger.p95, ledger.p99, ledger.max) == (279, 338, 469)
    assert ledger.supervised_share == pytest.approx(101.3 / 168.6, abs=1e-3)
    assert ledger.padding_share == pytest.approx(1 - 1 / 1.37, abs=5e-3)


def test_a_second_start_renders_no_row(llama3_tokenizer, encoded_split, cache_dir, monkeypatch):
    _, _, conversations, encoded = encoded_split

    def refuse(*args, **kwargs):
        raise AssertionError("a row is rendered again")

    monkeypatch.setattr(chat_template, "render_jinja_template", refuse)
    again, _ = load_or_encode(llama3_tokenizer, conversations, RowPolicy(512), cache_dir)
    assert np.array_equal(again.input_ids, encoded.input_ids)
    assert np.array_equal(again.supervised, encoded.supervised)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ('{"question": "q"}', "train row 0: there is no column 'answer'; the columns are question"),
        ('{"question": "q", "answer": 4}', "train row 0: .*must hold a string, but holds int 4"),
    ],
)
def test_a_bad_row_is_named(tmp_path, lines, reason):
    (tmp_path / "train.jsonl").write_text(lines)
    task = GSM8K(str(tmp_path))
    with pytest.raises(InputError, match=reason):
        read_conversations(task, [("train row 0", task.rows("train")[0])])


def test_a_missing_split_names_its_file(tmp_path):
    with pytest.raises(InputError, match=r"test\.jsonl: cannot be read"):
        GSM8K(str(tmp_path)).rows("test")
