"""One row a step, on disk at once, whatever order the figures come in."""

import csv
import errno
import logging
import os
import resource
import signal

import pytest

from lit_sft.errors import InputError
from lit_sft.run.metrics_file import MetricsFile, read_metrics

STEPS = range(95, 103)


def read(logger):
    with logger.path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_figures_of_one_step_share_a_row_and_new_columns_are_added(tmp_path):
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"train/loss": 2.0, "epoch": 0.0}, step=1)
    logger.log_metrics({"train/loss": 1.0}, step=2)
    logger.log_metrics({"val/loss": 1.5}, step=2)
    logger.log_metrics({"train/loss": 0.5}, step=3)
    assert read(logger) == [
        {"step": "1", "train/loss": "2", "val/loss": ""},
        {"step": "2", "train/loss": "1", "val/loss": "1.5"},
        {"step": "3", "train/loss": "0.5", "val/loss": ""},
    ]


def test_every_row_is_on_disk_when_it_is_logged(tmp_path):
    logger = MetricsFile(tmp_path)
    for step in range(1, 6):
        logger.log_metrics({"train/loss": 1.0 / step}, step=step)
        assert len(read(logger)) == step


def test_a_resumed_run_writes_the_later_rows_again_and_no_row_twice(tmp_path):
    whole, first = MetricsFile(tmp_path / "whole"), MetricsFile(tmp_path / "killed")
    for logger, last in ((whole, 6), (first, 5)):
        for step in range(1, last):
            logger.log_metrics({"train/loss": 1.0 / step}, step=step)
    second = MetricsFile(tmp_path / "killed")
    second.resume_from(step=2)
    for step in range(3, 6):
        second.log_metrics({"train/loss": 1.0 / step}, step=step)
    assert second.path.read_bytes() == whole.path.read_bytes()


def test_a_half_written_last_line_is_dropped_with_the_rows_behind_it(tmp_path):
    logger = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        logger.log_metrics({"train/loss": 0.5, "val/loss": 0.25}, step=step)
    logger.path.write_bytes(logger.path.read_bytes()[:-3])
    resumed = MetricsFile(tmp_path)
    resumed.resume_from(step=2)
    assert [row["step"] for row in read(resumed)] == ["1", "2"]


def test_a_figure_that_is_new_since_the_run_began_gets_a_column(tmp_path):
    logger = MetricsFile(tmp_path)
    for step in (1, 2):
        logger.log_metrics({"train/loss": 0.5}, step=step)
    resumed = MetricsFile(tmp_path)
    resumed.resume_from(step=2)
    for step in (3, 4):
        resumed.log_metrics({"train/loss": 0.5, "train/loader_wait_seconds": 0.25}, step=step)
    waits = [row["train/loader_wait_seconds"] for row in read(resumed)]
    assert waits == ["", "", "0.25", "0.25"]


def log_all(logger, steps=STEPS):
    for step in steps:
        logger.log_metrics({"train/loss": 1 / step, "train/lr": 0.5}, step=step)


def log_with_room(root, sizes):
    """Log to a folder a size in a process that may write no file of more than so many bytes.

    To a file, the limit is what a disk is that fills up at that very byte. The process ends with 0
    where each of them was told with its path.
    """
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for size in sizes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                log_all(MetricsFile(root / str(size)))
            except OSError as error:
                if error.errno == errno.EFBIG and str(root / str(size)) in str(error):
                    continue
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_disk_that_is_full_at_any_byte_leaves_whole_rows_and_the_same_bytes_after_a_resume(
    tmp_path, caplog
):
    whole = MetricsFile(tmp_path / "whole")
    log_all(whole)
    content = whole.path.read_bytes()
    header = content.index(b"\n") + 1
    sizes = range(content.index(b"\n", header) + 1, len(content))
    assert log_with_room(tmp_path, sizes) == 0
    for size in sizes:
        resumed = MetricsFile(tmp_path / str(size))
        left = resumed.path.read_bytes()
        assert content.startswith(left)
        assert left.endswith(b"\n")
        assert size - len(left) < 30, "a row that has room is written"
        resumed.resume_from(step=95)
        log_all(resumed, STEPS[1:])
        assert resumed.path.read_bytes() == content
    assert caplog.text == ""


def test_a_row_torn_at_any_byte_is_cut_and_told_and_takes_no_other_with_it(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    logger = MetricsFile(tmp_path)
    for step in (1, 2, 12, 123):
        logger.log_metrics({"train/loss": 1 / step}, step=step)
    content = logger.path.read_bytes()
    rows = read_metrics(logger.path)[1]
    for size in range(content.rindex(b"\n", 0, -1) + 2, len(content)):
        logger.path.write_bytes(content[:size])
        caplog.clear()
        resumed = MetricsFile(tmp_path)
        resumed.resume_from(step=123)
        assert read_metrics(resumed.path)[1] == {step: rows[step] for step in (1, 2, 12)}
        assert len(caplog.messages) == 1
        assert f"{logger.path}: left out line 5, which is torn or damaged" in caplog.messages[0]


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"\0" * 12, id="zeros"),
        pytest.param(b"2,0.5,7,8", id="more columns"),
        pytest.param(b"2", id="fewer columns"),
        pytest.param(b"2,0.5.5,1", id="no figure"),
        pytest.param(b"two,0.5,1", id="no step"),
        pytest.param(b"1,0.5,1", id="a step twice"),
        pytest.param(b"2,\xff,1", id="no text"),
        pytest.param(b'2,"0.5,1', id="an open quote"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_damaged_row_in_the_middle_is_left_out_and_told(tmp_path, caplog, damaged):
    caplog.set_level(logging.INFO)
    logger = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        logger.log_metrics({"train/loss": 0.5, "val/loss": 1.0}, step=step)
    header, first, _, third, end = logger.path.read_bytes().split(b"\r\n")
    logger.path.write_bytes(b"\r\n".join([header, first, damaged, third, end]))
    resumed = MetricsFile(tmp_path)
    resumed.resume_from(step=3)
    assert [row["step"] for row in read(resumed)] == ["1", "3"]
    assert len(caplog.messages) == 1
    assert "left out line 3" in caplog.messages[0]
    resumed.log_metrics({"train/loss": 0.25}, step=4)
    assert [row["step"] for row in read(resumed)] == ["1", "3", "4"]


@pytest.mark.parametrize("header", [b"", b"\0\0\0\n", b"ste", b"1,0.5\r\n", b"step,a,a\r\n"])
def test_without_the_names_of_the_columns_it_says_what_to_do(tmp_path, header):
    logger = MetricsFile(tmp_path)
    logger.path.parent.mkdir()
    logger.path.write_bytes(header)
    with pytest.raises(InputError, match=r"first line is damaged.*move it away"):
        logger.resume_from(step=3)
    logger.path.unlink()
    logger.resume_from(step=3)


def test_a_step_of_thousands_of_digits_is_a_damaged_row(tmp_path, capsys):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\n1,2.0\n" + "9" * 5000 + ",3.0\n")
    assert list(read_metrics(path)[1]) == [1]
