"""Command lines in processes of their own that do not import everything again.

One process imports what a run imports, seconds of CPU, and forks itself for each run; there is one
for each environment that libraries read when they are imported, such as the Hub's address. What is
run, killed and measured is as separate as any other process: its memory, its signals, its exit.
"""

import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

IMPORTED = (
    "lit_sft.cli.app",
    "lit_sft.callbacks.generation_eval",
    "lit_sft.callbacks.gradient_checkpointing",
    "lit_sft.inspect.command",
    "lit_sft.toy.word_problems",
    "bitsandbytes",
    "peft",
    "transformers.models.llama.modeling_llama",
)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
"""Of the process that forks: as it is before any test changes it."""

_LAST: dict[int, "Forked"] = {}
"""By the process that forked it."""


class Forked:
    """A process that runs a command line, as `subprocess.Popen` has it; one at a time.

    Args:
        arguments: Those after the program's name.
        cwd: Where it runs.
        env: All of its environment. What a library reads when it is imported has been read.
        files: Paths of its stdin, its stdout and its stderr.
        imported_with: What the environment had, beside that of the tests, when all was imported.
        program: Python's source, which is run instead of `lit-sft`.
        is_leader: Of a process group of its own.
        ignored: Signals that it was told to ignore, as by `nohup`.
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
    ) -> None:
        self._server = _start_server(tuple((imported_with or {}).items()))
        order = {
            "arguments": [str(word) for word in arguments],
            "cwd": str(cwd),
            "env": dict(env),
            "files": [str(path) for path in files],
            "program": program,
            "is_leader": is_leader,
            "ignored": [int(number) for number in ignored],
        }
        if (before := _LAST.get(self._server.pid)) is not None:
            before.wait(0.0)  # it still runs where a test has failed, and its status would be read
        self._server.stdin.write(json.dumps(order).encode() + b"\n")
        self.pid = int(self._server.stdout.readline())
        self.returncode: int | None = None
        _LAST[self._server.pid] = self

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

    def _read(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._server.stdout], [], [], timeout)[0]:
            self.returncode = int(self._server.stdout.readline())
        return self.returncode


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
def _start_server(imported_with: tuple[tuple[str, str], ...]) -> Any:
    """The end of this process closes its stdin, and that ends it."""
    return subprocess.Popen(
        [sys.executable, __file__],
        env=ENVIRONMENT | dict(imported_with),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # `select` does not see what a buffer has read
    )


def serve() -> None:
    """Fork for each order that stdin gives; print the child's number, and then its exit status."""
    from lit_sft.cli.notices import silence_known_notices

    silence_known_notices()
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # a collection in a child would copy all of the memory that it shares
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(json.loads(line))
            return
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(order: dict[str, Any]) -> None:
    """Run a command line, and return where a program ends."""
    from lit_sft.__main__ import main

    if order["is_leader"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    for number in order["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    for descriptor, path in enumerate(order["files"]):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOCTTY)
        os.dup2(opened, descriptor)
        os.close(opened)
    former = sys.stdin  # it has read ahead
    sys.stdin = open(0, encoding=former.encoding, errors=former.errors, closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(line_buffering=True)  # who waits for a line reads it at once
    tempfile.tempdir = None  # it is looked for again
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    named = [path for path in order["env"].get("PYTHONPATH", "").split(":") if path]
    sys.path[:1] = [order["cwd"], *named]  # as of `python -m`
    sys.argv[1:] = order["arguments"]
    # Of which Lightning makes the command of another rank.
    sys.modules["__main__"].__spec__ = find_spec("lit_sft.__main__")
    if order["program"]:
        exec(order["program"], {"__name__": "__main__"})
    else:
        main()


if __name__ == "__main__":
    serve()
