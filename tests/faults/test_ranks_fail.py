"""A rank that is killed, fails alone or is told to stop: all end in time, and say it once."""

import os
import signal
import time

import pytest
from forks import wait_for_group
from test_interrupted_runs import run
from test_signals import LIMIT, Run, halt
from test_two_ranks_interrupted import TWO_RANKS, run_two

from lit_sft.run.folder import RunFolder

TORCHRUN = ("--nproc_per_node", "2", "--standalone")


def fail(kind: str, step: int | None = None) -> str:
    arguments = f"{{kind: {kind}, step: {'null' if step is None else step}}}"
    return f"    - {{class_path: killers.FailAlone, init_args: {arguments}}}\n"


@pytest.mark.parametrize(
    ("kind", "step", "status", "launcher"),
    [
        ("memory", 1, 1, ()),
        pytest.param("memory", 1, 1, TORCHRUN, marks=pytest.mark.slow),
        pytest.param("input", None, 2, (), marks=pytest.mark.slow),
        pytest.param("input", 2, 2, (), marks=pytest.mark.slow),
        pytest.param("input", None, 1, TORCHRUN, marks=pytest.mark.slow),
        pytest.param("bug", 1, 1, (), marks=pytest.mark.slow),
    ],
)
def test_what_one_rank_alone_fails_of_is_said_by_the_first(
    tiny_base, tmp_path, kind, step, status, launcher
):
    """`torchrun` ends with 1 whatever its ranks end with, and has a traceback of its own.

    The ranks are started by commands, as nowhere else here.
    """
    how = {"launcher": launcher, "callbacks": fail(kind, step), "from_scratch": True}
    process = Run(tmp_path, tiny_base, *TWO_RANKS, **how)
    ended = process.wait(300)
    _, seconds = process.end()
    printed = process.out.read_text()
    assert ended == status, printed
    assert seconds < LIMIT
    told = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, printed
    assert told[0].startswith("error: rank 1 (")
    assert "only here" in told[0]
    assert launcher or printed.count("Traceback") == int(kind == "bug")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_rank_alone_that_cannot_run_compiled_layers(tiny_base, tmp_path, strategy):
    """All run them uncompiled then; ranks that share the base cannot take another pass."""
    options = ("--trainer.strategy", strategy, "--model.speed.compile", "true")
    callbacks = "    - {class_path: killers.FailInTriedPass}\n"
    outcome = run_two(tmp_path, tiny_base, *options, callbacks=callbacks)
    if strategy == "ddp":
        assert outcome.status == 0, outcome.stderr
        told = "run as they are, which is slower: compiled, a first pass failed (only here)"
        assert (outcome.stdout + outcome.stderr).count(told) == 1
    else:
        assert outcome.status == 2, outcome.stderr
        (told,) = (x for x in outcome.stderr.splitlines() if x.startswith("error: "))
        assert "model.speed.compile: a first pass with compiled layers failed (only here)" in told
        assert told.endswith("set it to false")


@pytest.mark.parametrize(
    ("kind", "said"), [("killed", "another rank of the run is gone"), ("memory", "To need less:")]
)
def test_what_ends_a_rank_in_its_first_compiled_pass_is_not_laid_to_compiling(
    tiny_base, tmp_path, kind, said
):
    options = ("--trainer.strategy", "fsdp2", "--model.speed.compile", "true")
    callbacks = f"    - {{class_path: killers.FailInTriedPass, init_args: {{kind: {kind}}}}}\n"
    outcome = run_two(tmp_path, tiny_base, *options, callbacks=callbacks)
    assert outcome.status not in (0, 2), outcome.stderr
    assert said in outcome.stderr
    assert "speed.compile" not in outcome.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["own", "torchrun"])
@pytest.mark.parametrize(
    ("phase", "victims"),
    [
        ("first_evaluation", [0]),
        ("first_evaluation", [1]),
        ("first_evaluation", [0, 1]),
        ("evaluation", [0]),
        ("evaluation", [1]),
        ("save", [0]),
    ],
)
def test_ranks_that_are_killed_end_all(tiny_base, tmp_path, phase, victims, launcher):
    """While one evaluates or saves, the other waits for it in a sum."""
    rank = victims[0] if len(victims) == 1 else None
    callbacks = halt(phase, rank)
    process = Run(*(tmp_path, tiny_base, *TWO_RANKS), launcher=launcher, callbacks=callbacks)
    marks = [tmp_path / "run" / f".halted-{phase}-{victim}" for victim in victims]
    for mark in marks:
        process.wait_for(mark)
    for mark in marks:
        os.kill(int(mark.read_text()), signal.SIGKILL)
    status, seconds = process.end()
    printed = process.out.read_text()
    assert status != 0
    assert seconds < LIMIT, printed
    assert RunFolder(tmp_path / "run").last_checkpoint.exists() == (phase == "evaluation")
    assert run_two(tmp_path, tiny_base, "--ckpt_path", "auto").status == 0
    assert not list((tmp_path / "run").rglob("*.tmp")), "what was half-written is gone"


@pytest.mark.slow
@pytest.mark.parametrize("to", ["agent", "rank", "group"])
@pytest.mark.parametrize("phase", ["first_evaluation", "window"])
def test_ranks_of_torchrun_end_of_a_signal(tiny_base, tmp_path, phase, to):
    process = Run(tmp_path, tiny_base, *TWO_RANKS, launcher=TORCHRUN, callbacks=halt(phase, 1))
    mark = tmp_path / "run" / f".halted-{phase}-1"
    process.wait_for(mark)
    if to == "group":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        pid = process.pid if to == "agent" else int(mark.read_text())
        os.kill(pid, signal.SIGTERM)
    status, seconds = process.end()
    printed = process.out.read_text()
    assert status != 0
    assert seconds < LIMIT, printed
    assert RunFolder(tmp_path / "run").last_checkpoint.exists() == (phase == "window"), printed
    assert run_two(tmp_path, tiny_base, "--ckpt_path", "auto").status == 0


@pytest.mark.slow
def test_ranks_of_torchrun_do_not_outlive_it(tiny_base, tmp_path):
    process = Run(tmp_path, tiny_base, *TWO_RANKS, launcher=TORCHRUN, callbacks=halt("window"))
    marks = [tmp_path / "run" / f".halted-window-{rank}" for rank in (0, 1)]
    for mark in marks:
        process.wait_for(mark)
    groups = [os.getpgid(int(mark.read_text())) for mark in marks]  # torchrun makes one for each
    os.kill(process.pid, signal.SIGKILL)
    _, seconds = process.end()
    assert seconds < LIMIT
    deadline = time.monotonic() + LIMIT - seconds
    for group in groups:
        wait_for_group(group, deadline - time.monotonic())
    assert RunFolder(tmp_path / "run").last_checkpoint.exists()
    assert run(tmp_path, tiny_base, "--ckpt_path", "last", *TWO_RANKS, of_ranks=True).status == 0
