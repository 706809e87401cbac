import pytest

from lit_sft.errors import InputError
from lit_sft.tasks.arrow_rows import read_parquet
from lit_sft.tasks.csv_rows import read_csv


def test_quotes_line_breaks_and_long_fields(tmp_path):
    path = tmp_path / "a.csv"
    long = "x" * 200_000
    path.write_text(f'question,answer\n"a, ""b""\nc",{long}\n\n', encoding="utf-8")
    assert read_csv(path) == [{"question": 'a, "b"\nc', "answer": long}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"a,b\n1,2\n1,2,3\n",
            r"line 3: the row has 3 fields, but the header has 2 \(a, b\); quote",
        ),
        (b"a,b\n1\n", "line 2: the row has 1 fields"),
        (b'a,b\n"1,2\n', r"line 2: not CSV \(unexpected end of data\)"),
        (b"a,a\n1,2\n", "line 1: a column stands twice"),
        (b"a,b\n1,\x00\n", "line 2: .*NUL"),
        (b"a,b\n1,\xff\n", r"not UTF-8 \(byte 0xff\)"),
        (b"a,b\n", "holds no rows"),
        (b"", "holds no rows"),
    ],
)
def test_a_broken_csv_names_its_line(tmp_path, content, reason):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"a.csv.*{reason}"):
        read_csv(path)


def test_a_parquet_file_that_is_none(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as Parquet"):
        read_parquet([path])
