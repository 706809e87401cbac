"""Files with a grader each, from training to a test that says what has changed."""

import csv
import json
import re

import pytest
from command import lit_sft_in_process

from lit_sft import WordProblems
from lit_sft.run.checkpoint_io import AtomicCheckpointIO

CONFIG = """
model: {base_model: lit_sft/tiny, max_new_tokens: 64, learning_rate: 2.0e-3}
data:
  task:
    class_path: lit_sft.Mixture
    init_args:
      tasks:
        maths: {class_path: lit_sft.ChatFile, init_args: {path: data, grader: number}}
        prose: {class_path: lit_sft.ChatFile, init_args: {path: data, grader: f1}}
  max_length: 256
trainer:
  default_root_dir: run
  max_steps: 4
  accelerator: cpu
  precision: 32-true
  limit_val_batches: 0
  callbacks:
    - {class_path: lit_sft.GenerationEval, init_args: {every_n_steps: 2}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/f1/prose, mode: max, every_n_train_steps: 2, filename: "best-{step}"}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What is trained, with the answers of the base beside it."""
    folder = tmp_path_factory.mktemp("graded")
    (folder / "data").mkdir()
    task = WordProblems(train_rows=60, test_rows=12)
    for split in ("train", "test"):
        chats = [{"messages": task.messages(row)} for row in task.rows(split)]
        lines = "".join(json.dumps(chat) + "\n" for chat in chats)
        (folder / "data" / f"{split}.jsonl").write_text(lines)
    (folder / "config.yaml").write_text(CONFIG)
    run(folder, "fit")
    run(folder, "predict", "--trainer.default_root_dir", "base")
    return folder


def run(folder, command, *arguments) -> str:
    outcome = lit_sft_in_process(command, "--config", "config.yaml", *arguments, cwd=folder)
    assert outcome.status == 0, outcome.stderr
    return outcome.stdout


def test_the_best_checkpoint_is_that_of_a_score_of_a_source(folder):
    with (folder / "run" / "logs" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/f1/prose"]]
    assert [row["step"] for row in rows] == ["0", "2", "4"]
    for row in rows:
        assert row["val/f1"] == row["val/f1/prose"]
        assert row["val/exact_match"] == row["val/exact_match/maths"]
    best = max(rows[1:], key=lambda row: float(row["val/f1/prose"]))
    (kept,) = (folder / "run" / "checkpoints").glob("best-*.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(kept)["global_step"] == int(best["step"])


def test_a_test_says_by_source_and_grader_what_is_right_and_what_has_changed(folder):
    options = ("--ckpt_path", "last", "--data.compare_with", "base/predictions.jsonl")
    said = run(folder, "test", *options)
    record = json.loads((folder / "run" / "measured" / "test-step-4.json").read_text())
    figures = record["figures"]
    lines = [re.split(r" {2,}", line) for line in said.splitlines()]
    table = lines[lines.index(["source", "grader", "rows", "figure", "value", "95 %", "no answer",
                               "unfinished"]) + 1 :][:4]  # fmt: skip
    expected = [
        ["maths", "number", "12", "exact_match", figures["exact_match/maths"]],
        ["prose", "f1", "12", "f1", figures["f1/prose"]],
        ["all", "", "12", "exact_match", figures["exact_match"]],
        ["all", "", "12", "f1", figures["f1"]],
    ]
    for line, (source, grader, rows, name, value) in zip(table, expected, strict=True):
        assert line[:-4] == [*filter(None, (source, grader, rows, name))]
        assert float(line[-4]) == pytest.approx(value, abs=5e-5)
        low, high = record[f"{name}_95/{source}" if grader else f"{name}_95"]
        assert line[-3] == f"{low:.4f} to {high:.4f}"
    assert figures["f1"] > 0.2  # also of one that is trained for four steps
    assert record["data"]["grader"] == "number, f1"
    told = re.findall(r"against base/predictions.jsonl, (\w+): won (\d+), lost (\d+), (.*)", said)
    assert [source for source, *_ in told] == ["maths", "prose", "all"]
    won, lost = ([int(x[column]) for x in told] for column in (1, 2))
    assert (won[0] + won[1], lost[0] + lost[1]) == (won[2], lost[2])
    assert won[1] > lost[1]  # the base ends few answers
    assert (figures["won"], figures["lost"], figures["compared_rows"]) == (won[2], lost[2], 24)
    assert f"McNemar's exact p = {figures['mcnemar_p']:.3g}" in told[2][3]
    assert f"alike {24 - won[2] - lost[2]} of 24 rows; McNemar's exact p = " in told[2][3]
    root = ("--trainer.default_root_dir", "trained")
    # What it is compared with is graded anew, and the same answers differ nowhere.
    run(folder, "predict", "--ckpt_path", "run/checkpoints/last.ckpt", *root)
    options = ("--ckpt_path", "last", "--data.compare_with", "trained/predictions.jsonl")
    said = run(folder, "test", *options)
    assert "all: won 0, lost 0, alike 24 of 24 rows; McNemar's exact p = 1" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data.compare_with", "nowhere"], "data.compare_with: cannot read nowhere"),
        (
            ["--data.compare_with", "base/predictions.jsonl", "--trainer.callbacks", "[]"],
            "data.compare_with compares answers, which GenerationEval generates",
        ),
    ],
)
def test_what_cannot_be_compared_is_a_line(folder, arguments, says):
    outcome = lit_sft_in_process("test", "--config", "config.yaml", *arguments, cwd=folder)
    assert outcome.status == 2
    (line,) = (x for x in outcome.stderr.splitlines() if x.startswith("error: "))
    assert says in line
    assert "loading " not in outcome.stdout


def test_another_grader_is_another_run(folder):
    (folder / "other.yaml").write_text(CONFIG.replace("grader: number", "grader: exact"))
    arguments = ("fit", "--config", "other.yaml", "--ckpt_path", "last")
    outcome = lit_sft_in_process(*arguments, cwd=folder)
    assert outcome.status == 2
    assert "data.grader: was number, f1, is now exact, f1" in outcome.stderr
