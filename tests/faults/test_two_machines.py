"""Two machines, as `torchrun --nnodes 2` makes them of one: each with a cache of its own."""

import json
import os
import re
import shutil
import signal

import pytest
from forks import find_port
from test_interrupted_runs import read_result
from test_signals import LIMIT, Run, halt


def start(folder, base, *arguments, callbacks="", of_second=()) -> list[Run]:
    """Start a rank on each, in folders of their own but for the run's."""
    where = f"--rdzv_endpoint=127.0.0.1:{find_port()}"
    launcher = ("--nnodes=2", "--nproc_per_node=1")
    launcher += ("--rdzv_backend=c10d", "--rdzv_id=x", "--local_addr=127.0.0.1", where)
    for name in ("first", "second"):
        (folder / name / "out.txt").unlink(missing_ok=True)  # of those that were started before
    options = ("--trainer.accelerator", "cpu", "--trainer.default_root_dir", folder / "run")
    return [
        Run(
            *(folder / name, base, *options, *arguments, *more),
            launcher=launcher,
            ranks=1,
            callbacks=callbacks,
        )
        for name, more in (("first", ()), ("second", of_second))
    ]


@pytest.mark.timeout(1800)
def test_one_is_killed_and_both_go_on(tiny_base, tmp_path, whole_of_two):
    """Six steps; the result is that of two ranks on one machine, to the byte."""
    (tmp_path / "run").mkdir()
    nodes = start(tmp_path, tiny_base, callbacks=halt("window"))
    for rank, node in enumerate(nodes):
        node.wait_for(tmp_path / "run" / f".halted-window-{rank}")
    os.killpg(nodes[1].pid, signal.SIGKILL)
    for node in nodes:
        status, seconds = node.end()
        assert status != 0
        assert seconds < LIMIT, node.out.read_text()
    assert [(tmp_path / x / "cache").is_dir() for x in ("first", "second")] == [True, True]
    again = start(tmp_path, tiny_base, "--ckpt_path", "auto")
    assert [node.wait(600) for node in again] == [0, 0], again[0].out.read_text()
    assert read_result(tmp_path) == whole_of_two


def test_another_config_on_the_second_is_named(tiny_base, tmp_path):
    told = _find_error(start(tmp_path, tiny_base, of_second=("--model.learning_rate", "1e-3")))
    assert "model.learning_rate is 0.01 on rank" in told
    assert "0.001 on rank" in told


def test_what_one_fails_of_before_they_have_met_ends_both(tiny_base, tmp_path):
    """The first's rank would wait for the second's for half an hour.

    It tells, as the first rank does; the second may be ended by its agent before it tells too.
    """
    nodes = start(tmp_path, tiny_base, of_second=("--model.base_model", "nowhere/at-all"))
    assert all(node.end()[0] for node in nodes)
    lines = [line for node in nodes for line in node.out.read_text().splitlines()]
    told = [line for line in lines if line.startswith("error: ")]
    assert told
    assert all("model.base_model: no config of 'nowhere/at-all'" in line for line in told)


@pytest.mark.slow
def test_other_rows_and_a_checkpoint_that_only_the_first_has_are_named(tiny_base, tmp_path):
    """Each has a file of rows and a folder of the run of its own."""
    own = ("--trainer.default_root_dir", "run", "--data.val_rows", 2, "--data.task")
    own += ("lit_sft.ChatFile", "--data.task.init_args.path", "rows.jsonl")
    own += ("--data.task.init_args.grader", "exact")
    turns = [{"role": x, "content": "4"} for x in ("user", "assistant")]
    for name, rows in (("first", 40), ("second", 39)):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"messages": turns}) for _ in range(rows)]
        (tmp_path / name / "rows.jsonl").write_text("\n".join(lines))
    assert "data.rows is " in _find_error(start(tmp_path, tiny_base, *own))
    shutil.copy(tmp_path / "first" / "rows.jsonl", tmp_path / "second")
    run = start(tmp_path, tiny_base, *own, "--trainer.max_steps", 1)
    assert [node.wait(600) for node in run] == [0, 0], run[0].out.read_text()
    again = start(tmp_path, tiny_base, *own, "--trainer.max_steps", 2, "--ckpt_path", "auto")
    assert re.search(r"ckpt_path is \w{8} on rank \d .*, none on rank \d", _find_error(again))


def _find_error(nodes: list[Run]) -> str:
    assert all(node.wait(300) for node in nodes)
    printed = "".join(node.out.read_text() for node in nodes)
    (told,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert "the ranks do not see the same run: " in told
    assert "parameters of a LoRA" not in printed, "no weights were loaded"
    return told
