"""What the pages say is so: scripts and commands do it; files, functions and options exist."""

import ast
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml
from command import ROOT, lit_sft
from forks import run_forked

from lit_sft.__main__ import TOOLS
from lit_sft.cli.sections import Options
from lit_sft.paths import EMBEDDED_BASE

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SCRIPTS = [text for language, text in BLOCKS if language == "python"]
PAGES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))),
)
LINK = re.compile(r"\[`?([^\]`]*)`?\]\(([^)\s]+)\)")
FOLDERS = r"(?:lit_sft|tests|tools|configs|docs|\.ci)"
FILE = re.compile(rf"(?<![\w/.~-]){FOLDERS}/[\w./-]*\w/?|(?<=`)[\w./-]+\.(?:py|toml|md)(?=[`:])")
OTHERS = ("capitals.py", "utils.py")  # which the reader makes, and nobody should
COMMANDS = [
    line
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
    if line.startswith("lit-sft ")
]


@pytest.mark.parametrize("command", [c for c in COMMANDS if "capitals" not in c])
def test_a_command_is_understood(command):
    words = [word.strip("'\"") for word in shlex.split(command)[1:]]
    if words[0] in TOOLS:
        import_module(f"lit_sft.cli.{words[0]}").make_parser().parse_args(words[1:])
        return
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
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "wrote runs/library/adapter" in done.stdout
    status, printed, told = run_forked((), tmp_path, os.environ, 300, program=script)
    assert status == 0, told
    assert "all 5 steps were taken before" in printed
    assert (tmp_path / "runs" / "library" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "runs" / "library" / "adapter" / "tokenizer.json").is_file()


def test_the_two_commands_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("quickstart", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def list_definitions(path: Path) -> set[str]:
    """Names of the functions, classes, methods and constants of a file, as a page may give them."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [x for x in node.body if isinstance(x, ast.FunctionDef)]
            found.update(f"{node.name}.{method.name}" for method in methods)
        if isinstance(node, ast.Assign):
            found.update(x.id for x in node.targets if isinstance(x, ast.Name))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_to_a_file_and_to_what_it_names_there(page):
    for text, target in LINK.findall((ROOT / page).read_text()):
        if target.startswith("http"):
            continue
        path = (ROOT / page).parent / target
        assert path.exists(), f"{page} links to {target}"
        if re.fullmatch(r"[A-Za-z_]\w*(?:\.(?!py$)\w+)?", text) and path.suffix == ".py":
            assert text in list_definitions(path), f"{page}: there is no {text} in {target}"
        elif path.suffix == ".py":
            assert text.split("/")[-1] == path.name, f"{page} calls {target} {text}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    text = LINK.sub("", (ROOT / page).read_text())
    named = {name for name in FILE.findall(text) if name not in (EMBEDDED_BASE, *OTHERS)}
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_of_a_page_are_those_of_the_package(page):
    for name in sorted(set(re.findall(r"\blit_sft(?:\.[A-Za-z_]\w*)+", (ROOT / page).read_text()))):
        assert resolve_name(name) is not None


@pytest.mark.parametrize("page", PAGES)
def test_options_and_targets_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    known = {name for name, _ in Options("fit").list_all()} | {"trainer.fit"}  # which is a method
    named = re.findall(r"`(?:--)?((?:checkpoint|data|model|trainer)\.\w+)", text)
    past = {"data.contents"} | {x for x in named if x.endswith(".help")}  # a field of checkpoints
    assert sorted({*named} - known - past) == []
    targets = re.findall(r"(?:`|^)make ([\w-]+)", text, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert [x for x in targets if not re.search(rf"^{x}:", makefile, re.MULTILINE)] == []
