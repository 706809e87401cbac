"""`fit --dry_run`: what it tells, what it refuses, and that nothing is left of it."""

import csv
import re

import pytest
from command import lit_sft, lit_sft_in_process
from small_run import fit_options, isolated

STEPS = 8


def list_files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def read_bytes(text, name):
    value, unit = re.search(rf"{name}.*? ([\d.,]+) ([MG])iB$", text, re.MULTILINE).groups()
    return float(value.replace(",", "")) * {"M": 2**20, "G": 2**30}[unit]


def read_step_seconds(text):
    return float(re.search(r"(\S+) s each", text)[1])


@pytest.fixture(scope="module")
def options(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dry")
    evaluation = (
        "--trainer.callbacks+=lit_sft.GenerationEval",
        *("--trainer.callbacks.every_n_steps", 4, "--trainer.callbacks.eval_rows", 4),
        *("--model.max_new_tokens", 8, "--model.trainable_tokens", "none"),
    )
    return [*fit_options(tiny_base, folder / "run", steps=STEPS), *evaluation], folder


@pytest.fixture(scope="module")
def told(options):
    """What the three forms print: an estimate, and a measurement."""
    arguments, folder = options
    env = isolated(folder.parent / "home")
    ways = {"estimate": ["--dry_run"], "measure": ["--dry_run", "measure"]}
    outcomes = {
        name: lit_sft("fit", *arguments, *way, cwd=folder, env=env) for name, way in ways.items()
    }
    assert list_files(folder) == []  # neither a run folder nor anything of a logger
    return outcomes


@pytest.mark.parametrize("way", ["estimate", "measure"])
def test_memory_and_time_are_told_by_part(told, way):
    outcome = told[way]
    assert (outcome.status, outcome.stderr) == (0, "")
    for part in ("weights in four bits", "adapter, ", "its gradients", "activations of "):
        assert part in outcome.stdout
    assert f"{STEPS} steps of" in outcome.stdout
    assert "3 evaluations of 4 answers" in outcome.stdout
    assert read_bytes(outcome.stdout, "at the peak") > 10 * read_bytes(outcome.stdout, "adapter,")
    assert "step 1/" not in outcome.stdout
    assert "wrote" not in outcome.stdout


def test_only_a_measurement_loads_weights(told):
    assert "three real steps" not in told["estimate"].stdout
    assert "three real steps" in told["measure"].stdout


@pytest.mark.slow
def test_a_real_run_takes_about_as_much(told, options):
    arguments, folder = options
    done = lit_sft("fit", *arguments, cwd=folder, env=isolated(folder.parent / "home"))
    assert done.status == 0, done.stderr
    with (folder / "run" / "logs" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    peak = float(rows[-1]["train/peak_memory_gib"]) * 2**30
    tokens = re.search(r"steps of ([\d,]+) tokens", told["measure"].stdout)[1].replace(",", "")
    seconds = sorted(int(tokens) / float(row["train/tokens_per_second"]) for row in rows)
    for outcome in told.values():
        assert read_bytes(outcome.stdout, "at the peak") == pytest.approx(peak, rel=0.5)
    # Others may have the cores while either is measured.
    assert seconds[0] / 5 < read_step_seconds(told["measure"].stdout) < 5 * seconds[-1]
    again = lit_sft("fit", *arguments, "--dry_run", cwd=folder)  # beside a run that is there
    assert again.status == 0, again.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ["--model.base_model", "no/where/at/all"],
        ["--model.lora.target_modules", "[nothing_proj]"],
        ["--trainer.accumulate_grad_batches", "4"],
    ],
)
def test_what_is_wrong_is_the_same_line(options, wrong):
    arguments, folder = options
    plain, dry = (
        lit_sft("fit", *arguments, *wrong, *way, cwd=folder, env=isolated(folder.parent / "home"))
        for way in (
            ["--trainer.default_root_dir", folder / "other"],
            ["--trainer.default_root_dir", folder / "other", "--dry_run"],
        )
    )
    assert plain.status == dry.status == 2
    assert dry.stderr == plain.stderr != ""
    assert "loading" not in dry.stdout


def test_other_commands_take_none(options):
    arguments, folder = options
    refused = lit_sft("test", *arguments, "--dry_run", cwd=folder)
    assert refused.status == 2
    assert refused.stderr == "error: --dry_run is of fit; test takes none\n"


def test_another_word_is_refused(options):
    arguments, folder = options
    refused = lit_sft_in_process("fit", *arguments, "--dry_run", "mesure", cwd=folder)
    expected = "dry_run must be one of true, false, measure, got 'mesure'. Did you mean 'measure'?"
    assert (refused.status, refused.stderr.splitlines()[0]) == (2, f"error: {expected}")
