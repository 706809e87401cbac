"""A package that is not allowed is not imported, however a config is written and handed over.

Its module leaves a mark on the disk when it is imported.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command import ROOT, Outcome, lit_sft, lit_sft_from_scratch, lit_sft_in_process
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonargparse import _common
from small_run import fit_options, isolated

from lit_sft.cli.allowlist import VARIABLE
from lit_sft.cli.names import require_known_names
from lit_sft.errors import InputError

COMMANDS = ("fit", "validate", "test", "predict", "inspect")
TASK = """
from pathlib import Path

from lit_sft import ChatTask

with Path({mark!r}).open("a") as file:
    file.write("imported")


class Task(ChatTask):
    def rows(self, split):
        return []

    def messages(self, row):
        return []
"""
PATHS = ("foreign.Task", "étranger.Task", "package.inner.Task", "package.Task")
"""Of one class, in modules of other names."""


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """The file that says that a module of `PATHS` was imported."""
    mark = tmp_path / "mark"
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from package.inner import Task\n")
    for name in ("foreign.py", "étranger.py", "package/inner.py"):
        (tmp_path / name).write_text(TASK.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return mark


def forget(mark: Path) -> None:
    mark.unlink(missing_ok=True)
    for name in ("foreign", "étranger", "package", "package.inner"):
        sys.modules.pop(name, None)


def run(arguments: list[str], allowed: str | None, env: dict[str, str], stdin: str = "") -> Outcome:
    """Run a command line in this process as its door does, and put back what it sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_common, "parsing_settings", dict(_common.parsing_settings))
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        patch.delenv(VARIABLE, raising=False)
        for name, value in (env if allowed is None else env | {VARIABLE: allowed}).items():
            patch.setenv(name, value)
        try:
            require_known_names(arguments)
        except InputError as error:
            return Outcome(2, "", f"error: {error}")
        return lit_sft_in_process(*arguments, cwd=Path.cwd())


def write_block(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=False, allow_unicode=True)


def write_flow(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=False, width=10**6)


def write_quoted(value: object) -> str:
    return yaml.safe_dump(value, default_style='"', allow_unicode=True)


def write_tabs(value: object) -> str:
    return json.dumps(value, indent="\t")


WRITERS = (write_block, write_flow, write_quoted, write_tabs, json.dumps)
SPECS = (
    lambda path, write: path,
    lambda path, write: {"class_path": path},
    lambda path, write: {"class_path": path, "init_args": {}},
    lambda path, write: write({"class_path": path}),  # YAML in a string of YAML
    lambda path, write: {"class_path": "lit_sft.Mixture", "init_args": {"tasks": [path]}},
    lambda path, write: {"class_path": "lit_sft.Mixture", "init_args": {"tasks": {"a=b": path}}},
    lambda path, write: {
        "class_path": "lit_sft.Mixture",
        "init_args": {"tasks": write({"a": {"class_path": path}})},
    },
)


def hand_over(
    way: str, command: str, spec: object, write, ending: str, folder: Path
) -> tuple[list[str], dict[str, str], str]:
    """Return arguments, environment and stdin of a command whose task is `spec`."""
    folder.mkdir(exist_ok=True)
    config, part = folder / f"config{ending}", folder / f"part{ending}"
    config.write_text(write({"data": {"task": spec}}))
    value = spec if isinstance(spec, str) else write_flow(spec).strip()
    inline = write_flow({"data": {"task": spec}}).strip()
    if way == "file":
        return [command, "--config", str(config)], {}, ""
    if way == "file=":
        return [command, f"--config={config}"], {}, ""
    if way == "stdin":
        return [command, "--config", "-"], {}, config.read_text()
    if way == "text":
        return [command, "--config", inline], {}, ""
    if way == "file of a section":
        part.write_text(write({"task": spec}))
        return [command, f"--data={part}"], {}, ""
    if way == "file of a task":  # beside the config that names it
        part.write_text(write(spec if isinstance(spec, dict) else {"class_path": spec}))
        config.write_text(write({"data": {"task": f"./{part.name}"}}))
        return [command, "--config", str(config)], {}, ""
    if way == "environment":
        prefix = "LIT_SFT INSPECT_" if command == "inspect" else f"PL_{command.upper()}__"
        return [command], {"JSONARGPARSE_DEFAULT_ENV": "true", f"{prefix}CONFIG": inline}, ""
    if way == "option":
        return [command, "--data.task", value], {}, ""
    if way == "option=":
        return [command, f"--data.task={value}"], {}, ""
    if way == "section":
        return [command, f"--data={write_flow({'task': spec}).strip()}"], {}, ""
    if way == "help":
        return [command, f"--data.task.help={value}"], {}, ""
    if way == "append":
        return [command, f"--trainer.callbacks+={value}"], {}, ""
    raise ValueError(way)


WAYS = (
    *("file", "file=", "stdin", "text", "file of a section", "file of a task"),
    *("environment", "option", "option=", "section", "help", "append"),
)
HAND_OVER = st.tuples(
    st.sampled_from(WAYS),
    st.sampled_from(COMMANDS),
    st.sampled_from(PATHS),
    st.sampled_from(SPECS),
    st.sampled_from(WRITERS),
    st.sampled_from([".yaml", ".yml", ".json", ".txt", ".cfg", ""]),
)


@settings(
    max_examples=80,  # of an eighth of a second each
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(HAND_OVER, st.sampled_from(["", ",", "lit_sft", "lit_sft,lightning,torch"]))
def test_no_encoding_imports_what_is_not_allowed(mark, tmp_path, chosen, allowed):
    way, command, path, spec, write, ending = chosen
    forget(mark)
    call = hand_over(way, command, spec(path, write), write, ending, tmp_path / "configs")
    outcome = run(call[0], allowed, *call[1:])
    assert not mark.exists()
    assert outcome.status == 2
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", ["fit", "inspect"])
def test_each_way_imports_what_is_allowed(mark, tmp_path, way, command):
    """So that the test above is not one of ways that lead nowhere."""
    if (way, command) == ("append", "inspect"):
        pytest.skip("inspect has no options of the trainer")
    for allowed in (None, "foreign"):
        forget(mark)
        call = hand_over(way, command, "foreign.Task", write_block, ".cfg", tmp_path / "configs")
        run(call[0], allowed, *call[1:])
        assert mark.exists(), allowed


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("lit_sft.files.shutil.rmtree", "shutil.rmtree"),
        ("lightning.pytorch.cli.os.system", "posix.system"),
        ("lightning.pytorch.cli.LRScheduler", "torch.optim.lr_scheduler.LRScheduler"),
        ("door.Task", "foreign.Task"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "inspect"])
def test_an_allowed_package_is_no_way_to_another(mark, tmp_path, command, path, refused):
    (tmp_path / "door.py").write_text("from foreign import Task\n")
    sys.modules.pop("door", None)
    outcome = run([command, "--data.task", path], "door", {})
    assert (outcome.status, outcome.stderr.strip()) == (
        2,
        f"error: {refused} may not be imported: {VARIABLE} allows door, lightning, lit_sft",
    )


@pytest.mark.parametrize("allowed", ["", pytest.param("lit_sft", marks=pytest.mark.slow)])
def test_a_run_consists_of_allowed_packages(tmp_path, allowed):
    """The quickstart's config names classes of this package and of Lightning, by public names."""
    outcome = lit_sft(
        *("fit", "--config", ROOT / "configs" / "quickstart.yaml", "--trainer.max_steps", 1),
        *("--data.task.train_rows", 64, "--data.val_rows", 4, "--trainer.limit_val_batches", 1),
        *("--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor",),
        *("--trainer.logger", "lightning.pytorch.loggers.CSVLogger"),
        *("--trainer.logger.save_dir", tmp_path, "--trainer.default_root_dir", tmp_path / "run"),
        env={VARIABLE: allowed},
    )
    assert outcome.status == 0, outcome.stderr
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("command", ["fit", "inspect"])
def test_a_file_of_the_working_folder_stands_in_for_no_package(tmp_path, command):
    hidden = ("json", "typing", "yaml", "peft", "bitsandbytes", "transformers", "lightning")
    for name in hidden:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    outcome = lit_sft_from_scratch(command, "--data.task", "json.Task", cwd=tmp_path)
    assert outcome.status == 2
    assert "data.task: json has no 'Task'. json.py is not looked at: " in outcome.stderr
    outcome = lit_sft_from_scratch(command, "--data.task", "lit_sft.GSM8K", cwd=tmp_path)
    assert outcome.status == 2
    assert "ImportError" not in outcome.stderr
    assert not (tmp_path / "mark").exists()


def test_a_task_of_the_working_folder_is_found_with_what_it_imports(tmp_path):
    (tmp_path / "helper.py").write_text("ROWS = [{'q': '1 + 1?', 'a': '2'}] * 8\n")
    (tmp_path / "my_task.py").write_text(
        "from helper import ROWS\n"
        "from lit_sft import ChatTask\n"
        "class Task(ChatTask):\n"
        "    def rows(self, split): return ROWS if split == 'train' else None\n"
        "    def messages(self, row):\n"
        "        return [{'role': 'user', 'content': row['q']},\n"
        "                {'role': 'assistant', 'content': row['a']}]\n"
    )
    words = (
        "--data.task",
        "my_task.Task",
        "--data.val_rows",
        2,
        "--data.tokenizer",
        "lit_sft/tiny",
    )
    for allowed, status in (("my_task", 0), ("helper", 2)):
        outcome = lit_sft_from_scratch("inspect", *words, cwd=tmp_path, env={VARIABLE: allowed})
        assert outcome.status == status, outcome.stderr
    assert lit_sft_from_scratch("inspect", *words, cwd=tmp_path).status == 0


@pytest.mark.parametrize("allowed", ["torch", "my_task", None])
def test_a_library_finds_none_of_its_optional_packages_in_the_working_folder(tmp_path, allowed):
    (tmp_path / "s3fs.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    (tmp_path / "my_task.py").touch()
    env = {} if allowed is None else {VARIABLE: allowed}
    words = ("fit", "--data.task", "s3://bucket/config.yaml")
    assert "Install s3fs" in lit_sft(*words, cwd=tmp_path, env=env).stderr
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("allowed", [pytest.param("my_task", marks=pytest.mark.slow), None])
def test_a_fit_beside_folders_that_look_like_optional_packages_and_plugins(tmp_path, allowed):
    """PEFT and transformers ask for packages by name, and Lightning for all plug-ins."""
    (tmp_path / "my_task.py").touch()
    for name in ("hqq", "gptqmodel", "comet_ml", "mlflow", "onnx", "torchvision", "deepspeed"):
        (tmp_path / name).mkdir()
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'mark')!r}, 'w')\ndef make(): return []"
    )
    plugin = tmp_path / "extra-1.0.dist-info"
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    for group in ("lightning.pytorch.callbacks_factory", "lightning.fabric.callbacks_factory"):
        with (plugin / "entry_points.txt").open("a") as file:
            file.write(f"[{group}]\nx = evil:make\n")
    env = isolated(tmp_path / "home") | ({} if allowed is None else {VARIABLE: allowed})
    options = fit_options(Path("lit_sft/tiny"), tmp_path / "run", steps=1)
    outcome = lit_sft_from_scratch("fit", *options, cwd=tmp_path, env=env)
    assert outcome.status == 0, outcome.stderr
    assert not (tmp_path / "mark").exists()


SCRIPT = "import sys; from lit_sft.__main__ import main; sys.exit(main())"
"""What an installed `lit-sft` runs."""


INSPECT = ("inspect", "--data.task", "lit_sft.WordProblems", "--data.tokenizer", "./nowhere")
FIT = ("fit", "--data.task", "lit_sft.GSM8K")
"""It imports all that is hidden, and the other the most of it, in a quarter of the time."""


@pytest.mark.parametrize(
    ("way", "ending", "words", "says"),
    [
        *(
            pytest.param(way, ending, INSPECT, "there is no folder './nowhere'", marks=marks)
            for way in ("script", "-m")
            # By what it resolves to, the second is the first.
            for ending, marks in (("", ()), (".", pytest.mark.slow), ("{here}", ()))
        ),
        pytest.param("script", "{here}", FIT, "model.base_model", marks=pytest.mark.slow),
        ("-m", "", FIT, "model.base_model"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value or "empty",
)
def test_a_python_path_that_names_the_working_folder_puts_it_last(
    tmp_path, way, ending, words, says
):
    for name in ("torch", "transformers", "peft", "yaml", "jsonargparse", "lightning", "signal"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "lit-sft").write_text(SCRIPT)
    program = ["-m", "lit_sft"] if way == "-m" else [tmp_path / "script" / "lit-sft"]
    path = f"{ROOT}:{ending.format(here=tmp_path)}"
    done = subprocess.run(
        [sys.executable, *program, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, VARIABLE: ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "mark").exists()


def test_a_checkout_that_its_own_python_path_names_still_runs(tmp_path):
    (tmp_path / "lit_sft").symlink_to(ROOT / "lit_sft")
    (tmp_path / "my_task.py").write_text("class Task:\n    pass\n")
    env = {"PYTHONPATH": str(tmp_path)}
    words = ("inspect", "--data.tokenizer", "lit_sft/tiny", "--data.task")
    outcome = lit_sft_from_scratch(*words, "lit_sft.WordProblems", "--json", cwd=tmp_path, env=env)
    assert outcome.status == 0, outcome.stderr
    outcome = lit_sft_from_scratch(*words, "my_task.Task", cwd=tmp_path, env=env)
    assert (outcome.status, "No module" in outcome.stderr) == (2, False)
