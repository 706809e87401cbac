"""A pattern on the command line, which YAML would take for a mapping or a comment."""

import pytest

from lit_sft import ChatFile, ChatTask
from lit_sft.cli.parser import Parser

PATTERN = r"regex: #### (-?[\d,]+)\s*: \"x\""


@pytest.mark.parametrize(
    ("words", "grader"),
    [
        (["--task.grader", PATTERN], PATTERN),
        ([f"--task.grader={PATTERN}"], PATTERN),
        ([f"--task.init_args.grader={PATTERN}"], PATTERN),
        (["--task.grader", "regex:[0-9]+=x"], "regex: [0-9]+=x"),
        (["--task.grader", "number"], "number"),
        (["--task.grader=null"], None),
        (["--task.system_prompt", "say regex:x"], None),
    ],
)
def test_a_grader_reaches_the_task_as_it_is(words, grader):
    parser = Parser(exit_on_error=False)
    parser.add_argument("--task", type=ChatTask)
    config = parser.parse_args(["--task=lit_sft.ChatFile", "--task.path=a.jsonl", *words])
    task = parser.instantiate(config).task
    assert isinstance(task, ChatFile)
    assert task.grader_name() == grader
