"""A data set of one's own through the command line: no Python, a few lines of YAML."""

import csv
import json

import pytest
from command import lit_sft_in_process

from lit_sft.data.splits import take_sample
from lit_sft.data.windows import WindowSampler

CHATS = [
    {
        "id": n,
        "conversations": [
            {"from": "human", "value": f"{n} + 1?"},
            {"from": "gpt", "value": f"{n + 1}"},
            {"from": "human", "value": "and 1 more?"},
            {"from": "gpt", "value": f"{n + 2}"},
        ],
    }
    for n in range(24)
]
CONFIG = """
model: {base_model: lit_sft/tiny}
data:
  task: {class_path: lit_sft.ChatFile, init_args: {path: my.jsonl, train_on: last}}
  val_rows: 4
trainer: {default_root_dir: run, max_steps: 1, accelerator: cpu}
"""


def test_a_file_and_five_lines_of_yaml(tmp_path):
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    (tmp_path / "config.yaml").write_text(CONFIG)
    outcome = lit_sft_in_process("fit", "--config", "config.yaml", cwd=tmp_path)
    assert outcome.status == 0, outcome.stderr
    said = "my.jsonl: read as sharegpt (conversations); not read: id (24)\n"
    assert outcome.stdout.count(said) == 1
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert "my.jsonl" in (tmp_path / "run" / "adapter" / "README.md").read_text()
    # A single file is all train: there is nothing to test on.
    tested = lit_sft_in_process("test", "--config", "config.yaml", cwd=tmp_path)
    assert tested.status == 2
    assert "my.jsonl: no split is called 'test'" in tested.stderr


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"question": "q", "answer": "a"}\n{"question"', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"question": "q", "answer": null}\n', "train row 0: there is no answer"),
        ("a.jsonl", '{"text": "q"}\n', "the row has the columns 'text': plain text without turns"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}\n',
         "train row 0: the conversation has no user turn"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n',
         "train row 0: there is no answer: the conversation has no assistant turn"),
        ("a.csv", "question,answer\nq,a,b\n", "a.csv, line 2: the row has 3 fields"),
        ("a.parquet", "", "a.parquet: cannot be read as Parquet"),
        ("b.jsonl", "", "there is no such file or folder"),
    ],
)  # fmt: skip
def test_a_broken_file_ends_in_one_line(tmp_path, name, content, says):
    (tmp_path / name.replace("b", "other")).write_text(content)
    outcome = lit_sft_in_process(
        *("fit", "--model.base_model=lit_sft/tiny", "--data.task=lit_sft.ChatFile"),
        *(f"--data.task.path={name}", "--data.val_rows=0", "--trainer.default_root_dir=run"),
        cwd=tmp_path,
    )
    assert outcome.status == 2, outcome
    assert says in " ".join(outcome.stderr.split())
    assert "Traceback" not in outcome.stderr
    assert "loading " not in outcome.stdout


def test_options_of_a_file_on_the_command_line(tmp_path):
    (tmp_path / "chats").mkdir()
    for split in ("train_sft", "test_sft"):
        rows = "".join(f"q{n},a{n},s{n}\n" for n in range(6))
        (tmp_path / "chats" / f"{split}-00000-of-00001.csv").write_text("ask,say,sys\n" + rows)
    task = ("--data.task=lit_sft.ChatFile", "--data.task.path=chats")
    splits = ("--data.task.splits.train=train_sft", "--data.task.splits.test=test_sft")
    columns = [f"--data.task.columns.{a}={b}" for a, b in (("prompt", "ask"), ("answer", "say"))]
    outcome = lit_sft_in_process(
        *("test", "--model.base_model=lit_sft/tiny", *task, *splits, *columns),
        *("--data.task.columns.system=sys", "--trainer.accelerator=cpu"),
        cwd=tmp_path,
    )
    assert outcome.status == 0, outcome.stderr
    assert "chats: read as task.columns (ask, say)\n" in outcome.stdout


def stream(folder, rows, *arguments):
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lit_sft_in_process(
        *("fit", "--model.base_model=lit_sft/tiny", "--data.task=lit_sft.ChatFile"),
        *("--data.task.path=my.jsonl", "--data.val_rows=0", "--data.streaming=true"),
        *("--data.batch_size=1", "--data.accumulate_grad_batches=1", "--data.max_length=64"),
        *("--trainer.default_root_dir=run", "--trainer.accelerator=cpu", *arguments),
        cwd=folder,
    )


def test_a_step_whose_rows_are_all_too_long_changes_nothing(tmp_path):
    rows = [{"question": "q", "answer": "x" * 600 if n in (0, 3) else "a"} for n in range(5)]
    with pytest.warns(UserWarning, match="is longer than data.max_length: left out"):
        outcome = stream(tmp_path, rows)
    assert outcome.status == 0, outcome.stderr
    with (tmp_path / "run" / "logs" / "metrics.csv").open(newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert (len(losses), losses.count(0.0)) == (3, 0)


def test_a_row_that_breaks_a_stream_ends_in_one_line(tmp_path):
    rows = [{"question": f"{n}", "answer": "a"} for n in range(2100)]
    looked_at = [row["question"] for row in take_sample(rows)]
    order = [window[0] for window in WindowSampler(2100, 1, seed=0)]
    broken = next(number for number in order if f"{number}" not in looked_at)
    rows[broken]["answer"] = None
    outcome = stream(tmp_path, rows, "--data.num_workers=1")
    assert outcome.status == 2, outcome
    assert f"train row {broken}: there is no answer" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_prompts_are_enough_to_predict_from(tmp_path):
    """A question alone, one with an empty answer, and a conversation that waits for one."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for name, rows in {
        "pairs": [{"question": "q"}, {"question": "r", "answer": ""}],
        "turns": [{"messages": [*turns, turns[0]]}],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        outcome = lit_sft_in_process(
            *("predict", "--model.base_model", "lit_sft/tiny", "--data.task", "lit_sft.ChatFile"),
            *("--data.task.path", f"{name}.jsonl", "--data.task.splits", "{test: train}"),
            *("--model.max_new_tokens", 4, "--trainer.default_root_dir", "run"),
            *("--trainer.accelerator", "cpu"),
            cwd=tmp_path,
        )
        assert outcome.status == 0, outcome.stderr
        lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
        asked = [json.loads(line)["prompt"] for line in lines]
        assert [messages[-1]["role"] for messages in asked] == ["user"] * len(rows)
        assert all(json.loads(line)["answer"] for line in lines)
        assert all(json.loads(line)["reference"] is None for line in lines)
        assert not (tmp_path / "run" / "predictions.jsonl.part").exists()
