"""Kill a run anywhere, start it again with the same command, and it ends with the same bits."""

import csv
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from command import ROOT, lit_sft, lit_sft_in_process
from safetensors.torch import load_file, save_file

TIMINGS = ("second", "peak_memory")


def make_config(base: Path, callbacks: str = "", workers: int = 0) -> str:
    """A run of two epochs of 6 steps with everything on that draws random numbers."""
    return f"""
report: false
model:
  base_model: {base}
  learning_rate: 1.0e-2
  lora: {{r: 4, alpha: 8, dropout: 0.1}}
  max_new_tokens: 4
data:
  task: {{class_path: lit_sft.WordProblems, init_args: {{train_rows: 23, val_rows: 6}}}}
  batch_size: 2
  accumulate_grad_batches: 2
  max_length: 400
  max_tokens_per_pass: 500
  val_rows: 6
  num_workers: {workers}
checkpoint: {{every_n_steps: 2}}
trainer:
  default_root_dir: run
  max_epochs: 2
  val_check_interval: 3
  callbacks:
    - lit_sft.GradientCheckpointing
    - {{class_path: lit_sft.GenerationEval, init_args: {{every_n_steps: 4}}}}
{callbacks}
"""


def run(
    folder: Path,
    base: Path,
    *arguments: object,
    callbacks: str = "",
    workers: int = 0,
    of_ranks: bool = False,
):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(make_config(base, callbacks, workers))
    env = {"PYTHONPATH": f"{Path(__file__).parent}:{ROOT}", "LIT_SFT_CACHE": str(folder / "cache")}
    words = ("fit", "--config", "config.yaml", *arguments)
    return lit_sft(*words, cwd=folder, env=env, of_ranks=of_ranks)


def kill(class_name: str, step: int) -> str:
    return f"    - {{class_path: killers.{class_name}, init_args: {{step: {step}}}}}\n"


def read_result(folder: Path) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """The bytes of the adapter, and the figures without what a clock says."""
    adapter = {
        path.name: path.read_bytes()
        for path in sorted((folder / "run" / "adapter").iterdir())
        if path.name != "README.md"  # it holds the config, with the killer in it
    }
    with (folder / "run" / "logs" / "metrics.csv").open(newline="") as file:
        rows = [
            {k: v for k, v in row.items() if not any(word in k for word in TIMINGS)}
            for row in csv.DictReader(file)
        ]
    return adapter, rows


# Without workers, the tests below kill and resume too: what a save and an evaluation leave behind
# does not depend on them.
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    "killers",
    [
        pytest.param([("KillInWindow", 3)], marks=pytest.mark.slow),
        pytest.param([("KillInWindow", 6)], marks=pytest.mark.slow),
        pytest.param([("KillInSave", 4)], marks=pytest.mark.slow),
        pytest.param([("KillInSave", 6)], marks=pytest.mark.slow),
        pytest.param([("KillInEvaluation", 4)], marks=pytest.mark.slow),
        pytest.param([("KillInEvaluation", 9)], marks=pytest.mark.slow),
        [("KillInWindow", 1), ("KillInWindow", 5), ("KillInSave", 8), ("KillInEvaluation", 12)],
    ],
    ids=lambda killers: "+".join(f"{name}{step}" for name, step in killers),
)
def test_killed_and_resumed_equals_whole(tiny_base, tmp_path, whole, killers, workers):
    if workers and len(killers) == 1 and killers[0][0] != "KillInWindow":
        pytest.skip("what evaluation and saving leave behind does not depend on loader workers")
    callbacks = "".join(kill(*killer) for killer in killers)
    statuses = []
    for _ in range(len(killers) + 1):
        outcome = run(
            tmp_path, tiny_base, "--ckpt_path", "auto", callbacks=callbacks, workers=workers
        )
        statuses.append(outcome.status)
    assert statuses == [-9] * len(killers) + [0], outcome.stderr
    adapter, rows = read_result(tmp_path)
    assert rows == whole[1]
    assert adapter == whole[0]
    assert (tmp_path / "run" / "logs" / "generations.jsonl").read_bytes() == whole[2]


@pytest.mark.parametrize(
    ("path", "step", "room"),
    [
        ("logs/metrics.csv", 4, 2),
        pytest.param("logs/metrics.csv", 4, 0, marks=pytest.mark.slow),
        pytest.param("logs/metrics.csv", 6, 40, marks=pytest.mark.slow),
        pytest.param("logs/generations.jsonl", 3, 200, marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_was_full_costs_no_row(tiny_base, tmp_path, whole, path, step, room):
    arguments = f"{{step: {step}, path: {path}, room: {room}}}"
    full = f"    - {{class_path: killers.FillDisk, init_args: {arguments}}}\n"
    stopped = run(tmp_path, tiny_base, callbacks=full)
    assert stopped.status == 1, stopped.stderr
    assert "Traceback" not in stopped.stderr
    last_line = stopped.stderr.splitlines()[-1]
    assert "File too large" in last_line
    assert f"run/{path}" in last_line
    assert "go on with --ckpt_path last" in last_line
    resumed = run(tmp_path, tiny_base, "--ckpt_path", "last", callbacks=full)
    assert resumed.status == 0, resumed.stderr
    assert "left out" not in resumed.stderr
    assert read_result(tmp_path)[1] == whole[1]
    assert (tmp_path / "run" / "logs" / "generations.jsonl").read_bytes() == whole[2]


def test_what_a_power_cut_tore_is_cut_and_told(tiny_base, tmp_path, whole):
    killer = kill("KillInWindow", 5)
    assert run(tmp_path, tiny_base, callbacks=killer).status == -9
    torn = {"metrics.csv": b"12", "generations.jsonl": b'{"step": 4, "row'}
    for name, tail in torn.items():
        with (tmp_path / "run" / "logs" / name).open("ab") as file:
            file.write(tail)
    resumed = run(tmp_path, tiny_base, "--ckpt_path", "last", callbacks=killer)
    assert resumed.status == 0, resumed.stderr
    for name in torn:
        assert resumed.stderr.count(f"{name}: left out line ") == 1
    assert read_result(tmp_path) == whole[:2]
    assert (tmp_path / "run" / "logs" / "generations.jsonl").read_bytes() == whole[2]


def test_figures_without_their_names_are_found_before_the_model_loads(tiny_base, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "copy")
    (tmp_path / "copy" / "run" / "logs" / "metrics.csv").write_bytes(b"\0" * 300)
    outcome = run(tmp_path / "copy", tiny_base, "--ckpt_path", "last")
    assert outcome.status == 2, outcome.stderr
    assert "metrics.csv: the first line is damaged" in outcome.stderr
    assert "are frozen" not in outcome.stdout


@pytest.mark.slow
def test_an_epoch_of_limited_length_is_resumed_where_it_was(tiny_base, tmp_path):
    limit = ("--trainer.limit_train_batches", 4, "--trainer.val_check_interval", 4)
    assert run(tmp_path / "whole", tiny_base, *limit).status == 0
    for status in (-9, 0):
        options = (*limit, "--ckpt_path", "auto")
        outcome = run(tmp_path / "x", tiny_base, *options, callbacks=kill("KillInWindow", 5))
        assert outcome.status == status, outcome.stderr
    assert read_result(tmp_path / "x") == read_result(tmp_path / "whole")


def test_a_stream_that_was_killed_equals_rows_in_memory_that_were_not(tiny_base, tmp_path, whole):
    options = ("--data.streaming", "true", "--ckpt_path", "auto")
    killer = kill("KillInWindow", 9)
    runs = [run(tmp_path, tiny_base, *options, callbacks=killer, workers=2) for _ in range(2)]
    assert [outcome.status for outcome in runs] == [-9, 0], runs[-1].stderr
    assert read_result(tmp_path) == whole[:2]


@pytest.mark.parametrize(
    ("number", "status", "workers"),
    [(15, 143, 2), (2, 130, 0), pytest.param(2, 130, 2, marks=pytest.mark.slow)],
)
def test_a_signal_saves_at_the_next_boundary(tiny_base, tmp_path, whole, number, status, workers):
    signal = f"    - {{class_path: killers.Signal, init_args: {{step: 3, number: {number}}}}}\n"
    stopped = run(tmp_path, tiny_base, callbacks=signal, workers=workers)
    assert stopped.status == status, stopped.stderr
    assert "the run is saved" in stopped.stderr
    assert stopped.stdout.count("once more to stop at once") == 1
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "run" / "adapter").exists()
    resumed = run(tmp_path, tiny_base, "--ckpt_path", "last", callbacks=signal)
    assert resumed.status == 0, resumed.stderr
    assert read_result(tmp_path) == whole[:2]


@pytest.mark.parametrize("exits", [True, False], ids=["exits", "is killed"])
def test_a_crashed_loader_worker_ends_the_run(tiny_base, tmp_path, exits):
    arguments = f"{{step: 3, exits: {str(exits).lower()}}}"
    crash = f"    - {{class_path: killers.CrashWorker, init_args: {arguments}}}\n"
    outcome = run(tmp_path, tiny_base, callbacks=crash, workers=1)
    assert (tmp_path / "crashed").exists()
    assert outcome.status == 1, outcome.stderr
    assert "error: DataLoader worker (pid" in outcome.stderr
    assert "go on with --ckpt_path last" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_out_of_memory_comes_with_the_next_smaller_sizes(tiny_base, tmp_path):
    outcome = run(
        tmp_path,
        tiny_base,
        *("--data.max_tokens_per_pass", 900, "--model.quantization.format", "none"),
        callbacks="    - killers.OutOfMemory\n",
    )
    assert outcome.status == 1
    assert outcome.stderr.splitlines()[-6:] == [
        "error: CUDA out of memory. Tried to allocate 20.00 GiB",
        "To need less:",
        "  --data.max_tokens_per_pass 450 (now 900; the same gradient)",
        "  GradientCheckpointing's policy: all",
        "  --model.quantization.format nf4",
        "  GenerationEval's max_batch_tokens: 16384 (now 32768), if it was in an evaluation",
    ]
    assert "Traceback" not in outcome.stderr


@pytest.fixture(scope="module")
def stopped(tiny_base, tmp_path_factory):
    """A run that was stopped after three steps."""
    folder = tmp_path_factory.mktemp("stopped")
    signal = "    - {class_path: killers.Signal, init_args: {step: 2, number: 15}}\n"
    assert run(folder, tiny_base, callbacks=signal).status == 143
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model.lora.r", "8"], "lora"),
        (["--data.batch_size", "4"], "data.batch_size: was 2, is now 4"),
        (["--data.accumulate_grad_batches", "1"], "data.accumulate_grad_batches: was 2, is now 1"),
        (["--data.max_length", "250"], "data.rows: was "),  # some rows are longer
        (["--data.task.init_args.train_rows", "22"], "data.rows: was "),
        (["--seed_everything", "1"], "model.seed: was 0, is now 1"),
        (["--data.batching", "padded"], "data.batching: was padding_free, is now padded"),
        (["--data.max_tokens_per_pass", "600"], "data.max_tokens_per_pass: was 500, is now 600"),
        (["--trainer.limit_train_batches", "4"], "trainer.limit_train_batches: was all, is now 4"),
        (["--model.optimizer", "adamw"], "model.optimizer: was paged_adamw_32bit, is now adamw"),
        (
            ["--model.quantization.format", "none"],
            "model.quantization.format: was nf4",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_changed_run_is_refused_with_the_difference(
    tiny_base, stopped, tmp_path, monkeypatch, arguments, says
):
    shutil.copytree(stopped, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    Path("config.yaml").write_text(make_config(tiny_base))
    outcome = lit_sft_in_process(
        "fit", "--config", "config.yaml", "--ckpt_path", "last", *arguments, cwd=tmp_path / "copy"
    )
    assert outcome.status == 2, outcome.stderr
    assert says in outcome.stderr
    assert "--model.accept_changes" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def change_template(base: Path) -> None:
    template = files("lit_sft.data").joinpath("templates/llama3.jinja").read_text()
    (base / "chat_template.jinja").write_text(template + "{# renders the same #}")


def change_weights(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] *= 1.1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "says"),
    [(change_template, "data.chat_template: was "), (change_weights, "model.base_model: was ")],
)
def test_another_template_or_base_is_refused(tiny_base, stopped, tmp_path, change, says):
    shutil.copytree(stopped, tmp_path / "copy")
    shutil.copytree(tiny_base, tmp_path / "base")
    change(tmp_path / "base")
    outcome = lit_sft_in_process(
        *("fit", "--config", "config.yaml", "--ckpt_path", "last"),
        *("--model.base_model", tmp_path / "base"),
        cwd=tmp_path / "copy",
    )
    assert outcome.status == 2, outcome.stderr
    assert says in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_change_can_be_accepted_by_name_and_the_learning_rate_always(
    tiny_base, stopped, tmp_path
):
    shutil.copytree(stopped, tmp_path / "copy")
    outcome = run(
        tmp_path / "copy",
        tiny_base,
        *("--ckpt_path", "last", "--model.learning_rate", "5e-3"),
        *("--data.batch_size", "4", "--model.accept_changes", "[data.batch_size]"),
    )
    assert outcome.status == 0, outcome.stderr
    assert "model.learning_rate was 0.01, is now 0.005" in outcome.stdout + outcome.stderr
    with (tmp_path / "copy" / "run" / "logs" / "metrics.csv").open(newline="") as file:
        rates = [row["train/learning_rate"] for row in csv.DictReader(file)]
    assert float(rates[4]) < 5e-3


@pytest.mark.parametrize(
    "damage", [pytest.param("truncate", marks=pytest.mark.slow), "flip", "bomb"]
)
def test_a_damaged_checkpoint_is_named_and_an_older_one_used_on_request(
    tiny_base, stopped, tmp_path, damage
):
    shutil.copytree(stopped, tmp_path / "copy")
    last = tmp_path / "copy" / "run" / "checkpoints" / "last.ckpt"
    data = bytearray(last.read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[len(data) // 2] ^= 4
    else:
        data = b"\x80\x04cos\nsystem\n(S'touch ran'\ntR."
    last.unlink()  # not through the link that keeps the one before
    last.write_bytes(bytes(data))
    refused = run(tmp_path / "copy", tiny_base, "--ckpt_path", "last")
    assert refused.status == 2
    assert "last.ckpt' is damaged" in refused.stderr
    assert "--resume_policy fallback" in refused.stderr
    assert not (tmp_path / "copy" / "ran").exists()
    resumed = run(
        tmp_path / "copy", tiny_base, "--ckpt_path", "last", "--resume_policy", "fallback"
    )
    assert resumed.status == 0, resumed.stderr


def test_a_missing_checkpoint_is_no_reason_to_start_over(tiny_base, tmp_path):
    outcome = run(tmp_path, tiny_base, "--ckpt_path", "last")
    assert outcome.status == 2
    assert "there is no checkpoint" in outcome.stderr
    assert not (tmp_path / "run" / "logs").exists()
