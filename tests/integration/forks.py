"""Command lines in processes of their own that do not import everything again.

One process imports what a run imports, seconds of CPU, and forks itself for each run, see
`fork_server`; there is one for each environment that libraries read when they are imported, such as
the Hub's address. What is run, killed and measured is as separate as any other process: its memory,
its signals, its exit.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
"""Of the process that forks: as it is before any test changes it."""


class Forked:
    """A process that runs a command line, as `subprocess.Popen` has it.

    Args:
        arguments: Those after the program's name.
        cwd: Where it runs.
        env: All of its environment. What a library reads when it is imported has been read.
        files: Paths of its stdin, its stdout and its stderr.
        imported_with: What the environment had, beside that of the tests, when all was imported.
        program: Python's source, which is run instead of `lit-sft`.
        is_leader: Of a process group of its own.
        ignored: Signals that it was told to ignore, as by `nohup`.
        others: How many ranks it starts, which are forked too, see `spare_ranks`.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        cwd: Path,
        env: Mapping[str, str],
        files: Sequence[Path],
        imported_with: Mapping[str, str] | None = None,
        program: str = "",
        is_leader: bool = False,
        ignored: Sequence[int] = (),
        others: int = 0,
    ) -> None:
        order = {
            "arguments": [str(word) for word in arguments],
            "cwd": str(cwd),
            "env": dict(env),
            "files": [str(path) for path in files],
            "program": program,
            "is_leader": is_leader,
            "ignored": [int(number) for number in ignored],
            "others": others,
        }
        self._told, theirs = os.pipe()
        server = _start_server(tuple((imported_with or {}).items()))
        socket.send_fds(server, [json.dumps(order).encode()], [theirs])
        os.close(theirs)
        self.pid = self._read_number()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit status, or None while it runs."""
        return self._read(0.0)

    def wait(self, timeout: float) -> int:
        """Return its exit status; kill it first if it has none after so many seconds."""
        if self._read(timeout) is None:
            os.kill(self.pid, signal.SIGKILL)
        status = self._read(None)
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = self._read_number()
            os.close(self._told)
        return self.returncode

    def _read_number(self) -> int:
        """A line is written at once, and the next only when a process has ended."""
        return int(os.read(self._told, 64))


def run_forked(
    arguments: Sequence[object],
    cwd: Path,
    env: Mapping[str, str],
    timeout: float,
    stdin: bytes = b"",
    is_leader: bool = False,
    **more: Any,
) -> tuple[int, str, str]:
    """Return the exit status of a command line, its stdout and its stderr; see `Forked`.

    Args:
        timeout: In seconds, after which it is killed.
        stdin: What it can read, as from a file.
        is_leader: Of processes that have to be gone soon after it is.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, out, err = (Path(folder) / name for name in ("in", "out", "err"))
        given.write_bytes(stdin)
        files = (given, out, err)
        first = Forked(arguments, cwd, env, files, is_leader=is_leader, **more)
        status = first.wait(timeout)
        if is_leader:
            wait_for_group(first.pid, 60)
        return status, out.read_text(), err.read_text()


def find_port() -> int:
    """Return a port of this machine that nobody has, for ranks to meet at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for_group(group: int, seconds: float) -> None:
    """Wait for the last process of a group to end; after so many seconds, kill what is left."""
    deadline = time.monotonic() + seconds
    while is_group_alive(group):
        if time.monotonic() > deadline:
            os.killpg(group, signal.SIGKILL)
            raise AssertionError("a process of the run is left")
        time.sleep(0.05)


def is_group_alive(group: int) -> bool:
    """Return whether any process of a process group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@cache
def _start_server(imported_with: tuple[tuple[str, str], ...]) -> socket.socket:
    """The end of this process closes its socket: that ends the server and what it has forked."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fork_server.py"), str(theirs.fileno())],
            env=ENVIRONMENT | dict(imported_with),
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    return ours
