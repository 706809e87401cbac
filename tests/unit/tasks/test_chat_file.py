"""A chat data set as a file, a folder, or a data set of `datasets`."""

import gzip
import json
import time
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from lit_sft import ChatFile
from lit_sft.data.splits import read_conversations, read_split
from lit_sft.errors import InputError
from lit_sft.tasks.arrow_rows import load_hub
from lit_sft.tasks.data_files import find_splits

ROWS = [{"question": f"{n}?", "answer": f"{n}"} for n in range(5)]


def as_jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_all_kinds(folder: Path) -> list[Path]:
    csv = b"question,answer\n" + b"".join(b'%d?,"%d"\r\n' % (n, n) for n in range(5))
    parquet = folder / "e.parquet"
    Dataset.from_list(ROWS).to_parquet(parquet)
    return [
        write(folder / "a.jsonl", as_jsonl(ROWS)),
        write(folder / "b.json", json.dumps(ROWS, indent=1).encode()),
        write(folder / "lines.json", as_jsonl(ROWS)),
        write(folder / "c.csv", b"\xef\xbb\xbf" + csv),
        write(folder / "d.tsv", csv.replace(b",", b"\t")),
        parquet,
    ]


def read(task: ChatFile, split="train"):
    return [messages for _, messages in read_conversations(task, read_split(task, split, 0))]


def test_every_kind_of_file_reads_alike(tmp_path):
    expected = [
        [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        for row in ROWS
    ]
    for path in write_all_kinds(tmp_path):
        task = ChatFile(str(path))
        assert read(task) == expected, path
        assert task.rows("val") is None
        assert [task.rows("train")[i]["answer"] for i in (4, 0)] == ["4", "0"]
        assert task.describe() == f"{path}: read as question_answer (question, answer)"


def test_what_is_read_and_what_is_not_is_said(tmp_path):
    rows = [{"instruction": "a", "input": "b", "output": "c", "id": 1, "from": "x", "sys": "s"}]
    task = ChatFile(str(write(tmp_path / "a.jsonl", as_jsonl(rows))), columns={"system": "sys"})
    assert task.describe() == ""
    read(task)
    assert task.describe().endswith("(instruction, output); not read: from (1), id (1)")


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": TURNS, "history": [["q", "a"]]}, "earlier turns"),
        ({"question": "q", "answer": "a", "images": ["1.png"]}, "this trains on text"),
    ],
)
def test_a_column_that_says_something_is_refused_where_it_is_not_read(tmp_path, row, says):
    """In any row, whether the first has it or not."""
    unsaid = {x: row[x] for x in row if x not in ("history", "images")}
    empty = {**unsaid, **dict.fromkeys(row.keys() - unsaid.keys(), "[]")}
    path = str(write(tmp_path / "a.jsonl", as_jsonl([unsaid, empty, row])))
    with pytest.raises(InputError, match=rf"^train row 2: column .*{says}"):
        read(ChatFile(path))
    if "messages" in row:
        assert read(ChatFile(path, columns={"messages": "messages"})) == [TURNS] * 3


def test_system_prompts(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    own = [{"role": "system", "content": "own"}, *turns]
    rows = [{"messages": turns, "sys": None}, {"messages": own, "sys": ""},
            {"messages": turns, "sys": "x"}]  # fmt: skip
    path = str(write(tmp_path / "a.jsonl", as_jsonl(rows)))
    task = ChatFile(path, system_prompt="default", columns={"system": "sys"})
    assert [messages[0]["content"] for messages in read(task)] == ["default", "own", "x"]
    write(tmp_path / "both.jsonl", as_jsonl([{"messages": own, "system": "x"}]))
    with pytest.raises(InputError, match="'system' holds a system prompt, and the first turn is"):
        read(ChatFile(str(tmp_path / "both.jsonl")))
    with pytest.raises(InputError, match=r"no column 'nothing'.*; there are messages, sys"):
        ChatFile(path, columns={"system": "nothing"}).rows("train")


def test_the_last_answer_alone(tmp_path):
    turns = [{"from": who, "value": "x"} for who in ("human", "gpt", "human", "gpt")]
    path = str(write(tmp_path / "a.jsonl", as_jsonl([{"conversations": turns}])))
    [messages] = read(ChatFile(path, train_on="last"))
    assert [message.get("weight") for message in messages] == [None, 0, None, None]
    [messages] = read(ChatFile(path))
    assert not any("weight" in message for message in messages)


def test_a_folder_with_splits(tmp_path):
    for name, rows in (("train-1", ROWS[1:2]), ("train-0", ROWS[:1]), ("dev", ROWS[2:])):
        write(tmp_path / f"{name}.jsonl", as_jsonl(rows))
    Dataset.from_list(ROWS[3:]).to_parquet(tmp_path / "test.parquet")
    write(tmp_path / "dataset_infos.json", b"{}")
    write(tmp_path / ".cache" / "train.jsonl", b"nonsense")
    task = ChatFile(str(tmp_path))
    splits = {
        split: [row["answer"] for row in task.rows(split)] for split in ("train", "val", "test")
    }
    assert splits == {"train": ["0", "1"], "val": ["2", "3", "4"], "test": ["3", "4"]}


def test_a_subset_of_a_folder_is_the_folder_inside_it(tmp_path):
    for number, subset in enumerate(("main", "other")):
        (tmp_path / subset).mkdir()
        line = json.dumps({"question": f"{number}?", "answer": "a"})
        (tmp_path / subset / "train.jsonl").write_text(line + "\n")
    assert [m[0]["content"] for m in read(ChatFile(str(tmp_path), subset="other"))] == ["1?"]


def test_files_that_name_no_split_are_all_train_unless_they_are_asked_for(tmp_path):
    write(tmp_path / "a.jsonl", as_jsonl(ROWS[:2]))
    write(tmp_path / "b.jsonl", as_jsonl(ROWS[2:]))
    assert len(ChatFile(str(tmp_path)).rows("train")) == 5
    task = ChatFile(str(tmp_path), splits={"train": "b", "test": "a"})
    assert (len(task.rows("train")), len(task.rows("test"))) == (3, 2)


def test_a_split_that_does_not_exist_shows_those_that_do(tmp_path):
    write(tmp_path / "train.jsonl", as_jsonl(ROWS))
    write(tmp_path / "dev.jsonl", as_jsonl(ROWS))
    says = r"no split is called 'test' or .*, only train, validation; name .*`splits: \{test: …\}`"
    with pytest.raises(InputError, match=says):
        ChatFile(str(tmp_path)).rows("test")
    with pytest.raises(InputError, match="no split is called 'valid', only train, validation"):
        ChatFile(str(tmp_path), splits={"val": "valid"}).rows("val")
    with pytest.raises(InputError, match=r"'tset' is not train, val or test\. Did you mean 'test'"):
        ChatFile(str(tmp_path), splits={"tset": "dev"})


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nothing", "there is no such file or folder"), ("a.txt", "expected one of .jsonl"),
     ("empty", "holds no data file; expected .jsonl"), ("both", "several kinds (.csv, .jsonl)")],
)  # fmt: skip
def test_paths_that_hold_no_data(tmp_path, name, reason):
    write(tmp_path / "a.txt", b"")
    write(tmp_path / "both" / "train.csv", b"question,answer\nq,a\n")
    write(tmp_path / "both" / "train.jsonl", as_jsonl(ROWS))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as error:
        ChatFile(str(tmp_path / name)).rows("train")
    assert reason in str(error.value)
    with pytest.raises(InputError, match="there is no such file"):
        ChatFile("some/chats.jsonl").rows("train")


def test_mixed_formats_name_the_first_row_that_differs(tmp_path):
    rows = [*ROWS, {"prompt": "q", "completion": "a"}, {"messages": []}]
    task = ChatFile(str(write(tmp_path / "a.jsonl", as_jsonl(rows))))
    says = r"^train row 5: there is no column 'question', which question_answer needs; the columns "
    with pytest.raises(InputError, match=says + "are prompt, completion. All rows must have one"):
        read(task)


def test_a_line_of_50_mb_is_read_in_linear_time(tmp_path):
    path = write(tmp_path / "a.jsonl", as_jsonl([{"question": "q", "answer": "x" * 50_000_000}]))
    begin = time.process_time()
    json.loads(path.read_text())
    parsed_once = time.process_time() - begin
    begin = time.process_time()
    [[_, said]] = read(ChatFile(str(path)))
    assert len(said["content"]) == 50_000_000
    assert time.process_time() - begin < 20 * parsed_once, "CPU seconds, of the same machine"


def test_the_client_of_the_hub_reads_splits_and_fails_cleanly(tmp_path):
    """Its path may be a folder too, which goes the same way but for the network."""
    for name in ("train_sft-00000-of-00002", "train_sft-00001-of-00002", "test_sft-00000-of-00001"):
        path = tmp_path / "set" / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(ROWS).to_parquet(path)
    found = load_hub(str(tmp_path / "set"), None)
    assert {name: len(rows) for name, rows in found.items()} == {"train_sft": 10, "test_sft": 5}
    local = find_splits(tmp_path / "set", None, ())
    assert {name: len(files) for name, files in local.files.items()} == {
        "train_sft": 2, "test_sft": 1,
    }  # fmt: skip
    says = r"'nobody/nothing' could not be loaded from the Hub \(.*check the id and the network"
    with pytest.raises(InputError, match=says):
        ChatFile("nobody/nothing").rows("train")


def test_a_file_grades_by_the_last_turn_of_a_row(tmp_path):
    turns = [("user", "1 + 1?"), ("assistant", "2"), ("user", "and 1?"), ("assistant", "so 3")]
    chat = {"messages": [{"role": role, "content": text} for role, text in turns]}
    path = write(tmp_path / "a.jsonl", as_jsonl([chat, {"messages": chat["messages"][:3]}]))
    task = ChatFile(str(path), grader="number")
    whole, open_ended = task.rows("train")
    assert [task.grade(whole, text) for text in ("It is 3.", "2", "?")] == [True, False, None]
    assert (task.grader, task.grader_name()) == ("number", "number")
    with pytest.raises(InputError, match="there is no answer to grade by"):
        task.grade(open_ended, "3")
    assert ChatFile(str(path), grader={"regex": "[0-9]"}).grader_name() == "regex: [0-9]"
    with pytest.raises(InputError, match=r"there is no grader; name a task that does in"):
        ChatFile(str(path)).grade(whole, "3")
    assert ChatFile(str(path)).grader_name() is None


class Shouted(ChatFile):
    """Graded by a method of its own."""

    def grade(self, row, text):
        return text == row["answer"].upper()


def test_a_class_of_one_s_own_grades_as_it_says(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"prompt": "a?", "answer": "b"}) + "\n")
    task = Shouted(str(path), columns={"prompt": "prompt", "answer": "answer"})
    assert task.grader_name() == "Shouted"
    assert task.grade({"prompt": "a?", "answer": "b"}, "B")


@pytest.mark.parametrize(
    ("rows", "held_out"), [(2, 1), (9, 1), (150, 15), (2560, 256), (9000, 256)]
)
def test_val_rows_auto_takes_a_tenth_at_most_256(tmp_path, rows, held_out):
    many = [{"question": f"{n}?", "answer": f"{n}"} for n in range(rows)]
    task = ChatFile(str(write(tmp_path / "a.jsonl", as_jsonl(many))))
    train, val = (read_split(task, split, "auto") for split in ("train", "val"))
    assert (len(train), len(val)) == (rows - held_out, held_out)
    assert not {name for name, _ in train} & {name for name, _ in val}
    assert list(val) == list(read_split(task, "val", held_out))


def test_val_rows_auto_leaves_a_row_to_train_on(tmp_path):
    task = ChatFile(str(write(tmp_path / "a.jsonl", as_jsonl(ROWS[:1]))))
    with pytest.raises(InputError, match=r"data\.val_rows=auto leaves nothing to train on"):
        read_split(task, "train", "auto")


def test_a_tenth_of_a_packed_file_in_a_folder_and_of_a_table(tmp_path):
    many = [{"question": f"{n}?", "answer": f"{n}"} for n in range(50)]
    write(tmp_path / "data" / "train.jsonl.gz", gzip.compress(as_jsonl(many)))
    DatasetDict({"train": Dataset.from_list(many)}).save_to_disk(tmp_path / "saved")  # as a Hub id
    splits = {"train": "train[:10%]", "test": "train[90%:]"}
    for name in ("data", "saved"):
        task = ChatFile(str(tmp_path / name), splits=splits)
        assert [row["answer"] for row in task.rows("train")] == ["0", "1", "2", "3", "4"]
        assert [row["answer"] for row in task.rows("test")] == ["45", "46", "47", "48", "49"]
