"""Misspelt names are told before torch is imported, and nothing that is right is refused."""

import re
import subprocess
import sys

import pytest
import yaml
from command import ROOT, lit_sft_in_process

from lit_sft.cli import sources
from lit_sft.cli.names import require_known_names
from lit_sft.errors import InputError

BASE = "model: {base_model: lit_sft/tiny}\n"
GSM8K = ("--config", str(ROOT / "configs" / "gsm8k_qlora.yaml"))
TYPOS_IN_A_CONFIG = [
    ("data: {batch_size: [1]}", "data.batch_size: expected a whole number, got [1]"),
    ("data: {val_rows: many}", "data.val_rows: expected auto or a whole number, got 'many'"),
    ("data: {val_rows: [1]}", "data.val_rows: expected auto or a whole number, got [1]"),
    ("data: {learn_thoughts: maybe}", "data.learn_thoughts: expected true or false, got 'maybe'"),
    ("model: {lora: {r: eight}}", "model.lora.r: expected a whole number, got 'eight'"),
    ("data: {tokenizer: [a]}", "data.tokenizer: expected a text or null, got ['a']"),
    (
        "data: {template_kwargs: enable_thinking}",
        "data.template_kwargs: expected names with values, such as {name: value} or null, got 'en",
    ),
    (
        "data: {task: {class_path: lit_sft.ChatFile, init_args: {path: a, columns: q}}}",
        "data.task.columns: expected names with values, such as {name: value} or null, got 'q'",
    ),
    ("modle: {base_model: x}", "there is no option 'modle.base_model'. Did you mean 'model.base_m"),
    ("model: {lerning_rate: 1}", "'model.lerning_rate'. Did you mean 'model.learning_rate'?"),
    ("model.lora.aplha: 1", "'model.lora.aplha'. Did you mean 'model.lora.alpha'?"),
    ("model: {lora: {rr: 1}}", "'model.lora.rr'. Did you mean 'model.lora.r'?"),
    ("trainer: {max_step: 3}", "'trainer.max_step'. Did you mean 'trainer.max_steps'?"),
    ("checkpoint: {every_n_step: 3}", "Did you mean 'checkpoint.every_n_steps'?"),
    ("data: {batch_sise: 3}", "'data.batch_sise'. Did you mean 'data.batch_size'?"),
    ("resume_polcy: strict", "Did you mean 'resume_policy'?"),
    ("model: {nonfinite: skp}", "got 'skp'. Did you mean 'skip'?"),
    ("model: {schedule: {kind: cosin}}", "kind must be one of cosine, linear, constant, warmup_"),
    ("trainer: {precision: bf16-mixd}", "got 'bf16-mixd'. Did you mean 'bf16-mixed'?"),
    ("trainer: {precision: 16-true}", "must be one of auto, bf16-mixed, 32-true, bf16, 32, got "),
    ("trainer: {precision: 64}", "trainer.precision must be one of auto, bf16-mixed, "),
    ("data: {task: lit_sft.GSM9K}", "data.task: lit_sft has no 'GSM9K'. Did you mean 'GSM8K'?"),
    ("data: {task: {class_path: lit_stf.GSM8K}}", "no module 'lit_stf'. Did you mean 'lit_sft'?"),
    (
        "data: {task: {class_path: lit_sft.GSM8K, init_args: {paht: x}}}",
        "data.task: lit_sft.GSM8K does not take 'paht'. Did you mean 'path'?",
    ),
    (
        "data: {task: {class_path: lit_sft.GSM8K, init_arg: {path: x}}}",
        "data.task: a class has class_path and init_args, not init_arg",
    ),
    ("data: {task: {clas_path: lit_sft.GSM8K}}", "has class_path and init_args, not clas_path"),
    (
        "data: {task: {class_path: lit_sft.Mixture, init_args: {tasks: "
        "{a: {class_path: lit_sft.ChatFile, init_args: {pth: x}}}}}}",
        "data.task.tasks.a: lit_sft.ChatFile does not take 'pth'. Did you mean 'path'?",
    ),
    (
        "trainer: {callbacks: [lit_sft.HubUpload, {class_path: lit_sft.GenerationEval, "
        "init_args: {rows: 3}}]}",
        "lit_sft.GenerationEval does not take 'rows'. Did you mean 'eval_rows'?",
    ),
    (
        "trainer: {callbacks: [lightning.pytorch.callbacks.ModelChekpoint]}",
        "lightning.pytorch.callbacks has no 'ModelChekpoint'. Did you mean 'ModelCheckpoint'?",
    ),
    (
        "trainer: {callbacks: {class_path: lightning.pytorch.callbaks.ModelCheckpoint}}",
        "there is no module 'lightning.pytorch.callbaks'. Did you mean 'callbacks'?",
    ),
    (
        "trainer: {callbacks: {class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
        "init_args: {monitr: x}}}",
        "ModelCheckpoint does not take 'monitr'. Did you mean 'monitor'?",
    ),
    ("model: {lora: 3}", "model.lora takes r, alpha, dropout, target_modules, use_rslora, lora"),
    (
        "model: {quantization: nf4}",
        "model.quantization takes format, double_quant, weight_cache by",
    ),
    ("trainer: [1]", "trainer must hold options by name, got [1]"),
    ("data: 5", "data must hold options by name, got 5"),
    ("model: [", "line 2, column 1: did not find expected node content"),
    ("- model", "expected options such as 'model: {...}'"),
]
TYPOS_IN_OPTIONS = [
    (
        ["--model.base_modl", "x"],
        "unrecognized arguments: --model.base_modl x. Did you mean 'model",
    ),
    (["--model.base_modl=x"], "unrecognized arguments: --model.base_modl=x. Did you mean 'model.b"),
    (["--learning_rate=1"], "Did you mean 'model.learning_rate'?"),
    (["--model.lora", "{rr: 3}"], "Did you mean 'model.lora.r'?"),
    (["--data.task.init_args.paht", "x"], "lit_sft.GSM8K does not take 'paht'"),
    (["--data.task.paht", "x"], "lit_sft.GSM8K does not take 'paht'"),
    (["--data.task=lit_sft.ChatFile", "--data.task.train_rows=3"], "lit_sft.ChatFile does not ta"),
    (["--trainer.callbacks+=lit_sft.HubUplod"], "trainer.callbacks: lit_sft has no 'HubUplod'"),
    (["--trainer.callbacks+=lit_sft.HubUpload", "--trainer.callbacks.id=x"], "Upload does not t"),
    (["--config", "nowhere.yaml"], "--config: there is no file 'nowhere.yaml'"),
    (["configs/quickstart.yaml"], "Did you mean '--config configs/quickstart.yaml'?"),
]


@pytest.mark.parametrize(("text", "says"), TYPOS_IN_A_CONFIG)
def test_a_typo_in_a_config(tmp_path, text, says):
    (tmp_path / "x.yaml").write_text(text + "\n")
    with pytest.raises(InputError, match=re.escape(says)):
        require_known_names(["fit", "--config", str(tmp_path / "x.yaml")])


@pytest.mark.parametrize(("options", "says"), TYPOS_IN_OPTIONS)
def test_a_typo_in_an_option(options, says):
    with pytest.raises(InputError, match=re.escape(says)):
        require_known_names(["fit", *GSM8K, *options])


def test_a_typo_is_told_without_a_heavy_import(tmp_path):
    """All of them in one process, through the door that a user takes."""
    commands = [["fit", *GSM8K, *options] for options, _ in TYPOS_IN_OPTIONS]
    for number, (text, _) in enumerate(TYPOS_IN_A_CONFIG):
        (tmp_path / f"{number}.yaml").write_text(text + "\n")
        commands.append(["test", "--config", str(tmp_path / f"{number}.yaml")])
    code = (
        "import sys\n"
        "from lit_sft.__main__ import main\n"
        f"for command in {commands!r}:\n"
        "    sys.argv[1:] = command\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 2, command\n"
        "heavy = {'torch', 'lightning', 'transformers', 'datasets', 'jsonargparse'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == len(commands)
    assert done.stderr.count("every option: lit-sft fit --help\n") == len(TYPOS_IN_OPTIONS)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "inspect"])
def test_every_option_of_the_parser_is_known_and_no_other(command, tmp_path):
    run = lit_sft_in_process if command != "inspect" else inspect_in_process
    shown = run(command, "--help").stdout
    options = set(re.findall(r"^  (?:-\w \w+, )?--([\w.]+)[ \[\n]", shown, re.MULTILINE))
    assert {"config", "data.batch_size", "ckpt_path"} <= options
    for option in options - {"help"}:
        if not option.endswith(".help") and not option.startswith("print_"):
            value = str(tmp_path) if option == "config" else "null"
            if option != "config":
                require_known_names([command, f"--{option}={value}"])
    printed = run(command, *GSM8K, "--print_config").stdout
    (tmp_path / "config.yaml").write_text(printed)
    require_known_names([command, "--config", str(tmp_path / "config.yaml")])
    for section, values in yaml.safe_load(printed).items():
        for name in values if isinstance(values, dict) and section == "data" else ():
            with pytest.raises(InputError):
                require_known_names([command, f"--{section}.{name}s=1"])


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_passes(config):
    for command in ("fit", "validate", "test", "predict", "inspect"):
        require_known_names([command, "--config", str(config)])


OWN = """
import lightning.pytorch as pl
from lightning.pytorch import callbacks as cb
from lit_sft import ChatFile, ChatTask
from dataclasses import dataclass
from .nowhere import Unreadable

class Inherits(ChatFile):
    pass

class Further(Inherits):
    def __init__(self, path: str, more: int = 0):
        super().__init__(path)

class Open(ChatTask):
    def __init__(self, **options):
        pass

class FromUnknown(Unreadable):
    pass

class PassesOn(ChatFile):
    def __init__(self, more: int = 0, **options):
        super().__init__(system_prompt="", **options)

class LooksAtThem(ChatFile):
    def __init__(self, **options):
        options.pop("own", None)
        super().__init__(**options)

@dataclass
class Fields(ChatTask):
    path: str

class Between(Fields):
    pass

@dataclass
class MoreFields(Between):
    size: int = 3

@dataclass
class FieldsOfUnknown(Unreadable):
    size: int = 3

class Stop(cb.EarlyStopping):
    pass

def make_task(anything: int) -> ChatTask:
    return Open()

for name in ("Made", "Up"):
    globals()[name] = type(name, (ChatTask,), {})
"""
RIGHT = [
    ["--data.task=own.Inherits", "--data.task.path=x", "--data.task.train_on=last"],
    ["--data.task=own.Further", "--data.task.more=3", "--data.task.init_args.path", "x"],
    ["--data.task=own.Open", "--data.task.dict_kwargs.x=3", "--data.task.y=3"],
    ["--data.task=own.FromUnknown", "--data.task.y=3"],
    ["--data.task=own.PassesOn", "--data.task.path=x", "--data.task.more=3"],
    ["--data.task=own.LooksAtThem", "--data.task.own=3", "--data.task.path=x"],
    ["--data.task=own.MoreFields", "--data.task.path=x", "--data.task.size=3"],
    ["--data.task=own.FieldsOfUnknown", "--data.task.path=x"],
    ["--data.task=own.make_task", "--data.task.anything=3"],
    ["--data.task=own.Made"],
    ["--trainer.callbacks=own.Stop", "--trainer.callbacks.monitor=val/loss"],
    ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor=val/loss"],
    ["--trainer.callbacks", "[lit_sft.HubUpload, {class_path: own.Stop}]"],
    ["--trainer.callbacks", "[]", "--trainer.callbacks+=lightning.pytorch.callbacks.Timer"],
    ["--trainer.strategy=ddp", "--trainer.precision", "32", "--trainer.precision=bf16"],
    ["--trainer.strategy=lightning.pytorch.strategies.DDPStrategy", "--trainer.strategy.x=1"],
    ["--trainer.logger=false", "--trainer.plugins", "null", "--trainer.devices", "[0, 1]"],
    ["--trainer.logger", "lit_sft.WandbRun", "--trainer.logger.init_timeout=1"],
    ["--trainer.profiler=simple", "--trainer.max_time", "{days: 1}", "--trainer.max_time=00:01:00"],
    ["--data.task", "lit_sft.ChatFile", "--data.task.columns", "{prompt: q, answer: a}"],
    ["--data.task=lit_sft.ChatFile", "--data.task.columns.prompt=q", "--data.task=lit_sft.GSM8K"],
    ["--data.task", "task.yaml", "--model.base_model", "some.thing", "--model.adapter", "a.b"],
    ["--model.trainable_tokens", "[<|a|>]", "--model.trainable_tokens", "none"],
    ["--model", "model.yaml", "--model.lora", "{r: 4}", "--model.lora.alpha=8"],
    ["--model.learning_rate", "-1", "--data.val_rows", "-1", "--seed_everything", "true"],
    ["--config", "{model: {lora: {r: 3}}}", "-c", str(ROOT / "configs" / "quickstart.yaml")],
    ["--print_config"],
    ["--print_config=skip_null", "--model.lora.r=3"],
    ["--data.task.help", "lit_sft.ChatFile"],
    ["--ckpt_path", "last", "--resume_policy=fallback", "--weights_only", "true"],
]


WRONG_FOR_OWN = [
    (["--data.task=own.PassesOn", "--data.task.paht=x"], "does not take 'paht'. Did you mean 'pa"),
    (["--data.task=own.PassesOn", "--data.task.train_on=lst"], "train_on must be one of all, last"),
    (["--data.task=own.MoreFields", "--data.task.paht=x"], "take 'paht'. Did you mean 'path'?"),
    (["--data.task=own.Further", "--data.task.train_on=last"], "does not take 'train_on'"),
]


def find_modules_anew():
    """What a command line names is looked up once a process, of which a user has one."""
    for look in (sources._find_module, sources._parse, sources._bindings):
        look.cache_clear()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with the module `own`."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    find_modules_anew()
    yield folder
    find_modules_anew()


@pytest.mark.parametrize(("options", "says"), WRONG_FOR_OWN)
def test_a_typo_for_a_class_of_one_s_own(options, says, own, monkeypatch):
    monkeypatch.chdir(own)
    with pytest.raises(InputError, match=re.escape(says)):
        require_known_names(["fit", *GSM8K, *options])


@pytest.mark.parametrize(
    "options",
    [
        ("--model.learning_rate", "1e-4"),
        ("--model.lora.modules_to_save+=lm_head",),
        ("--data.task.path+=b.jsonl",),
        ("--data.val_rows", "auto"),
        ("--model.speed.compile", "auto"),
        ("--data.template_kwargs", "kwargs.yaml"),
        ("--data.template_kwargs.enable_thinking", "false"),
        ("--trainer.limit_val_batches", "0.5"),
        ("--trainer.limit_val_batches", "null"),
    ],
)
def test_values_of_their_type_pass(options):
    task = ("--data.task", "lit_sft.ChatFile")
    require_known_names(["fit", *GSM8K, *task, *options])


@pytest.mark.parametrize("options", RIGHT, ids=" ".join)
def test_what_may_be_right_passes(options, own, monkeypatch):
    monkeypatch.chdir(own)
    require_known_names(["fit", *GSM8K, *options])


@pytest.mark.parametrize("option", ["data.task", "trainer.callbacks"])
def test_what_only_the_import_tells_is_told_by_the_parser(option, tmp_path, monkeypatch):
    (tmp_path / "made.py").write_text(
        OWN.replace("from .nowhere import", "from lit_sft import ChatTask as")
    )
    monkeypatch.syspath_prepend(tmp_path)
    find_modules_anew()
    outcome = lit_sft_in_process("fit", *GSM8K, f"--{option}=made.Maed")
    assert outcome.status == 2
    assert "module 'made' has no attribute 'Maed'" in outcome.stderr
    assert outcome.stderr.count("Did you mean 'Made'?") == 1


def test_a_class_in_a_later_config_is_the_one_whose_arguments_are_checked(tmp_path):
    for name, text in {
        "a": "data: {task: {class_path: lit_sft.GSM8K, init_args: {path: x}}}",
        "b": "data: {task: {class_path: lit_sft.WordProblems}}",
        "c": "data: {task: {init_args: {train_rows: 3}}}",
    }.items():
        (tmp_path / name).write_text(text)
    one, two, three = (f"--config={tmp_path / name}" for name in "abc")
    require_known_names(["fit", one, two, three])
    with pytest.raises(InputError, match=r"lit_sft\.GSM8K does not take 'train_rows'"):
        require_known_names(["fit", one, three])


def inspect_in_process(*arguments: object):
    """As `lit_sft_in_process`, for the command that has a parser of its own."""
    import contextlib
    import io

    from command import Outcome

    from lit_sft.inspect.command import make_parser

    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), pytest.raises(SystemExit):
        make_parser().parse_args([str(argument) for argument in arguments[1:]])
    return Outcome(0, stdout.getvalue(), "")
