"""`lit-sft report`, what it refuses, and the page that every `fit` leaves."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ROOT, lit_sft_in_process
from forks import Forked
from run_folders import make_run
from small_run import fit_options

from lit_sft.cli.report import run
from lit_sft.report.read_run import read_run

CPU_SECONDS = 2.0


def test_it_takes_no_heavy_import(tmp_path):
    code = (
        "import sys, time; sys.argv = ['lit-sft', 'report', sys.argv[1]]\n"
        "from lit_sft.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'lightning', 'transformers', 'datasets'} & set(sys.modules)\n"
        f"assert time.process_time() < {CPU_SECONDS}, time.process_time()\n"
    )
    root = make_run(tmp_path / "run")
    command = [sys.executable, "-c", code, str(root)]
    for _ in range(3):  # what else runs here costs it caches, and so seconds
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {root}/report.html\n"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "there is no folder"),
        (lambda path: path.mkdir(), "is no run's folder"),
        (lambda path: path.write_text("x"), "there is no folder"),
    ],
)
def test_what_is_no_run_is_refused_in_a_line(tmp_path, capsys, make, says):
    make(tmp_path / "run")
    assert run(["report", str(make_run(tmp_path / "other")), str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: report: ")
    assert says in line


def test_a_page_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    root = make_run(tmp_path / "run")
    assert run(["report", str(root), "--output", str(tmp_path / "file" / "x.html")]) == 2
    assert "error: report: --output: the folder" in capsys.readouterr().err


def test_fit_leaves_a_page_or_none(tmp_path):
    for folder, options in (("with", []), ("without", ["--report=false"])):
        words = fit_options(Path("lit_sft/tiny"), tmp_path / folder, steps=1)
        words = [word for word in words if "report" not in word]
        outcome = lit_sft_in_process("fit", *words, *options)
        assert outcome.status == 0, outcome.stderr
        assert (tmp_path / folder / "report.html").is_file() is not bool(options)
        assert ("report.html" in outcome.stdout) is not bool(options)
    facts = read_run(tmp_path / "with")
    assert facts.has_finished
    assert facts.seconds() is not None
    assert facts.begins[0]["data"]["train"]["repeats"].keys() == {"train", "val"}
    assert not facts.remarks


def test_a_run_that_goes_on_and_one_that_was_killed_have_pages(tmp_path):
    """Of a real run: asked while it trains, and after it was killed in the middle of it."""
    root = tmp_path / "run"
    words = fit_options(Path("lit_sft/tiny"), root, steps=2000)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = Forked(["fit", *words], ROOT, env, [Path(os.devnull)] * 3)
    try:
        deadline = time.monotonic() + 300
        while not (root / "logs" / "metrics.csv").is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert run(["report", str(root)]) == 0
        assert "still going on" in (root / "report.html").read_text()
    finally:
        process.wait(0.0)  # it is killed
    assert run(["report", str(root)]) == 0
    assert "was killed, or never came to its end" in (root / "report.html").read_text()
