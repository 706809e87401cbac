"""Streamed rows that change: between two runs, and under a run that reads them."""

import gzip
import json
import os
import pickle
import shutil
import threading
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from lit_sft import ChatFile, ChatTask, Mixture, SFTDataModule
from lit_sft.errors import InputError
from lit_sft.tasks.arrow_rows import hash_table
from lit_sft.tasks.json_rows import JsonLines

COUNT = 3000
UNSEEN = 1501
"""A row that is not in the sample, with its neighbour; the tests prove it."""


def make_rows(count: int = COUNT, name: str = "") -> list[dict[str, str]]:
    return [{"question": f"{name}{n}?", "answer": f"{n:04}"} for n in range(count)]


def write(path: Path, rows) -> str:
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        path.write_text(
            "question,answer\n" + "".join(f"{x['question']},{x['answer']}\n" for x in rows)
        )
    elif path.suffix == "":
        shutil.rmtree(path, ignore_errors=True)
        Dataset.from_list(rows).save_to_disk(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_data(base, task, **options) -> SFTDataModule:
    given = {"batch_size": 2, "accumulate_grad_batches": 2, "val_rows": 4, "max_length": 100}
    data = SFTDataModule(task, tokenizer=str(base), streaming=True, **given | options)
    data.setup("fit")
    return data


def change_a_byte(rows) -> None:
    rows[UNSEEN] = rows[UNSEEN] | {"answer": "1503"}


def swap_two(rows) -> None:
    rows[UNSEEN], rows[UNSEEN + 1] = rows[UNSEEN + 1], rows[UNSEEN]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet", ""])
@pytest.mark.parametrize("change", [change_a_byte, swap_two])
def test_a_change_outside_of_the_sample_is_another_run(tiny_base, tmp_path, ending, change):
    rows = make_rows()
    path = tmp_path / f"rows{ending}"
    before = make_data(tiny_base, ChatFile(write(path, rows))).describe_run()
    change(rows)
    after = make_data(tiny_base, ChatFile(write(path, rows))).describe_run()
    assert [name for name in before if before[name] != after[name]] == ["data.contents"]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet", ""])
def test_appended_rows_are_another_run(tiny_base, tmp_path, ending):
    path = tmp_path / f"rows{ending}"
    runs = [
        make_data(tiny_base, ChatFile(write(path, make_rows(count)))).describe_run()
        for count in (40, 41)
    ]
    assert runs[0]["data.contents"] != runs[1]["data.contents"]


def test_a_file_of_one_size_and_one_time_is_read_anew(tmp_path):
    """As two versions of it are that were unpacked from archives with fixed times."""
    rows, path = make_rows(20), tmp_path / "rows.jsonl"
    write(path, rows)
    os.utime(path, ns=(0, 0))
    before = JsonLines(path)
    rows[7] |= {"answer": "0008"}
    write(path, rows)
    os.utime(path, ns=(0, 0))
    assert JsonLines(path).hash_contents() != before.hash_contents()
    with pytest.raises(InputError, match=r"rows\.jsonl: the file has been changed"):
        before[3]


def test_one_run_goes_on_wherever_its_file_lies_and_however_it_is_packed(tiny_base, tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, make_rows(40))
    whole = path.read_bytes()
    (tmp_path / "elsewhere").mkdir()

    def contents(path: Path) -> str:
        return make_data(tiny_base, ChatFile(str(path))).describe_run()["data.contents"]

    before = contents(path)
    os.utime(path, ns=(1, 1))
    assert contents(path) == before
    packed = path.with_name("rows.jsonl.gz")
    packed.write_bytes(gzip.compress(whole))
    assert contents(packed) == before
    path.write_bytes(b"\n" + whole[:-1].replace(b"\n", b"\n \n"))
    assert contents(path) == before, "of blank lines, no row is made"
    path.write_bytes(whole)
    assert contents(path.rename(tmp_path / "elsewhere" / "other.jsonl")) == before


def test_two_files_of_a_mixture_that_were_swapped_are_another_run(tiny_base, tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", make_rows(40, name))

    def contents(first: str, second: str, **options) -> str:
        tasks = {"x": ChatFile(first), "y": ChatFile(second)}
        return make_data(tiny_base, Mixture(tasks, **options)).prepared["train"].stream.contents

    a, b = (str(tmp_path / f"{name}.jsonl") for name in "ab")
    swapped = {contents(a, b), contents(b, a), contents(a, b, seed=1)}
    assert len(swapped) == 3
    assert contents(a, b) in swapped


def test_a_part_of_a_split_and_a_list_of_files_are_known_in_order(tiny_base, tmp_path):
    a, b = (write(tmp_path / f"{name}.jsonl", make_rows(40, name)) for name in "ab")
    tasks = [
        *(ChatFile(files) for files in ([a], [a, b], [b, a])),
        *(ChatFile(a, splits={"train": part}) for part in ("train[:30]", "train[10:]")),
    ]
    contents = [make_data(tiny_base, task).prepared["train"].stream.contents for task in tasks]
    assert None not in contents
    assert len(set(contents)) == len(tasks)


def test_a_table_has_one_hash_however_it_is_laid_out(tmp_path):
    texts = [None if n % 5 == 0 else "é" * (n % 7) for n in range(20_001)]
    rows = [
        {
            "turns": [{"role": "user", "weight": None if n % 3 else n, "content": text}] * (n % 3),
            "tags": None if n % 4 == 0 else [text],
            "score": n / 3,
            "nothing": None,
        }
        for n, text in enumerate(texts)
    ]
    table = Dataset.from_list(rows)
    hashes = {hash_table(table), hash_table(table.select(list(range(len(rows)))))}
    for size in (100, 8191, 50_000):
        table.to_parquet(path := tmp_path / f"{size}.parquet", batch_size=size)
        hashes.add(hash_table(Dataset.from_parquet(str(path), cache_dir=str(tmp_path))))
    table.save_to_disk(tmp_path / "saved", num_shards=3)
    hashes.add(hash_table(load_from_disk(tmp_path / "saved")))
    assert len(hashes) == 1
    for key, value in (("turns", []), ("tags", ["", ""]), ("score", 0.5), ("nothing", "x")):
        other = [*rows[:19_999], rows[19_999] | {key: value}, *rows[20_000:]]
        hashes.add(hash_table(Dataset.from_list(other)))
    swapped = [x | {"tags": [t[0] or None] if (t := x["tags"]) else t} for x in rows]
    hashes.add(hash_table(Dataset.from_list(swapped)))  # no text for an empty one
    assert len(hashes) == 6


class Own(ChatTask):
    """A task that hands out what it is given."""

    def __init__(self, rows) -> None:
        self.given = rows

    def rows(self, split):
        return self.given if split == "train" else None

    def messages(self, row):
        return [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]


class OneByOne:
    """Rows that are made when they are asked for."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, str]:
        if not 0 <= index < 40:
            raise IndexError(index)
        return make_rows(40)[index]


def test_rows_of_a_task_of_ones_own(tiny_base, capsys):
    rows = make_rows(40)
    contents = {
        make_data(tiny_base, Own(given)).prepared["train"].stream.contents
        for given in (rows, tuple(rows), rows[::-1], Dataset.from_list(rows))
    }
    assert len(contents) == 3
    assert "compared" not in capsys.readouterr().out
    for unknown in (OneByOne(), [row | {"extra": object()} for row in rows]):
        data = make_data(tiny_base, Own(unknown))
        assert "data.contents" not in data.describe_run()
        assert "the figures of 36, which alone are compared when" in capsys.readouterr().out


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.read_bytes().index(b"0007"))
        file.write(b"0008")  # at once: a worker may be reading


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"question": "more?", "answer": "yes"}\n')


def replace(path: Path) -> None:
    write(other := path.with_name("other.jsonl"), make_rows()[::-1])
    other.replace(path)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("change", [overwrite, cut, append, replace, Path.unlink])
def test_a_file_that_changes_under_a_run_ends_it(tiny_base, tmp_path, change, num_workers):
    path = tmp_path / "rows.jsonl"
    write(path, make_rows())
    data = make_data(tiny_base, ChatFile(str(path)), num_workers=num_workers)
    windows = iter(data.train_dataloader())
    next(windows)
    change(path)
    says = "cannot be read" if change == Path.unlink else "the file has been changed"
    with pytest.raises(InputError, match=rf"^{path}: {says}[^\n]*$"):
        list(windows)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_is_touched_or_written_anew_under_a_run_is_no_matter(
    tiny_base, tmp_path, num_workers
):
    path = tmp_path / "rows.jsonl"
    write(path, make_rows(100))
    data = make_data(tiny_base, ChatFile(str(path)), num_workers=num_workers)
    whole = [[x["input_ids"].tolist() for x in window] for window in data.train_dataloader()]
    seen = []
    for number, window in enumerate(data.train_dataloader()):
        seen.append([x["input_ids"].tolist() for x in window])
        if number == 2:
            os.utime(path, ns=(1, 1))
        if number == 9:
            anew = tmp_path / "anew.jsonl"
            anew.write_bytes(b"\n\n" + path.read_bytes())  # where rows start is another place
            anew.replace(path)  # at once: a worker may be reading
    assert seen == whole


def test_a_saved_table_that_is_overwritten_under_a_run_ends_it(tiny_base, tmp_path):
    for name, rows in (("a", make_rows(40)), ("b", make_rows(40)[::-1])):
        write(tmp_path / name, rows)
    (mine,), (other,) = ([*(tmp_path / name).glob("*.arrow")] for name in "ab")
    data = make_data(tiny_base, ChatFile(str(tmp_path / "a")))
    os.utime(mine, ns=(1, 1))
    assert len(list(data.train_dataloader())) == 9
    mine.write_bytes(other.read_bytes())
    with pytest.raises(InputError, match=rf"^{mine}: the file has been changed"):
        list(data.train_dataloader())


def test_a_worker_that_opens_the_file_itself_must_find_the_rows_of_its_run(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, make_rows(40))
    sent = pickle.dumps(JsonLines(path))
    assert pickle.loads(sent)[3] == make_rows(40)[3]
    append(path)
    with pytest.raises(InputError, match="the file has been changed"):
        pickle.loads(sent)[3]


def test_a_file_that_is_being_written_is_refused(tmp_path):
    path, done = tmp_path / "rows.jsonl", threading.Event()
    write(path, make_rows(100_000))

    def keep_writing() -> None:
        while not done.is_set():
            append(path)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        with pytest.raises(InputError, match=r"rows\.jsonl: the file is written while it is read"):
            JsonLines(path)
    finally:
        done.set()
        writer.join()
