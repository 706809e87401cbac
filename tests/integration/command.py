"""Run the command line as a user would: another process, its exit status, what it printed."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from forks import run_forked
from torch import distributed

from lit_sft.__main__ import refuse_unknown_names
from lit_sft.cli.app import run
from lit_sft.inspect.command import run as inspect

ROOT = Path(__file__).parents[2]


class Outcome(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


def lit_sft(
    *arguments: object,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
    stdin: bytes = b"",
    imported_with: Mapping[str, str] | None = None,
    of_ranks: bool = False,
) -> Outcome:
    """Run the command line in another process, on one thread: the models are too small for two.

    It is forked from one that has imported all, see `forks`, where no GPU forbids that.
    `imported_with` is what libraries read of the environment when they are imported. One `of_ranks`
    starts another, forked too, which may not outlive it.
    """
    more = {"OMP_NUM_THREADS": "1"} | dict(imported_with or {}) | dict(env or {})
    if torch.cuda.is_available():
        return lit_sft_from_scratch(*arguments, cwd=cwd, env=more, timeout=timeout, stdin=stdin)
    environment = os.environ | more
    more_of_it = {"imported_with": imported_with, "is_leader": of_ranks, "others": int(of_ranks)}
    done = run_forked(arguments, cwd, environment, timeout, stdin, **more_of_it)
    return Outcome(*done)


def lit_sft_from_scratch(
    *arguments: object,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
    stdin: bytes = b"",
) -> Outcome:
    """Run `python -m lit_sft`: for its imports, and for what they read."""
    done = subprocess.run(
        [sys.executable, "-m", "lit_sft", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def lit_sft_in_process(*arguments: object, cwd: Path = ROOT) -> Outcome:
    """Run the command line in this process, which pays for the imports only once.

    What is printed goes to buffers; `sys.argv`, `sys.meta_path` and the environment are put back,
    and a group of ranks ends: what is forked from this process later joins groups of its own.
    """
    stdout, stderr = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), io.StringIO()
    with (
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        contextlib.chdir(cwd),
        patch.dict(os.environ),  # Lightning says there which rank it is
        patch.object(sys, "argv", ["lit-sft"]),
        patch.object(sys, "meta_path", list(sys.meta_path)),
    ):
        try:
            words = [str(argument) for argument in arguments]
            refuse_unknown_names(words)
            status = inspect(words) if words[:1] == ["inspect"] else run(words)
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()
    return Outcome(status, stdout.buffer.getvalue().decode(), stderr.getvalue())
