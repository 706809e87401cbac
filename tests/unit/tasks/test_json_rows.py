import pickle

import pytest

from lit_sft.errors import InputError
from lit_sft.tasks.base import read_text
from lit_sft.tasks.json_rows import JsonLines, read_json


def test_blank_lines_crlf_and_a_byte_order_mark_are_no_trouble(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "1"}\r\n\r\n{"a": "\xc3\xa9\\n\xe2\x80\xa8"}\n\n')
    assert list(JsonLines(path)) == [{"a": "1"}, {"a": "é\n\u2028"}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1}\n{"a": "\xff"}\n', r"line 2: not UTF-8 \(byte 0xff at column 8\); convert"),
        (b'{"a": 1}\n\n{"a": "half', r"line 3: not JSON \(Unterminated string"),
        (
            b'{"a": 1}\n{"a": "half',
            r"line 2: not JSON .*; it is the last line: was the file written",
        ),
        (b'{"a": "\x00"}', r"line 1: not JSON \(Invalid control character.*NUL bytes"),
        (b'{"a": 1}\r\n\x00\x00\x00\x00', "line 2: not JSON .*NUL bytes: it is damaged"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 1: not readable: Exceeds the limit"),
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
        list(JsonLines(path))


def test_rows_are_read_from_anywhere_and_as_they_are_now(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 0}\r\n\n  \t \n{"a": 1}\n{"a": 2}')
    rows = JsonLines(path)
    assert (len(rows), [rows[i]["a"] for i in (2, 0, 1, -1)]) == (3, [2, 0, 1, 2])
    assert list(JsonLines(path)) == list(rows)
    with pytest.raises(IndexError):
        rows[3]
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)
    path.write_bytes(b'{"a": 3}\n\n{"a": }\n')
    changed = JsonLines(path)
    assert changed[0] == {"a": 3}
    with pytest.raises(InputError, match=r"rows\.jsonl, line 3: not JSON"):
        changed[1]


def test_a_cache_that_cannot_be_written_or_read_is_no_matter(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 0}\n')
    monkeypatch.setenv("LIT_SFT_CACHE", str(path))
    assert list(JsonLines(path)) == [{"a": 0}]
    monkeypatch.setenv("LIT_SFT_CACHE", str(tmp_path / "cache"))
    JsonLines(path)
    [index] = (tmp_path / "cache" / "lines").iterdir()
    whole = index.read_bytes()
    for damaged in (whole[:-4], whole[:-8], b""):
        index.write_bytes(damaged)
        assert list(JsonLines(path)) == [{"a": 0}]
        assert index.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'[{"a": 1}, 7]', "row 1: expected an object, found 7"),
        (b'[\n{"a": 1}\n{"a": 2}]', "not JSON .*line 3, column 1"),
        (b'[{"a": 1, "a": 2}]', "the key 'a' stands twice"),
        (b'{"a": 1}\n{"a"', "line 2: not JSON"),
    ],
)
def test_a_broken_json_file(tmp_path, content, reason):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"rows.json.*{reason}"):
        list(read_json(path))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"train.jsonl: cannot be read \(No such file"):
        JsonLines(tmp_path / "train.jsonl")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        JsonLines(tmp_path)


@pytest.mark.parametrize("value", [None, 7, ["text"], {"text": "x"}])
def test_a_column_that_holds_no_string_is_named(value):
    with pytest.raises(InputError, match=f"'answer' must hold a string.*{type(value).__name__}"):
        read_text({"question": "q", "answer": value}, "answer")


def test_a_missing_column_shows_those_there_are():
    with pytest.raises(InputError, match="no column 'answer'; the columns are question, reply"):
        read_text({"question": "q", "reply": "r"}, "answer")
