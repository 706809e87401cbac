"""Break runs at random, go on with them, and compare what they leave with an unbroken run.

`make soak N=100` draws for each trial the layout of a run (ranks, loader workers, streaming, padded
or packed) and up to three faults: a signal or a kill in a phase or at any moment, or a disk that is
full at some byte. A trial survives if each broken run ends in time, with the status and the one
line that its fault has, and without a process left; and if the run that goes on to the end leaves
the files, the bytes and the upload of a run that nothing broke.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from command import ROOT
from forks import is_group_alive
from hub_server import HubServer, serve_hub
from small_run import isolated
from test_interrupted_runs import make_config, read_result

import lit_sft

PHASES = (
    *("loading", "first_evaluation", "window", "save", "evaluation", "end", "upload"),
    *("any", "any", "disk"),
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BYTES = (1, 200_000)
"""Between which a file may be too long for the disk: from the first row to most of a checkpoint."""
OPTIONS = ("--config", "config.yaml", "--ckpt_path", "auto")
LIMIT, PATIENCE = 180.0, 30.0
"""Seconds that a run may take, and that it may take to end when it is told to."""


class Layout(NamedTuple):
    """What of a run is drawn; all but the workers decide its bits."""

    ranks: int
    streaming: bool
    batching: str


class Fault(NamedTuple):
    """What breaks a run, once."""

    phase: str
    number: int
    times: int
    to: str
    step: int
    moment: float
    """As a share of the time that an unbroken run takes."""
    room: int
    """Of the disk, for one file, in bytes."""

    def __str__(self) -> str:
        if self.phase == "disk":
            return f"disk full at byte {self.room}"
        when = f"at {self.moment:.0%}" if self.phase == "any" else f"in {self.phase}"
        return f"{signal.Signals(self.number).name}*{self.times} to {self.to} {when}"


class Ending(NamedTuple):
    """How a broken run came to its end."""

    status: int
    seconds: float
    printed: str


def draw_layout(rng: random.Random) -> Layout:
    """Draw a layout; one run in three has two ranks."""
    batching = rng.choice(("padded", "padding_free"))
    return Layout(rng.choice((1, 1, 2)), rng.random() < 0.5, batching)


def draw_fault(rng: random.Random, ranks: int) -> Fault:
    """Draw a fault that a run of so many ranks may meet."""
    number = rng.choice(SIGNALS)
    return Fault(
        phase=rng.choice(PHASES),
        number=number,
        times=rng.choice((1, 2)) if number == signal.SIGTERM else 1,
        to=rng.choice(("first", "second", "group")) if ranks > 1 else "first",
        step=rng.randrange(1, 12),
        moment=rng.uniform(0, 1.2),
        room=int(BYTES[0] * (BYTES[1] / BYTES[0]) ** rng.random()),
    )


def make_folder(root: Path, name: str, layout: Layout, workers: int, faults: list[Fault]) -> Path:
    """Make the folder of a run that meets faults, one after the other."""
    folder = root / name
    folder.mkdir()
    task = "{class_path: lit_sft.WordProblems, init_args: {train_rows: 23, val_rows: 6}}"
    strikes = [
        {"number": i, "phase": x.phase, "signal": x.number, "times": x.times, "to": x.to}
        | {"step": x.step}
        for i, x in enumerate(faults)
        if x.phase not in ("any", "disk")
    ]
    callbacks = "".join(
        f"    - {{class_path: killers.Strike, init_args: {json.dumps(x)}}}\n" for x in strikes
    )
    callbacks += f"    - {{class_path: lit_sft.HubUpload, init_args: {{repo_id: me/{name}}}}}\n"
    config = make_config(Path("lit_sft/tiny"), callbacks, workers)
    config = config.replace("batch_size", f"batching: {layout.batching}\n  batch_size")
    if layout.streaming:
        assert task in config
        rows = lit_sft.WordProblems(train_rows=23, val_rows=6)
        for split in ("train", "val"):
            lines = [json.dumps({"messages": rows.messages(row)}) for row in rows.rows(split)]
            (folder / "data").mkdir(exist_ok=True)
            (folder / "data" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        config = config.replace(
            task, "{class_path: killers.GradedFile, init_args: {path: data}}\n  streaming: true"
        )
    if layout.ranks > 1:
        more = f"  devices: {layout.ranks}\n  strategy: ddp\n  accelerator: cpu\n"
        config = config.replace("trainer:\n", f"trainer:\n{more}")
    (folder / "config.yaml").write_text(config)
    return folder


def start(
    folder: Path, hub: HubServer, number: int | None = None, room: int | None = None
) -> subprocess.Popen:
    """Start the run of a folder, or take it up where it was broken.

    Args:
        folder: Of the run.
        hub: To which it uploads.
        number: Of the fault that it meets.
        room: Of the disk, for one file, in bytes.
    """
    environment = isolated(folder, HF_ENDPOINT=hub.url, HF_TOKEN="hf_x")
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}"}
    more["LIT_SFT_STRIKE"] = str(number)

    def fill_disk() -> None:
        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    with (folder / "printed.txt").open("w") as printed:
        return subprocess.Popen(
            [sys.executable, "-m", "lit_sft", "fit", *OPTIONS],
            cwd=folder,
            env=os.environ | environment | more,
            # A file would be too long for the disk, too.
            stdout=subprocess.PIPE if room is not None else printed,
            stderr=subprocess.STDOUT if room is not None else printed,
            start_new_session=True,
            preexec_fn=fill_disk,
        )


def wait(process: subprocess.Popen, folder: Path, limit: float) -> Ending:
    """Wait for a run and for every process that it started."""
    started = time.monotonic()
    output, _ = process.communicate(timeout=limit)
    while is_group_alive(process.pid):
        if time.monotonic() > started + limit:
            raise TimeoutError("a process of the run is left")
        time.sleep(0.05)
    printed = output.decode() if output else (folder / "printed.txt").read_text()
    return Ending(process.returncode, time.monotonic() - started, printed)


def break_run(folder: Path, hub: HubServer, number: int, fault: Fault, seconds: float) -> str:
    """Let a run meet a fault, and return what is wrong with its ending."""
    process = start(folder, hub, number, fault.room if fault.phase == "disk" else None)
    limit = LIMIT
    if fault.phase == "any":
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(fault.moment * seconds)
        if process.poll() is None:
            send(process, fault)
            limit = PATIENCE
    ending = wait(process, folder, limit)
    return judge(fault, ending)


def send(process: subprocess.Popen, fault: Fault) -> None:
    """Send what a fault sends, to the whole group or to the first rank."""
    for _ in range(fault.times):
        if fault.to == "group":
            os.killpg(process.pid, fault.number)
        else:
            os.kill(process.pid, fault.number)


def judge(fault: Fault, ending: Ending) -> str:
    """Return what is wrong with how a run ended that met a fault, or an empty string."""
    # Nothing happens where a phase is over: a run that is taken up has no first evaluation.
    allowed = {0, 128 + fault.number, -fault.number}
    if fault.phase == "disk":
        allowed = {0, 1, 2}
    elif fault.number == signal.SIGKILL:
        allowed = {0, -signal.SIGKILL} | ({1} if fault.to == "second" else set())
    elif fault.phase != "any":
        allowed -= {-fault.number}  # only Python's own start has no handler
    if ending.status not in allowed:
        return f"status {ending.status}, not one of {sorted(allowed)}: {ending.printed[-600:]}"
    if "took over" in ending.printed:
        return f"hangs: {ending.printed[-600:]}"
    is_killed = ending.status == -signal.SIGKILL
    if (
        "Traceback" in ending.printed
        and not is_killed
        and "KeyboardInterrupt" not in ending.printed
    ):
        return f"a traceback: {ending.printed[-1500:]}"
    return ""


def list_files(folder: Path) -> list[str]:
    """Return what a run has left, but for what the harness marks its faults with."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.name.startswith((".struck", ".cache"))
    )


def compare(folder: Path, whole: Path, hub: HubServer) -> str:
    """Return what of a run differs from one that nothing broke, or an empty string."""
    if read_result(folder) != read_result(whole):
        return "other bits or figures"
    generations = "run/logs/generations.jsonl"
    if (folder / generations).read_bytes() != (whole / generations).read_bytes():
        return "other answers"
    left, expected = list_files(folder / "run"), list_files(whole / "run")
    if left != expected:
        return f"other files: {sorted(set(left) ^ set(expected))}"
    if staged := [str(path) for path in (folder / "lit_sft").rglob("*.tmp")]:
        return f"left in the cache: {staged}"
    uploaded = hub.files[f"me/{folder.name}"]
    adapter = (folder / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    if uploaded["adapter_model.safetensors"] != adapter:
        return "another adapter on the Hub"
    return ""


class Trial(NamedTuple):
    """A run, and what breaks it one after the other."""

    number: int
    layout: Layout
    workers: int
    faults: list[Fault]

    def __str__(self) -> str:
        ranks, streaming, batching = self.layout
        where = f"{ranks} rank, {self.workers} workers, {batching}{', streamed' * streaming}"
        return f"trial {self.number}: {where}: {'; '.join(map(str, self.faults))}"


def draw_trial(rng: random.Random, number: int) -> Trial:
    """Draw the layout of a run, and up to three faults."""
    layout, workers = draw_layout(rng), rng.choice((0, 2))
    return Trial(
        number, layout, workers, [draw_fault(rng, layout.ranks) for _ in range(rng.randint(1, 3))]
    )


class Soak:
    """Trials, and the unbroken runs that they are compared with, each made once.

    Args:
        root: Where the runs lie.
        hub: To which they upload.
    """

    def __init__(self, root: Path, hub: HubServer) -> None:
        self.root, self.hub = root, hub
        self.whole: dict[Layout, tuple[Path, float]] = {}
        self.lock = threading.Lock()

    def try_once(self, trial: Trial) -> str:
        """Return what is wrong with a trial, or an empty string."""
        with self.lock:
            whole, seconds = self.find_whole(trial.layout)
        name, faults = f"trial{trial.number}", trial.faults
        folder = make_folder(self.root, name, trial.layout, trial.workers, faults)
        try:
            for number, fault in enumerate(faults):
                if problem := break_run(folder, self.hub, number, fault, seconds):
                    return f"{fault}: {problem}"
            ending = wait(start(folder, self.hub), folder, LIMIT)
            if ending.status == 0:
                return compare(folder, whole, self.hub)
        except (subprocess.TimeoutExpired, TimeoutError) as error:
            return f"{error}: {(folder / 'printed.txt').read_text()[-600:]}"
        return f"does not go on: status {ending.status}: {ending.printed[-600:]}"

    def find_whole(self, layout: Layout) -> tuple[Path, float]:
        """Return the folder of an unbroken run of a layout, and the seconds that it took."""
        if layout not in self.whole:
            folder = make_folder(self.root, f"whole{len(self.whole)}", layout, 0, [])
            ending = wait(start(folder, self.hub), folder, LIMIT)
            if ending.status:
                raise RuntimeError(f"an unbroken run fails: {ending.printed}")
            self.whole[layout] = folder, ending.seconds
        return self.whole[layout]


def main() -> int:
    """Print each trial, and how many survived; the exit status is 1 if any did not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    parser.add_argument("--only", type=int, nargs="+", help="of these trials, such as failed ones")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    trials = [draw_trial(rng, number) for number in range(args.trials)]
    trials = [trial for trial in trials if not args.only or trial.number in args.only]
    print(f"{len(trials)} trials, --seed {args.seed}", flush=True)
    survived = 0
    with tempfile.TemporaryDirectory() as root, serve_hub() as hub:
        soak = Soak(Path(root), hub)
        with ThreadPoolExecutor(args.jobs) as pool:
            for trial, problem in zip(trials, pool.map(soak.try_once, trials), strict=True):
                survived += not problem
                print(f"{trial}: {problem or 'as an unbroken run'}", flush=True)
    print(f"{survived} of {len(trials)} survived")
    return 0 if survived == len(trials) else 1


if __name__ == "__main__":
    sys.exit(main())
