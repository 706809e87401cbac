"""Ranks of a run that do not import everything again: processes that wait to become one.

A run, or torchrun's agent, starts its ranks by commands. Forked before it does anything, a spare
process is as new as one that a command starts, and is its child just so; it gets the command's
words and environment through a socket, and becomes the rank.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

MOST = 1 << 20
"""Bytes of an order, at most: the environment is the most of it."""
Run = Callable[[list[str], str, dict[str, str]], None]
"""Runs a command line in this process: its words, working folder and environment."""


class Spare(NamedTuple):
    """A process that waits for its order."""

    pid: int
    orders: socket.socket


SPARES: list[Spare] = []
"""Of this process."""


class SpareRank:
    """A rank that was started before its command was known, as `subprocess.Popen` has it."""

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.pid, self.args = pid, args
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit status, or None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        """Return its exit status.

        Raises:
            subprocess.TimeoutExpired: If it has none after so many seconds.
        """
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def keep_spares(count: int, run: Run) -> None:
    """Fork spare ranks, and let those who start ranks take them.

    Args:
        count: How many.
        run: What a spare does.
    """
    for _ in range(count):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if child == 0:
            for end in (ours, *(spare.orders for spare in SPARES)):
                end.close()
            SPARES.clear()
            _wait_to_run(theirs, run)
            sys.exit()
        theirs.close()
        SPARES.append(Spare(child, ours))
    if count:
        _patch_launchers()


def _wait_to_run(orders: socket.socket, run: Run) -> None:
    given = orders.recv(MOST)
    orders.close()
    if not given:
        os._exit(0)  # who would start it has ended
    order = json.loads(given)
    if order["leads"]:
        os.setsid()
    run(order["arguments"], order["cwd"], order["env"])


def _start(
    args: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    start_new_session: bool = False,
    **streams: Any,
) -> SpareRank:
    """Have a spare become the rank that a command would start."""
    spare, words = SPARES.pop(0), list(args)
    assert not any(streams.values()), "a rank prints where the first one does"
    module = words.index("-m") + 1
    assert words[module] in ("lit_sft", "lit_sft.__main__")
    order = {
        "arguments": words[module + 1 :],
        "cwd": cwd or os.getcwd(),  # noqa: PTH109
        "env": dict(os.environ if env is None else env),
        "leads": start_new_session,
    }
    spare.orders.send(json.dumps(order).encode())
    spare.orders.close()
    return SpareRank(spare.pid, args)


def _patch_launchers() -> None:
    """The names by which Lightning and torchrun start a process."""
    from lightning.pytorch.strategies.launchers import subprocess_script
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    subprocess_script.subprocess = SimpleNamespace(Popen=_start)
    subprocess_handler.Popen = _start
