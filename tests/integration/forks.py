"""Command lines in processes of their own that do not import everything again.

One process a test session imports what a run imports, seconds of CPU, and forks itself for each
run. What is run, killed and measured is as separate as any other process: its memory, its signals,
its exit.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from importlib import import_module
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


def run_forked(
    arguments: list[str], cwd: Path, env: Mapping[str, str], timeout: float, stdin: bytes = b""
) -> tuple[int, str, str]:
    """Return the exit status of a command line, its stdout and its stderr.

    Args:
        arguments: Those after the program's name.
        cwd: Where it runs.
        env: All of its environment. What a library reads when it is imported has been read.
        timeout: In seconds, after which it is killed.
        stdin: What it can read, as from a file.
    """
    server = _start_server()
    with tempfile.TemporaryDirectory() as folder:
        given, out, err = (Path(folder) / name for name in ("in", "out", "err"))
        given.write_bytes(stdin)
        order = {
            "arguments": arguments,
            "cwd": str(cwd),
            "env": dict(env),
            "files": [f"{given}", f"{out}", f"{err}"],
        }
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        watchdog = threading.Timer(timeout, os.kill, (child, signal.SIGKILL))
        watchdog.start()
        status = int(server.stdout.readline())
        watchdog.cancel()
        return status, out.read_text(), err.read_text()


@cache
def _start_server() -> Any:
    """The end of this process closes its stdin, and that ends it."""
    return subprocess.Popen(
        [sys.executable, __file__],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
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

    for descriptor, path in enumerate(order["files"]):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    # The former one has read ahead.
    sys.stdin = open(0, errors=sys.stdin.errors, closefd=False)  # noqa: SIM115
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    named = [path for path in order["env"].get("PYTHONPATH", "").split(":") if path]
    sys.path[:1] = [order["cwd"], *named]  # as of `python -m`
    sys.argv[1:] = order["arguments"]
    main()


if __name__ == "__main__":
    serve()
