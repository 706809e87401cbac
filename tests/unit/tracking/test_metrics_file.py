"""One row a step, on disk at once, whatever order the figures come in."""

import csv

from lit_sft.tracking.metrics_file import MetricsFile


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
