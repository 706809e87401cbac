"""What a run tells of where it came from, by its config or, of a script, by its checkpoint."""

import pytest
import yaml

from lit_sft.run.folder import RunFolder
from lit_sft.run.origin import name_dataset, read_options


def test_a_config_that_one_has_mended_is_believed_before_a_checkpoint(tmp_path):
    folder, checkpoint = RunFolder(tmp_path), {"origin": {"model": {"base_model": "there"}}}
    assert read_options(folder, checkpoint)["model"]["base_model"] == "there"
    folder.config.write_text(yaml.safe_dump({"model": {"base_model": "here"}}))
    assert read_options(folder, checkpoint)["model"]["base_model"] == "here"
    assert read_options(RunFolder(tmp_path / "other"), {}) == {}


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ({"class_path": "lit_sft.WordProblems", "init_args": {"test_rows": 4}}, "WordProblems"),
        ({"class_path": "lit_sft.GSM8K", "init_args": {"path": "openai/gsm8k"}}, "openai/gsm8k"),
        ({"class_path": "lit_sft.ChatFile", "init_args": {"path": ["a", "b"]}}, "a, b"),
        ({"class_path": "Capitals"}, "Capitals"),
        (None, ""),
    ],
)
def test_a_data_set_is_named_as_the_run_names_it(task, name):
    assert name_dataset({"data": {"task": task}}) == name
