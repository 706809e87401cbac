import gzip
import json
import pickle

import pyarrow as pa
import pytest

from lit_sft import ChatFile
from lit_sft.errors import InputError
from lit_sft.tasks.chat_file import read_files
from lit_sft.tasks.plain import write_out

ROWS = [{"question": f"q{i}", "answer": "ä"} for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def pack_zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".zst": pack_zstd}


@pytest.mark.parametrize("ending", PACKERS)
def test_an_error_names_the_packed_file_and_its_line(tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(PACKERS[ending](f"{LINES}\n{{oops\n".encode()))
    rows = read_files([path])
    assert pickle.loads(pickle.dumps(rows))[2] == ROWS[2]
    with pytest.raises(InputError, match=rf"a\.jsonl\{ending}, line 5: not JSON"):
        rows[3]


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"no archive"])
def test_a_damaged_archive_is_named_and_nothing_of_it_is_read(tmp_path, ending, damage):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(damage(PACKERS[ending](LINES.encode() * 100)))
    for _ in range(2):  # what was written out half is not taken for whole
        with pytest.raises(InputError, match=r"the archive is damaged, or cut"):
            read_files([path])


def test_a_file_that_changed_is_written_out_again(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.encode()))
    assert write_out(path).read_text() == LINES
    path.write_bytes(gzip.compress(LINES.encode() * 2))
    assert write_out(path).read_text() == LINES * 2


@pytest.mark.parametrize("code", ["utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_code(tmp_path, code):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES.encode(code))
    assert list(read_files([path])) == ROWS
    path.write_bytes(LINES.encode(code)[:-1])
    with pytest.raises(InputError, match=r"a\.jsonl: not utf-.* from end to end"):
        read_files([path])


def test_plain_files_are_not_copied(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(LINES)
    assert write_out(path) == path


def test_a_glob_does_not_train_on_what_is_held_out(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(LINES)
    with pytest.raises(InputError, match=r"test\.jsonl may be held out from the others"):
        ChatFile(str(tmp_path / "*.jsonl")).rows("train")
    both = ChatFile([str(tmp_path / f"{name}.jsonl") for name in ("train", "test")])
    assert len(both.rows("train")) == 6
    with pytest.raises(InputError, match="no data file matches it"):
        ChatFile(str(tmp_path / "*.csv")).rows("train")


def test_a_folder_of_packed_files_has_the_usual_splits(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    task = ChatFile(str(tmp_path))
    assert [len(task.rows(split)) for split in ("train", "test")] == [3, 3]
