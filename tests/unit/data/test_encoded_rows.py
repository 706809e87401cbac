import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from lit_sft.data import encoded_rows
from lit_sft.data.encode import encode_chat
from lit_sft.data.encoded_rows import (
    CHUNK_ROWS,
    encode_rows,
)
from lit_sft.data.row_policy import RowPolicy
from lit_sft.data.splits import read_conversations
from lit_sft.data.token_cache import hash_request, load_or_encode, make_cache_key
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError
from lit_sft.tasks.base import ChatTask, Row
from lit_sft.types import Message, Split


class Pairs(ChatTask):
    """The smallest task there is."""

    def rows(self, split: Split) -> Sequence[Row] | None:
        return None

    def messages(self, row: Row) -> list[Message]:
        return [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return load_tokenizer(str(tiny_tokenizer))


def chats(*answers: str):
    rows = [(f"train row {i}", {"q": "?", "a": answer}) for i, answer in enumerate(answers)]
    return read_conversations(Pairs(), rows)


def test_rows_come_back_as_they_were_encoded(tokenizer):
    conversations = chats(*(f"{i}🙂" * (1 + i % 3) for i in range(CHUNK_ROWS + 5)))
    encoded = encode_rows(tokenizer, conversations, RowPolicy(512))
    assert len(encoded) == CHUNK_ROWS + 5
    for i in (0, 1, 2, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 4):
        assert encoded[i] == encode_chat(tokenizer, conversations[i][1])
    supervised = sum(label >= 0 for i in range(len(encoded)) for label in encoded[i].labels)
    assert encoded.num_supervised() == supervised
    assert encoded.lengths()[1] == len(encoded[1].input_ids)


def test_only_a_large_set_shows_a_bar(tokenizer, monkeypatch, capsys):
    encode_rows(tokenizer, chats("a"), RowPolicy(512))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(encoded_rows, "LARGE_SET_ROWS", 1)
    encode_rows(tokenizer, chats("a"), RowPolicy(512))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("encoding 1 rows")


def test_long_rows_are_dropped_whole_at_exactly_the_limit(tokenizer):
    conversations = chats("x", "x" * 200, "x" * 10)
    limit = len(encode_chat(tokenizer, conversations[2][1]).input_ids)
    encoded = encode_rows(tokenizer, conversations, RowPolicy(limit))
    assert encoded.dropped.tolist() == [1]
    assert encoded[1] == encode_chat(tokenizer, conversations[2][1])
    assert encode_rows(tokenizer, conversations, RowPolicy(limit - 1)).dropped.tolist() == [1, 2]


def test_all_rows_too_long_is_an_error(tokenizer):
    with pytest.raises(InputError, match=r"all 2 rows, from train row 0 on, .*max_length=3"):
        encode_rows(tokenizer, chats("a", "b"), RowPolicy(3))


@pytest.mark.parametrize("position", [0, CHUNK_ROWS + 2])
def test_a_row_that_cannot_be_encoded_is_named(tokenizer, position):
    conversations = chats(*["fine"] * (CHUNK_ROWS + 5))
    conversations[position][1][1]["content"] = None
    with pytest.raises(InputError, match=rf"^train row {position}: message 1 \(assistant\)"):
        encode_rows(tokenizer, conversations, RowPolicy(512))


def test_a_row_that_the_task_cannot_read_is_named():
    with pytest.raises(InputError, match=r"^train row 1: Pairs cannot read it \(KeyError: 'a'\)"):
        read_conversations(
            Pairs(), [("train row 0", {"q": "", "a": ""}), ("train row 1", {"q": ""})]
        )


def test_the_request_follows_all_that_the_encoding_is_given(tiny_tokenizer):
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    first = hash_request(tokenizer, chats("a", "b"), RowPolicy(512))
    assert (
        hash_request(load_tokenizer(str(tiny_tokenizer)), chats("a", "b"), RowPolicy(512)) == first
    )
    tokenizer(["a"], padding="max_length", max_length=8, truncation=True)
    assert hash_request(tokenizer, chats("a", "b"), RowPolicy(512)) == first
    others = [
        hash_request(tokenizer, chats("a", "c"), RowPolicy(512)),
        hash_request(tokenizer, chats("a"), RowPolicy(512)),
    ]
    others.append(hash_request(tokenizer, chats("a", "b"), RowPolicy(511)))
    tokenizer.chat_template += "\n"
    others.append(hash_request(tokenizer, chats("a", "b"), RowPolicy(512)))
    tokenizer.add_tokens(["new"])
    others.append(hash_request(tokenizer, chats("a", "b"), RowPolicy(512)))
    assert len({first, *others}) == 6


def test_a_second_start_reads_the_cache(tokenizer, tmp_path):
    first, request = load_or_encode(tokenizer, chats("a", "bb"), RowPolicy(512), tmp_path / "new")
    path = tmp_path / "new" / f"{make_cache_key(request)}.safetensors"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    # Other rows under the same key can only come from the file.
    _, other = load_or_encode(tokenizer, chats("other"), RowPolicy(512), tmp_path)
    (tmp_path / f"{make_cache_key(other)}.safetensors").replace(path)
    again, _ = load_or_encode(tokenizer, chats("a", "bb"), RowPolicy(512), tmp_path / "new")
    assert (len(first), len(again)) == (2, 1)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(bytes(content))


def lose_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors["offsets"]
    save_file(tensors, path)


@pytest.mark.parametrize("damage", [cut_off, empty, flip_a_bit, lose_a_tensor])
def test_a_damaged_cache_file_is_made_again(tokenizer, tmp_path, damage):
    first, request = load_or_encode(tokenizer, chats("a", "bb"), RowPolicy(512), tmp_path)
    path = tmp_path / f"{make_cache_key(request)}.safetensors"
    sound = path.read_bytes()
    damage(path)
    again, _ = load_or_encode(tokenizer, chats("a", "bb"), RowPolicy(512), tmp_path)
    assert [again[i] for i in range(2)] == [first[i] for i in range(2)]
    assert path.read_bytes() == sound


def test_a_cache_that_cannot_be_written_is_a_warning(tokenizer, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match=r"cannot be written .*set data\.cache_dir"):
        encoded, _ = load_or_encode(tokenizer, chats("a"), RowPolicy(512), tmp_path / "file")
    assert len(encoded) == 1


def test_rows_that_are_no_json_are_left_for_the_encoding_to_refuse(tokenizer, tmp_path):
    conversations = chats("a")
    conversations[0][1][0]["content"] = b"bytes"
    with pytest.raises(TypeError):
        json.dumps(conversations)
    with pytest.raises(InputError, match=r"train row 0: message 0 \(user\).*got bytes"):
        load_or_encode(tokenizer, conversations, RowPolicy(512), tmp_path)
