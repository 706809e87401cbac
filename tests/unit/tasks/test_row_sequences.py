import pytest

from lit_sft import ChatFile
from lit_sft.errors import InputError
from lit_sft.tasks.row_sequences import Slice, read_slices

LENGTHS = {"train": 200, "test": 10}


@pytest.mark.parametrize(
    ("name", "slices"),
    [
        ("train[:50]", [Slice("train", 0, 50)]),
        ("train[50%:]", [Slice("train", 100, 200)]),
        ("train[-5:]+test", [Slice("train", 195, 200), Slice("test", 0, 10)]),
    ],
)
def test_parts_are_those_that_datasets_would_read(name, slices):
    assert read_slices(name, LENGTHS) == slices


@pytest.mark.parametrize("name", ["train[", "train[a:]", "dev[:5]", "train[5:5]"])
def test_what_is_no_part_is_refused(name):
    with pytest.raises(InputError, match=r"task\.splits: "):
        read_slices(name, LENGTHS)


def test_a_file_is_cut_into_splits_that_share_no_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"question": "{i}", "answer": "a"}}\n' for i in range(10)))
    task = ChatFile(str(path), splits={"train": "train[:8]", "val": "train[8:]"})
    assert [row["question"] for row in task.rows("val")] == ["8", "9"]
    assert len(task.rows("train")) == 8
    assert task.rows("train")[7]["question"] == "7"
    for splits in ({"train": "train[:9]", "val": "train[8:]"}, {"test": "train[8:]"}):
        with pytest.raises(InputError, match=r"train and (val|test) share \d+ rows of 'train'"):
            ChatFile(str(path), splits=splits).rows("train")
