"""The completion scripts, asked as a shell asks them."""

import shutil
import subprocess

import pytest

from lit_sft.__main__ import COMMANDS
from lit_sft.cli.completion import SHELLS, make_completion

ASKED = [
    (["fi"], ["fit"]),
    (["--v"], ["--version"]),
    (["fit", "--data.on_over"], ["--data.on_overlength"]),
    (["fit", "--trainer.max_ep"], ["--trainer.max_epochs"]),
    (["fit", "--data.on_overlength", "tr"], ["truncate_prompt", "truncate"]),
    (["fit", "--data.on_overlength", "=", "dr"], ["drop"]),
    (["fit", "--data.batching", "=", "="], ["padding_free", "padded"]),
    (["fit", "--model.base_model", "co"], []),  # files: the shell's own
    (["inspect", "--html", "x", "--rand"], ["--random"]),
    (["inspect", "--trainer.max_ep"], []),
]


@pytest.mark.parametrize(("words", "completed"), ASKED, ids=lambda words: " ".join(words))
def test_bash_completes(words, completed):
    listed = " ".join(f"'{word}'" for word in ["lit-sft", *words])
    script = (
        f"{make_completion('bash', COMMANDS)}\n"
        f"COMP_WORDS=({listed}) COMP_CWORD={len(words)}\n"
        'complete -p lit-sft > /dev/null || exit; _lit_sft; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-uc", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == completed


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_in_the_script(shell):
    script = make_completion(shell, COMMANDS)
    for command in COMMANDS:
        assert f" {command}" in script
    for option in ("model.lora.r", "data.task", "trainer.max_steps", "ckpt_path", "random"):
        assert f"-l {option}\n" in script if shell == "fish" else f"--{option} " in script


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_parses(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    script = make_completion(shell, COMMANDS)
    done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
