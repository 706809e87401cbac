"""A signal at any time: the right exit status, a line of what it found, and no process left."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from command import ROOT
from forks import Forked, is_group_alive, wait_for_group
from test_interrupted_runs import make_config, read_result, run

from lit_sft.run.folder import RunFolder
from lit_sft.signals import Signals

TORCHRUN = "torch.distributed.run"
"""Its module."""
LIMIT = 30.0
"""Seconds that a scheduler leaves between SIGTERM and SIGKILL."""


class Run:
    """A command in a process group of its own, with what it prints as it comes.

    It is forked from a process that has imported all, and so are its ranks, unless it is to be
    `from_scratch`. At a `terminal`, that is what it reads and prints to. A `launcher` is the words
    of torchrun, which starts `ranks` here.
    """

    def __init__(
        self,
        folder: Path,
        base: Path,
        *arguments: object,
        callbacks: str = "",
        launcher: Sequence[str] = (),
        ranks: int = 2,
        from_scratch: bool = False,
        terminal: Path | None = None,
        ignored: tuple[int, ...] = (),
    ):
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(make_config(base, callbacks))
        self.out = folder / "out.txt"
        self.out.touch()
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}",
            "LIT_SFT_CACHE": str(folder / "cache"),
        }
        words = ["fit", "--config", "config.yaml", *map(str, arguments)]
        if from_scratch or torch.cuda.is_available():
            of_torchrun = ["-m", TORCHRUN, *launcher] if launcher else []
            command = [sys.executable, "-u", *of_torchrun, "-m", "lit_sft", *words]
            with (terminal or self.out).open("r+") as out:
                self.process = subprocess.Popen(
                    command, cwd=folder, env=env, stdin=out, stdout=out, stderr=out,
                    start_new_session=True, preexec_fn=partial(ignore, ignored),
                )  # fmt: skip
        else:
            files = [terminal] * 3 if terminal else [Path(os.devnull), self.out, self.out]
            more = {"others": len({"ddp", "fsdp2"} & set(arguments)), "program": ""}
            if launcher:
                words = [*launcher, "-m", "lit_sft", *words]
                more = {"others": ranks, "program": f"from {TORCHRUN} import main; main()"}
            more |= {"is_leader": True, "ignored": ignored}
            self.process = Forked(words, folder, env, files, **more)
        self.pid, self.poll = self.process.pid, self.process.poll
        self.send_signal = self.process.send_signal

    def wait(self, timeout: float) -> int:
        return self.process.wait(timeout)

    def wait_for(self, path: Path, timeout: float = 120.0) -> None:
        deadline = time.monotonic() + timeout
        while not path.exists():
            assert self.poll() is None, self.out.read_text()
            assert time.monotonic() < deadline, self.out.read_text()
            time.sleep(0.01)

    def end(self) -> tuple[int, float]:
        """Its exit status, and the seconds until the last process of the group was gone."""
        started = time.monotonic()
        status = self.process.wait(2 * LIMIT)
        wait_for_group(self.pid, started + 2 * LIMIT - time.monotonic())
        return status, time.monotonic() - started


def ignore(numbers: tuple[int, ...]) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def halt(phase: str, rank: int | None = None) -> str:
    """A callback that stays in a phase until it is killed, once a folder, and leaves a mark."""
    arguments = f"{{phase: {phase}, rank: {'null' if rank is None else rank}}}"
    return f"    - {{class_path: killers.Halt, init_args: {arguments}}}\n"


@pytest.mark.parametrize(
    ("phase", "number", "says"),
    [
        ("setup", signal.SIGTERM, "SIGTERM received: no step was taken"),
        ("setup", signal.SIGINT, "SIGINT received: no step was taken"),
        ("first_evaluation", signal.SIGTERM, "SIGTERM received: no step was taken"),
        ("first_evaluation", signal.SIGINT, "SIGINT received: no step was taken"),
        ("end", signal.SIGTERM, "SIGTERM received: all steps are saved; --ckpt_path last"),
        ("end", signal.SIGINT, "SIGINT received: all steps are saved; --ckpt_path last"),
        ("end", signal.SIGHUP, "SIGHUP received: all steps are saved; --ckpt_path last"),
    ],
)
def test_where_nothing_waits_a_signal_ends_the_run_at_once(
    tiny_base, tmp_path, phase, number, says
):
    process = Run(tmp_path, tiny_base, callbacks=halt(phase))
    process.wait_for(tmp_path / "run" / f".halted-{phase}-0")
    process.send_signal(number)
    status, seconds = process.end()
    printed = process.out.read_text()
    assert (status, printed.count(says)) == (128 + number, 1), printed
    assert "Traceback" not in printed
    assert seconds < 10
    assert RunFolder(tmp_path / "run").last_checkpoint.exists() == (phase == "end")


def test_a_run_cut_off_in_its_end_is_completed(tiny_base, tmp_path, whole):
    process = Run(tmp_path, tiny_base, callbacks=halt("end"))
    process.wait_for(tmp_path / "run" / ".halted-end-0")
    process.send_signal(signal.SIGTERM)
    assert process.end()[0] == 143
    assert run(tmp_path, tiny_base, "--ckpt_path", "last").status == 0
    assert read_result(tmp_path) == whole[:2]


@pytest.mark.parametrize("command", ["fit", "inspect"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_a_command_imports(tiny_base, tmp_path, command, number):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "lit_sft", command],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "lit_sft.cli.notices" in line:
            break
    process.send_signal(number)
    printed = process.stderr.read()
    assert process.wait(10) == 128 + number
    assert f"{signal.Signals(number).name} received: " in printed
    assert "Traceback" not in printed


def test_signals_that_come_together_are_one(tiny_base, tmp_path):
    """`timeout` sends SIGTERM to its child, and then to the child's group."""
    process = Run(tmp_path, tiny_base, callbacks=halt("window"))
    process.wait_for(tmp_path / "run" / ".halted-window-0")
    process.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    status, _ = process.end()
    printed = process.out.read_text()
    assert status == 143, printed
    assert "SIGTERM received: the run is saved" in printed
    assert RunFolder(tmp_path / "run").last_checkpoint.exists()


def test_a_second_signal_by_hand_ends_the_run_at_once(tiny_base, tmp_path):
    process = Run(
        tmp_path, tiny_base, "--checkpoint.grace_seconds", 1000, callbacks=halt("evaluation")
    )
    process.wait_for(tmp_path / "run" / ".halted-evaluation-0")
    process.send_signal(signal.SIGINT)
    time.sleep(2.5)
    assert process.poll() is None, process.out.read_text()
    process.send_signal(signal.SIGINT)
    status, seconds = process.end()
    assert status == 130
    assert seconds < 2
    assert process.out.read_text().count("once more to stop at once") == 1


def test_an_evaluation_that_takes_too_long_is_cut_off_and_done_again(tiny_base, tmp_path, whole):
    process = Run(
        tmp_path, tiny_base, "--checkpoint.grace_seconds", 1, callbacks=halt("evaluation")
    )
    process.wait_for(tmp_path / "run" / ".halted-evaluation-0")
    process.send_signal(signal.SIGTERM)
    status, seconds = process.end()
    printed = process.out.read_text()
    assert status == 143
    assert "SIGTERM received: what was running took over 1 s more" in printed
    assert seconds < 5
    assert run(tmp_path, tiny_base, "--ckpt_path", "last").status == 0
    assert read_result(tmp_path) == whole[:2]


def test_a_terminal_that_hangs_up_lets_the_run_save(tiny_base, tmp_path):
    ours, theirs = pty.openpty()
    terminal = Path(os.ttyname(theirs))
    process = Run(tmp_path, tiny_base, callbacks=halt("window"), terminal=terminal)
    os.close(theirs)
    process.wait_for(tmp_path / "run" / ".halted-window-0")
    process.send_signal(signal.SIGHUP)
    os.close(ours)
    assert process.end()[0] == 129
    assert RunFolder(tmp_path / "run").last_checkpoint.exists()


def test_a_signal_that_was_ignored_stays_so(tiny_base, tmp_path):
    """As under `nohup`."""
    process = Run(tmp_path, tiny_base, callbacks=halt("window"), ignored=(signal.SIGHUP,))
    process.wait_for(tmp_path / "run" / ".halted-window-0")
    process.send_signal(signal.SIGHUP)
    assert process.end()[0] == 0, process.out.read_text()


TWO_RANKS = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu")


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("phase", "halted", "to"),
    [
        pytest.param("setup", None, "group", marks=slow),
        ("setup", 0, "second"),
        ("first_evaluation", None, "first"),
        pytest.param("end", None, "second", marks=slow),
        pytest.param("setup", None, "first", marks=slow),
        pytest.param("setup", None, "second", marks=slow),
        pytest.param("setup", 0, "group", marks=slow),
        pytest.param("setup", 0, "first", marks=slow),
        pytest.param("setup", 1, "group", marks=slow),
        pytest.param("setup", 1, "first", marks=slow),
        pytest.param("setup", 1, "second", marks=slow),
        pytest.param("first_evaluation", None, "group", marks=slow),
        pytest.param("first_evaluation", None, "second", marks=slow),
        pytest.param("evaluation", 1, "group", marks=slow),
        pytest.param("evaluation", 1, "first", marks=slow),
        pytest.param("end", None, "group", marks=slow),
        pytest.param("end", None, "first", marks=slow),
    ],
)
def test_two_ranks_end_together(tiny_base, tmp_path, phase, halted, to):
    """Both in the same phase, or one of them while the other waits for it."""
    process = Run(
        tmp_path,
        tiny_base,
        *TWO_RANKS,
        "--checkpoint.grace_seconds",
        3,
        callbacks=halt(phase, halted),
    )
    for rank in (0, 1) if halted is None else (halted,):
        process.wait_for(tmp_path / "run" / f".halted-{phase}-{rank}")
    (second,) = _find_ranks(process.pid)
    if to == "group":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(process.pid if to == "first" else second, signal.SIGTERM)
    status, seconds = process.end()
    printed = process.out.read_text()
    assert status == 143, printed
    assert printed.count("SIGTERM") == 1, printed
    assert "Traceback" not in printed
    assert seconds < LIMIT


@pytest.mark.parametrize(
    ("received", "agreed"),
    [
        ((0, 0), 0),
        ((0, signal.SIGTERM), signal.SIGTERM),
        ((signal.SIGTERM, signal.SIGUSR1), signal.SIGUSR1),
        ((signal.SIGUSR1, signal.SIGHUP, 0), signal.SIGUSR1),
    ],
)
def test_ranks_that_received_different_signals_agree_on_one(received, agreed):
    """SIGUSR1 wins, for which a job is put back, and each ends with its status."""
    ranks = [Signals() for _ in received]
    for rank, number in zip(ranks, received, strict=True):
        rank.received = number
    weight = max(rank.weight for rank in ranks)
    assert [rank.agree(weight) for rank in ranks] == [agreed] * len(ranks)
    assert {rank.received for rank in ranks} == {agreed}


def test_a_signal_that_comes_while_ranks_agree_on_none_is_not_this_one_s_alone():
    rank = Signals()
    weight = rank.weight
    rank.received = signal.SIGTERM
    assert rank.agree(weight) == 0
    assert rank.received == signal.SIGTERM


def _find_ranks(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    # The one that watches a rendering is isolated, and goes with it.
    return [int(child) for child in children if b"-I" not in _command(child).split(b"\0")]


def _command(process: str) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


LATE = """
import os, time
from lit_sft.signals import SIGNALS

class Late:
    def __init__(self):
        self.write, self.sleep = os.write, time.sleep

    def __del__(self):
        self.write(1, b"late\\n")
        self.sleep(1.0)

SIGNALS.own_process("stopped")
late = Late()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_the_interpreter_is_taken_down_changes_nothing(number):
    process = subprocess.Popen(
        [sys.executable, "-c", LATE],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == b"late\n"
    process.send_signal(number)
    assert process.wait(LIMIT) == 0


RANKS = """
import os, subprocess, sys, time
from lit_sft.signals import SIGNALS

SIGNALS.own_process("stopped")
if os.environ.get("LOCAL_RANK") == "1":
    print("ready", flush=True)
    time.sleep(60)
else:
    SIGNALS.hold(20.0)
    child = subprocess.Popen([sys.executable, __file__], env=os.environ | {"LOCAL_RANK": "1"})
    while not SIGNALS.received:
        time.sleep(0.05)
    time.sleep(1.0)  # it saves
    print("another rank", "is gone" if child.poll() is not None else "waits", flush=True)
    SIGNALS.release("stopped")
    os._exit(128 + SIGNALS.received)
"""


def test_a_rank_that_need_not_wait_does_not_leave_before_the_first_has_saved(tmp_path):
    """Lightning kills all, some seconds after one rank has ended."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    printed = process.stdout.read()
    assert "another rank waits" in printed
    assert process.wait(LIMIT) == 130
    deadline = time.monotonic() + 5.0
    while is_group_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_group_alive(process.pid)
