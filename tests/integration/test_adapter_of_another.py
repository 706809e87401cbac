"""An adapter of another shape is gone on from as it is, and the config of the run says so."""

import json

import pytest
import yaml
from command import lit_sft
from small_run import fit_options, isolated


@pytest.fixture(scope="module")
def first(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    options = (*fit_options(tiny_base, folder / "run", steps=1), "--trainer.limit_val_batches=0")
    shape = (
        "--model.lora.r",
        2,
        "--model.lora.alpha",
        3,
        "--model.lora.target_modules",
        "[q_proj]",
    )
    outcome = lit_sft("fit", *options, *shape, cwd=folder, env=isolated(folder))
    assert outcome.status == 0, outcome.stderr
    return folder / "run" / "adapter"


def test_its_shape_is_taken_and_stands_in_the_config(first, tiny_base, tmp_path):
    options = (*fit_options(tiny_base, tmp_path / "run", steps=1), "--trainer.limit_val_batches=0")
    env = isolated(tmp_path)
    outcome = lit_sft("fit", *options, "--model.adapter", first, cwd=tmp_path, env=env)
    assert outcome.status == 0, outcome.stderr
    assert f"model.lora is that of {first}: r 2, alpha 3\n" in outcome.stderr
    lora = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["lora"]
    assert (lora["r"], lora["alpha"], lora["target_modules"]) == (2, 3, ["q_proj"])
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 3, ["q_proj"])
    more = ("--ckpt_path", "last", "--trainer.max_steps", 2)
    read_back = ("--config", tmp_path / "run" / "config.yaml")
    again = lit_sft("fit", *read_back, *more, cwd=tmp_path, env=env)
    assert again.status == 0, again.stderr
