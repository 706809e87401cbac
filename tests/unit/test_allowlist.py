"""Named packages alone may be imported, wherever in a config a class is named."""

import pytest

from lit_sft.allowlist import VARIABLE, require_allowed_packages
from lit_sft.errors import InputError

CONFIG = """
data:
  task: {class_path: lit_sft.GSM8K}
trainer:
  callbacks:
    - lit_sft.GradientCheckpointing
    - {class_path: evil.package.Callback, init_args: {x: 1}}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return str(path)


def test_without_the_variable_all_are_allowed(config, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    require_allowed_packages(["fit", "--config", config])


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"], ["-c", "{}"]])
def test_a_class_in_a_config_is_found(config, monkeypatch, form):
    monkeypatch.setenv(VARIABLE, "lit_sft, lightning")
    with pytest.raises(InputError, match=r"^evil\.package\.Callback may not be imported"):
        require_allowed_packages(["fit", *(word.format(config) for word in form)])
    monkeypatch.setenv(VARIABLE, "lit_sft,evil")
    require_allowed_packages(["fit", *(word.format(config) for word in form)])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.task", "evil.Task"],
        ["--data.task=evil.Task"],
        ["--trainer.callbacks+=evil.Callback"],
        ["--trainer.callbacks", "[lit_sft.HubUpload, {class_path: evil.Callback}]"],
        ["--data.task.class_path", "evil.a.b.Task"],
    ],
)
def test_a_class_on_the_command_line_is_found(monkeypatch, arguments):
    monkeypatch.setenv(VARIABLE, "lit_sft")
    with pytest.raises(InputError, match=r"evil"):
        require_allowed_packages(["fit", *arguments])


def test_paths_numbers_and_models_are_no_classes(monkeypatch):
    monkeypatch.setenv(VARIABLE, "lit_sft")
    require_allowed_packages(
        ["fit", "--model.base_model", "meta-llama/Llama-3.2-3B", "--model.learning_rate", "1.0e-4"]
    )
