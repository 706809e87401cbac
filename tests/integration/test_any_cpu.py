"""The same config on a CPU with AVX2 alone, which emulates bf16; any CPU can be made one."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from command import ROOT, lit_sft
from small_run import fit_options

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


@pytest.fixture
def train(tiny_base, tmp_path):
    """Train for a step with a precision, as on a CPU with AVX2 alone."""

    def train(precision, *more):
        options = [*fit_options(tiny_base, tmp_path / "run", 1), "--trainer.precision", precision]
        return lit_sft("fit", *options, *more, imported_with=AVX2)

    return train


def read_precision(folder):
    return yaml.safe_load((folder / "run" / "config.yaml").read_text())["trainer"]["precision"]


def test_left_open_it_is_fp32_said_in_a_line_and_kept(train, tmp_path):
    outcome = train("auto")
    assert outcome.status == 0, outcome.stderr
    (line,) = [x for x in outcome.stdout.splitlines() if "precision" in x]
    assert line == "precision 32-true: this CPU emulates bf16, which is many times slower"
    assert read_precision(tmp_path) == "32-true"


def test_bf16_is_obeyed_with_the_factor_and_the_run_stays_with_it(train, tmp_path):
    outcome = train("bf16-mixed")
    assert outcome.status == 0, outcome.stderr
    (line,) = [x for x in outcome.stdout.splitlines() if "precision" in x]
    assert re.search(r"this CPU emulates bf16, and a layer took \d+ times as long as in fp32", line)
    assert read_precision(tmp_path) == "bf16-mixed"
    outcome = train("auto", "--ckpt_path", "last", "--trainer.max_steps", 2)
    assert outcome.status == 2
    assert re.search(r"trainer\.precision.*bf16-mixed", outcome.stderr)


@pytest.mark.parametrize(
    ("said", "waiting"),
    [
        ({}, ["PASSIVE", None]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None]),
        ({"GOMP_SPINCOUNT": "100"}, [None, "100"]),
    ],
)
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(said, waiting):
    script = (
        "import os, runpy, sys; sys.argv = ['lit-sft', 'inspect', '--config',"
        " 'configs/quickstart.yaml', '--print_config']\n"
        "try: runpy.run_module('lit_sft', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([os.environ.get(name) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')])"
    )
    unset = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, env=unset | said, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == str(waiting)
