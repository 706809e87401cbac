"""The process that has imported what a run imports, and forks itself for each; see `forks`."""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from spare_ranks import keep_spares

IMPORTED = (
    "lit_sft.cli.app",
    "lit_sft.cli.names",
    "lit_sft.callbacks.generation_eval",
    "lit_sft.callbacks.gradient_checkpointing",
    "lit_sft.inspect.command",
    "lit_sft.toy.word_problems",
    "bitsandbytes",
    "peft",
    "peft.tuners.lora.bnb",
    "peft.utils.transformers_weight_conversion",
    "transformers.integrations.bitsandbytes",
    "transformers.models.llama.modeling_llama",
)
MOST = 1 << 20
"""Bytes of an order, at most: the environment is the most of it."""


def serve(orders: socket.socket) -> None:
    """Fork for each order; tell who asked the child's number, and then its exit status."""
    from lit_sft.cli.notices import silence_known_notices

    silence_known_notices()
    for name in IMPORTED:
        import_module(name)
    warm()
    gc.collect()
    gc.freeze()  # a collection in a child would copy all of the memory that it shares
    running: dict[int, tuple[int, int]] = {}  # by a handle of the process, its number and a pipe
    while True:
        ready = select.select([orders, *running], [], [])[0]
        for handle in running.keys() & set(ready):
            child, told = running.pop(handle)
            _, status = os.waitpid(child, 0)
            _tell(told, os.waitstatus_to_exitcode(status))
            os.close(told)
            os.close(handle)
        if orders not in ready:
            continue
        order, pipes, _, _ = socket.recv_fds(orders, MOST, 1)
        if not order:
            break
        (told,) = pipes
        child = os.fork()
        if child == 0:
            orders.close()
            for descriptor in (told, *running, *(pipe for _, pipe in running.values())):
                os.close(descriptor)
            become(json.loads(order))
            return
        _tell(told, child)
        running[os.pidfd_open(child)] = child, told
    for child, _ in running.values():  # a test has failed, and left it
        os.kill(child, signal.SIGKILL)


def _tell(pipe: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody asks any more
        os.write(pipe, b"%d\n" % number)


def warm() -> None:
    """Do what a process does the first time: read sources, set up kernels. It starts no thread."""
    import bitsandbytes
    import torch

    from lit_sft.cli.names import require_known_names
    from lit_sft.data.token_cache import hash_encoder

    words = ("--data.task", "lit_sft.WordProblems", "--trainer.callbacks", "lit_sft.GenerationEval")
    require_known_names(["fit", *words, "--trainer.max_steps", "1"])
    hash_encoder()
    with torch.random.fork_rng():
        layer = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32)
        heads = layer.to("cpu")(torch.randn(1, 8, 64, requires_grad=True)).reshape(1, 4, 8, 16)
    functions = torch.nn.functional
    answers = functions.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    functions.cross_entropy(answers.reshape(8, 64), torch.zeros(8).long()).backward()


def become(order: dict[str, Any]) -> None:
    """Run a command line, and return where a program ends."""
    if order["is_leader"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    for number in order["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    for descriptor, path in enumerate(order["files"]):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOCTTY)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdout.reconfigure(line_buffering=True)  # who waits for a line reads it at once
    tempfile.tempdir = None  # it is looked for again
    # Of which Lightning makes the command of another rank.
    sys.modules["__main__"].__spec__ = find_spec("lit_sft.__main__")
    keep_spares(order["others"], run)
    run(order["arguments"], order["cwd"], order["env"], order["program"])


def run(arguments: list[str], cwd: str, env: dict[str, str], program: str = "") -> None:
    """Run a command line in this process, as a new one does.

    Args:
        arguments: Those after the program's name.
        cwd: The working folder.
        env: All of the environment.
        program: Python's source, which is run instead of `lit-sft`.
    """
    from lit_sft.__main__ import main

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    named = [path for path in env.get("PYTHONPATH", "").split(":") if path]
    sys.path[:1] = [cwd, *named]  # as of `python -m`
    sys.argv[1:] = arguments
    if program:
        exec(program, {"__name__": "__main__"})
    else:
        main()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
