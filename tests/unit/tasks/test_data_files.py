"""A folder is read as the Hub reads it, or refused: no row of one split gets into another."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import load_dataset
from pyarrow import parquet

from lit_sft import ChatFile
from lit_sft.errors import InputError
from lit_sft.tasks.data_files import find_splits

HASH = "0f1e2d3c4b5a6978"
CONFIGS = """---
license: mit
configs:
- config_name: chat
  default: true
  data_files:
  - split: train
    path: parts/good-*.parquet
  - split: test
    path: parts/held_out.parquet
- config_name: other
  data_dir: other
---
# A data set
"""


def lay_out(folder: Path, *names: str) -> Path:
    """Write a file for each name, whose one row says which it is."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            parquet.write_table(pa.table({"question": [name], "answer": ["a"]}), path)
        else:
            path.write_text(f'{{"question": "{name}", "answer": "a"}}\n')
    return folder


def read(folder: Path, split="train", **options) -> list[str]:
    return [row["question"] for row in ChatFile(str(folder), **options).rows(split)]


LAYOUTS = [
    ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
     "data/test-00000-of-00001.parquet"],
    ["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001.parquet"],
    [f"data/{split}-00000-of-00001-{HASH}.parquet"
     for split in ("train_sft", "train_gen", "test_sft", "test_gen")],
    ["train/a.parquet", "train/b.parquet", "test/a.parquet"],
    ["a.parquet", "b.parquet", "c/d.parquet"],
    ["train.jsonl", "valid.jsonl", "extra.jsonl"],
    ["my_train-0.jsonl", "my_train-1.jsonl", "my_dev.jsonl"],
    ["contest.jsonl", "latest.jsonl"],
]  # fmt: skip


@pytest.mark.parametrize("names", LAYOUTS, ids=" ".join)
def test_a_folder_has_the_splits_that_the_hub_gives_it(tmp_path, names):
    folder = lay_out(tmp_path / "set", *names)
    (folder / "LICENSE").write_text("")
    hub = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    found = find_splits(folder, None, ())
    assert not found.doubts
    own = {
        split: sorted(file.relative_to(folder).as_posix() for file in files)
        for split, files in found.files.items()
    }
    assert own == {split: sorted(rows["question"]) for split, rows in hub.items()}


def test_test_rows_are_not_read_as_train(tmp_path):
    folder = lay_out(tmp_path, *LAYOUTS[1])
    with pytest.raises(InputError, match=r"no split is called 'train' .*only test_sft, train_sft"):
        read(folder)
    assert read(folder, splits={"train": "train_sft"}) == [LAYOUTS[1][0]]


def test_shards_with_a_hash_are_of_the_split_they_name(tmp_path):
    folder = lay_out(tmp_path, *LAYOUTS[2])
    assert read(folder, splits={"train": "train_gen"}) == [LAYOUTS[2][1]]
    # The folder inside is not where the Hub looks for shards, and it would take both for `train`.
    says = r"split 'train' is not certain: it has files of train_gen, train_sft; name .*splits: \{"
    with pytest.raises(InputError, match=says):
        read(folder / "data")
    assert read(folder / "data", splits={"train": "train_sft"}) == [
        f"data/train_sft-00000-of-00001-{HASH}.parquet"
    ]


@pytest.mark.parametrize(
    ("names", "split", "stray"),
    [
        (["train/test.jsonl", "train/train.jsonl"], "train", "train/test.jsonl"),
        (["eval/train.jsonl"], "test", "eval/train.jsonl"),
        (["train_test.jsonl", "train.jsonl"], "train", "train_test.jsonl"),
        (["Train.jsonl", "Test.jsonl"], "train", "Test.jsonl"),
    ],
)
def test_a_file_that_may_be_of_another_split_is_refused(tmp_path, names, split, stray):
    folder = lay_out(tmp_path, *names)
    with pytest.raises(InputError, match=rf"{split!r} is not certain: {stray} may be of another"):
        read(folder, split)
    assert read(folder, split, splits={split: names[0]}) == [names[0]]


def test_a_readme_says_which_files_are_of_which_split(tmp_path):
    names = ["parts/good-0.parquet", "parts/bad-0.parquet", "parts/held_out.parquet"]
    folder = lay_out(tmp_path, *names, "other/train.parquet", "other/dev.parquet")
    (folder / "README.md").write_text(CONFIGS)
    assert read(folder) == ["parts/good-0.parquet"]
    assert read(folder, "test") == ["parts/held_out.parquet"]
    assert read(folder, "val", subset="other") == ["other/dev.parquet"]
    with pytest.raises(InputError, match=r"there is no subset 'chta', only chat, other.*'chat'"):
        read(folder, subset="chta")
    (folder / "README.md").write_text(CONFIGS.replace("  default: true\n", ""))
    with pytest.raises(InputError, match=r"it has the subsets chat, other; name one with .*subset"):
        read(folder)
    (folder / "README.md").write_text("---\nconfigs: [1\n---\n")
    with pytest.raises(InputError, match=r"README\.md: its YAML head cannot be read"):
        read(folder)


def test_a_readme_without_splits_and_a_name_with_brackets(tmp_path):
    folder = lay_out(tmp_path / "chats [v2]", "train.jsonl", "test.jsonl")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert read(folder) == ["train.jsonl"]


def test_files_that_the_hub_would_not_read_are_listed(tmp_path):
    folder = lay_out(tmp_path, "chats.jsonl")
    (folder / "train.py").write_text("")
    with pytest.raises(InputError, match=r"finds no split in chats\.jsonl; name the files with"):
        read(folder)
    assert read(folder, splits={"train": "chats"}) == ["chats.jsonl"]


def test_a_single_file_needs_no_other_library(tmp_path):
    lay_out(tmp_path, "a.jsonl")
    code = (
        "import sys; from lit_sft import ChatFile;"
        f"assert len(ChatFile({str(tmp_path / 'a.jsonl')!r}).rows('train')) == 1;"
        "sys.exit('datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("trainset.jsonl", "testset.jsonl"), "testset.jsonl may be of another"),
        (("chats.jsonl", "holdout.jsonl"), "holdout.jsonl may be of another"),
        (("data/train_sft.jsonl", "data/train_gen.jsonl"), "files of train_gen, train_sft"),
        (("train.jsonl", "backup/train.jsonl"), "train.jsonl stands in several folders"),
    ],
)
def test_files_that_may_not_belong_together_are_not_joined(tmp_path, names, says):
    with pytest.raises(InputError, match=rf"'train' is not certain: .*{says}"):
        read(lay_out(tmp_path, *names))


@pytest.mark.parametrize(
    "names",
    [
        ("chats.jsonl", "more.jsonl"),
        ("train-1.jsonl", "train-2.jsonl"),
        ("train_part1.jsonl", "train_part2.jsonl"),
        ("latest.jsonl",),
    ],
)
def test_files_that_belong_together_are_joined(tmp_path, names):
    assert sorted(read(lay_out(tmp_path, *names))) == sorted(names)


def test_a_folder_that_cannot_be_listed_is_a_line(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()

    def refuse(folder: object, pattern: str) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(Path, "rglob", refuse)  # as `/proc` does, which no test has to itself
    with pytest.raises(InputError, match=r"what is in the folder cannot be listed .*Invalid arg"):
        find_splits(tmp_path, None, [])
