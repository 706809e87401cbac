import pytest

from lit_sft.errors import InputError
from lit_sft.tasks.base import read_text
from lit_sft.tasks.jsonl import read_jsonl


def test_blank_lines_crlf_and_a_byte_order_mark_are_no_trouble(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "1"}\r\n\r\n{"a": "\xc3\xa9\\n\xe2\x80\xa8"}\n\n')
    assert read_jsonl(path) == [{"a": "1"}, {"a": "é\n\u2028"}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1}\n{"a": "\xff"}\n', r"line 2: not UTF-8 \(byte 0xff at column 8\); convert"),
        (b'{"a": 1}\n\n{"a": "half', r"line 3: not JSON \(Unterminated string"),
        (b'{"a": "\x00"}', r"line 1: not JSON \(Invalid control character"),
        (b'{"a": 1}\n[1, 2]', "line 2: expected a JSON object, found list"),
        (b'{"a": 1, "b": 2, "a": 3}', "line 1: the key 'a' stands twice"),
        (b"[" * 100_000, "line 1: not readable: its values are nested too deeply"),
        (b"", "holds no rows"),
        (b"\n \n", "holds no rows"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"rows.jsonl.*{reason}"):
        read_jsonl(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"train.jsonl: cannot be read \(No such file"):
        read_jsonl(tmp_path / "train.jsonl")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_jsonl(tmp_path)


@pytest.mark.parametrize("value", [None, 7, ["text"], {"text": "x"}])
def test_a_column_that_holds_no_string_is_named(value):
    with pytest.raises(InputError, match=f"'answer' must hold a string.*{type(value).__name__}"):
        read_text({"question": "q", "answer": value}, "answer")


def test_a_missing_column_shows_those_there_are():
    with pytest.raises(InputError, match="no column 'answer'; the columns are question, reply"):
        read_text({"question": "q", "reply": "r"}, "answer")
