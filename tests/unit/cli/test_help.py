"""The help: complete, short, and there before anything heavy is imported."""

import inspect
import json
import re
import resource
import subprocess
import sys
from importlib import import_module

import lightning.pytorch as pl
import pytest

from lit_sft import ChatFile, Lora, SFTDataModule, SFTModule
from lit_sft.__main__ import COMMANDS, TOOLS
from lit_sft.callbacks.checkpoint import LastCheckpoint
from lit_sft.cli.app import TRAINER_DEFAULTS
from lit_sft.cli.help import print_help

SECTIONS = {"model": SFTModule, "data": SFTDataModule, "checkpoint": LastCheckpoint}
CPU_SECONDS = 3.0
"""It takes 0.13 on an idle machine, and took 4 when torch was imported for it."""


def explain(capsys, *arguments: str) -> str:
    assert print_help(list(arguments), "does something")
    return capsys.readouterr().out


def parameters(cls):
    return {k: p for k, p in inspect.signature(cls.__init__).parameters.items() if k != "self"}


def write(default: object) -> str:
    return default if isinstance(default, str) else json.dumps(default)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in TOOLS])
def test_a_command_tells_every_option_of_ours_with_its_default(capsys, command):
    lines = explain(capsys, command, "--help").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120
    told = {line.split()[0][2:]: line for line in lines if line.startswith("  --")}
    for section in SECTIONS if command != "inspect" else ["data"]:
        for name, parameter in parameters(SECTIONS[section]).items():
            line = told[f"{section}.{name}"]
            if name == "seed":
                assert " seed_everything " in line
            elif parameter.default is inspect.Parameter.empty:
                assert " required " in line
            elif not hasattr(parameter.default, "__dataclass_fields__"):
                assert f" {write(parameter.default)} " in line
            else:
                for field in parameter.default.__dataclass_fields__:
                    value = write(getattr(parameter.default, field))
                    assert f" {value} " in told[f"{section}.{name}.{field}"]
    assert {"config", "print_config"} <= told.keys()
    of_command = {"inspect": {"split", "html", "json"}}
    assert of_command.get(command, {"ckpt_path", "resume_policy", "seed_everything"}) <= told.keys()


@pytest.mark.parametrize("command", TOOLS)
def test_a_tool_tells_every_option_that_its_parser_takes(capsys, command):
    shown = explain(capsys, command, "--help")
    parser = import_module(f"lit_sft.cli.{command}").make_parser()
    options = [x for x in parser._actions if x.option_strings and x.dest != "help"]
    assert options
    assert re.findall(r"^  --(\w+)", shown, re.MULTILINE) == [x.dest for x in options]
    words = [x.metavar for x in parser._actions if not x.option_strings]
    assert f"usage: lit-sft {command} {' '.join(words)} [" in shown


@pytest.mark.parametrize(
    ("place", "cls"), [("trainer", pl.Trainer), *SECTIONS.items(), ("model.lora", Lora)]
)
def test_a_section_tells_all_of_its_options(capsys, place, cls):
    shown = explain(capsys, "fit", "--config", "x.yaml", f"--{place}.help")
    for name in parameters(cls):
        assert f"\n  --{place}.{name}" in shown


def test_the_trainer_s_defaults_are_those_of_a_run(capsys):
    shown = " ".join(explain(capsys, "fit", "--trainer.help").split())
    for name, default in TRAINER_DEFAULTS.items():
        assert f"({write(default)})" in shown.split(f"--trainer.{name} ")[1].split(" --trainer.")[0]
    assert "--trainer.precision auto|bf16-mixed|32-true|" in shown
    assert "``" not in shown


@pytest.mark.parametrize(
    "words", [["--data.task.help", "lit_sft.ChatFile"], ["--data.task.help=lit_sft.ChatFile"]]
)
def test_a_class_tells_what_it_takes_in_full(capsys, words):
    shown = " ".join(explain(capsys, "fit", *words).split())
    assert shown.startswith("lit_sft.ChatFile: A chat data set in one of the formats")
    for name in parameters(ChatFile):
        assert f" --data.task.{name} " in shown
    assert "`system` names a column of system prompts, and `tools` one of tools. (null)" in shown


def test_one_option_and_no_other(capsys):
    shown = explain(capsys, "fit", "--data.on_overlength.help")
    assert "--data.on_overlength drop|error|truncate_prompt|truncate\n" in shown
    assert shown.count("--data.") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--data.task.help", "own.Task"],  # its code may say more than its source
        ["--data.task.help", "ChatFile"],
        ["--data.task.help", "lit_sft.ChatFiel"],
        ["--data.nothing.help"],
        ["--data.max_length", "5"],
        [],
    ],
)
def test_what_source_does_not_tell_is_left_to_the_parser(capsys, words):
    assert not print_help(["fit", *words], "")
    assert capsys.readouterr().out == ""


def test_no_help_takes_a_heavy_import_or_long():
    asked = [[x, "--help"] for x in COMMANDS] + [["fit", "--trainer.help"], ["--version"]]
    asked += [["--completion", "bash"], ["fit", "--data.task.help=lit_sft.ChatFile"]]
    code = (
        "import sys\n"
        "from lit_sft.__main__ import main\n"
        f"for sys.argv[1:] in {asked!r}:\n"
        "    main()\n"
        "heavy = {'torch', 'lightning', 'transformers', 'datasets', 'jsonargparse'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: lit-sft ") == len(COMMANDS)
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert taken < CPU_SECONDS
