"""Every command and every script of the README does what it says."""

import re
import subprocess
import sys

import pytest
import yaml
from command import ROOT, lit_sft

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SCRIPTS = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
    if line.startswith("lit-sft ")
]


@pytest.mark.parametrize("command", [c for c in COMMANDS if "capitals" not in c])
def test_a_command_is_understood(command):
    words = [word.strip("'\"") for word in command.split()[1:]]
    # A run's own config exists only after the run; it is the same file, resolved.
    words = ["configs/gsm8k_qlora.yaml" if word.startswith("runs/") else word for word in words]
    outcome = lit_sft(*words, *([] if "--help" in words else ["--print_config"]))
    assert outcome.status == 0, outcome.stderr
    if "--help" not in words:
        assert yaml.safe_load(outcome.stdout)["model"]


def test_the_example_of_a_data_set_trains(tmp_path):
    (script,) = [text for text in SCRIPTS if "class Capitals" in text]
    assert len(script.splitlines()) <= 25
    (tmp_path / "capitals.py").write_text(script)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (command,) = [c for c in COMMANDS if "capitals" in c]
    outcome = lit_sft(*command.split()[1:], "--trainer.max_steps", 2, cwd=tmp_path)
    assert outcome.status == 0, outcome.stderr
    assert "val/exact_match" in outcome.stdout


def test_the_library_script_trains_and_saves(tmp_path):
    (script,) = [text for text in SCRIPTS if "make_trainer" in text]
    assert len([line for line in script.splitlines() if line.strip()]) <= 15
    for says in ("wrote runs/library/adapter", "all 5 steps were taken before"):
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert says in done.stdout
    assert (tmp_path / "runs" / "library" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "runs" / "library" / "adapter" / "tokenizer.json").is_file()


def test_the_two_commands_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("quickstart", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text()
