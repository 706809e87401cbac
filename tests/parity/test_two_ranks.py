"""Two processes train what one does: the same windows, the same losses, the same adapter."""

import csv
import json
from pathlib import Path

import pytest
from command import lit_sft
from safetensors.torch import load_file


def train(base: Path, folder: Path, *arguments: object) -> Path:
    outcome = lit_sft(
        "fit",
        *("--model.base_model", base, "--model.lora.dropout", 0, "--model.lora.r", 4),
        *("--model.lora.alpha", 8, "--model.learning_rate", 1e-2, "--model.optimizer", "adamw"),
        *("--model.max_new_tokens", 6, "--data.accumulate_grad_batches", 2),
        *("--data.task", "lit_sft.WordProblems", "--data.task.init_args.train_rows", 37),
        *("--data.task.init_args.val_rows", 7, "--data.val_rows", 7, "--data.max_length", 500),
        *("--data.cache_dir", folder / "cache", "--trainer.default_root_dir", folder),
        *("--trainer.precision", "32-true", "--trainer.accelerator", "cpu"),
        *("--trainer.callbacks", "lit_sft.GenerationEval"),
        *arguments,
        of_ranks="--trainer.devices" in arguments,
    )
    assert outcome.status == 0, outcome.stderr
    return folder


STREAM = ("--data.streaming", "true", "--data.num_workers", 2)


@pytest.fixture(scope="module")
def alone(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return train(tiny_base, folder, "--data.batch_size", 4)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("auto", ()),
        ("fsdp2", ("--data.max_tokens_per_pass", 500)),
        pytest.param("ddp", STREAM, marks=pytest.mark.slow),
        pytest.param("fsdp2", STREAM, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_equal_one(tiny_base, tmp_path, alone, strategy, options):
    """37 rows are windows of 8, the last of 5: one rank has three of its rows, the other two."""
    together = train(
        tiny_base,
        tmp_path / "together",
        *("--data.batch_size", 2, "--trainer.devices", 2, "--trainer.strategy", strategy, *options),
    )
    rows = []
    for folder in (alone, together):
        with (folder / "logs" / "metrics.csv").open(newline="") as file:
            rows.append(list(csv.DictReader(file)))
    assert [row["step"] for row in rows[0]] == ["0", "1", "2", "3", "4", "5"]
    assert [bool(row["val/exact_match"]) for row in rows[0]] == [True, *[False] * 4, True]
    answers = [
        {(answer["step"], answer["row"]): answer["output"] for answer in map(json.loads, lines)}
        for lines in (
            (folder / "logs" / "generations.jsonl").read_text().splitlines()
            for folder in (alone, together)
        )
    ]
    assert answers[1].items() <= answers[0].items(), "the first rank keeps what it has answered"
    assert len(answers[1]) > 2
    kept = [
        [(x["step"], x["row"], x["output"]) for x in map(json.loads, lines)]
        for lines in (
            (folder / "logs" / "answers.jsonl").read_text().splitlines()
            for folder in (alone, together)
        )
    ]
    assert kept[0] == kept[1], "the answers of all ranks"
    for one, two in zip(*rows, strict=True):
        for name in ("train/loss", "train/grad_norm", "val/loss", "val/exact_match"):
            if one[name]:
                assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-5), name
    ours, theirs = (
        load_file(f / "adapter" / "adapter_model.safetensors") for f in (alone, together)
    )
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).norm() <= 1e-4 * tensor.norm() + 1e-7, name
