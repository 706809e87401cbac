"""A rendering that never comes back to Python ends with its process, and a line says why."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_sft.data.watchdog import Watchdog

ROOT = Path(__file__).parents[3]
EQUAL_LISTS = (
    "{% set n = namespace(a=[1], b=[1.0]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}"
    "{% set n.b = [n.b, n.b] %}{% endfor %}{% if n.a == n.b %}{% endif %}"
)
SCRIPT = """
import os, sys
from lit_sft.data import template_limits
from lit_sft.data.encode import encode_chat
from lit_sft.data.tokenizer import load_tokenizer
template_limits.MAX_SECONDS, template_limits.SILENT_SECONDS = 1.0, 1.0
tokenizer = load_tokenizer(sys.argv[1])
tokenizer.chat_template = sys.argv[2] + tokenizer.chat_template
if sys.argv[3] == "fork" and (child := os.fork()):
    _, status = os.waitpid(child, 0)  # the process that watches this one is a child as well
    sys.exit(100 + os.waitstatus_to_exitcode(status))
encode_chat(tokenizer, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
"""


@pytest.mark.parametrize(("where", "status"), [("here", -signal.SIGKILL), ("fork", 91)])
def test_an_operation_of_hours_ends_the_process(tiny_tokenizer, where, status):
    command = [sys.executable, "-c", SCRIPT, str(tiny_tokenizer), EQUAL_LISTS, where]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert f"the chat template of {str(tiny_tokenizer)!r} took more than 2 s for one" in lines[0]


def test_a_process_that_comes_back_in_time_lives():
    dog = Watchdog(0.3)
    for _ in range(4):
        dog.begin("too slow")
        time.sleep(0.1)
        dog.end()
    time.sleep(0.5)
    dog.begin("too slow")
    dog.end()
    started = time.monotonic()
    dog.leave()
    assert time.monotonic() - started < 5
