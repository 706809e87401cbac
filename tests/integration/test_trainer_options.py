"""Every option of Lightning's trainer works, or is refused in a line before weights load."""

import csv
import json

import lightning.pytorch as pl
import pytest
from command import lit_sft_in_process
from lightning.pytorch.callbacks import EarlyStopping
from small_run import fit_options

import lit_sft
from lit_sft import SFTDataModule, SFTModule, WordProblems
from lit_sft.errors import InputError
from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.metrics_file import publish

LIGHTNINGS = "lightning.pytorch.callbacks."


def fit(base, folder, *arguments):
    return lit_sft_in_process("fit", *fit_options(base, folder), *arguments)


def callback(name, **arguments):
    value = [{"class_path": LIGHTNINGS + name, "init_args": arguments}]
    return [f"--trainer.callbacks={json.dumps(value)}"]


def read_rows(folder):
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--trainer.overfit_batches", "2"], "trainer.overfit_batches=2 cannot be set"),
        (["--trainer.overfit_batches", "0.5"], "to overfit, train on a file of a few rows"),
        (["--trainer.limit_train_batches", "0"], "limit_train_batches=0 leaves nothing to train"),
        (["--trainer.max_steps", "0"], "trainer.max_steps=0 leaves nothing to train"),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs=0 leaves nothing to train"),
        (["--trainer.val_check_interval", "99"], "is more than the 16 steps of an epoch"),
        (["--trainer.barebones", "true"], "trainer.barebones cannot be set"),
        (["--trainer.enable_checkpointing", "false"], "checkpoint.every_n_steps makes them rarer"),
        (["--trainer.log_every_n_steps", "5"], "trainer.log_every_n_steps must be 1, got 5"),
        (["--trainer.model_registry", "me/x"], "append lit_sft.HubUpload to trainer.callbacks"),
        (["--trainer.gradient_clip_algorithm", "value"], "model.max_grad_norm, which clips by no"),
        (["--trainer.strategy", "fsdp"], "strategy must be auto, ddp or fsdp2, got fsdp; a clas"),
        (["--trainer.strategy", "fsdp2"], "over several devices, and here is one; leave it at au"),
        (["--trainer.strategy", "ddp_spawn"], "must be auto, ddp or fsdp2, got one that spawns"),
        (["--trainer.strategy", "nowhere"], "must be auto, ddp or fsdp2, got nowhere; a class is"),
        (["--trainer.strategy", "deepspeed"], "must be auto, ddp or fsdp2, got deepspeed; a clas"),
        (["--trainer.strategy", "DeepSpeedStrategy"], "ddp or fsdp2, got DeepSpeedStrategy; a cl"),
        (["--trainer.strategy", "DDPStrategy"], "such as {class_path: DDPStrategy, init_args: {t"),
        (["--trainer.strategy", "single_xla"], "must be auto, ddp or fsdp2, got single_xla; a cl"),
        (
            ["--trainer.devices", "2", "--trainer.strategy", "single_device"],
            "must be auto, ddp or fsdp2, got single_device; a class",
        ),
        (["--trainer.strategy", "some.module.Missing"], "fsdp2, got some.module.Missing; a class "),
        (
            ["--trainer.strategy", "{class_path: lightning.pytorch.strategies.FSDPStrategy}"],
            "must be auto, ddp or fsdp2, got lightning.pytorch.strategies.FSDPStrategy; a class is",
        ),
        (
            ["--trainer.strategy", "{class_path: DeepSpeedStrategy, init_args: {stage: 2}}"],
            "must be auto, ddp or fsdp2, got lightning.pytorch.strategies.DeepSpeedStrategy; a cl",
        ),
        (["--trainer.accelerator", "gpu"], "No supported gpu backend found"),
        (["--trainer.accelerator", "tpu"], "trainer: Requirement 'torch_xla"),
        (["--trainer.devices", "0"], "is not a valid input using cpu accelerator"),
        (["--trainer.num_nodes", "0"], "`num_nodes` must be a positive integer"),
        (["--trainer.accumulate_grad_batches", "2"], "use data.accumulate_grad_batches"),
        (["--trainer.gradient_clip_val", "1"], "model.max_grad_norm"),
        (["--trainer.limit_val_batches", "5.5"], "it has to be in [0.0, 1.0] or an int"),
        (["--trainer.max_steps", "-1", "--trainer.max_epochs", "-1"], "schedule needs an end"),
        (["--trainer.max_steps", "-5"], "`max_steps` must be a non-negative integer or -1"),
        (["--trainer.val_check_interval", "0"], "trainer.val_check_interval=0 is no interval"),
        (callback("BackboneFinetuning"), "BackboneFinetuning cannot be used: the base is frozen"),
        (callback("BatchSizeFinder"), "same under any data.max_tokens_per_pass"),
        (callback("LearningRateFinder"), "from model.learning_rate"),
        (
            callback("GradientAccumulationScheduler", scheduling={"0": 2}),
            "use data.accumulate_grad_batches",
        ),
        (
            callback("ModelPruning", pruning_fn="l1_unstructured", amount=0.5),
            "the weights of the base are frozen",
        ),
        (callback("StochasticWeightAveraging", swa_lrs=1e-3), "the schedule is a cosine"),
        (callback("WeightAveraging"), "it copies the frozen base"),
        (callback("EMAWeightAveraging"), "EMAWeightAveraging cannot be used: it copies"),
        (callback("Timer", duration="00:01:00:00"), "give it as a plain text or number"),
        (callback("SpikeDetection"), "model.nonfinite stops or skips"),
        (callback("EarlyStopping", monitor="val_loss"), "EarlyStopping.monitor: no figure is name"),
        (callback("ModelCheckpoint", monitor="loss"), "ModelCheckpoint.monitor: no figure is name"),
        (
            [*callback("EarlyStopping", monitor="val/loss"), "--trainer.limit_val_batches", "0"],
            "EarlyStopping.monitor: there is no val/loss without validation",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_honoured_is_refused_before_weights_load(
    tiny_base, tmp_path, arguments, says
):
    outcome = fit(tiny_base, tmp_path / "run", *arguments)
    assert outcome.status == 2, outcome
    (line,) = (line for line in outcome.stderr.splitlines() if line.startswith("error: "))
    assert says in line
    assert "Traceback" not in outcome.stderr
    assert "training " not in outcome.stdout
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_trainer_of_one_s_own_is_told_too(tiny_base, tmp_path):
    trainer = pl.Trainer(
        **{"overfit_batches": 1, "max_steps": 1, "accelerator": "cpu", "precision": "32-true"},
        **{"default_root_dir": tmp_path, "logger": False, "enable_checkpointing": False},
    )
    data = SFTDataModule(WordProblems(train_rows=16), val_rows=2)
    with pytest.raises(InputError, match=r"overfit_batches=1 cannot be set"):
        trainer.fit(SFTModule(str(tiny_base)), data)


@pytest.mark.parametrize(
    "arguments",
    [
        callback("DeviceStatsMonitor"),
        callback("LambdaCallback"),
        callback("Timer", duration="00:01:00:00", interval="step"),
        callback("ModelSummary", max_depth=2),
        callback("RichModelSummary"),
        callback("TQDMProgressBar"),
        callback("OnExceptionCheckpoint", dirpath="nowhere"),
        ["--trainer.detect_anomaly", "true"],
        ["--trainer.benchmark", "true"],
        ["--trainer.inference_mode", "false"],
        ["--trainer.sync_batchnorm", "true"],
        ["--trainer.profiler", "simple"],
        ["--trainer.profiler", "advanced"],
        ["--trainer.reload_dataloaders_every_n_epochs", "1"],
        ["--trainer.use_distributed_sampler", "true"],
        ["--trainer.enable_model_summary", "true"],
        ["--trainer.enable_autolog_hparams", "false"],
        ["--trainer.min_steps", "2"],
        ["--trainer.min_epochs", "1"],
        ["--trainer.strategy", "ddp"],
        ["--trainer.deterministic", "warn"],
        callback("LearningRateMonitor", logging_interval="step"),
    ],
    ids=str,
)
def test_what_changes_no_number_changes_none(tiny_base, tmp_path, plain, arguments):
    """What only looks on, or has nothing to act on here, leaves the very adapter of a plain run."""
    outcome = fit(tiny_base, tmp_path / "run", *arguments)
    assert outcome.status == 0, outcome.stderr
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (plain / name).read_bytes()


@pytest.fixture(scope="module")
def plain(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "run"
    outcome = fit(tiny_base, folder)
    assert outcome.status == 0, outcome.stderr
    return folder


@pytest.mark.parametrize(
    ("arguments", "steps", "validated"),
    [
        (["--trainer.limit_val_batches", "0"], 4, []),
        (["--trainer.limit_val_batches", "0.5"], 4, [4]),
        (["--trainer.limit_train_batches", "0.5", "--trainer.max_steps", "-1"], 8, [4, 8]),
        (
            ["--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "3"],
            4,
            [3],
        ),
        (["--trainer.val_check_interval", "0.125"], 4, [2, 4]),
        (["--trainer.val_check_interval", "00:01:00:00"], 4, []),
        (["--trainer.max_time", "00:01:00:00"], 4, [4]),
        (
            [
                *("--trainer.check_val_every_n_epoch", "2", "--trainer.val_check_interval", "1.0"),
                *("--trainer.max_epochs", "2", "--trainer.max_steps", "-1"),
            ],
            32,
            [32],
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_limits_are_of_optimizer_steps(tiny_base, tmp_path, arguments, steps, validated):
    outcome = fit(tiny_base, tmp_path / "run", *arguments)
    assert outcome.status == 0, outcome.stderr
    rows = read_rows(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == list(range(1, steps + 1))
    assert [int(row["step"]) for row in rows if row.get("val/loss")] == validated


def test_early_stopping_waits_for_its_first_validation_and_then_stops(tiny_base, tmp_path):
    stopping = {
        "monitor": "val/loss",
        "patience": 1,
        "min_delta": 100,
        "check_on_train_epoch_end": True,
    }
    rhythm = ("--trainer.check_val_every_n_epoch", 2, "--trainer.val_check_interval", 1.0)
    epochs = ("--trainer.max_epochs", 9, "--trainer.max_steps", -1)
    options = (*rhythm, *epochs, "--data.task.train_rows", 8)
    outcome = fit(tiny_base, tmp_path / "run", *callback("EarlyStopping", **stopping), *options)
    assert outcome.status == 0, outcome.stderr
    assert [row["step"] for row in read_rows(tmp_path / "run")][-1] == "12"
    assert (tmp_path / "run" / "adapter").is_dir()


def test_the_best_checkpoint_is_whole_and_holds_the_adapter_alone(tiny_base, tmp_path):
    options = callback("ModelCheckpoint", monitor="val/loss", filename="best-{step}")
    outcome = fit(tiny_base, tmp_path / "run", *options)
    assert outcome.status == 0, outcome.stderr
    best = AtomicCheckpointIO().load_checkpoint(
        tmp_path / "run" / "checkpoints" / "best-step=4.ckpt"
    )
    assert all("lora_" in name for name in best["state_dict"])


def test_a_plain_trainer_with_the_callbacks_is_told_of_monitors_too(tiny_base, tmp_path):
    wrong = EarlyStopping("loss")
    trainer = pl.Trainer(
        callbacks=[wrong, *lit_sft.run_callbacks()], max_steps=1, accelerator="cpu",
        precision="32-true", default_root_dir=tmp_path, logger=False,
    )  # fmt: skip
    data = SFTDataModule(WordProblems(train_rows=16), val_rows=2)
    with pytest.raises(InputError, match=r"EarlyStopping\.monitor: no figure is named 'loss'"):
        trainer.fit(SFTModule(str(tiny_base)), data)


def test_a_figure_that_a_callback_of_one_s_own_logs_can_be_monitored(tiny_base, tmp_path):
    class Mine(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            publish(trainer, {"mine": 1.0})

    trainer = lit_sft.make_trainer(
        callbacks=[Mine(), EarlyStopping("mine", patience=0)], max_steps=4, accelerator="cpu",
        precision="32-true", default_root_dir=tmp_path, val_check_interval=1,
    )  # fmt: skip
    data = SFTDataModule(WordProblems(train_rows=16), val_rows=2, batch_size=2)
    trainer.fit(SFTModule(str(tiny_base)), data)
    assert trainer.global_step > 0


def test_fast_dev_run_leaves_nothing_behind(tiny_base, tmp_path):
    """Neither an upload, which would need a login, nor files that the run to come stumbles over."""
    callbacks = [
        {"class_path": "lit_sft.HubUpload", "init_args": {"repo_id": "me/nothing"}},
        {"class_path": "lit_sft.GenerationEval", "init_args": {"max_new_tokens": 2}},
    ]
    options = ("--trainer.fast_dev_run", "2", f"--trainer.callbacks={json.dumps(callbacks)}")
    outcome = fit(tiny_base, tmp_path / "run", *options)
    assert outcome.status == 0, outcome.stderr
    assert "step 2/2  loss" in outcome.stdout
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []


def test_a_run_without_progress_is_silent_between_start_and_end(tiny_base, tmp_path):
    outcome = fit(tiny_base, tmp_path / "run", "--trainer.enable_progress_bar", "false")
    assert outcome.status == 0, outcome.stderr
    assert "step 4/4" not in outcome.stdout
    assert "wrote " in outcome.stdout


def test_a_sanity_check_is_no_figure_of_the_run(tiny_base, tmp_path):
    outcome = fit(tiny_base, tmp_path / "run", "--trainer.num_sanity_val_steps", "1")
    assert outcome.status == 0, outcome.stderr
    with (tmp_path / "run" / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [bool(row["val/loss"]) for row in rows] == [False, False, False, True]
