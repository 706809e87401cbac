"""Kill a run with SIGKILL at random moments, start it again, and compare the final bytes.

`make soak N=50` prints how many of 50 runs ended as the uninterrupted one did.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from test_interrupted_runs import make_config, read_result

MOST_KILLS = 4


def start(folder: Path) -> subprocess.Popen:
    """Start the run of a folder, or take it up where it was killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "lit_sft", "fit", "--config", "config.yaml", "--ckpt_path", "auto"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "LIT_SFT_CACHE": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def make_folder(root: Path, name: str, workers: int) -> Path:
    """Make the folder of a run; its number of loader workers must make no difference."""
    folder = root / name
    folder.mkdir()
    (folder / "config.yaml").write_text(make_config(Path("lit_sft/tiny"), workers=workers))
    return folder


def kill_and_resume(folder: Path, rng: random.Random, seconds: float) -> int:
    """Run a folder to its end through a few kills, and return how many there were."""
    for kills in range(MOST_KILLS):
        process = start(folder)
        try:
            process.wait(rng.uniform(0.2, 1.2) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        else:
            return kills
    start(folder).wait()
    return MOST_KILLS


def main() -> int:
    """Print each trial, and how many survived; the exit status is 1 if any did not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, survived = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as root:
        whole = make_folder(Path(root), "whole", workers=0)
        started = time.monotonic()
        start(whole).wait()
        seconds = time.monotonic() - started
        expected = read_result(whole)
        for trial in range(args.trials):
            folder = make_folder(Path(root), f"trial{trial}", workers=trial % 2 * 2)
            kills = kill_and_resume(folder, rng, seconds)
            same = read_result(folder) == expected
            survived += same
            print(
                f"trial {trial}: {kills} kills, {'same bits' if same else 'DIFFERENT'}", flush=True
            )
    print(f"{survived} of {args.trials} survived")
    return 0 if survived == args.trials else 1


if __name__ == "__main__":
    sys.exit(main())
