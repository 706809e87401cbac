"""Classes that a config names and the parser takes, and that then cannot be built; old configs."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from command import lit_sft_in_process
from lightning.pytorch.strategies import DDPStrategy
from small_run import fit_options

from lit_sft.cli.failures import explain
from lit_sft.cli.names import require_known_names
from lit_sft.cli.parser import Parser
from lit_sft.cli.sections import RETIRED
from lit_sft.errors import InputError, find_origin
from lit_sft.toy.word_problems import WordProblems

LOGGERS = "lightning.pytorch.loggers"
UNBUILDABLE = [
    (
        ["--data.task", "{class_path: lit_sft.WordProblems, dict_kwargs: {x: 1}}"],
        r"lit_sft\.toy\.word_problems\.WordProblems cannot be built \(TypeError: .* argument 'x'\)",
    ),
    (
        [
            "--trainer.profiler",
            "{class_path: lightning.pytorch.profilers.PyTorchProfiler, dict_kwargs: {schedule: 3}}",
        ],
        r"Schedule should be a callable\. Found: 3",
    ),
    (["--trainer.logger", f"{LOGGERS}.CometLogger"], r"CometLogger cannot be built \(ModuleNotFou"),
    (["--trainer.logger", f"{LOGGERS}.MLFlowLogger"], r"MLFlowLogger cannot be built \(ModuleNotF"),
]


@pytest.mark.parametrize(("arguments", "says"), UNBUILDABLE)
def test_what_the_parser_takes_and_a_class_refuses_is_told_in_a_line(tmp_path, arguments, says):
    options = fit_options(Path("lit_sft/tiny"), tmp_path / "run", steps=1)
    outcome = lit_sft_in_process("fit", *options, *arguments)
    assert outcome.status == 2, outcome.stderr
    (line,) = outcome.stderr.splitlines()
    assert re.match(rf"error: .*{says}", line)


def test_inspect_tells_it_too():
    outcome = lit_sft_in_process("inspect", "--data.tokenizer=lit_sft/tiny", *UNBUILDABLE[0][0])
    assert outcome.status == 2
    assert re.fullmatch(rf"error: {UNBUILDABLE[0][1]}.*\n", outcome.stderr)


def test_what_a_strategy_passes_on_and_torch_refuses_is_told_in_a_line():
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")], x=1)
    with pytest.raises(TypeError, match="'x'") as raised:
        strategy._setup_model(torch.nn.Linear(1, 1))
    assert explain(raised.value) == (
        2,
        "error: DistributedDataParallel does not take 'x', which a class of the config passes on "
        "to it; take it from its dict_kwargs",
    )
    with pytest.raises(TypeError, match="'x'") as raised:
        WordProblems(x=1)
    assert explain(raised.value) is None  # of nobody's config


def test_a_bug_of_this_package_keeps_its_traceback(monkeypatch):
    parser = Parser(exit_on_error=False)
    parser.add_class_arguments(WordProblems, "task")
    config = parser.parse_args(["--task.train_rows=8"])
    monkeypatch.setattr("lit_sft.toy.word_problems.require", None)  # calling it is a TypeError
    with pytest.raises(TypeError) as raised:
        parser.instantiate(config)
    assert find_origin(raised.value).name == "word_problems.py"


@pytest.mark.parametrize("written", ["file", "option"])
@pytest.mark.parametrize("name", RETIRED)
def test_a_retired_switch_is_taken_where_it_is_on_alone(tmp_path, written, name):
    def write(value: str) -> list[str]:
        if written == "option":
            return ["fit", f"--{name}={value}"]
        (tmp_path / "config.yaml").write_text(f"{name}: {value}")
        return ["fit", "--config", str(tmp_path / "config.yaml")]

    require_known_names(write("true"))
    with pytest.raises(InputError, match=rf"^{name}: expected true or nothing, got False: the swi"):
        require_known_names(write("false"))


def test_a_run_of_a_version_with_retired_switches_goes_on(tmp_path):
    run = tmp_path / "run"
    options = fit_options(Path("lit_sft/tiny"), run, steps=1)
    outcome = lit_sft_in_process("fit", *options)
    assert outcome.status == 0, outcome.stderr
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["speed"] |= {name.rpartition(".")[2]: True for name in RETIRED}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(tmp_path / "old.yaml", run / "config.yaml")
    words = ("fit", "--config", run / "config.yaml", "--ckpt_path", "last")
    outcome = lit_sft_in_process(*words)
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr.strip() == ""
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["speed"] == {"compile": "auto"}
