"""TensorBoard by its short name: figures and sample answers, in the run's folder."""

import struct
from pathlib import Path

import pytest
from command import lit_sft_in_process
from small_run import fit_options

from lit_sft.run.tensorboard_run import format_table

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="no tensorboardX")


def read_values(folder):
    """Everything that is in the event files of a folder, by its tag."""
    found = {}
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
    return found


def test_a_run_is_in_tensorboard(tmp_path):
    options = fit_options(Path("lit_sft/tiny"), tmp_path / "run", report=True)
    own = ["--trainer.logger", "TensorBoardLogger", "--trainer.callbacks", "lit_sft.GenerationEval"]
    outcome = lit_sft_in_process("fit", *options, *own, "--model.max_new_tokens=8")
    assert outcome.status == 0, outcome.stderr
    values = read_values(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in values["train/loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in values["val/exact_match"]] == [0, 4]
    (_, first), (_, last) = values["val/generations/text_summary"]
    for table in (first, last):
        text = table.tensor.string_val[0].decode()
        assert text.startswith("| row | question | reference | output | verdict | finished |\n")
        assert text.count("\n") == 5  # with the line below the heading, and four answers
    assert b"report.html" in values["report/text_summary"][0][1].tensor.string_val[0]


def test_what_a_cell_says_is_text():
    text = format_table(["a"], [["x | <b>*y*</b>\n[z](http://h)"], ["q" * 5000]])
    lines = text.splitlines()
    assert lines[:2] == ["| a |", "| --- |"]
    assert lines[2] == r"| x \| &lt;b&gt;\*y\*&lt;/b&gt;<br>\[z\](http://h) |"
    assert len(lines[3]) < 1100
